"""Become a daemon, whose files get the numbers that the pool's descriptors had.

Half of them are sockets, since libpq can write to nothing else.  Writes one JSON
object to the file REPORT: how three borrowers were ``served``, what became of a
connection that was ``lent`` meanwhile, into which files somebody has
``written``, and which have been ``closed``.

Usage: ``python -m tests.support.apps.daemon_program DSN REPORT HOW BEFORE NUM_WORKERS TESTS``
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg2_pool2 import ConnectionPool, PoolError
from tests.support.waiting import wait_until

FILES = 20
MAXCONN = 3
SECONDS = 60
HIGHEST = 1024


def ask(conn: Any) -> int:
    with conn.cursor() as cursor:
        cursor.execute("SELECT 1")
        return int(cursor.fetchone()[0])


def close_all() -> None:
    """Do with python-daemon what a daemon does that a service manager has started."""
    import daemon

    daemon.DaemonContext(detach_process=False).open()


def detach() -> None:
    import daemon

    daemon.DaemonContext(detach_process=True).open()


def detach_by_hand() -> None:
    for begin_session in (os.setsid, lambda: None):
        if os.fork():
            os._exit(0)
        begin_session()
    os.closerange(0, HIGHEST)
    os.open(os.devnull, os.O_RDWR)
    for number in (1, 2):
        os.dup2(0, number)


HOWS: dict[str, Callable[[], object]] = {
    "closed": close_all,
    "detached": detach,
    "by hand": detach_by_hand,
}


class Files:
    """The files of the daemon."""

    def __init__(self) -> None:
        self._plain = [tempfile.TemporaryFile() for _ in range(FILES)]  # noqa: SIM115
        self._sockets = [end for _ in range(FILES) for end in socket.socketpair()]
        for end in self._sockets:
            end.setblocking(False)
        self._all = [file.fileno() for file in self._plain]
        self._all += [end.fileno() for end in self._sockets]
        self._status = self._look()

    def _look(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for number in self._all:
            try:
                status = os.fstat(number)
            except OSError:
                found.append(None)
            else:
                found.append((status.st_dev, status.st_ino))
        return found

    def closed(self) -> list[int]:
        """Return the numbers that are not theirs any more."""
        pairs = zip(self._all, self._status, self._look(), strict=True)
        return [number for number, before, now in pairs if before != now]

    def written(self) -> list[str]:
        """Return what was written, and sockets that were shut down."""
        found = [f"{os.fstat(f.fileno()).st_size} bytes" for f in self._plain]
        found = [text for text in found if text != "0 bytes"]
        for end in self._sockets:
            with contextlib.suppress(BlockingIOError):
                found.append(repr(end.recv(100)))
        return found


def borrow_three_times(pool: ConnectionPool) -> list[object]:
    served: list[object] = []
    for _ in range(3):
        try:
            with pool.conn() as conn:
                served.append(ask(conn))
        except Exception as error:
            served.append(f"{type(error).__name__}: {error}")
    return served


def give_back(pool: ConnectionPool, conns: list[Any], before: str) -> str:
    """Do with what was lent what the program does: return, close or drop it."""
    if not conns:
        return "none"
    try:
        if before == "returned":
            pool.putconn(conns[0])
        elif before == "closed":
            conns[0].close()
            pool.putconn(conns[0])
    except PoolError as error:
        return f"{type(error).__name__}: {error}"
    conns.clear()
    gc.collect()
    return "fine"


def run(pool: ConnectionPool, how: str, before: str) -> dict[str, Any]:
    conns: list[Any] = []
    if before != "unused":
        lent = [pool.getconn() for _ in range(MAXCONN)]
        for conn in lent:
            ask(conn)
            conn.rollback()
        if before != "idle":
            conns.append(lent.pop())
        for conn in lent:
            pool.putconn(conn)
        del lent, conn
    HOWS[how]()
    files = Files()
    if pool.test_on_borrow is False and pool._options.num_workers:
        # Without a test it takes the monitor a moment to notice.
        wait_until(lambda: not pool.stats().idle)
    served = borrow_three_times(pool)
    told = give_back(pool, conns, before)
    served += borrow_three_times(pool)
    in_use = pool.stats().in_use
    pool.shutdown()
    gc.collect()
    return {
        "served": served,
        "lent": told,
        "in_use": in_use,
        "written": files.written(),
        "closed": files.closed(),
    }


def main(dsn: str, report: str, how: str, before: str, num_workers: str, tests: str) -> None:
    signal.alarm(SECONDS)
    pool = ConnectionPool(
        0,
        MAXCONN,
        dsn=dsn,
        num_workers=int(num_workers),
        timeout=10,
        test_on_borrow=tests == "tested",
    )
    try:
        told: object = run(pool, how, before)
    except BaseException:
        told = traceback.format_exc()
    unfinished = Path(report + ".part")
    unfinished.write_text(json.dumps(told))
    unfinished.rename(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
