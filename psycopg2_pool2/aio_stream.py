"""The rows of a query for ``async for``, fetched some at a time.

Not an asynchronous generator.  One that is dropped half-read is closed by a task that its loop
starts for it, and a loop that is about to end destroys that task.  What is dropped here is given
back by a worker, with or without a loop.  A loop that ends while the stream is still referred to
closes it as it closes generators: :func:`_until_loop_ends` is one, for nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import psycopg2

from .aio import AsyncConnectionPool, AsyncLoanBlock
from .connector import Connection
from .scopes import Scope
from .statements import Stream

T = TypeVar("T")

Begin = Callable[[contextlib.AsyncExitStack], Awaitable[tuple[Scope, AsyncLoanBlock | None]]]


class _Rows:
    """What a stream has in hand."""

    __slots__ = ("_begin", "_begun_by", "_loan", "_pool", "_scope", "_stack", "_stream", "batch")

    def __init__(self, pool: AsyncConnectionPool, stream: Stream, begin: Begin) -> None:
        self._pool = pool
        self._stream = stream
        self._begin = begin
        self._stack: contextlib.AsyncExitStack | None = contextlib.AsyncExitStack()
        self._scope: Scope | None = None
        self._loan: AsyncLoanBlock | None = None
        self._begun_by = 0
        self.batch: deque[Any] = deque()

    async def fetch(self) -> None:
        """Get the next rows; none at the end."""
        if self._stack is None:
            return
        if self._scope is None:
            self._begun_by = os.getpid()
            self._scope, self._loan = await self._begin(self._stack)
            await self._do(self._stream.open)
        self.batch.extend(await self._do(self._stream.fetch))

    async def end(self, error: BaseException | None) -> None:
        """Close the cursor and return the connection; harmless when repeated."""
        self.batch.clear()
        stack, self._stack = self._stack, None
        if stack is None:
            return
        exc_info = (None, None, None) if error is None else (type(error), error, None)
        try:
            if self._scope is not None:
                with contextlib.suppress(psycopg2.Error):  # the block has ended, and the cursor
                    await self._do(self._stream.close)
        except BaseException as interruption:
            exc_info = type(interruption), interruption, None
            raise
        finally:
            await stack.__aexit__(*exc_info)
            self._scope = None  # there is nothing left to drop

    def drop(self) -> None:
        """Have a worker do that; in a finalizer, without a loop."""
        self._stack = None
        # A forked child that drops its copy leaves its parent's session alone.
        if self._scope is not None and self._begun_by == os.getpid() and not sys.is_finalizing():
            self._pool._other_threads.submit(self._end_by_worker)

    def _end_by_worker(self) -> None:
        assert self._scope is not None
        try:
            with contextlib.suppress(psycopg2.Error):
                self._scope.do(self._stream.close)
        finally:
            if self._loan is not None:
                self._loan.drop()

    async def _do(self, work: Callable[[Connection], T]) -> T:
        scope = self._scope
        assert scope is not None
        return await self._pool._hold(lambda hold: scope.do(lambda conn: hold.use(conn, work)))


class AsyncStream(AsyncIterator[Any]):
    """An async iterator over rows; it has a connection until it is exhausted, closed or dropped."""

    __slots__ = ("__weakref__", "_is_ended", "_is_running", "_rows", "_until_loop_ends")

    def __init__(self, pool: AsyncConnectionPool, stream: Stream, begin: Begin) -> None:
        self._is_ended = self._is_running = False
        self._until_loop_ends: AsyncGenerator[None, None] | None = None
        self._rows = _Rows(pool, stream, begin)

    async def __anext__(self) -> Any:
        if self._is_ended:
            raise StopAsyncIteration
        if self._is_running:
            raise RuntimeError("the stream is being read by another task")
        batch = self._rows.batch
        if not batch:
            await self._fetch()
        if not batch:
            await self._end(None)
            raise StopAsyncIteration
        return batch.popleft()

    async def _fetch(self) -> None:
        self._is_running = True
        try:
            if self._until_loop_ends is None:
                self._until_loop_ends = _started(_until_loop_ends(self._rows))
            await self._rows.fetch()
        except BaseException as error:
            await self._end(error)
            raise
        finally:
            self._is_running = False

    async def aclose(self) -> None:
        """Close the cursor and return the connection; harmless when repeated."""
        if self._is_running:
            raise RuntimeError("the stream is being read by another task")
        if not self._is_ended:
            await self._end(GeneratorExit())

    async def _end(self, error: BaseException | None) -> None:
        self._is_ended = True
        await self._rows.end(error)
        if self._until_loop_ends is not None:
            await self._until_loop_ends.aclose()

    def __del__(self) -> None:
        # Also if it is being closed by a task that its loop destroyed.
        self._rows.drop()


async def _until_loop_ends(rows: _Rows) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await rows.end(GeneratorExit())


def _started(generator: AsyncGenerator[None, None]) -> AsyncGenerator[None, None]:
    """Begin a generator that the loop closes at its end, and not when it is dropped."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=None)
    try:
        generator.__anext__().send(None)
    except StopIteration:  # its first value
        pass
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return generator
