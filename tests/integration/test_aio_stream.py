"""Streams that are left open, dropped or cancelled, with their loop and without it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from psycopg2_pool2 import AsyncPooledDatabase
from psycopg2_pool2.contrib.embedded import Server
from tests.support.aio import MakeAsyncPool, cancelled, eventually
from tests.support.pools import assert_whole

QUERY = "SELECT generate_series(1, 100000)"
SLOW = "SELECT pg_sleep(0.01) FROM generate_series(1, 10000)"

Test = Callable[[AsyncPooledDatabase, list[Any]], Awaitable[None]]


async def leave_open(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    kept.append(db.stream(QUERY))
    assert await anext(kept[-1]) == (1,)


async def leave_two_open(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    await leave_open(db, kept)
    await leave_open(db, kept)


async def drop_at_the_end(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    await anext(db.stream(QUERY))


async def drop(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    async for _ in db.stream(QUERY):
        break
    await eventually(lambda: db.pool.stats().in_use == 0)


async def cancel(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    async def read() -> None:
        async for _ in db.stream(SLOW):
            pass

    task = asyncio.create_task(read())
    await eventually(lambda: db.pool.stats().in_use == 1)
    await cancelled(task)


async def leave_a_reader(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    async def read() -> None:
        async for _ in db.stream(QUERY, itersize=10):
            await asyncio.sleep(0)

    kept.append(asyncio.create_task(read()))
    await eventually(lambda: db.pool.stats().in_use == 1)


async def leave_open_in_a_block(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    async with db.transaction():
        await leave_open(db, kept)


async def leave_a_generator_open(db: AsyncPooledDatabase, kept: list[Any]) -> None:
    async def rows() -> AsyncIterator[Any]:
        async with db.transaction(), db.transaction(), db.connection():
            async for row in db.stream(QUERY):
                yield row

    kept.append(rows())
    await anext(kept[-1])


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[Any]]:
    """Return what was logged, and what no caller could be told."""
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: unraisable.append(args.exc_value))
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records] + unraisable


ALL = [
    leave_open,
    leave_two_open,
    drop_at_the_end,
    drop,
    cancel,
    leave_a_reader,
    leave_open_in_a_block,
    leave_a_generator_open,
]


@pytest.mark.parametrize("test", ALL, ids=lambda test: test.__name__)
def test_left_at_the_end_of_asyncio_run_logs_nothing_and_returns_its_connection(
    test: Any, make_async_pool: MakeAsyncPool, logged: Callable[[], list[Any]]
) -> None:
    db = AsyncPooledDatabase(make_async_pool(maxconn=3, timeout=20))
    kept: list[Any] = []
    asyncio.run(test(db, kept))
    if test is leave_open:
        assert db.pool.stats().in_use == 0  # before it is dropped
    kept.clear()
    gc.collect()
    assert_whole(db.pool.pool)
    assert logged() == []


@pytest.mark.parametrize("test", ALL[:-1], ids=lambda test: test.__name__)
def test_whose_loop_was_closed_returns_its_connection(
    test: Any, make_async_pool: MakeAsyncPool, logged: Callable[[], list[Any]]
) -> None:
    db = AsyncPooledDatabase(make_async_pool(maxconn=3, timeout=20))
    kept: list[Any] = []
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(test(db, kept))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()
    kept.clear()
    gc.collect()
    assert_whole(db.pool.pool)
    assert logged() == []


def test_dropped_closes_its_cursor_in_a_block(
    make_async_pool: MakeAsyncPool, server: Server
) -> None:
    cursors = "SELECT count(*) FROM pg_cursors"

    async def test() -> None:
        db = AsyncPooledDatabase(make_async_pool(maxconn=2, timeout=20))
        async with db.transaction():
            async for _ in db.stream(QUERY):
                assert await db.fetch_val(cursors) == 1
                break
            for _ in range(2000):
                if not await db.fetch_val(cursors):
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the cursor is still open")

    asyncio.run(asyncio.wait_for(test(), 60))


def test_read_by_two_tasks_at_a_time_is_refused(make_async_pool: MakeAsyncPool) -> None:
    async def test() -> None:
        db = AsyncPooledDatabase(make_async_pool(maxconn=2, timeout=20))
        stream = db.stream("SELECT pg_sleep(0.2)")
        first = asyncio.ensure_future(anext(stream))
        await eventually(lambda: db.pool.stats().in_use == 1)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        with pytest.raises(RuntimeError, match="another task"):
            await stream.aclose()
        assert await first == ("",)
        await stream.aclose()
        await stream.aclose()
        assert [row async for row in stream] == []

    asyncio.run(test())


def test_that_is_never_read_takes_no_connection(make_async_pool: MakeAsyncPool) -> None:
    async def test() -> None:
        db = AsyncPooledDatabase(make_async_pool(maxconn=2, timeout=20))
        stream = db.stream(QUERY)
        await stream.aclose()
        assert [row async for row in stream] == []
        del stream
        assert db.pool.get_stats()["requests_num"] == 0

    asyncio.run(test())
