"""Statements on a connection, and their rows."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg2
from psycopg2 import extras

from .connector import Connection

Sql = Any  # str, bytes or psycopg2.sql.Composable
Params = Sequence[Any] | Mapping[str, Any] | None
CursorFactory = Callable[..., Any] | None

_numbers = itertools.count(1)

PAGE = 1000
"""Rows that go into one INSERT."""

# One tuple of values, in which parentheses may be nested once, or psycopg2's %s for
# one, and no other parameters.  Not ON CONFLICT DO UPDATE, which refuses a row that
# comes twice in one statement.
_VALUES = re.compile(
    r"""\A (?P<before>
        \s* INSERT \s+ INTO \b (?: (?! \b SELECT \b | -- | /\* ) [^%'] )*? \b VALUES \s* )
    (?P<row> \( (?! [^;]* \b SELECT \b ) (?: [^()'"] | \( [^()'"]* \) )* \) | %s )
    (?P<after> (?! .* \b UPDATE \b ) [^%(]* (?: \([^%()]*\) [^%()]* )* ) \Z""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def rows(conn: Connection, sql: Sql, params: Params, factory: CursorFactory) -> list[Any]:
    """Execute a statement; return all its rows, none if it has no result."""
    with open_cursor(conn, factory) as cursor:
        cursor.execute(sql, params)
        found: list[Any] = cursor.fetchall() if cursor.description else []
        return found


def first_row(conn: Connection, sql: Sql, params: Params, factory: CursorFactory) -> Any:
    """Execute a statement; return its first row, None if there is none."""
    with open_cursor(conn, factory) as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone() if cursor.description else None


def first_value(conn: Connection, sql: Sql, params: Params, factory: CursorFactory) -> Any:
    """Execute a statement; return the first value of its first row, None if there is no row."""
    row = first_row(conn, sql, params, factory)
    if row is None:
        return None
    return next(iter(row.values() if isinstance(row, Mapping) else row))


def many(conn: Connection, sql: Sql, all_params: Iterable[Params]) -> int:
    """Execute a statement once for each of the parameters; return how many rows it affected.

    ``INSERT ... VALUES (...)`` is sent for many rows at once.
    """
    with conn.cursor() as cursor:
        text = sql.as_string(cursor) if hasattr(sql, "as_string") else sql
        parts = _VALUES.match(text) if isinstance(text, str) else None
        if parts is None:
            return sum(_affected(cursor, text, params) for params in all_params)
        into = f"{parts['before']}%s{parts['after']}"
        template = None if parts["row"] == "%s" else parts["row"]
        affected = 0
        for page in _pages(all_params, PAGE):
            extras.execute_values(cursor, into, page, template, page_size=PAGE)
            affected += cursor.rowcount
        return affected


def _affected(cursor: Any, sql: Sql, params: Params) -> int:
    cursor.execute(sql, params)
    return max(0, int(cursor.rowcount))  # -1 where there is nothing to count


def _pages(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while page := list(itertools.islice(iterator, size)):
        yield page


def open_cursor(conn: Connection, factory: CursorFactory, name: str | None = None) -> Any:
    """Return a cursor of the kind that ``factory`` makes, else the connection's own kind."""
    if factory is None:
        return conn.cursor(name)
    return conn.cursor(name, cursor_factory=factory)


class Stream:
    """The rows of a query, fetched some at a time through a cursor of the server's."""

    __slots__ = ("_cursor", "_factory", "_params", "_size", "_sql")

    def __init__(self, sql: Sql, params: Params, size: int, factory: CursorFactory) -> None:
        self._sql = sql
        self._params = params
        self._size = size
        self._factory = factory
        self._cursor: Any = None

    def open(self, conn: Connection) -> None:
        """Begin the query."""
        self._cursor = open_cursor(conn, self._factory, f"psycopg2_pool2_{next(_numbers)}")
        self._cursor.execute(self._sql, self._params)

    def fetch(self, _: Connection) -> list[Any]:
        """Return the next rows, none at the end."""
        return list(self._cursor.fetchmany(self._size))

    def close(self, _: Connection) -> None:
        """End the query; harmless on a connection that is lost, or in a failed transaction."""
        if self._cursor is not None:
            with contextlib.suppress(psycopg2.Error):
                self._cursor.close()
