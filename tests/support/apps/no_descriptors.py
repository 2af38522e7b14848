"""Use a pool while the process has no descriptor left; print one JSON object of what happened.

Usage: ``python -m tests.support.apps.no_descriptors DSN NUM_WORKERS SCENE``
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.monitor import get_monitor
from psycopg2_pool2.watch import EpollSleeper
from tests.support.apps.daemon_program import ask
from tests.support.waiting import wait_until

LIMIT = 100
TIMEOUT = 4


@contextlib.contextmanager
def no_descriptor() -> Iterator[None]:
    """Leave none free."""
    held = []
    try:
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        yield
    finally:
        for fd in held:
            os.close(fd)


def silent_server(make: Callable[[], ConnectionPool]) -> dict[str, Any]:
    """Borrow from a server that has stopped, when its time is over while there is none."""
    pool = make()
    conn = pool.getconn()
    pid = conn.info.backend_pid
    pool.putconn(conn)
    os.kill(pid, signal.SIGSTOP)
    told: list[str] = []

    def borrow() -> None:
        try:
            pool.putconn(pool.getconn())
            told.append("served")
        except Exception as error:
            told.append(type(error).__name__)

    began = time.monotonic()
    with no_descriptor():
        thread = threading.Thread(target=borrow, daemon=True)
        thread.start()
        thread.join(2)
    thread.join(20)
    seconds = time.monotonic() - began
    os.kill(pid, signal.SIGCONT)
    return {"told": told, "in_time": seconds < TIMEOUT + 2}


def forked(make: Callable[[], ConnectionPool], holds: bool) -> dict[str, Any]:
    """Fork; the child asks on what it inherited, or borrows."""
    pool = make()
    conn: Any = pool.getconn()
    pid = conn.info.backend_pid
    if not holds:
        pool.putconn(conn)
        conn = None
    reader, writer = os.pipe()
    with no_descriptor():
        child = os.fork()
        if child == 0:
            tell_from_child(pool, conn, writer)
        os.waitpid(child, 0)
    mine = conn or pool.getconn()
    ask(mine)
    return {
        "child": os.read(reader, 10_000).decode(),
        "parents": pid,
        "parent_keeps_its_session": mine.info.backend_pid == pid,
    }


def tell_from_child(pool: ConnectionPool, conn: Any, writer: int) -> None:
    try:
        conn = conn or pool.getconn(timeout=1)
        with conn.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            text = str(cursor.fetchone()[0])
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    os.write(writer, text.encode())
    os._exit(0)


def forked_with_a_loan(make: Callable[[], ConnectionPool]) -> dict[str, Any]:
    return forked(make, holds=True)


def forked_with_an_idle_one(make: Callable[[], ConnectionPool]) -> dict[str, Any]:
    return forked(make, holds=False)


def no_connection(make: Callable[[], ConnectionPool]) -> dict[str, Any]:
    """Make a pool and borrow while there is none, and afterwards."""
    with no_descriptor():
        pool = make()
        try:
            pool.getconn(timeout=0)
        except psycopg2.OperationalError as error:
            told = f"{type(error).__name__}: {error}"
        else:
            told = "served"
    with pool.conn(timeout=20) as conn:
        served = ask(conn)
        pid = conn.info.backend_pid
    if pool._options.num_workers:
        # As soon as it has descriptors it watches again.
        wait_until(lambda: isinstance(get_monitor()._sleeper, EpollSleeper))
        with psycopg2.connect(pool.connect_kwargs["dsn"]) as other, other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until(lambda: not pool.stats().idle)
    return {"told": told, "served": served}


SCENES: dict[str, Callable[[Callable[[], ConnectionPool]], dict[str, Any]]] = {
    "silent server": silent_server,
    "forked with a loan": forked_with_a_loan,
    "forked with an idle one": forked_with_an_idle_one,
    "no connection": no_connection,
}


def main(dsn: str, num_workers: str, scene: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))

    def make() -> ConnectionPool:
        return ConnectionPool(
            0,
            3,
            dsn=dsn,
            timeout=TIMEOUT,
            test_timeout=1,
            num_workers=int(num_workers),
            health_check_interval=0,
        )

    print(json.dumps(SCENES[scene](make)))
    sys.stdout.flush()
    os._exit(0)  # a session may have been stopped


if __name__ == "__main__":
    main(*sys.argv[1:])
