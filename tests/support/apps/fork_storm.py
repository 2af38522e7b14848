"""Fork again and again while other threads hold every lock there is.

Threads borrow and return, ask for figures, change sizes, discard and log, on a
pool whose sessions come and go and on one whose sessions must not; the main
thread forks.  Each child borrows from both, asks for its own nonce, returns and
ends.  With ``CONNECTING`` so many threads more do nothing but connect.

Prints one JSON object: the number of ``forks``, the ``children`` that went wrong
with what they wrote (a child that hangs: its stacks), the ``threads`` that did,
and what was ``touched`` of the parent's sessions.

Usage: ``python -m tests.support.apps.fork_storm DSN NUM_WORKERS FORKS [CONNECTING]``
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

from psycopg2_pool2 import ConnectionPool

SESSIONS = 3
AT_ONCE = 5
CHILD_SECONDS = 20
STACK_SECONDS = 2

logger = logging.getLogger("psycopg2_pool2")


def ask_nonce(conn: Any) -> int:
    """Have a session repeat a nonce and tell its backend; fail if it repeats another's."""
    nonce = random.getrandbits(62)
    with conn.cursor() as cursor:
        cursor.execute("SELECT %s::bigint, pg_backend_pid()", [nonce])
        [(repeated, backend)] = cursor.fetchall()
    assert repeated == nonce, f"asked {nonce}, answered {repeated}"
    return int(backend)


def use(pool: ConnectionPool) -> int:
    """Borrow, ask, return; tell which backend it was."""
    with pool.conn(timeout=CHILD_SECONDS) as conn:
        return ask_nonce(conn)


def backends(pool: ConnectionPool, number: int) -> set[int]:
    """Borrow so many at a time and ask each."""
    conns = [pool.getconn(timeout=CHILD_SECONDS) for _ in range(number)]
    try:
        return {ask_nonce(conn) for conn in conns}
    finally:
        for conn in conns:
            pool.putconn(conn)


class Threads:
    """Threads that each do one thing on and on."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, act: Callable[[], object]) -> None:
        """Do this until the end."""
        thread = threading.Thread(target=self._run, args=(act,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def finish(self) -> None:
        """End them all."""
        self._stop.set()
        for thread in self._threads:
            thread.join(CHILD_SECONDS)
            if thread.is_alive():
                self.errors.append(f"hangs: {thread.name}")

    def _run(self, act: Callable[[], object]) -> None:
        try:
            while not self._stop.is_set():
                act()
        except BaseException:
            self.errors.append(traceback.format_exc())


def start_threads(threads: Threads, calm: ConnectionPool, restless: ConnectionPool) -> None:
    """Keep every lock of the pools, of logging and of the monitor busy."""

    def discard() -> None:
        restless.discard_all_idle()
        time.sleep(0.005)  # else the server does nothing but begin sessions

    def change_sizes() -> None:
        for minconn, maxconn in ((0, 2), (2, 4), (1, 3)):
            restless.resize(minconn, maxconn)

    def tell() -> None:
        for pool in (calm, restless):
            pool.get_stats()
            pool.stats()
            pool.endpoints()

    def log() -> None:
        logger.warning("%r and %r", calm, restless)

    for act in (
        lambda: use(calm),
        lambda: use(calm),
        lambda: use(restless),
        lambda: use(restless),
        change_sizes,
        discard,
        tell,
        log,
    ):
        threads.start(act)


def start_connecting(threads: Threads, pool: ConnectionPool, number: int) -> None:
    """Open connections all the time: libpq's libraries have locks too."""

    def connect() -> None:
        pool.putconn(pool.getconn(timeout=CHILD_SECONDS), close=True)

    for _ in range(number):
        threads.start(connect)


class Unbuffered(logging.Handler):
    """A handler whose lock logging itself takes care of at a fork.

    A file object has a lock of its own, which a child may inherit locked for
    ever; that is Python's, and no pool can mend it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with open(os.devnull, "wb", buffering=0) as file:
            file.write(self.format(record).encode())


class Child:
    """One forked child."""

    def __init__(self, calm: ConnectionPool, restless: ConnectionPool, quietly: bool) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        # Before the fork, so that a child that hangs in its first moment tells where.
        faulthandler.register(signal.SIGUSR1, file=self._output, all_threads=True)
        self._deadline = time.monotonic() + CHILD_SECONDS
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(self._output.fileno(), 2)
            use(calm)
            use(restless)
            logger.error("a child logs")
            if quietly:
                os._exit(0)
            sys.exit()

    def wait(self) -> str:
        """Return what went wrong, nothing if it ended well."""
        status = self._wait_until(self._deadline)
        if status is None:
            os.kill(self.pid, signal.SIGUSR1)
            status = self._wait_until(time.monotonic() + STACK_SECONDS)
        if status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        with self._output as output:
            output.seek(0)
            told = output.read().decode()
        return "" if status == 0 and not told else f"status {status}: {told}"

    def _wait_until(self, deadline: float) -> int | None:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)


def main(dsn: str, num_workers: str, forks: str, connecting: str = "0") -> None:
    logger.addHandler(Unbuffered())
    logger.propagate = False
    options: dict[str, Any] = {"dsn": dsn, "num_workers": int(num_workers)}
    # A turn of a thread is 5 ms unless told, and mostly ends in a system call, where
    # nobody holds a lock of the pool; short turns end anywhere.
    sys.setswitchinterval(0.00001)
    with (
        ConnectionPool(SESSIONS, SESSIONS, **options) as calm,
        ConnectionPool(1, 3, **options) as restless,
        ConnectionPool(0, 10, **options) as hasty,
    ):
        before = backends(calm, SESSIONS)
        threads = Threads()
        start_threads(threads, calm, restless)
        start_connecting(threads, hasty, int(connecting))
        bad: list[str] = []
        born = 0
        while born < int(forks) and not bad:
            children = [
                Child(calm, restless, quietly=number % 2 == 0)
                for number in range(min(AT_ONCE, int(forks) - born))
            ]
            born += len(children)
            bad += filter(None, [child.wait() for child in children])
        threads.finish()
        after = backends(calm, SESSIONS)
        restless.resize(1, 3)
        assert len(backends(restless, 3)) == 3
    touched = [] if after == before else [f"{sorted(before)} became {sorted(after)}"]
    print(
        json.dumps(
            {
                "forks": born,
                "children": bad,
                "threads": threads.errors,
                "touched": touched,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
