"""A program whose tests freeze or move its clocks: `frozen TOOL HOW WHEN DSN`.

Tells what its pools still do meanwhile, and afterwards.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import psycopg2


def travel(tool: str, how: str, when: str) -> AbstractContextManager[Any]:
    """Return the context in which the clocks are not what they should be."""
    if tool == "freezegun":
        from freezegun import freeze_time

        step = 900.0 if how == "stepping" else 0.0
        context: AbstractContextManager[Any] = freeze_time(
            when, tick=how == "ticking", auto_tick_seconds=step
        )
        return context
    import time_machine

    return time_machine.travel(when, tick=how == "ticking")


class Log(logging.Handler):
    """Keeps what is worth a warning."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.told.append(record.getMessage())


class Database:
    """What the server says of the pools' sessions."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg2.connect(dsn, application_name="frozen")
        self._conn.autocommit = True

    def ask(self, sql: str) -> Any:
        """Return the first value of the answer."""
        with self._conn.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone()
        assert row is not None
        return row[0]

    def has_two(self, name: str) -> bool:
        """Tell whether a pool has two sessions, and has just begun neither of them."""
        return bool(
            self.ask(
                "SELECT count(*) = 2 AND max(backend_start) < clock_timestamp() - interval '0.4 s'"
                f" FROM pg_stat_activity WHERE application_name = '{name}'"
            )
        )

    def end_sessions(self, *names: str) -> None:
        """End the sessions of these pools."""
        listed = ", ".join(f"'{name}'" for name in names)
        self.ask(
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
            f" WHERE application_name IN ({listed})"
        )


def comes_true(predicate: Callable[[], bool]) -> bool:
    """Wait for it, without asking a clock."""
    for _ in range(2000):
        if predicate():
            return True
        threading.Event().wait(0.01)
    return False


def main() -> None:
    """Be the program."""
    tool, how, when, dsn = sys.argv[1:]
    log = Log()
    logging.getLogger().addHandler(log)
    database = Database(dsn)
    if when.startswith("import:"):
        with travel(tool, how, when.removeprefix("import:")):
            import psycopg2_pool2  # for the first time
    import psycopg2_pool2
    from psycopg2_pool2 import ConnectionPool

    def pool(name: str, **options: Any) -> ConnectionPool:
        defaults = {"dsn": dsn, "timeout": 5, "application_name": name}
        return ConnectionPool(2, 4, **{**defaults, **options})

    def keeps_two(*names: str) -> bool:
        return comes_true(lambda: all(map(database.has_two, names)))

    before = pool("frozen-before")
    with travel(tool, how, when.removeprefix("import:")):
        during = pool("frozen-during", idle_timeout=0.2, reap_idle_interval=0.05)
        print("minconn are opened:", keeps_two("frozen-before", "frozen-during"))
        database.end_sessions("frozen-before", "frozen-during")
        print("minconn comes back:", keeps_two("frozen-before", "frozen-during"))
        conns = [during.getconn() for _ in range(4)]
        try:
            during.getconn(timeout=0.2)
        except psycopg2_pool2.PoolTimeout:
            print("a borrower waits for so long: True")
        for conn in conns:
            during.putconn(conn)
        print("idle ones are reaped:", keeps_two("frozen-during"))
    database.end_sessions("frozen-before", "frozen-during")
    print("minconn comes back afterwards:", keeps_two("frozen-before", "frozen-during"))
    print("warnings:", log.told)
    before.shutdown()
    during.shutdown()


if __name__ == "__main__":
    main()
