"""Statements and transactions for asyncio: those of :mod:`.database`, done by workers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from . import statements
from .aio import AsyncConnectionPool, AsyncLoanBlock
from .aio_stream import AsyncStream
from .attempts import RETRIES, attempts
from .connector import Borrowed, Connection
from .database import given
from .scopes import Outside, Scope, current_scope
from .statements import CursorFactory, Params, Sql
from .transactions import Transaction

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


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
        self._outside = Outside()

    @classmethod
    def from_env(cls, **overrides: Any) -> AsyncPooledDatabase:
        """Make a pool as :meth:`AsyncConnectionPool.from_env` does, and use it."""
        return cls(AsyncConnectionPool.from_env(**overrides))

    # -- blocks ------------------------------------------------------------

    def connection(self) -> AsyncBlock[Borrowed]:
        """Have the block's statements use one connection; see :meth:`PooledDatabase.connection`.

        It is yielded for :meth:`AsyncConnectionPool.run_on` and to set its
        attributes: its own methods block.
        """
        return AsyncBlock(self._enter_connection)

    async def _enter_connection(self, stack: contextlib.AsyncExitStack) -> Borrowed:
        scope = current_scope(self)
        if scope is not None:
            stack.enter_context(scope.nested())
            return scope.conn  # type: ignore[no-any-return]
        conn = await stack.enter_async_context(self.pool.conn())
        await stack.enter_async_context(_Entered(self.pool, Scope(self, conn)))
        return conn

    def transaction(
        self,
        isolation_level: str | int | None = None,
        readonly: bool | None = None,
        deferrable: bool | None = None,
    ) -> AsyncBlock[Borrowed]:
        """Have the block's statements be one transaction; see :meth:`PooledDatabase.transaction`.

        A task that is cancelled during the COMMIT does not learn whether it was
        done: the cause of its ``CancelledError`` is a :class:`CommitUncertain`.
        """
        characteristics = given(isolation_level, readonly, deferrable)
        return AsyncBlock(functools.partial(self._enter_transaction, characteristics))

    async def _enter_transaction(
        self, characteristics: dict[str, Any], stack: contextlib.AsyncExitStack
    ) -> Borrowed:
        scope = current_scope(self)
        if scope is not None:
            inner = stack.enter_context(scope.nested())
            block = inner.transaction(**characteristics)
            await stack.enter_async_context(_ByWorker(self.pool, scope.conn, block, block.commits))
            return scope.conn  # type: ignore[no-any-return]
        conn = await stack.enter_async_context(self.pool.conn())
        transaction = Transaction(conn, **characteristics)
        await stack.enter_async_context(_ByWorker(self.pool, conn, transaction))
        await stack.enter_async_context(_Entered(self.pool, Scope(self, conn, in_transaction=True)))
        return conn

    def cursor(self, cursor_factory: CursorFactory = None) -> AsyncBlock[AsyncCursor]:
        """Return a block of a cursor: on the block's connection, else in its own transaction."""
        return AsyncBlock(functools.partial(self._enter_cursor, cursor_factory))

    async def _enter_cursor(
        self, cursor_factory: CursorFactory, stack: contextlib.AsyncExitStack
    ) -> AsyncCursor:
        scope = current_scope(self)
        if scope is None:
            await stack.enter_async_context(self.transaction())
            scope = current_scope(self)
            assert scope is not None
        factory = cursor_factory or self.cursor_factory
        cursor = stack.enter_context(statements.open_cursor(scope.conn, factory))
        return AsyncCursor(cursor, functools.partial(self._in, scope))

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
                            _ByWorker(self.pool, conn, Transaction(conn, **characteristics)),
                            _Entered(self.pool, Scope(self, conn, in_transaction=True)),
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

    def stream(self, sql: Sql, params: Params = None, *, itersize: int = 2000) -> AsyncStream:
        """Return an async iterator over the rows, of which it holds ``itersize`` at a time.

        See :meth:`PooledDatabase.stream`.  One that is not exhausted keeps its
        connection until it is closed, it is dropped, or the event loop ends: use
        :func:`contextlib.aclosing`.
        """
        rows = statements.Stream(sql, params, itersize, self.cursor_factory)
        return AsyncStream(self.pool, rows, self._enter_scope)

    # -- on a connection ---------------------------------------------------

    async def _do(self, work: Callable[[Connection], T]) -> T:
        scope = current_scope(self)
        if scope is not None:
            return await self._in(scope, work)
        self._outside.note()
        for attempt in attempts():
            with attempt:
                return await self.pool._work(functools.partial(attempt.transact, work=work))
        raise AssertionError("the last attempt returns or raises")

    async def _in(self, scope: Scope, work: Callable[[Connection], T]) -> T:
        # What only waits for its turn in the block holds nothing.
        return await self.pool._hold(lambda hold: scope.do(lambda conn: hold.use(conn, work)))

    async def _enter_scope(
        self, stack: contextlib.AsyncExitStack
    ) -> tuple[Scope, AsyncLoanBlock | None]:
        """Return the block's scope, else one in a transaction of its own that is nobody's block."""
        scope = current_scope(self)
        if scope is not None:
            return scope, None
        loan = self.pool.conn()
        conn = await stack.enter_async_context(loan)
        await stack.enter_async_context(_ByWorker(self.pool, conn, Transaction(conn)))
        return Scope(self, conn), loan

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


class AsyncBlock(
    AbstractAsyncContextManager[T_co], contextlib.AsyncContextDecorator, Generic[T_co]
):
    """What ``async with`` enters: blocks of the pool and the database, one in the other.

    Not a generator: an event loop that ends closes every asynchronous generator,
    those inside another that is being closed at the same time too, and logs that
    they are running already.
    """

    def __init__(self, enter: Callable[[contextlib.AsyncExitStack], Awaitable[T_co]]) -> None:
        self._enter = enter
        self._stack: contextlib.AsyncExitStack | None = None

    def _recreate_cm(self) -> AsyncBlock[T_co]:
        return AsyncBlock(self._enter)  # a decorated function enters one for each call

    async def __aenter__(self) -> T_co:
        if self._stack is not None:
            raise RuntimeError("a block can be entered once")
        self._stack = contextlib.AsyncExitStack()
        try:
            return await self._enter(self._stack)
        except BaseException as error:
            if await self._stack.__aexit__(type(error), error, error.__traceback__):
                raise AssertionError("no block swallows an error") from error
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._stack is not None
        return await self._stack.__aexit__(exc_type, exc, traceback)


class _Entered:
    """A scope that is entered, and left without blocking the loop."""

    __slots__ = ("_pool", "_scope")

    def __init__(self, pool: AsyncConnectionPool, scope: Scope) -> None:
        self._pool = pool
        self._scope = scope

    async def __aenter__(self) -> Scope:
        return self._scope.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        scope = self._scope
        scope.leave()
        if not scope.end(wait=False):
            await self._pool.run_on(scope.conn, lambda _: scope.end())


class _ByWorker:
    """A block that a worker enters and leaves, since it needs the network for it."""

    __slots__ = ("_block", "_commits", "_conn", "_pool")

    def __init__(
        self,
        pool: AsyncConnectionPool,
        conn: Connection,
        block: AbstractContextManager[Any],
        commits: bool = True,
    ) -> None:
        self._pool = pool
        self._conn = conn
        self._block = block
        self._commits = commits

    async def __aenter__(self) -> None:
        await self._pool.run_on(self._conn, lambda _: self._block.__enter__())

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        end = functools.partial(self._block.__exit__, exc_type, exc, traceback)
        await self._pool._end_on(self._conn, end, self._commits and exc_type is None)


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
