"""The doctor's own connections to a server, opened and tested as a pool does it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from psycopg2_pool2.connector import Connection, Connector

APPLICATION = "psycopg2_pool2 doctor"

_CONNECTS = 3
_QUERIES = 11


class Connections:
    """Connections to one server; as a context manager they are opened, and closed at the end.

    `where` are the keywords that lead there, `seconds` is how long to wait for each connection.
    The server's role does not matter for them.
    """

    def __init__(self, params: Mapping[str, Any], where: Mapping[str, Any], seconds: float) -> None:
        own = {"application_name": APPLICATION, "target_session_attrs": "any"}
        self._params = {**params, **own}
        self._where = where
        self._seconds = seconds
        self._connector = connector_for(self._params)
        self._pool_connector = connector_for(params)
        self._open: list[Connection] = []
        self.connect_seconds = 0.0

    def __enter__(self) -> Connections:
        try:
            times = [_timed(self._add) for _ in range(_CONNECTS)]
        except BaseException:
            self._close()
            raise
        self.connect_seconds = statistics.median(times)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    @property
    def first(self) -> Connection:
        """The first of them."""
        return self._open[0]

    @property
    def second(self) -> Connection:
        """The second of them."""
        return self._open[1]

    def time_query(self) -> float:
        """Return the seconds that a pool's test takes: the median of several."""
        test = self._connector.test
        return statistics.median(_timed(lambda: test(self.first)) for _ in range(_QUERIES))

    def suits(self) -> bool:
        """Tell whether a pool would keep the server, judged by its last answer."""
        return not self._pool_connector.has_lost_role(self.first)

    def ask_elsewhere(self, database: str, *statements: str) -> list[list[tuple[Any, ...]]]:
        """Return the rows of statements in another database of the same server."""
        connector = connector_for({**self._params, "dbname": database})
        conn = self._connect(connector)
        try:
            return [ask(conn, sql) for sql in statements]
        finally:
            connector.close(conn)

    def _add(self) -> None:
        self._open.append(self._connect(self._connector))

    def _connect(self, connector: Connector) -> Connection:
        conn = connector.open(self._where, self._seconds)
        connector.prepare(conn)
        return conn

    def _close(self) -> None:
        for conn in self._open:
            self._connector.close(conn)


def connector_for(params: Mapping[str, Any]) -> Connector:
    """Return what opens a pool's connections, here in autocommit."""
    return Connector(
        params, connect_params=None, configure=_configure, test=True, reset=None, home=None
    )


def ask(conn: Connection, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement."""
    with conn.cursor() as cursor:
        cursor.execute(sql)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _configure(conn: Connection) -> None:
    conn.autocommit = True  # a statement pooler refuses transactions


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
