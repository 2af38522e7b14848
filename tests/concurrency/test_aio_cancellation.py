"""Tasks by the thousand, cancelled at any moment: nothing is lost, mixed up or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import AsyncConnectionPool, PoolError, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.aio import (
    MakeAsyncPool,
    Ticker,
    asked,
    cancelled,
    eventually,
    in_loop,
    start_waiter,
    threads_of,
    waiting,
)
from tests.support.pools import (
    ask,
    assert_whole,
    end_sessions,
    pid_of,
    wait_for_backends,
    watched_sessions,
)
from tests.support.servers import MakeProxy

pytestmark = pytest.mark.integration

TASKS = 2000
CONNECTIONS = 10
ROUNDS = 8

Work = Callable[[AsyncConnectionPool, int], Coroutine[Any, Any, Any]]


def echo(conn: Any, nonce: int, seconds: float = 0.0) -> int:
    """Have the server tell a number that is this caller's alone."""
    return int(ask(conn, "SELECT %s + 0 * length(pg_sleep(%s)::text)", nonce, seconds))


async def by_run(pool: AsyncConnectionPool, nonce: int) -> int:
    return await pool.run(echo, nonce, 0.001)


async def by_conn(pool: AsyncConnectionPool, nonce: int) -> int:
    async with pool.conn() as conn:
        assert await pool.run_on(conn, echo, nonce) == nonce
        await asyncio.sleep(0)
        return await pool.run_on(conn, echo, nonce, 0.001)


async def by_transaction(pool: AsyncConnectionPool, nonce: int) -> int:
    async with pool.transaction() as conn:
        return await pool.run_on(conn, echo, nonce, 0.001)


async def by_hand(pool: AsyncConnectionPool, nonce: int) -> int:
    conn = await pool.getconn()
    try:
        return await pool.run_on(conn, echo, nonce)
    finally:
        await pool.putconn(conn, close=nonce % 7 == 0)


async def without_statement(pool: AsyncConnectionPool, nonce: int) -> int:
    async with pool.conn():
        return nonce


WORKS: list[Work] = [by_run, by_conn, by_transaction, by_hand, without_statement]


def statements_of(server: Server, app: str) -> list[str]:
    """Return what the application's sessions are doing at this moment, but nothing."""
    found = server.execute(
        "SELECT state FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'", [app]
    )
    return [state for (state,) in found]


@in_loop
async def test_two_thousand_waiting_tasks_add_no_thread_and_are_all_served(
    server: Server, app: str, make_any_async_pool: MakeAsyncPool
) -> None:
    pool = make_any_async_pool(maxconn=CONNECTIONS, timeout=90)
    with watched_sessions(server, app, limit=CONNECTIONS) as watch:
        held = await asyncio.gather(*[pool.getconn() for _ in range(CONNECTIONS)])
        before = threading.active_count()
        async with Ticker() as ticker:
            tasks = [asyncio.create_task(pool.run(echo, nonce)) for nonce in range(TASKS)]
            await waiting(pool, TASKS)
            assert threading.active_count() <= before
            for conn in held:
                await pool.putconn(conn)
            assert await asyncio.gather(*tasks) == list(range(TASKS))
        assert threads_of(pool) <= 2 * CONNECTIONS, "one for each connection, or just taken over"
    print(f"longest stall: {ticker.longest * 1000:.0f} ms in {ticker.ticks} ticks")
    assert watch.peak <= CONNECTIONS
    assert_whole(pool.pool)


@in_loop
async def test_two_thousand_waiting_tasks_leave_without_a_thread(
    make_any_async_pool: MakeAsyncPool,
) -> None:
    pool = make_any_async_pool(maxconn=1, timeout=90)
    async with pool.conn() as conn:
        before = threading.active_count()
        tasks = [asyncio.create_task(pool.run(echo, nonce)) for nonce in range(TASKS)]
        await waiting(pool, TASKS)
        for task in tasks[: TASKS // 2]:
            task.cancel()
        await asyncio.wait(tasks[: TASKS // 2])
        assert pool.get_stats()["requests_waiting"] == TASKS // 2
        await pool.close()
        for error in await asyncio.gather(*tasks[TASKS // 2 :], return_exceptions=True):
            assert isinstance(error, PoolError)
        assert threading.active_count() <= before + 1, "that of close()"
    assert conn.closed


async def outcome(task: asyncio.Task[int], nonce: int, seconds: float | None) -> str:
    """Await a task, at most so long; tell what became of it, and see that its answer is its own."""
    try:
        answer = await asyncio.wait_for(task, seconds)
    except asyncio.CancelledError:
        return "cancelled"
    except asyncio.TimeoutError:
        return "timed out"
    assert answer == nonce
    return "answered"


@in_loop
async def test_random_cancellation_mixes_up_and_loses_nothing(
    server: Server, app: str, make_any_async_pool: MakeAsyncPool
) -> None:
    """Each answer is the one to this task's question, whoever was cancelled meanwhile."""
    pool = make_any_async_pool(maxconn=CONNECTIONS, timeout=90)
    nonces = itertools.count(1)
    outcomes: Counter[str] = Counter()
    running: set[asyncio.Task[int]] = set()

    async def use(choose: random.Random) -> None:
        for _ in range(ROUNDS):
            nonce = next(nonces)
            task = asyncio.create_task(choose.choice(WORKS)(pool, nonce))
            running.add(task)
            seconds = choose.random() * 0.05 if choose.random() < 0.3 else None
            outcomes[await outcome(task, nonce, seconds)] += 1
            running.discard(task)

    async def cancel_some(choose: random.Random) -> None:
        while True:
            await asyncio.sleep(choose.random() * 0.003)
            for task in choose.sample(sorted(running, key=id), min(len(running), 3)):
                task.cancel()

    with watched_sessions(server, app, limit=CONNECTIONS) as watch:
        canceller = asyncio.create_task(cancel_some(random.Random(7)))
        await asyncio.gather(*[use(random.Random(seed)) for seed in range(60)])
        await cancelled(canceller)
        await eventually(lambda: pool.stats().in_use == 0)
    assert watch.peak <= CONNECTIONS
    assert outcomes["answered"] > 50, outcomes
    assert outcomes["cancelled"] + outcomes["timed out"] > 50, outcomes
    await eventually(lambda: not statements_of(server, app), "a statement or transaction is left")
    assert_whole(pool.pool)
    wait_for_backends(server, app, CONNECTIONS)


@pytest.mark.parametrize("work", WORKS)
@in_loop
async def test_cancellation_at_every_turn_of_the_loop_loses_nothing(
    make_any_async_pool: MakeAsyncPool, work: Work
) -> None:
    """Alone, and when it has to wait for another one that is cancelled too."""
    pool = make_any_async_pool(maxconn=1, timeout=60)
    answered = 0
    for turns in itertools.count():
        tasks = [asyncio.create_task(work(pool, nonce)) for nonce in range(1 + turns % 2)]
        for _ in range(turns):
            await asyncio.sleep(0.0002 if turns % 3 else 0)
        for task in tasks:
            task.cancel()
        for nonce, answer in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
            if not isinstance(answer, asyncio.CancelledError):
                assert answer == nonce
                answered += 1
        assert await asked(pool, "SELECT %s", turns) == turns
        assert pool.stats() == PoolStats(0, 1)
        if answered > 3 or turns > 150:
            break
    assert_whole(pool.pool)


class TestLongStatements:
    """What a task is cancelled over ends on the server too."""

    @in_loop
    async def test_of_run_are_gone_soon(
        self, server: Server, app: str, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        before = await pool.run(pid_of)
        task = asyncio.create_task(pool.run(echo, 1, 60))
        await eventually(lambda: statements_of(server, app) == ["active"])
        await cancelled(task)
        assert await asked(pool) == 1, "its slot is free"
        assert await pool.run(pid_of) != before
        await eventually(lambda: not statements_of(server, app))
        wait_for_backends(server, app, 1)

    @in_loop
    async def test_of_run_on_are_gone_soon(
        self, server: Server, app: str, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)

        async def use(block: Any) -> None:
            async with block as conn:
                await pool.run_on(conn, echo, 1, 60)

        for block in (pool.conn(), pool.transaction()):
            task = asyncio.create_task(use(block))
            await eventually(lambda: statements_of(server, app) == ["active"])
            await cancelled(task)
            assert await asked(pool) == 1, "its slot is free"
            await eventually(lambda: not statements_of(server, app))
        wait_for_backends(server, app, 1)

    @in_loop
    async def test_of_many_are_gone_at_once(
        self, server: Server, app: str, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(maxconn=20)
        async with Ticker() as ticker:
            tasks = [asyncio.create_task(pool.run(echo, 1, 60)) for _ in range(20)]
            await eventually(lambda: statements_of(server, app) == ["active"] * 20)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert await asyncio.gather(*[asked(pool) for _ in range(20)]) == [1] * 20
        print(f"longest stall: {ticker.longest * 1000:.0f} ms in {ticker.ticks} ticks")
        await eventually(lambda: not statements_of(server, app))

    @in_loop
    async def test_in_a_black_hole_are_given_up(
        self, make_async_pool: MakeAsyncPool, proxy: MakeProxy, server: Server, app: str
    ) -> None:
        hole = proxy()
        pool = make_async_pool(
            maxconn=1, test_timeout=0.2, host=hole.host, port=hole.port, user="postgres"
        )
        task = asyncio.create_task(pool.run(echo, 1, 60))
        await eventually(lambda: statements_of(server, app))
        hole.freeze()
        await cancelled(task)
        await eventually(lambda: pool.stats().in_use == 0)
        hole.forward()
        assert await asked(pool) == 1

    @in_loop
    async def test_between_two_statements_commit_nothing(
        self, server: Server, make_any_async_pool: MakeAsyncPool
    ) -> None:
        """The function goes on without knowing; its connection does not."""
        pool = make_any_async_pool(maxconn=1)
        server.execute("CREATE TABLE half (n int)")
        between, go = threading.Event(), threading.Event()
        ended: list[BaseException | None] = []

        def insert_twice(conn: Any) -> None:
            try:
                ask(conn, "INSERT INTO half VALUES (1)")
                between.set()
                assert go.wait(30)
                ask(conn, "INSERT INTO half VALUES (2)")
                conn.commit()
            except psycopg2.Error as error:
                ended.append(error)
                raise
            ended.append(None)

        async def in_block() -> None:
            async with pool.conn() as conn:
                await pool.run_on(conn, insert_twice)

        for work in (partial(pool.run, insert_twice), in_block):
            between.clear()
            go.clear()
            ended.clear()
            task = asyncio.create_task(work())
            await eventually(between.is_set)
            await cancelled(task)
            # The interruption of a connection that does nothing needs no server.
            await eventually(lambda: not pool._other_threads._workers.busy)
            go.set()
            await eventually(lambda: ended)
            assert isinstance(ended[0], psycopg2.Error)
            assert await asked(pool) == 1
        assert server.execute("SELECT * FROM half") == []
        server.execute("DROP TABLE half")


class TestDuringCommit:
    """A deferred trigger makes the COMMIT take as long as one wants."""

    @pytest.fixture(autouse=True)
    def slow_commit(self, server: Server) -> Any:
        server.execute(
            """
            CREATE TABLE slow (seconds float);
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NULL; END';
            CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow();
            """
        )
        yield
        server.execute("DROP TABLE slow; DROP FUNCTION slow")

    @in_loop
    async def test_of_run_the_commit_is_stopped(
        self, server: Server, app: str, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        task = asyncio.create_task(pool.run(ask, "INSERT INTO slow VALUES (60)"))
        await eventually(lambda: _is_committing(server, app))
        await cancelled(task)
        assert await asked(pool) == 1
        assert server.execute("SELECT * FROM slow") == []

    @in_loop
    async def test_of_a_transaction_the_commit_goes_on(
        self, server: Server, app: str, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)

        async def insert() -> None:
            async with pool.transaction() as conn:
                await pool.run_on(conn, ask, "INSERT INTO slow VALUES (0.5)")

        task = asyncio.create_task(insert())
        await eventually(lambda: _is_committing(server, app))
        await cancelled(task)
        assert await asked(pool, "SELECT count(*) FROM slow") == 1
        assert pool.stats() == PoolStats(0, 1)


def _is_committing(server: Server, app: str) -> bool:
    found = server.execute(
        "SELECT query FROM pg_stat_activity WHERE application_name = %s AND state = 'active'", [app]
    )
    return found == [("COMMIT",)]


class TestUnderLoad:
    """Many tasks, and servers that go away under them."""

    async def _use_until(self, pool: AsyncConnectionPool, stop: asyncio.Event) -> Counter[str]:
        nonces = itertools.count()
        outcomes: Counter[str] = Counter()

        async def use(number: int) -> None:
            while not stop.is_set():
                nonce = next(nonces)
                try:
                    assert await WORKS[number % len(WORKS)](pool, nonce) == nonce
                    outcomes["answered"] += 1
                except psycopg2.OperationalError:
                    outcomes["lost"] += 1

        await asyncio.gather(*[use(number) for number in range(100)])
        return outcomes

    @in_loop
    async def test_killed_backends_cost_what_they_interrupt(
        self, server: Server, app: str, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=CONNECTIONS, timeout=60)
        stop = asyncio.Event()
        using = asyncio.create_task(self._use_until(pool, stop))
        kills = 0
        for _ in range(8):
            await eventually(lambda: pool.stats().in_use > 0)
            kills += len(await asyncio.to_thread(end_sessions, server, app))
        stop.set()
        outcomes = await using
        assert 0 < outcomes["lost"] <= 2 * kills
        assert outcomes["answered"] > 0
        assert_whole(pool.pool)

    @in_loop
    async def test_a_restart_costs_what_it_interrupts(
        self, fresh_server: Server, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=CONNECTIONS, timeout=60, **fresh_server.params)
        stop = asyncio.Event()
        using = asyncio.create_task(self._use_until(pool, stop))
        await eventually(lambda: pool.get_stats()["requests_num"] > 200)
        await asyncio.to_thread(fresh_server.restart)
        seen = pool.get_stats()["requests_num"]
        await eventually(lambda: pool.get_stats()["requests_num"] > seen + 200)
        stop.set()
        outcomes = await using
        assert outcomes["answered"] > 200
        assert_whole(pool.pool)

    @in_loop
    async def test_what_is_dropped_by_cancelled_tasks_is_found(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        """A task that borrows by hand and is cancelled may never return its connection."""
        pool = make_any_async_pool(maxconn=1, timeout=60)

        async def borrow_and_forget() -> None:
            conn = await pool.getconn()
            await asyncio.sleep(60)
            await pool.putconn(conn)

        task = asyncio.create_task(borrow_and_forget())
        await eventually(lambda: pool.stats().in_use == 1)
        waiter = await start_waiter(pool)
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled(task)
        del task
        await pool.putconn(await waiter)
