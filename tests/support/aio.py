"""Tests that are coroutines, and asyncio pools on the shared server."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, ParamSpec, Protocol

import pytest

from psycopg2_pool2 import AsyncConnectionPool
from tests.support.pools import ask
from tests.support.servers import StatementLog
from tests.support.waiting import LONG_ENOUGH

P = ParamSpec("P")

_PATIENCE = 90.0
_POLL_INTERVAL = 0.002


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own; it fails if it hangs."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), _PATIENCE))

    return run


class MakeAsyncPool(Protocol):
    """What the fixtures give: a new pool, closed when the test ends."""

    def __call__(
        self, minconn: int = ..., maxconn: float = ..., **kwargs: Any
    ) -> AsyncConnectionPool:
        """Make a pool on the shared server, under the test's application name, unless told."""


def _maker(stack: ExitStack, defaults: dict[str, Any]) -> MakeAsyncPool:
    def make(minconn: int = 0, maxconn: float = 4, **kwargs: Any) -> AsyncConnectionPool:
        pool = AsyncConnectionPool(minconn, maxconn, **{**defaults, **kwargs})
        stack.callback(pool.pool.shutdown)
        return pool

    return make


@pytest.fixture
def make_async_pool(statement_log: StatementLog) -> Iterator[MakeAsyncPool]:
    """Make pools on the shared server; `statement_log` has what they send."""
    with ExitStack() as stack:
        yield _maker(stack, statement_log.params)


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_any_async_pool(
    statement_log: StatementLog, request: pytest.FixtureRequest
) -> Iterator[MakeAsyncPool]:
    """Make pools as `make_async_pool` does; with the background thread and without it."""
    with ExitStack() as stack:
        yield _maker(stack, {**statement_log.params, "num_workers": request.param})


async def eventually(predicate: Callable[[], object], message: str = "") -> None:
    """Let the loop run until the predicate is true."""
    deadline = time.monotonic() + LONG_ENOUGH
    while not predicate():
        assert time.monotonic() < deadline, message or f"not within {LONG_ENOUGH} s"
        await asyncio.sleep(_POLL_INTERVAL)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and see that it ends by that."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def waiting(pool: AsyncConnectionPool, number: int) -> None:
    """Wait until so many borrowers wait."""
    await eventually(lambda: pool.get_stats()["requests_waiting"] == number, f"{number} wait")


async def start_waiter(pool: AsyncConnectionPool, timeout: float | None = 30) -> asyncio.Task[Any]:
    """Have a task wait for a connection; return when it is in the queue."""
    before = pool.get_stats()["requests_waiting"]
    task = asyncio.create_task(pool.getconn(timeout=timeout))
    await waiting(pool, before + 1)
    return task


async def asked(pool: AsyncConnectionPool, sql: str = "SELECT 1", *params: object) -> Any:
    """Borrow, run a statement in a worker, and return."""
    return await pool.run(ask, sql, *params)


def threads_of(pool: AsyncConnectionPool) -> int:
    """Return how many worker threads an asyncio pool has of its own."""
    return sum(len(x._workers._threads) for x in (pool._threads, pool._other_threads) if x._pid)


class Ticker:
    """How long the loop took for nothing at all; for the time of an `async with` block."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.ticks = 0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.perf_counter() - before)
            self.ticks += 1
            await asyncio.sleep(0.001)
