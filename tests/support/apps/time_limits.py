"""Borrow, use and return while a signal handler raises at random moments.

Each exception has to end the loan that it hits, as Celery's time limit has to end
its task.  Prints one JSON object: how many were ``raised``, how many ``arrived``,
``others`` that the program met instead, and the pool's ``stats`` afterwards.

Usage: ``python -m tests.support.apps.time_limits DSN ERROR TIMES POOL_ARGUMENTS``,
the last one in JSON; a test "callable" stands for a function.
"""

from __future__ import annotations

import gc
import json
import random
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Any

from psycopg2_pool2 import ConnectionPool


class TimeLimitExceeded(Exception):
    """What a time limit raises."""


ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (TimeLimitExceeded, TimeoutError, RuntimeError)
}


class Limit:
    """Raises an error after a random while, by a signal handler; counts how often."""

    def __init__(self, error: type[Exception]) -> None:
        self.raised = 0
        self.where: list[traceback.FrameSummary] = []
        self._error = error
        signal.signal(signal.SIGALRM, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.raised += 1
        self.where = traceback.extract_stack(frame)[-8:]
        raise self._error("time limit")

    def start(self) -> None:
        """Raise within three milliseconds."""
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.003))


def ask(conn: Any) -> None:
    """Be a test of the program's own."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT 1")


def loans(pool: ConnectionPool, until: float) -> None:
    """Borrow, use and return, again and again."""
    while time.monotonic() < until:
        conn = pool.getconn()
        try:
            ask(conn)
        finally:
            pool.putconn(conn)


def main() -> None:
    """Run as the module's docstring says."""
    dsn, error, times, arguments = sys.argv[1:]
    options: dict[str, Any] = json.loads(arguments)
    if options.get("test_on_borrow") == "callable":
        options["test_on_borrow"] = ask
    pool = ConnectionPool(0, 2, timeout=10, dsn=dsn, **options)
    limit = Limit(ERRORS[error])
    arrived = 0
    others: list[str] = []
    for _ in range(int(times)):
        before = limit.raised
        try:
            limit.start()
            loans(pool, time.monotonic() + 5)
        except ERRORS[error]:
            arrived += 1
        except Exception as met:
            others.append(repr(met))
        if limit.raised == before:
            others.append("no signal came")
        elif arrived + len(others) < limit.raised:
            others.append("swallowed:\n" + "".join(traceback.format_list(limit.where)))
        gc.collect()  # a loan that was hit on its way is collected
    stats = pool.stats()
    print(
        json.dumps(
            {
                "raised": limit.raised,
                "arrived": arrived,
                "others": others,
                "stats": [stats.in_use, stats.idle],
            }
        )
    )
    pool.shutdown()


if __name__ == "__main__":
    main()
