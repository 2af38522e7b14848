"""Statements and transactions without ceremony, on a pool."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import psycopg2

from . import statements
from .attempts import RETRIES, attempts
from .connector import Borrowed, Connection
from .pool import ConnectionPool
from .scopes import Outside, Scope, current_scope
from .statements import CursorFactory, Params, Sql
from .transactions import Transaction

T = TypeVar("T")


class PooledDatabase:
    """Runs statements and transactions on connections of a pool; safe to use from any thread.

    Outside a block each method borrows a connection, does its work in a
    transaction of its own and commits.  Inside a ``with db.connection()`` or
    ``with db.transaction()`` block it uses that block's connection, and so is
    part of its transaction; threads and tasks each have their own blocks.

    A connection that is lost before COMMIT was sent is no error: the work is done
    on another, at most three times after the first attempt.  Nothing is ever
    done twice: a connection lost during COMMIT raises :class:`CommitUncertain`.
    So what is executed must leave COMMIT to the database, and not commit itself.
    Inside a block nothing is tried again.

    Waiting for a connection is the pool's business; what it raises is not tried
    again.  ``cursor_factory`` makes the rows what they are, for example
    :class:`psycopg2.extras.RealDictCursor`; without it the pool's connections do.
    """

    def __init__(self, pool: ConnectionPool, *, cursor_factory: CursorFactory = None) -> None:
        if not isinstance(pool, ConnectionPool):
            raise TypeError(f"pool must be a ConnectionPool, not a {type(pool).__name__}")
        self.pool = pool
        self.cursor_factory = cursor_factory
        self._outside = Outside()

    @classmethod
    def from_env(cls, **overrides: Any) -> PooledDatabase:
        """Make a pool as :meth:`ConnectionPool.from_env` does, with ``timeout=30``, and use it."""
        return cls(ConnectionPool.from_env(**{"timeout": 30, **overrides}))

    # -- blocks ------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[Borrowed]:
        """Have the block's statements use one connection, and yield that.

        Commits nothing; what is open at the end is rolled back.  Inside another
        block it is that block's connection.  With ``conn.autocommit = True`` it
        is the place for what cannot run in a transaction, such as VACUUM.
        """
        scope = current_scope(self)
        if scope is not None:
            with scope.nested():
                yield scope.conn
            return
        with self.pool.conn() as conn, Scope(self, conn):
            yield conn

    @contextmanager
    def transaction(
        self,
        isolation_level: str | int | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> Iterator[Borrowed]:
        """Have the block's statements be one transaction, and yield its connection.

        Commits at the end of the block, or rolls back on an exception.  Inside
        another transaction it is a savepoint, and the arguments, which are those
        of psycopg2's ``set_session``, are a ValueError.  A statement of a
        :meth:`connection` block begins a transaction too, which is that block's
        to commit; there the arguments hold until the block ends.

        Raises :class:`CommitUncertain`.
        """
        characteristics = given(isolation_level, readonly, deferrable)
        scope = current_scope(self)
        if scope is not None:
            with scope.nested() as inner, inner.transaction(**characteristics):
                yield scope.conn
            return
        # The scope ends before the COMMIT: what a thread that the block started
        # does afterwards is no part of it.
        with (
            self.pool.conn() as conn,
            Transaction(conn, **characteristics),
            Scope(self, conn, in_transaction=True),
        ):
            yield conn

    @contextmanager
    def cursor(self, cursor_factory: CursorFactory = None) -> Iterator[Any]:
        """Yield a cursor: of the block's connection, else in a transaction of its own."""
        scope = current_scope(self)
        if scope is None:
            with self.transaction(), self.cursor(cursor_factory) as cursor:
                yield cursor
            return
        with statements.open_cursor(scope.conn, cursor_factory or self.cursor_factory) as cursor:
            yield cursor

    def run(
        self,
        fn: Callable[[Connection], T],
        retries: int = RETRIES,
        *,
        isolation_level: str | int | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> T:
        """Return what ``fn(conn)`` returns in a transaction; try it again where that is safe.

        That is after serialization failures, deadlocks and connections lost
        before COMMIT, at most ``retries`` times, with short random pauses.  So
        ``fn`` may be called several times: what it does beside the database it
        does each time.  Inside a transaction it is called once, in a savepoint.

        Raises what ``fn`` or psycopg2 raised the last time, and
        :class:`CommitUncertain`.
        """
        characteristics = given(isolation_level, readonly, deferrable)
        if current_scope(self) is not None:
            with self.transaction(**characteristics) as conn:
                return fn(conn)
        for attempt in attempts(retries, conflicts=True):
            time.sleep(attempt.pause)
            with (
                attempt,
                self.pool.conn() as conn,
                attempt.judging(conn),
                Transaction(conn, **characteristics),
                Scope(self, conn, in_transaction=True),
            ):
                return fn(conn)
        raise AssertionError("the last attempt returns or raises")

    # -- statements --------------------------------------------------------

    def execute(self, sql: Sql, params: Params = None) -> list[Any]:
        """Execute a statement and return its rows; none if it has no result."""
        factory = self.cursor_factory
        return self._do(lambda conn: statements.rows(conn, sql, params, factory))

    def fetch_one(self, sql: Sql, params: Params = None) -> Any:
        """Execute a statement and return its first row; None if there is none."""
        factory = self.cursor_factory
        return self._do(lambda conn: statements.first_row(conn, sql, params, factory))

    def fetch_val(self, sql: Sql, params: Params = None) -> Any:
        """Execute a statement and return the first value of its first row; None without a row."""
        factory = self.cursor_factory
        return self._do(lambda conn: statements.first_value(conn, sql, params, factory))

    def execute_many(self, sql: Sql, seq: Iterable[Params]) -> int:
        """Execute a statement for each of the parameters; return how many rows were affected.

        All in one transaction.  ``INSERT ... VALUES (...)`` sends a thousand rows
        at a time, other statements go one by one.  To be tried again, an
        iterator is read into a list.
        """
        all_params = seq if isinstance(seq, (list, tuple)) else list(seq)
        return self._do(lambda conn: statements.many(conn, sql, all_params))

    def stream(self, sql: Sql, params: Params = None, *, itersize: int = 2000) -> Iterator[Any]:
        """Return an iterator over the rows, of which it holds ``itersize`` at a time.

        By a cursor of the server's, in a transaction that lasts until the
        iterator is exhausted or closed.  It is not tried again.
        """
        with self._scope() as scope:
            rows = statements.Stream(sql, params, itersize, self.cursor_factory)
            try:
                scope.do(rows.open)
                while batch := scope.do(rows.fetch):
                    yield from batch
            finally:
                with contextlib.suppress(psycopg2.Error):  # the block has ended, and the cursor
                    scope.do(rows.close)

    @contextmanager
    def _scope(self) -> Iterator[Scope]:
        """Yield the block's scope, else one in a transaction of its own that is nobody's block."""
        scope = current_scope(self)
        if scope is not None:
            yield scope
            return
        with self.pool.conn() as conn, Transaction(conn):
            yield Scope(self, conn)

    def _do(self, work: Callable[[Connection], T]) -> T:
        scope = current_scope(self)
        if scope is not None:
            return scope.do(work)
        self._outside.note()
        for attempt in attempts():
            with attempt, self.pool.conn() as conn:
                return attempt.transact(conn, work)
        raise AssertionError("the last attempt returns or raises")

    # -- the whole ---------------------------------------------------------

    def close(self) -> None:
        """Close the pool."""
        self.pool.shutdown()

    def __enter__(self) -> PooledDatabase:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def given(
    isolation_level: str | int | None, readonly: bool | None, deferrable: bool | None
) -> dict[str, Any]:
    """Return those of a transaction's characteristics that are not left to the server."""
    characteristics = {
        "isolation_level": isolation_level,
        "readonly": readonly,
        "deferrable": deferrable,
    }
    return {name: value for name, value in characteristics.items() if value is not None}
