"""The pool for asyncio, on a real server."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import errors
from psycopg2 import extensions as ext

from psycopg2_pool2 import (
    AsyncConnectionPool,
    ConnectionPool,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolExhausted,
    PoolStats,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)
from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.monitor import get_monitor
from psycopg2_pool2.testing import rolled_back
from tests.support.aio import (
    MakeAsyncPool,
    asked,
    cancelled,
    eventually,
    in_loop,
    start_waiter,
    threads_of,
    waiting,
)
from tests.support.pools import (
    Park,
    ask,
    assert_whole,
    end_sessions,
    fill,
    pid_of,
    wait_for_backends,
    wait_until_lost,
)
from tests.support.processes import in_child, run_program
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

AT_ONCE = 10.0
"""Seconds; a busy machine is slow, and the timeouts are far longer."""
MOST_OBJECTS = 26
"""Of which a task that waits for a connection may be made, itself included."""


class Misuse(Exception):
    """What a borrower raises in its block."""


def here() -> int:
    return threading.get_ident()


def insert(conn: Any, n: int) -> int:
    ask(conn, "INSERT INTO async_item VALUES (%s)", n)
    return n


def count(conn: Any) -> int:
    return int(ask(conn, "SELECT count(*) FROM async_item"))


@pytest.fixture
def items(server: Server) -> Any:
    server.execute("CREATE TABLE async_item (n int PRIMARY KEY)")
    yield lambda: server.execute("SELECT n FROM async_item ORDER BY n")
    server.execute("DROP TABLE async_item")


class TestBorrowing:
    @in_loop
    async def test_a_block_borrows_returns_and_commits_nothing(
        self, make_any_async_pool: MakeAsyncPool, items: Any
    ) -> None:
        pool = make_any_async_pool()
        async with pool.conn() as conn:
            assert pool.stats() == PoolStats(1, 0)
            assert await pool.run_on(conn, insert, 1) == 1
        assert pool.stats() == PoolStats(0, 1)
        assert items() == []

    @in_loop
    async def test_a_transaction_commits_and_rolls_back_on_an_exception(
        self, make_any_async_pool: MakeAsyncPool, items: Any
    ) -> None:
        pool = make_any_async_pool()
        async with pool.transaction() as conn:
            await pool.run_on(conn, insert, 1)
        with pytest.raises(Misuse):
            async with pool.transaction() as conn:
                await pool.run_on(conn, insert, 2)
                raise Misuse
        assert items() == [(1,)]
        assert_whole(pool.pool)

    @in_loop
    async def test_run_commits_and_rolls_back_on_an_exception(
        self, make_any_async_pool: MakeAsyncPool, items: Any
    ) -> None:
        pool = make_any_async_pool()

        def insert_and_fail(conn: Any, *, n: int) -> None:
            insert(conn, n)
            raise Misuse

        assert await pool.run(insert, 1) == 1
        with pytest.raises(Misuse):
            await pool.run(insert_and_fail, n=2)
        with pytest.raises(errors.UniqueViolation):
            await pool.run(insert, 1)
        assert items() == [(1,)]
        assert_whole(pool.pool)

    @in_loop
    async def test_bare_getconn_and_putconn_do_what_the_pool_s_do(
        self, make_any_async_pool: MakeAsyncPool, server: Server, app: str
    ) -> None:
        pool = make_any_async_pool()
        conn = await pool.getconn()
        await pool.run_on(conn, ask)
        await pool.putconn(conn)
        assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_IDLE
        assert await pool.getconn() is conn
        await pool.putconn(conn, close=True)
        assert conn.closed
        wait_for_backends(server, app, 0)
        with pytest.raises(PoolError):
            await pool.putconn(conn)

    @in_loop
    async def test_workers_see_the_task_s_context(self, make_async_pool: MakeAsyncPool) -> None:
        pool = make_async_pool()
        variable = contextvars.ContextVar("variable", default="unset")
        variable.set("the task's")

        def look(conn: Any) -> tuple[str, int]:
            seen = variable.get()
            variable.set("a worker's")
            return seen, here()

        async with pool.conn() as conn:
            for seen, thread in (await pool.run(look), await pool.run_on(conn, look)):
                assert seen == "the task's"
                assert thread != here()
        assert variable.get() == "the task's"

    @in_loop
    async def test_a_lost_connection_is_replaced(
        self, make_any_async_pool: MakeAsyncPool, server: Server, app: str
    ) -> None:
        pool = make_any_async_pool()
        await asyncio.gather(*[asked(pool, "SELECT pg_sleep(0.05)") for _ in range(3)])
        end_sessions(server, app)
        assert await asked(pool) == 1
        with pytest.raises(psycopg2.OperationalError):
            await asked(pool, "SELECT pg_terminate_backend(pg_backend_pid())")
        assert await asked(pool) == 1
        assert_whole(pool.pool)

    @in_loop
    async def test_an_idle_connection_without_a_test_is_lent_by_the_loop_s_thread(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(minconn=2, test_on_borrow=False)
        pool.pool.wait()
        for _ in range(3):
            async with pool.conn(), pool.transaction() as conn:
                assert conn.status == ext.STATUS_READY
            await pool.putconn(await pool.getconn())
        assert threads_of(pool) == 0
        assert await asked(pool) == 1
        assert threads_of(pool) == 1

    @in_loop
    async def test_a_waiter_without_a_test_is_served_by_the_loop_s_thread(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(minconn=1, maxconn=1, test_on_borrow=False)
        conn = await pool.getconn()
        waiter = await start_waiter(pool)
        await pool.putconn(conn)
        assert await waiter is conn
        await pool.putconn(conn)
        assert threads_of(pool) == 0

    @in_loop
    async def test_callbacks_are_called_by_other_threads(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        threads: dict[str, int] = {}

        def note(name: str, conn: Any) -> None:
            threads[name] = here()

        pool = make_any_async_pool(
            configure=partial(note, "configure"),
            test_on_borrow=partial(note, "test"),
            reset=partial(note, "reset"),
        )
        async with pool.conn():
            pass
        assert threads.keys() == {"configure", "test", "reset"}
        assert here() not in threads.values()

    @in_loop
    async def test_what_a_test_raises_costs_the_connection(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        bad: set[int] = set()

        def test(conn: Any) -> None:
            if pid_of(conn) in bad:
                raise Misuse

        pool = make_any_async_pool(test_on_borrow=test)
        first = await pool.run(pid_of)
        bad.add(first)
        assert await pool.run(pid_of) != first
        assert_whole(pool.pool)

    @in_loop
    async def test_the_session_is_reset_by_a_worker(
        self, make_any_async_pool: MakeAsyncPool, statement_log: StatementLog
    ) -> None:
        pool = make_any_async_pool(maxconn=1, reset="session")
        async with pool.conn() as conn:
            await pool.run_on(conn, ask, "SET search_path TO nowhere")
            await pool.run_on(conn, lambda conn: conn.commit())
        assert statement_log.statements()[-1] == "DISCARD ALL"
        assert await asked(pool, "SHOW search_path") == '"$user", public'
        assert threads_of(pool) > 0

    @in_loop
    async def test_settings_are_put_back_by_a_worker(
        self, make_async_pool: MakeAsyncPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A SET may be needed for it."""
        pool = make_async_pool(maxconn=1, test_on_borrow=False)
        conn = await pool.getconn()
        conn.autocommit = True
        await pool.run_on(conn, lambda conn: conn.set_session(readonly=True))
        assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_IDLE
        where: list[int] = []
        tidy = pool.pool._desk._care._connector.tidy

        def note(conn: Any) -> None:
            where.append(here())
            tidy(conn)

        monkeypatch.setattr(pool.pool._desk._care._connector, "tidy", note)
        await pool.putconn(conn)
        assert where
        assert here() not in where
        assert await asked(pool, "SHOW transaction_read_only") == "off"

    @in_loop
    async def test_a_detached_connection_is_the_program_s(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        async with pool.conn() as conn:
            assert pool.detach(conn) is conn
            assert pool.stats() == PoolStats(0, 0)
            assert await asked(pool) == 1
        assert await pool.run_on(conn, ask) == 1
        conn.close()
        assert_whole(pool.pool)

    @in_loop
    async def test_long_work_on_detached_connections_holds_up_nobody(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        """Those who listen for notifications in a thread do that for ever."""
        pool = make_async_pool(maxconn=1)
        go = threading.Event()
        listeners = []
        for _ in range(4):
            conn = pool.detach(await pool.getconn())
            listeners.append(asyncio.create_task(pool.run_on(conn, lambda conn: go.wait(30))))
        assert await asked(pool) == 1
        go.set()
        assert await asyncio.gather(*listeners) == [True] * 4

    @in_loop
    async def test_a_block_s_object_keeps_no_connection(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(maxconn=1)
        block = pool.conn()
        async with block:
            pass
        conn = await pool.getconn()
        del conn  # the block has it no more
        gc.collect()
        assert await asked(pool) == 1
        del block


class TestWaiting:
    @in_loop
    async def test_takes_few_objects(self, make_async_pool: MakeAsyncPool) -> None:
        """The garbage collector walks through each of them several times.

        Who makes them more on purpose raises the number here.
        """
        pool = make_async_pool(1, 1, timeout=60)
        conn = await pool.getconn()
        tasks = [asyncio.ensure_future(pool.run(ask, "SELECT 1")) for _ in range(10)]
        await waiting(pool, 10)
        gc.collect()
        gc.freeze()  # so that those of earlier tests, which may go meanwhile, do not count
        tasks += [asyncio.ensure_future(pool.run(ask, "SELECT 1")) for _ in range(20)]
        await waiting(pool, 30)
        gc.collect()
        objects = len(gc.get_objects()) / 20
        gc.unfreeze()
        await pool.putconn(conn)
        await asyncio.gather(*tasks)
        assert 10 < objects <= MOST_OBJECTS

    @in_loop
    async def test_timeout_zero_raises_at_once(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1)
        async with pool.conn():
            with pytest.raises(PoolExhausted, match="in use 1"):
                await pool.getconn(timeout=0)
        assert_whole(pool.pool)

    @in_loop
    async def test_timeout_zero_waits_for_what_is_opened_for_it(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=3)
        conns = await asyncio.gather(*[pool.getconn(timeout=0) for _ in range(3)])
        for conn in conns:
            await pool.putconn(conn)

    @in_loop
    async def test_a_timeout_is_kept(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1)
        async with pool.conn():
            started = time.monotonic()
            with pytest.raises(PoolTimeout, match=r"no connection within 0\.[0-9]+ s"):
                await pool.getconn(timeout=0.05)
            assert time.monotonic() - started < AT_ONCE
            with pytest.raises(PoolTimeout):
                async with pool.transaction(timeout=0.01):
                    pass
        assert pool.get_stats()["requests_timeouts"] == 2
        assert_whole(pool.pool)

    @in_loop
    async def test_none_waits_until_one_comes_back(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        async with pool.conn() as conn:
            waiter = await start_waiter(pool, timeout=None)
        assert await waiter is conn
        await pool.putconn(conn)

    @in_loop
    async def test_the_pool_s_own_timeout_is_30_unless_given(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(maxconn=1, timeout=0)
        async with pool.conn():
            with pytest.raises(PoolExhausted):
                await asked(pool)
        assert inspect.signature(AsyncConnectionPool).parameters["timeout"].default == 30

    @in_loop
    async def test_no_more_than_max_waiting_wait(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1, max_waiting=1)
        async with pool.conn():
            waiter = await start_waiter(pool)
            with pytest.raises(TooManyRequests):
                await pool.getconn()
        await pool.putconn(await waiter)

    @in_loop
    async def test_closing_fails_those_who_wait(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1)
        async with pool.conn():
            waiters = [await start_waiter(pool) for _ in range(3)]
            working = asyncio.create_task(asked(pool))
            await waiting(pool, 4)
            await pool.close()
            for waiter in (*waiters, working):
                with pytest.raises(PoolClosed, match="closed"):
                    await waiter
        with pytest.raises(PoolClosed):
            await pool.getconn()
        assert pool.closed

    @in_loop
    async def test_an_outage_is_told_at_once_or_with_the_timeout(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(host="127.0.0.1", port=free_port("127.0.0.1"))
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            await pool.getconn(timeout=0)

        async def is_unavailable() -> bool:
            try:
                await pool.getconn(timeout=0)
            except PoolUnavailable:
                return True
            except psycopg2.OperationalError:
                return False
            raise AssertionError

        for _ in range(1000):
            if await is_unavailable():
                break
            await asyncio.sleep(0.01)
        with pytest.raises(PoolTimeout, match="refused") as caught:
            await pool.getconn(timeout=0.3)
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)

    @in_loop
    async def test_tasks_are_served_in_the_order_of_their_arrival(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        served: list[int] = []

        async def borrow(number: int) -> None:
            async with pool.conn():
                served.append(number)

        async with pool.conn():
            borrowers = []
            for number in range(20):
                borrowers.append(asyncio.create_task(borrow(number)))
                await waiting(pool, number + 1)
            for leaver in borrowers[::2]:
                await cancelled(leaver)
            await waiting(pool, 10)
        await asyncio.gather(*borrowers[1::2])
        assert served == list(range(1, 20, 2))

    @in_loop
    async def test_tasks_and_threads_stand_in_one_queue(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        served: list[int] = []

        async def borrow(number: int) -> None:
            async with pool.conn():
                served.append(number)

        def borrow_by_thread(number: int) -> None:
            with pool.pool.conn(timeout=30):
                served.append(number)

        async with pool.conn():
            tasks, threads = [], []
            for number in range(0, 12, 2):
                tasks.append(asyncio.create_task(borrow(number)))
                await waiting(pool, number + 1)
                threads.append(in_thread(borrow_by_thread, number + 1))
                await waiting(pool, number + 2)
        await asyncio.gather(*tasks)
        await eventually(lambda: all(thread.done for thread in threads))
        assert served == list(range(12))

    @in_loop
    async def test_tasks_that_wait_for_each_other_are_told(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=2, debug=True)
        both_have_one = asyncio.Event()
        has_one = 0

        async def take_two() -> bool:
            nonlocal has_one
            async with pool.conn():
                has_one += 1
                if has_one == 2:
                    both_have_one.set()
                await both_have_one.wait()
                try:
                    async with pool.conn():
                        return False
                except PoolDeadlock as error:
                    return "take_two" in str(error)

        started = time.monotonic()
        assert True in await asyncio.gather(take_two(), take_two())
        assert time.monotonic() - started < AT_ONCE
        assert_whole(pool.pool)

    @in_loop
    async def test_work_under_way_is_no_deadlock(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1, debug=True)
        assert await asyncio.gather(*[asked(pool) for _ in range(10)]) == [1] * 10

    @in_loop
    async def test_a_leak_is_told_with_its_place_in_the_task(
        self, make_async_pool: MakeAsyncPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_async_pool(leak_timeout=0.05, name="leaky")

        async def borrow_for_long() -> None:
            async with pool.conn():
                await eventually(lambda: "leaky" in caplog.text)

        await borrow_for_long()
        assert "borrow_for_long" in caplog.text
        caplog.clear()

        def work_for_long(conn: Any) -> None:
            wait_until(lambda: "leaky" in caplog.text)

        async def run_for_long() -> None:
            await pool.run(work_for_long)

        await run_for_long()
        assert "run_for_long" in caplog.text

    @in_loop
    async def test_a_second_return_tells_the_places_in_the_task(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(debug=True)

        async def borrow_and_return() -> Any:
            conn = await pool.getconn()
            await pool.run_on(conn, ask)
            await pool.putconn(conn)
            return conn

        conn = await borrow_and_return()
        with pytest.raises(PoolError, match="returned before") as caught:
            await pool.putconn(conn)
        assert str(caught.value).count("in borrow_and_return") == 2


class TestSeveralLoops:
    def test_in_several_threads_share_a_pool(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=3)

        async def work(loop: int) -> list[int]:
            return [
                *await asyncio.gather(
                    *[asked(pool, "SELECT %s", loop * 100 + n) for n in range(40)]
                )
            ]

        loops = [in_thread(asyncio.run, work(loop)) for loop in range(4)]
        for number, loop in enumerate(loops):
            assert loop.result(timeout=60) == [number * 100 + n for n in range(40)]
        assert pool.get_stats()["connections_num"] == 3
        assert_whole(pool.pool)

    def test_one_after_the_other_share_a_pool(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1)
        pids = {asyncio.run(asked(pool, "SELECT pg_backend_pid()")) for _ in range(3)}
        assert len(pids) == 1

    def test_closed_with_a_connection_in_use_gives_it_back(
        self, make_any_async_pool: MakeAsyncPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_async_pool(maxconn=1)

        async def main() -> None:
            async def borrow() -> None:
                async with pool.conn() as conn:
                    await pool.run_on(conn, ask)
                    in_use.set()
                    await asyncio.sleep(60)

            in_use = asyncio.Event()
            tasks.append(asyncio.create_task(borrow()))
            await in_use.wait()

        tasks: list[asyncio.Task[None]] = []
        asyncio.run(main())
        assert tasks[0].cancelled()
        assert_whole(pool.pool)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_closed_with_pending_tasks_give_all_back_when_those_are_collected(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=2)
        loop = asyncio.new_event_loop()

        async def hold() -> None:
            async with pool.conn() as conn:
                await pool.run_on(conn, ask)
                await asyncio.sleep(60)

        async def begin() -> None:
            for _ in range(4):
                task = asyncio.create_task(hold())
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            await waiting(pool, 2)

        loop.run_until_complete(begin())
        loop.close()
        wait_until(lambda: gc.collect() + 1 and pool.stats().in_use == 0)
        assert_whole(pool.pool)


class TestThePool:
    @in_loop
    async def test_background_prewarm_false_opens_minconn_in_async_with(
        self, make_any_async_pool: MakeAsyncPool, server: Server, app: str
    ) -> None:
        pool = make_any_async_pool(minconn=2, background_prewarm=False)
        assert pool.stats() == PoolStats(0, 0)
        async with pool:
            assert pool.stats() == PoolStats(0, 2)
            assert pool.prewarmed
            assert await asked(pool) == 1
            end_sessions(server, app)
            if pool.pool._monitor is not None:  # who looks after minconn
                wait_until_lost(pool.pool, 2)
                wait_for_backends(server, app, 2)
        wait_for_backends(server, app, 0)

    @in_loop
    async def test_or_raises_there_and_not_before(self, make_any_async_pool: MakeAsyncPool) -> None:
        for _ in range(5):
            pool = make_any_async_pool(
                minconn=1,
                background_prewarm=False,
                host="127.0.0.1",
                port=free_port("127.0.0.1"),
            )
            await asyncio.sleep(0.01)
            with pytest.raises(psycopg2.OperationalError, match="refused"):
                async with pool:
                    pytest.fail("it was entered")
            assert pool.closed

    @in_loop
    async def test_is_closed_if_the_task_is_cancelled_that_enters_it(
        self, make_any_async_pool: MakeAsyncPool, server: Server, app: str
    ) -> None:
        park = Park()
        park.arm()
        pool = make_any_async_pool(minconn=1, background_prewarm=False, configure=park)

        async def enter() -> None:
            async with pool:
                pytest.fail("it was entered")

        task = asyncio.create_task(enter())
        await eventually(park.arrived.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        park.release.set()
        await eventually(lambda: pool.closed)
        wait_for_backends(server, app, 0)

    @in_loop
    async def test_or_with_the_first_borrow(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(minconn=2, background_prewarm=False)
        assert await asked(pool) == 1
        await pool.wait()
        assert pool.stats() == PoolStats(0, 2)

    @in_loop
    async def test_wait_waits_until_minconn_are_open(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(minconn=3)
        await pool.wait(20)
        assert pool.stats() == PoolStats(0, 3)
        nowhere = make_any_async_pool(minconn=1, host="127.0.0.1", port=free_port("127.0.0.1"))
        with pytest.raises(PoolTimeout, match="refused"):
            await nowhere.wait(0.2)

    @in_loop
    async def test_close_is_not_held_up_by_those_who_wait_for_minconn(
        self, make_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_async_pool(minconn=1, maxconn=1, host="127.0.0.1", port=free_port("127.0.0.1"))
        waiters = [asyncio.create_task(pool.wait(60)) for _ in range(12)]
        await asyncio.sleep(0.01)
        await pool.close()
        for waiter in waiters:
            with pytest.raises(PoolClosed):
                await waiter

    @in_loop
    async def test_check_tells_how_many_were_bad(self, make_async_pool: MakeAsyncPool) -> None:
        bad: list[int] = []

        def test(conn: Any) -> None:
            if pid_of(conn) in bad:
                raise Misuse

        pool = make_async_pool(maxconn=3, test_on_borrow=test)
        pids = fill(pool.pool, 3)
        assert await pool.check() == 0
        bad += pids
        assert await pool.check() == 3
        assert await asked(pool) == 1

    @in_loop
    async def test_reap_resize_drain_and_clear(
        self, make_any_async_pool: MakeAsyncPool, server: Server, app: str
    ) -> None:
        pool = make_any_async_pool(maxconn=3, idle_timeout=0.01, reap_idle_interval=0)
        fill(pool.pool, 3)
        closed = 0
        while pool.stats().idle:
            closed += await pool.reap_idle_connections()
        assert closed == 3
        await pool.resize(0, 1)
        assert (pool.minconn, pool.maxconn) == (0, 1)
        async with pool.conn() as conn:
            await pool.drain()
        await eventually(lambda: conn.closed)
        async with pool.conn():
            pass
        await pool.clear()
        assert pool.stats() == PoolStats(0, 0)
        wait_for_backends(server, app, 0)

    @in_loop
    async def test_close_waits_for_those_in_use_if_told_so(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool()
        conn = await pool.getconn()
        closing = asyncio.create_task(pool.close(timeout=60))
        await eventually(lambda: pool.closed)
        assert not closing.done()
        await pool.putconn(conn)
        await closing
        assert conn.closed
        await pool.close()

    @in_loop
    async def test_close_does_not_wait_for_longer(self, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool()
        async with pool.conn():
            await pool.close(timeout=0.01)

    @in_loop
    async def test_tells_what_the_pool_below_tells(self, make_async_pool: MakeAsyncPool) -> None:
        pool = make_async_pool(
            minconn=1, maxconn=2, name="told", idle_timeout=7, lifetime_timeout=8
        )
        await pool.wait()
        assert isinstance(pool.pool, ConnectionPool)
        for name in (
            *("minconn", "maxconn", "idle_timeout", "lifetime_timeout", "reap_idle_interval"),
            *("test_on_borrow", "hostname", "prewarmed", "closed", "name", "connect_kwargs"),
        ):
            assert getattr(pool, name) == getattr(pool.pool, name), name
        assert pool.name == "told"
        assert repr(pool).startswith("<AsyncConnectionPool pool 'told' (in use 0, idle 1")
        assert pool.endpoints() == pool.pool.endpoints()
        async with pool.conn() as conn:
            assert set(pool.connections_in_use) == {conn}
        assert pool.get_stats()["requests_num"] == 1
        assert pool.pop_stats()["requests_num"] == 1
        assert pool.pop_stats()["requests_num"] == 0

    @in_loop
    async def test_from_env(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", dsn)
        async with AsyncConnectionPool.from_env(maxconn=1, name="from env") as pool:
            assert (await asked(pool), pool.name) == (1, "from env")

    @in_loop
    async def test_refuses_bad_input(self, make_async_pool: MakeAsyncPool, dsn: str) -> None:
        pool = make_async_pool()
        for timeout in (-1, "1", float("nan"), True):
            with pytest.raises((ValueError, TypeError), match="timeout"):
                await pool.getconn(timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="background_prewarm"):
            AsyncConnectionPool(dsn=dsn, background_prewarm="no")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="minconn"):
            AsyncConnectionPool(3, 2, dsn=dsn)
        with pytest.raises(psycopg2.ProgrammingError):
            AsyncConnectionPool(dsn="no dsn")
        no_functions: list[Any] = [None, "SELECT 1", asked]
        async with pool.conn() as conn:
            for fn in no_functions:
                with pytest.raises(TypeError, match="fn must be"):
                    await pool.run(fn)
                with pytest.raises(TypeError, match="fn must be"):
                    await pool.run_on(conn, fn)
        with pytest.raises(TypeError, match="conn must be"):
            await pool.run_on("a connection", ask)
        with pytest.raises(PoolError):
            await pool.putconn("a connection")
        with pytest.raises(PoolError):
            await pool.putconn("a connection", close=True)
        assert_whole(pool.pool)

    def test_works_in_debug_mode_without_a_complaint(
        self, make_any_async_pool: MakeAsyncPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_async_pool(maxconn=2)

        async def main() -> None:
            asyncio.get_running_loop().slow_callback_duration = 5  # the machine may be busy
            await asyncio.gather(*[asked(pool) for _ in range(20)])
            async with pool.transaction() as conn:
                await pool.run_on(conn, ask)
            await pool.close()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            asyncio.run(main(), debug=True)
            gc.collect()
        assert [r for r in caplog.records if r.name == "asyncio" and r.levelno > logging.INFO] == []

    @in_loop
    async def test_that_nobody_refers_to_leaves_neither_session_nor_thread(
        self, statement_log: StatementLog, server: Server
    ) -> None:
        app = statement_log.application_name
        pool = AsyncConnectionPool(2, 4, **statement_log.params)
        await asyncio.gather(*[asked(pool) for _ in range(4)])
        threads = list(pool._threads._workers._threads)
        assert threads
        del pool
        # Not once: a thread of the pool's may be at work just now.
        await eventually(lambda: gc.collect() + 1 and not server.backends(app))
        await eventually(lambda: not any(thread.is_alive() for thread in threads))


class TestProcesses:
    def test_a_child_has_an_empty_pool_and_workers_of_its_own(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=2)
        ours = asyncio.run(asked(pool, "SELECT pg_backend_pid()"))

        def ask_there() -> Any:
            return asyncio.run(asked(pool, "SELECT pg_backend_pid()"))

        assert in_child(ask_there) != str(ours)
        assert asyncio.run(asked(pool, "SELECT pg_backend_pid()")) == ours

    def test_exit_is_quick_while_a_statement_runs(self, dsn: str) -> None:
        program = """
import asyncio, sys
import psycopg2
from psycopg2_pool2 import AsyncConnectionPool

watch = psycopg2.connect(sys.argv[1])
watch.autocommit = True

def sleepers():
    with watch.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'sleeper' AND wait_event = 'PgSleep'"
        )
        return cursor.fetchone()[0]

def sleep(conn):
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")

async def sleep_in_block(pool):
    async with pool.conn() as conn:
        await pool.run_on(conn, sleep)

async def main():
    options = {"dsn": sys.argv[1], "application_name": "sleeper"}
    async with AsyncConnectionPool(0, 2, **options) as pool:
        tasks = [asyncio.create_task(work) for work in (sleep_in_block(pool), pool.run(sleep))]
        while sleepers() < 2:
            await asyncio.sleep(0.01)
        print("running", flush=True)

asyncio.run(main())
"""
        ended = run_program(program, dsn)
        assert ended.status == 0, ended.errors
        assert ended.errors == ""
        assert ended.exit_seconds < AT_ONCE

    def test_exit_is_quick_without_closing_anything(self, dsn: str) -> None:
        program = """
import asyncio, sys
from psycopg2_pool2 import AsyncConnectionPool

def ask(conn):
    with conn.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()

async def main():
    print(await pool.run(ask), flush=True)

pool = AsyncConnectionPool(1, 2, dsn=sys.argv[1])
asyncio.run(main())
"""
        ended = run_program(program, dsn)
        assert (ended.status, ended.output, ended.errors) == (0, "(1,)\n", "")
        assert ended.exit_seconds < AT_ONCE


class TestRolledBack:
    @in_loop
    async def test_leaves_no_trace_of_what_tasks_did(
        self, make_async_pool: MakeAsyncPool, items: Callable[[], list[Any]]
    ) -> None:
        pool = make_async_pool(maxconn=2)
        with rolled_back(pool.pool):
            await pool.run(insert, 1)
            async with pool.transaction() as conn:
                await pool.run_on(conn, insert, 2)
            with pytest.raises(Misuse):
                async with pool.transaction() as conn:
                    await pool.run_on(conn, insert, 3)
                    raise Misuse
            async with pool.conn() as conn:
                await pool.run_on(conn, insert, 4)
            assert await pool.run(count) == 2
            assert sorted(
                await asyncio.gather(*[asked(pool, "SELECT %s", n) for n in range(10)])
            ) == list(range(10))
        assert items() == []
        assert_whole(pool.pool)


def test_works_with_uvloop(make_any_async_pool: MakeAsyncPool) -> None:
    uvloop = pytest.importorskip("uvloop")
    pool = make_any_async_pool(maxconn=2)

    async def main() -> None:
        assert await asyncio.gather(*[asked(pool, "SELECT %s", n) for n in range(50)]) == [
            *range(50)
        ]
        async with pool.transaction() as conn:
            assert await pool.run_on(conn, ask) == 1
            task = asyncio.create_task(asked(pool, "SELECT pg_sleep(60)"))
            await eventually(lambda: pool.stats().in_use == 2)
            await cancelled(task)
        assert_whole(pool.pool)

    _run_with(uvloop.new_event_loop, main)


def _run_with(
    make_loop: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    loop = make_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def test_the_monitor_is_the_pool_s_own(make_async_pool: MakeAsyncPool) -> None:
    assert make_async_pool().pool._monitor is get_monitor()
