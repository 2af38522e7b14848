"""The blocks of ``with pool.conn()`` and ``with pool.transaction()``."""

from __future__ import annotations

import functools
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .commits import commit
from .connector import Borrowed, Connection

if TYPE_CHECKING:
    from .pool import ConnectionPool


class LoanBlock:
    """Borrow on entry, return on exit; commits nothing and rolls back what is open.

    A block can be entered once.  On exit a connection that was detached is left
    alone, and so is one that a forked child inherited.
    """

    __slots__ = ("_conn", "_pool", "_since", "_timeout", "_uses")

    def __init__(self, pool: ConnectionPool, timeout: Any, conn: Connection = None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._conn = conn  # unless None, one that has been borrowed already

    def __enter__(self) -> Borrowed:
        if self._conn is None:
            self._conn = self._pool.getconn(timeout=self._timeout)
        try:
            self._uses = self._conn.pool_record.uses
        except AttributeError:  # of a proxy that forwards no attributes
            self._uses = 0
        self._since = self._pool._clock()
        return self._conn  # type: ignore[no-any-return]  # a cast would take time

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        conn, self._conn = self._conn, None
        self._pool._end_block(conn, self._uses, self._since, exc)

    def drop(self) -> None:
        """Return a connection that a block was left with; harmless if it was returned."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._pool._end_block(conn, self._uses, self._since, GeneratorExit())


class TransactionBlock(LoanBlock):
    """Like :class:`LoanBlock`, and commit on success, roll back on an exception.

    As psycopg2's own ``with conn:`` does: if the block swallows the error of a
    statement, the server rolls back at COMMIT and says nothing.

    Raises :class:`CommitUncertain` if the answer to COMMIT is lost.
    """

    __slots__ = ()

    def __enter__(self) -> Borrowed:
        conn = super().__enter__()
        try:
            conn.__enter__()  # psycopg2's own: begins a transaction under autocommit too
        except BaseException as error:
            super().__exit__(type(error), error, error.__traceback__)
            raise
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc_type is None:
                commit(self._conn, functools.partial(self._conn.__exit__, None, None, None))
            else:
                self._conn.__exit__(exc_type, exc, traceback)
        except BaseException as error:
            if exc is None or not isinstance(error, Exception):
                exc = error
                raise
            # The block's own exception says more than that of the rollback.
        finally:
            try:
                super().__exit__(exc_type, exc, traceback)
            finally:
                del exc  # its traceback refers to this frame
