"""psycopg2.pool's pool, operation for operation, on top of this package's.

It inherits psycopg2's class too, for programs that ask for it by ``isinstance``;
every public method and attribute is this package's.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import psycopg2.pool

from .connector import Connection
from .errors import PoolClosed, PoolError, PoolExhausted
from .hidden import HiddenDict
from .pool import ConnectionPool

_CONNECT_ARGS = ("dsn", "connection_factory", "cursor_factory")
# psycopg2's words and no more: programs compare them.
_CLOSED = "connection pool is closed"
_EXHAUSTED = "connection pool exhausted"
_UNKEYED = "trying to put unkeyed connection"


class ThreadedConnectionPool(  # type: ignore[override]  # closed is read-only here
    ConnectionPool, psycopg2.pool.ThreadedConnectionPool
):
    """What ``psycopg2.pool.ThreadedConnectionPool`` is, for programs written for that.

    ``minconn``
        How many to keep open; the constructor opens them, or raises what
        :func:`psycopg2.connect` raised.
    ``maxconn``
        How many may be open at a time.
    ``args``
        psycopg2.connect's ``dsn``, ``connection_factory``, ``cursor_factory``.
    ``kwargs``
        psycopg2.connect's keywords, and those of :class:`ConnectionPool`, with
        the same defaults but for ``background_prewarm``, which is False here.

    Errors have psycopg2's messages; those of :class:`ConnectionPool`, with the
    pool's name and counts, are their ``__cause__``.  Differences from psycopg2,
    each for the better: never are more than ``maxconn`` open, so a greater
    ``minconn`` is a :class:`ValueError`; what is returned stays open up to
    ``maxconn``; the one that has been idle longest is lent first, tested, and
    with the settings of a new connection; no key that a program chooses can be
    that of somebody who gave none; and no misuse or lost connection costs a
    slot, nor does one that was borrowed without a key and dropped.
    """

    def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
        arguments = HiddenDict({"background_prewarm": False, **_named(args, kwargs), **kwargs})
        del args, kwargs  # so that no traceback shows them
        super().__init__(_size("minconn", minconn), _size("maxconn", maxconn), **arguments)

    @property
    def minconn(self) -> int:
        """How many connections are kept open; may be set."""
        return self._store.minconn

    @minconn.setter
    def minconn(self, minconn: int) -> None:
        self.resize(_size("minconn", minconn), self.maxconn)

    @property
    def maxconn(self) -> int:
        """How many connections may be open at a time; may be set."""
        return self._store.maxconn  # type: ignore[return-value]  # see _size

    @maxconn.setter
    def maxconn(self, maxconn: int) -> None:
        self.resize(self.minconn, _size("maxconn", maxconn))

    def putconn(
        self, conn: Connection = None, key: Hashable | None = None, close: bool = False
    ) -> None:
        """Give a borrowed connection back; see :meth:`ConnectionPool.putconn`.

        Raises :class:`KeyError` if it is in use under another key than ``key``,
        and :class:`PoolClosed` after :meth:`closeall`; both change nothing.
        """
        if key is not None:
            record = self._desk.find_record(conn)
            if record in self._store.lent and record.key != key:
                raise KeyError(key)
        super().putconn(conn, key, close)

    def closeall(self, timeout: float | None = None) -> None:
        """Close the pool and all its connections, those in use too.

        ``timeout`` waits, at most so many seconds, for those in use to come
        back.  A statement that still runs is waited for, as in psycopg2.

        Raises :class:`PoolClosed` if the pool is closed already.
        """
        if self.closed:
            raise PoolClosed(_CLOSED)
        self.shutdown(timeout)
        for record in self._store.lent.copy():
            conn = self._store.item_of(record)
            if conn is None:
                continue  # the program has dropped it
            try:
                self._claim(record)
            except KeyError:
                continue  # it came back meanwhile
            # Here, which waits for a statement; a worker would have it cancelled.
            self._supply.unwatch(conn)
            self._connector.close(conn)
            self._desk.take_back(conn, record, close=True)

    def _getconn(self, conn: Connection | None, key: Hashable | None, timeout: Any) -> Connection:
        try:
            return super()._getconn(conn, key, timeout)
        except PoolClosed as error:
            raise PoolClosed(_CLOSED) from error
        except PoolExhausted as error:
            raise PoolExhausted(_EXHAUSTED) from error

    def _refuse(self, conn: Any) -> None:
        try:
            super()._refuse(conn)
        except PoolError as error:
            if self.closed:
                raise PoolClosed(_CLOSED) from error
            raise PoolError(_UNKEYED) from error


SimpleConnectionPool = ThreadedConnectionPool


def _size(name: str, value: Any) -> int:
    """Accept as a size what psycopg2 does: whatever ``int`` takes."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        # Not the value: a dsn with a password, put in the wrong place, would be told.
        raise type(error)(f"{name} must be a whole number, not a {type(value).__name__}") from None


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return psycopg2.connect's positional arguments by their names."""
    if len(args) > len(_CONNECT_ARGS):
        raise TypeError(
            f"connect() takes at most {len(_CONNECT_ARGS)} positional arguments, not {len(args)}"
        )
    named = dict(zip(_CONNECT_ARGS, args, strict=False))
    for name in named:
        if name in kwargs:
            raise TypeError(f"connect() got multiple values for argument {name!r}")
    return named
