"""Statements and transactions for asyncio: those of :mod:`.database`, done by workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, overload

import psycopg2

from . import statements
from .aio import AsyncConnectionPool
from .attempts import RETRIES, attempts
from .connector import Borrowed, Connection
from .database import given
from .scopes import Scope, current_scope
from .statements import CursorFactory, Params, Sql
from .transactions import Savepoint, Transaction

T = TypeVar("T")


class AsyncPooledDatabase:
    """What :class:`PooledDatabase` is, on an :class:`AsyncConnectionPool`; all of it is awaited.

    Blocks are those of the task.  Tasks that are started inside one are part of
    it while it lasts; their statements are executed one after the other.

    A task that is cancelled while a statement is executed in a block has that
    statement cancelled and loses the block's connection.
    """

    def __init__(self, pool: AsyncConnectionPool, *, cursor_factory: CursorFactory = None) -> None:
        if not isinstance(pool, AsyncConnectionPool):
            raise TypeError(f"pool must be an AsyncConnectionPool, not a {type(pool).__name__}")
        self.pool = pool
        self.cursor_factory = cursor_factory

    @classmethod
    def from_env(cls, **overrides: Any) -> AsyncPooledDatabase:
        """Make a pool as :meth:`AsyncConnectionPool.from_env` does, and use it."""
        return cls(AsyncConnectionPool.from_env(**overrides))

    # -- blocks ------------------------------------------------------------

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Borrowed]:
        """Have the block's statements use one connection; see :meth:`PooledDatabase.connection`.

        It is yielded for :meth:`AsyncConnectionPool.run_on` and to set its
        attributes: its own methods block.
        """
        scope = current_scope(self)
        if scope is not None:
            yield scope.conn
            return
        async with self.pool.conn() as conn, self._entered(Scope(self, conn)):
            yield conn

    @asynccontextmanager
    async def transaction(
        self,
        isolation_level: str | int | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> AsyncIterator[Borrowed]:
        """Have the block's statements be one transaction; see :meth:`PooledDatabase.transaction`.

        A task that is cancelled during the COMMIT does not learn whether it was
        done: the cause of its ``CancelledError`` is a :class:`CommitUncertain`.
        """
        characteristics = given(isolation_level, readonly, deferrable)
        scope = current_scope(self)
        if scope is not None:
            async with self._by_worker(scope.conn, scope.transaction(**characteristics)):
                yield scope.conn
            return
        async with (
            self.pool.conn() as conn,
            self._by_worker(conn, Transaction(conn, **characteristics)),
            self._entered(Scope(self, conn, in_transaction=True)),
        ):
            yield conn

    @asynccontextmanager
    async def cursor(self, cursor_factory: CursorFactory = None) -> AsyncIterator[AsyncCursor]:
        """Yield a cursor: of the block's connection, else in a transaction of its own."""
        scope = current_scope(self)
        if scope is None:
            async with self.transaction(), self.cursor(cursor_factory) as cursor:
                yield cursor
            return
        factory = cursor_factory or self.cursor_factory
        with statements.open_cursor(scope.conn, factory) as cursor:
            yield AsyncCursor(cursor, functools.partial(self._in, scope))

    @overload
    async def run(
        self,
        fn: Callable[[Connection], Coroutine[Any, Any, T]],
        retries: int = ...,
        *,
        isolation_level: str | int | None = ...,
        readonly: bool | None = ...,
        deferrable: bool | None = ...,
    ) -> T: ...

    @overload
    async def run(
        self,
        fn: Callable[[Connection], T],
        retries: int = ...,
        *,
        isolation_level: str | int | None = ...,
        readonly: bool | None = ...,
        deferrable: bool | None = ...,
    ) -> T: ...

    async def run(
        self,
        fn: Callable[[Connection], Any],
        retries: int = RETRIES,
        *,
        isolation_level: str | int | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> Any:
        """Return what ``fn(conn)`` returns in a transaction; see :meth:`PooledDatabase.run`.

        A coroutine function is awaited in the task, where the database's methods
        are part of its transaction.  Any other function is called by a worker.
        """
        characteristics = given(isolation_level, readonly, deferrable)
        if current_scope(self) is not None:
            async with self.transaction(**characteristics) as conn:
                return await self._call(fn, conn)
        for attempt in attempts(retries, conflicts=True):
            await asyncio.sleep(attempt.pause)
            with attempt:
                async with self.pool.conn() as conn:
                    with attempt.judging(conn):
                        async with (
                            self._by_worker(conn, Transaction(conn, **characteristics)),
                            self._entered(Scope(self, conn, in_transaction=True)),
                        ):
                            return await self._call(fn, conn)
        raise AssertionError("the last attempt returns or raises")

    async def _call(self, fn: Callable[[Connection], Any], conn: Connection) -> Any:
        if inspect.iscoroutinefunction(fn):
            return await fn(conn)
        return await self.pool.run_on(conn, fn)

    # -- statements --------------------------------------------------------

    async def execute(self, sql: Sql, params: Params = None) -> list[Any]:
        """Execute a statement and return its rows; none if it has no result."""
        factory = self.cursor_factory
        return await self._do(lambda conn: statements.rows(conn, sql, params, factory))

    async def fetch_one(self, sql: Sql, params: Params = None) -> Any:
        """Execute a statement and return its first row; None if there is none."""
        factory = self.cursor_factory
        return await self._do(lambda conn: statements.first_row(conn, sql, params, factory))

    async def fetch_val(self, sql: Sql, params: Params = None) -> Any:
        """Execute a statement and return the first value of its first row; None without a row."""
        factory = self.cursor_factory
        return await self._do(lambda conn: statements.first_value(conn, sql, params, factory))

    async def execute_many(self, sql: Sql, seq: Iterable[Params]) -> int:
        """Execute a statement for each of the parameters; return how many rows were affected.

        See :meth:`PooledDatabase.execute_many`.
        """
        all_params = seq if isinstance(seq, (list, tuple)) else list(seq)
        return await self._do(lambda conn: statements.many(conn, sql, all_params))

    async def stream(
        self, sql: Sql, params: Params = None, *, itersize: int = 2000
    ) -> AsyncIterator[Any]:
        """Return an async iterator over the rows, of which it holds ``itersize`` at a time.

        See :meth:`PooledDatabase.stream`.  One that is not exhausted keeps its
        connection until it is closed: use :func:`contextlib.aclosing`.
        """
        async with self._scope() as scope:
            rows = statements.Stream(sql, params, itersize, self.cursor_factory)
            try:
                await self._in(scope, rows.open)
                while batch := await self._in(scope, rows.fetch):
                    for row in batch:
                        yield row
            finally:
                with contextlib.suppress(psycopg2.Error):  # the block has ended, and the cursor
                    await self._in(scope, rows.close)

    # -- on a connection ---------------------------------------------------

    async def _do(self, work: Callable[[Connection], T]) -> T:
        scope = current_scope(self)
        if scope is not None:
            return await self._in(scope, work)
        for attempt in attempts():
            with attempt:
                return await self.pool._work(functools.partial(attempt.transact, work=work))
        raise AssertionError("the last attempt returns or raises")

    async def _in(self, scope: Scope, work: Callable[[Connection], T]) -> T:
        # What only waits for its turn in the block holds nothing.
        return await self.pool._hold(lambda hold: scope.do(lambda conn: hold.use(conn, work)))

    @asynccontextmanager
    async def _scope(self) -> AsyncIterator[Scope]:
        """Yield the block's scope, else one in a transaction of its own that is nobody's block."""
        scope = current_scope(self)
        if scope is not None:
            yield scope
            return
        async with self.pool.conn() as conn, self._by_worker(conn, Transaction(conn)):
            yield Scope(self, conn)

    @asynccontextmanager
    async def _entered(self, scope: Scope) -> AsyncIterator[None]:
        """Enter a scope, and leave it without blocking the loop."""
        scope.__enter__()
        try:
            yield
        finally:
            scope.leave()
            if not scope.end(wait=False):
                await self.pool.run_on(scope.conn, lambda _: scope.end())

    @asynccontextmanager
    async def _by_worker(
        self, conn: Connection, block: AbstractContextManager[Any]
    ) -> AsyncIterator[None]:
        """Have a worker enter and leave a block that needs the network for it."""
        await self.pool.run_on(conn, lambda _: block.__enter__())
        try:
            yield
        except BaseException as error:
            exc_info = type(error), error, error.__traceback__
            await self.pool._end_on(conn, lambda: block.__exit__(*exc_info))
            raise
        commits = not isinstance(block, Savepoint)
        await self.pool._end_on(conn, lambda: block.__exit__(None, None, None), commits)

    # -- the whole ---------------------------------------------------------

    async def close(self) -> None:
        """Close the pool."""
        await self.pool.shutdown()

    async def __aenter__(self) -> AsyncPooledDatabase:
        await self.pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class AsyncCursor:
    """A psycopg2 cursor whose methods are awaited; iterate over its rows with ``async for``."""

    def __init__(
        self, cursor: Any, do: Callable[[Callable[[Connection], Any]], Awaitable[Any]]
    ) -> None:
        self._cursor = cursor
        self._do = do

    async def execute(self, sql: Sql, params: Params = None) -> None:
        """Execute a statement."""
        await self._do(lambda _: self._cursor.execute(sql, params))

    async def executemany(self, sql: Sql, seq: Iterable[Params]) -> None:
        """Execute a statement for each of the parameters."""
        await self._do(lambda _: self._cursor.executemany(sql, seq))

    async def copy_expert(self, sql: Sql, file: Any, size: int = 8192) -> None:
        """Copy between the server and a file."""
        await self._do(lambda _: self._cursor.copy_expert(sql, file, size))

    # The rows of an ordinary cursor are here already.

    async def fetchone(self) -> Any:
        """Return the next row, None at the end."""
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next rows, ``arraysize`` of them unless told otherwise."""
        return list(self._cursor.fetchmany(*(() if size is None else (size,))))

    async def fetchall(self) -> list[Any]:
        """Return all the rows that are left."""
        return list(self._cursor.fetchall())

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._rows()

    async def _rows(self) -> AsyncIterator[Any]:
        for row in self._cursor:
            yield row

    @property
    def description(self) -> Any:
        """What the columns are; None if the last statement had no rows to return."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        """How many rows the last statement affected or returned."""
        return int(self._cursor.rowcount)
