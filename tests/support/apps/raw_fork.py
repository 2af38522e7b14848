"""Fork as a C library does, so that Python's hooks do not run.

Prints one JSON object: how the child ended (``status``), what it wrote
(``errors``), what was ``touched`` of the parent's sessions, and whether the
parent's pool still ``notices`` at once that a server has hung up.

Usage: ``python -m tests.support.apps.raw_fork DSN NUM_WORKERS TESTS ACT``, where
TESTS is 1 if connections are tested when they are borrowed, else 0.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2

from psycopg2_pool2 import ConnectionPool
from tests.support.apps.forking_parent import ask, wait_for_end
from tests.support.apps.sessions import Witness
from tests.support.waiting import in_thread, wait_until

SESSIONS = 3
NOTICED_WITHIN = 20
THREADS = 8

Act = Callable[[ConnectionPool, Any], object]


def borrow(pool: ConnectionPool, conn: Any) -> None:
    """Borrow all that the pool may have, and have the end of one noticed."""
    mine = backends(pool, SESSIONS)
    assert len(set(mine)) == SESSIONS
    assert pool.stats().in_use == 0
    if pool._options.num_workers:
        assert notices(pool)
    pool.close()


def borrow_at_once(pool: ConnectionPool, conn: Any) -> None:
    """Borrow in many threads, of which none has noticed the fork before the others begin."""
    sys.setswitchinterval(1e-6)
    begin = threading.Barrier(THREADS)

    def lend() -> int:
        begin.wait(10)
        mine = pool.getconn()
        try:
            return int(ask(mine, "SELECT pg_backend_pid()"))
        finally:
            pool.putconn(mine)

    running = [in_thread(lend) for _ in range(THREADS)]
    used = {thread.result() for thread in running}
    assert 0 < len(used) <= SESSIONS
    assert pool.stats().in_use == 0
    pool.close()


def return_it(pool: ConnectionPool, conn: Any) -> None:
    pool.putconn(conn)


def return_to_be_closed(pool: ConnectionPool, conn: Any) -> None:
    pool.putconn(conn, close=True)


def close_it(pool: ConnectionPool, conn: Any) -> None:
    conn.close()


def close_the_pool(pool: ConnectionPool, conn: Any) -> None:
    pool.close()


def discard_idle(pool: ConnectionPool, conn: Any) -> None:
    pool.discard_all_idle()


def check(pool: ConnectionPool, conn: Any) -> None:
    pool.check()


def reap(pool: ConnectionPool, conn: Any) -> None:
    pool.resize(0, 1)
    pool.reap_idle_connections()


def return_and_borrow(pool: ConnectionPool, conn: Any) -> None:
    pool.putconn(conn)
    borrow(pool, conn)


ACTS: dict[str, Act] = {
    "borrow": borrow,
    "borrow at once": borrow_at_once,
    "return": return_it,
    "return and borrow": return_and_borrow,
    "return to be closed": return_to_be_closed,
    "close": close_it,
    "close the pool": close_the_pool,
    "discard idle": discard_idle,
    "check": check,
    "reap": reap,
}


def backends(pool: ConnectionPool, number: int) -> list[int]:
    """Borrow so many at a time; tell their backends, as these tell themselves."""
    conns = [pool.getconn(timeout=10) for _ in range(number)]
    try:
        return [ask(conn, "SELECT pg_backend_pid()") for conn in conns]
    finally:
        for conn in conns:
            pool.putconn(conn)


def notices(pool: ConnectionPool) -> bool:
    """End the pool's idle sessions; tell whether the pool throws them out by itself."""
    pids = backends(pool, SESSIONS)
    conn = psycopg2.connect(pool.connect_kwargs["dsn"])
    try:
        ask(conn, f"SELECT count(pg_terminate_backend(pid)) FROM unnest(ARRAY{pids}) pid")
    finally:
        conn.close()
    deadline = time.monotonic() + NOTICED_WITHIN
    while pool.stats().idle and time.monotonic() < deadline:
        time.sleep(0.002)
    return not pool.stats().idle


def fork_unnoticed() -> int:
    """Fork without Python's hooks; the global interpreter lock is kept meanwhile."""
    # Nobody mends the interpreter's own locks in the child, which a thread may have that wants
    # to run.
    before = None
    while (now := switches_of_sleepers()) is None or now != before:
        before = now
        time.sleep(0.02)
    return int(ctypes.PyDLL(None).fork())


def switches_of_sleepers() -> dict[str, str] | None:
    """Return how often each other thread has gone to sleep; None unless all of them sleep."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        if int(task.name) != threading.get_native_id():
            try:
                lines = (task / "status").read_text().splitlines()
            except OSError:  # it has just ended
                return None
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if not status["State"].startswith("S"):
                return None
            found[task.name] = status["voluntary_ctxt_switches"]
    return found


def end_threads(pool: ConnectionPool) -> Callable[[], None]:
    """Have the pool's threads end; return how to get them again.

    Where a thread waits for the interpreter's lock in the moment of a fork, one that
    is started in the child may never get it, once in some hundred forks.
    """
    monitor = pool._monitor
    if monitor is None:
        return _nothing
    monitor.dismiss(pool)
    wait_until(lambda: threading.active_count() == 1)
    return lambda: _serve_again(pool)


def _serve_again(pool: ConnectionPool) -> None:
    assert pool._monitor is not None
    assert pool._monitor.serve(pool, pool._options.num_workers)


def _nothing() -> None:
    pass


def run_child(call: Callable[[], object]) -> None:
    status = 1
    try:
        call()
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def hold_lock(pool: ConnectionPool) -> Callable[[], None]:
    """Have a thread hold the lock that is taken when others wait; return how to end that."""
    store, held, end = pool._store, threading.Event(), threading.Event()

    def hold() -> None:
        with store._lock:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    store.attention = True

    def release() -> None:
        end.set()
        thread.join()
        store.attention = False

    return release


PREPARE: dict[str, Callable[[ConnectionPool], Callable[[], None]]] = {
    "return": hold_lock,
    "borrow at once": end_threads,
}
"""What is done before the fork; returns what to do after it."""


def main(dsn: str, num_workers: str, tests: str, act: str) -> None:
    pool = ConnectionPool(
        0,
        SESSIONS,
        dsn=dsn,
        num_workers=int(num_workers),
        test_on_borrow=tests == "1",
        timeout=10,
        health_check_interval=0,
    )
    witness = Witness(dsn)
    sessions = backends(pool, SESSIONS)
    conn = pool.getconn()
    before = witness.look(sessions)
    undo = PREPARE[act](pool) if act in PREPARE else _nothing
    with tempfile.TemporaryFile() as errors:
        child = fork_unnoticed()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            run_child(lambda: ACTS[act](pool, conn))
        status = wait_for_end(child)
        errors.seek(0)
        told = errors.read().decode()
    touched = witness.changes(before)
    witness.close()
    undo()
    pool.putconn(conn)
    noticed = notices(pool) if int(num_workers) else None
    print(json.dumps({"status": status, "errors": told, "touched": touched, "notices": noticed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
