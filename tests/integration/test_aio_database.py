"""Statements and transactions for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors, extras
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE

from psycopg2_pool2 import AsyncConnectionPool, AsyncPooledDatabase, ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.testing import rolled_back
from tests.support.pools import ask, assert_whole, pid_of
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until

PID = "SELECT pg_backend_pid()"

Test = Callable[[AsyncPooledDatabase], Awaitable[None]]


@pytest.fixture
def table(server: Server, app: str) -> Iterator[str]:
    """Make a table for one test; return its name."""
    name = f"t_{app.replace('-', '_')}"
    server.execute(f"CREATE TABLE {name} (n int PRIMARY KEY, word text)")
    yield name
    server.execute(f"DROP TABLE {name}")


@pytest.fixture
def run(statement_log: StatementLog) -> Callable[[Test], None]:
    """Run a coroutine with a database, and see in the end that nothing of its pool is lost."""

    @asynccontextmanager
    async def database() -> AsyncIterator[AsyncPooledDatabase]:
        pool = AsyncConnectionPool(0, 4, timeout=20, **statement_log.params)
        async with AsyncPooledDatabase(pool) as db:
            yield db
            await asyncio.to_thread(assert_whole, pool.pool)

    async def with_database(test: Test) -> None:
        async with database() as db:
            await test(db)

    return lambda test: asyncio.run(with_database(test))


def rows(server: Server, table: str) -> list[Any]:
    return [n for (n,) in server.execute(f"SELECT n FROM {table} ORDER BY n")]


def test_statements(run: Callable[[Test], None], server: Server, table: str) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        assert await db.execute("SELECT %s, %s", [1, "a"]) == [(1, "a")]
        assert await db.execute(f"INSERT INTO {table} VALUES (1)") == []
        assert await db.execute_many(f"INSERT INTO {table} VALUES (%s)", [(2,), (3,)]) == 2
        assert await db.fetch_one(f"SELECT n FROM {table} ORDER BY n") == (1,)
        assert await db.fetch_one(f"SELECT n FROM {table} WHERE n = 9") is None
        assert await db.fetch_val(f"SELECT count(*) FROM {table}") == 3
        with pytest.raises(errors.UniqueViolation):
            await db.execute(f"INSERT INTO {table} VALUES (1)")
        assert rows(server, table) == [1, 2, 3]

    run(test)


def test_rows_are_what_the_cursor_factory_makes(run: Callable[[Test], None]) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        db = AsyncPooledDatabase(db.pool, cursor_factory=extras.RealDictCursor)
        query = "SELECT 1 AS a"
        assert await db.execute(query) == [{"a": 1}]
        assert await db.fetch_one(query) == {"a": 1}
        assert await db.fetch_val(query) == 1
        assert [row async for row in db.stream(query)] == [{"a": 1}]

    run(test)


def test_blocks(run: Callable[[Test], None], server: Server, table: str) -> None:
    insert = f"INSERT INTO {table} VALUES (%s)"

    async def test(db: AsyncPooledDatabase) -> None:
        async with db.transaction() as conn:
            await db.execute(insert, [1])
            assert await db.fetch_val(PID) == pid_of(conn)
            with pytest.raises(KeyError):
                async with db.transaction():
                    await db.execute(insert, [2])
                    raise KeyError
            async with db.transaction(), db.connection() as same:
                assert same is conn
                await db.execute(insert, [3])
            assert rows(server, table) == []
        assert rows(server, table) == [1, 3]
        with pytest.raises(KeyError):
            async with db.transaction("SERIALIZABLE", readonly=False):
                await db.execute(insert, [4])
                raise KeyError
        async with db.connection() as conn:
            await db.execute(insert, [5])
            await db.pool.run_on(conn, lambda c: c.commit())
            await db.execute(insert, [6])
        assert rows(server, table) == [1, 3, 5]

    run(test)


def test_vacuum_has_its_place(run: Callable[[Test], None], table: str) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        async with db.connection() as conn:
            conn.autocommit = True
            await db.execute(f"VACUUM {table}")

    run(test)


def test_tasks_have_blocks_of_their_own(run: Callable[[Test], None]) -> None:
    async def pids(db: AsyncPooledDatabase, ready: Any) -> tuple[int, int]:
        async with db.transaction() as conn:
            await ready.wait()
            return pid_of(conn), await db.fetch_val(PID)

    async def test(db: AsyncPooledDatabase) -> None:
        if not hasattr(asyncio, "Barrier"):
            pytest.skip("asyncio.Barrier came with Python 3.11")
        ready: Any = asyncio.Barrier(3)  # type: ignore[attr-defined,unused-ignore]
        found = await asyncio.gather(*(pids(db, ready) for _ in range(3)))
        assert all(own == used for own, used in found)
        assert len(set(found)) == 3

    run(test)


def test_tasks_started_in_a_block_are_part_of_it_while_it_lasts(
    run: Callable[[Test], None], server: Server, table: str
) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        ended = asyncio.Event()

        async def late() -> int:
            await ended.wait()
            pid: int = await db.fetch_val(PID)
            return pid

        with pytest.raises(KeyError):
            async with db.transaction() as conn:
                pid = pid_of(conn)
                numbers = await asyncio.gather(*(db.fetch_val(PID) for _ in range(10)))
                assert set(numbers) == {pid}
                slow = db.execute(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(0.2)")
                running = asyncio.create_task(slow)
                waiting = asyncio.create_task(late())
                await asyncio.sleep(0)
                raise KeyError
        with contextlib.suppress(psycopg2.InterfaceError):
            await running
        assert rows(server, table) in ([], [1])  # it may not have begun before the end
        taken = await db.pool.getconn()
        ended.set()
        assert await waiting != pid_of(taken)
        await db.pool.putconn(taken)

    run(test)


def test_stream(run: Callable[[Test], None]) -> None:
    query = "SELECT generate_series(1, 10)"

    async def test(db: AsyncPooledDatabase) -> None:
        assert [n async for (n,) in db.stream(query, itersize=4)] == list(range(1, 11))
        async with aclosing(db.stream(query, itersize=2)) as stream:
            assert await anext(stream) == (1,)
            assert db.pool.stats().in_use == 1
            assert await db.fetch_val("SELECT 1") == 1  # on another: it is nobody's block
        assert db.pool.stats().in_use == 0
        async with db.transaction() as conn:
            assert [pid async for (pid,) in db.stream(PID)] == [pid_of(conn)]
            stream = db.stream(query, itersize=2)
            await anext(stream)
        with pytest.raises(psycopg2.InterfaceError, match="block"):
            await anext(stream)
            await anext(stream)
        with pytest.raises(errors.DivisionByZero):
            await anext(db.stream("SELECT 1 / 0"))

    run(test)


def test_cursor(run: Callable[[Test], None], server: Server, table: str) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        async with db.cursor(extras.RealDictCursor) as cursor:
            await cursor.executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,), (3,), (4,)])
            assert cursor.rowcount == 4
            assert not cursor.description
            await cursor.execute(f"SELECT n FROM {table} ORDER BY n")
            assert [column.name for column in cursor.description] == ["n"]
            assert await cursor.fetchone() == {"n": 1}
            assert await cursor.fetchmany(2) == [{"n": 2}, {"n": 3}]
            assert [row async for row in cursor] == [{"n": 4}]
            assert await cursor.fetchall() == []
            assert rows(server, table) == []
        assert rows(server, table) == [1, 2, 3, 4]
        async with db.transaction() as conn, db.cursor() as cursor:
            await cursor.execute(PID)
            assert await cursor.fetchone() == (pid_of(conn),)

    run(test)


class TestRun:
    def test_takes_a_function_and_a_coroutine_function(
        self, run: Callable[[Test], None], server: Server, table: str
    ) -> None:
        async def test(db: AsyncPooledDatabase) -> None:
            async def coroutine(conn: Any) -> int:
                await db.execute(f"INSERT INTO {table} VALUES (1)")
                assert await db.fetch_val(PID) == pid_of(conn)
                return 1

            assert await db.run(coroutine) == 1
            assert await db.run(lambda conn: ask(conn, "SELECT 2")) == 2
            async with db.transaction() as conn:
                assert await db.run(pid_of) == pid_of(conn)

        run(test)
        assert rows(server, table) == [1]

    def test_begins_anew_where_that_is_safe(
        self, run: Callable[[Test], None], server: Server, table: str
    ) -> None:
        async def test(db: AsyncPooledDatabase) -> None:
            pids: list[int] = []

            async def work(conn: Any) -> None:
                pids.append(pid_of(conn))
                await db.execute(f"INSERT INTO {table} VALUES (%s)", [len(pids)])
                if len(pids) < 3:
                    await db.execute("SELECT pg_terminate_backend(pg_backend_pid())")

            await db.run(work)
            assert len(set(pids)) == 3
            with pytest.raises(psycopg2.OperationalError):
                await db.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        run(test)
        assert rows(server, table) == [3]

    def test_real_serialization_failures(
        self, run: Callable[[Test], None], server: Server, table: str
    ) -> None:
        attempts: list[int] = []

        async def test(db: AsyncPooledDatabase) -> None:
            await db.execute(f"INSERT INTO {table} VALUES (0, '0')")

            async def add_one(conn: Any) -> None:
                attempts.append(1)
                word = await db.fetch_val(f"SELECT word FROM {table}")
                await db.execute(f"UPDATE {table} SET word = %s", [str(int(word) + 1)])

            level = "SERIALIZABLE"
            await asyncio.gather(
                *(db.run(add_one, retries=1000, isolation_level=level) for _ in range(20))
            )

        run(test)
        assert server.execute(f"SELECT word FROM {table}") == [("20",)]
        assert len(attempts) > 20, "there was no conflict"


def is_active(conn: Any) -> bool:
    return bool(conn.get_transaction_status() == TRANSACTION_STATUS_ACTIVE)


class TestCancellation:
    def test_in_a_block_costs_its_connection_and_nothing_else(
        self, run: Callable[[Test], None], server: Server, table: str, app: str
    ) -> None:
        def statement_runs() -> bool:
            return bool(
                server.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
                    " AND state = 'active' AND query LIKE '%%pg_sleep%%'",
                    [app],
                )
            )

        async def test(db: AsyncPooledDatabase) -> None:
            async def work() -> None:
                async with db.transaction():
                    await db.execute(f"INSERT INTO {table} VALUES (1)")
                    await db.execute("SELECT pg_sleep(60)")

            task = asyncio.create_task(work())
            await asyncio.to_thread(wait_until, statement_runs)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_until, lambda: not statement_runs())
            assert rows(server, table) == []

        run(test)

    def test_of_one_that_waits_for_its_turn_in_a_block_costs_nothing(
        self, run: Callable[[Test], None], server: Server, table: str
    ) -> None:
        async def test(db: AsyncPooledDatabase) -> None:
            async with db.transaction() as conn:
                slow = f"INSERT INTO {table} SELECT 1 FROM pg_sleep(0.3)"
                running = asyncio.create_task(db.execute(slow))
                await asyncio.to_thread(wait_until, lambda: is_active(conn))
                waiting = asyncio.create_task(db.execute(f"INSERT INTO {table} VALUES (2)"))
                await asyncio.sleep(0.05)
                waiting.cancel()
                await asyncio.wait([running, waiting])
                assert running.exception() is None
                await db.execute(f"INSERT INTO {table} VALUES (3)")

        run(test)
        assert rows(server, table) == [1, 3]

    def test_of_a_statement_outside_a_block(
        self, run: Callable[[Test], None], server: Server, table: str
    ) -> None:
        async def test(db: AsyncPooledDatabase) -> None:
            tasks = [
                asyncio.create_task(db.execute(f"INSERT INTO {table} VALUES (%s)", [n]))
                for n in range(100)
            ]
            for number, task in enumerate(tasks):
                await asyncio.sleep(0.001)
                if number % 2:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            done = [n for n, result in enumerate(results) if result == []]
            assert set(done) <= set(rows(server, table))
            assert set(range(0, 100, 2)) <= set(done)

        run(test)


def test_from_env_and_bad_input(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", server.dsn)

    async def test() -> None:
        async with AsyncPooledDatabase.from_env(maxconn=2) as db:
            assert await db.fetch_val("SELECT 1") == 1
            pool = db.pool
        assert pool.closed
        with ConnectionPool(0, 1) as threads, pytest.raises(TypeError, match="pool"):
            AsyncPooledDatabase(threads)  # type: ignore[arg-type]

    asyncio.run(test())


def test_tests_can_roll_it_back(run: Callable[[Test], None], server: Server, table: str) -> None:
    async def test(db: AsyncPooledDatabase) -> None:
        with rolled_back(db.pool.pool):
            await db.execute(f"INSERT INTO {table} VALUES (1)")
            with pytest.raises(KeyError):
                async with db.transaction():
                    await db.execute(f"INSERT INTO {table} VALUES (2)")
                    raise KeyError
            assert [n async for (n,) in db.stream(f"SELECT n FROM {table}")] == [1]

    run(test)
    assert rows(server, table) == []
