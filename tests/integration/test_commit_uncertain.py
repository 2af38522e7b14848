"""COMMIT whose answer is lost: every transaction of the library says that nobody can know."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import (
    AsyncConnectionPool,
    AsyncPooledDatabase,
    CommitUncertain,
    ConnectionPool,
    PooledDatabase,
)
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import ask, assert_whole, pid_of
from tests.support.proxy import Proxy
from tests.support.servers import MakeProxy
from tests.support.waiting import in_thread, wait_until

INSERT = "INSERT INTO payment VALUES ({})"
_numbers = itertools.count(1)

Work = Callable[[Any], object]
Transact = Callable[[ConnectionPool, Work], object]


@pytest.fixture(scope="module", autouse=True)
def tables(server: Server) -> Iterator[None]:
    """Make a table, one whose rows are checked at COMMIT, and one that ends its writer there."""
    server.execute("CREATE TABLE payment (id int)")
    server.execute("CREATE TABLE one (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    server.execute("CREATE TABLE deadly (id int)")
    server.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    server.execute(
        "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON deadly DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION die()"
    )
    yield
    server.execute("DROP TABLE payment, one, deadly")
    server.execute("DROP FUNCTION die")


@pytest.fixture
def through(proxy: MakeProxy) -> Proxy:
    return proxy()


@pytest.fixture
def where(server: Server, through: Proxy) -> dict[str, Any]:
    """Return the arguments of a pool behind the proxy."""
    place = {"host": through.host, "port": through.port}
    return {**server.params, **place, "minconn": 0, "maxconn": 2, "timeout": 20}


@pytest.fixture
def number() -> int:
    """Return the id of a payment that nobody else makes."""
    return next(_numbers)


def is_stored(server: Server, number: int) -> bool:
    return bool(server.execute("SELECT count(*) FROM payment WHERE id = %s", [number])[0][0])


# -- the ways to commit -------------------------------------------------------------


def by_pool(pool: ConnectionPool, work: Work) -> None:
    with pool.transaction() as conn:
        work(conn)


def by_database(pool: ConnectionPool, work: Work) -> None:
    with PooledDatabase(pool).transaction() as conn:
        work(conn)


def by_run(pool: ConnectionPool, work: Work) -> None:
    PooledDatabase(pool).run(work)


def by_psycopg2s_block(pool: ConnectionPool, work: Work) -> None:
    with pool.conn() as conn, conn:
        work(conn)


def by_commit(pool: ConnectionPool, work: Work) -> None:
    with pool.conn() as conn:
        work(conn)
        conn.commit()


def by_legacy_calls(pool: ConnectionPool, work: Work) -> None:
    conn = pool.getconn()
    try:
        work(conn)
        conn.commit()
    finally:
        pool.putconn(conn)


def by_autocommitting_pool(pool: ConnectionPool, work: Work) -> None:
    with pool.conn() as conn:
        conn.autocommit = True
        with conn:  # which begins a transaction all the same
            work(conn)


@contextlib.contextmanager
def around(pool: ConnectionPool) -> Iterator[AsyncConnectionPool]:
    """Give an async pool that uses a pool that is there."""
    made = AsyncConnectionPool(**pool.connect_kwargs, minconn=0, maxconn=2)
    made.pool.shutdown()
    made.pool = pool
    yield made


def by_async_pool(pool: ConnectionPool, work: Work) -> None:
    async def main() -> None:
        with around(pool) as apool:
            async with apool.transaction() as conn:
                await apool.run_on(conn, work)

    asyncio.run(main())


def by_async_run(pool: ConnectionPool, work: Work) -> None:
    async def main() -> None:
        with around(pool) as apool:
            await apool.run(work)

    asyncio.run(main())


def by_async_database(pool: ConnectionPool, work: Work) -> None:
    async def main() -> None:
        with around(pool) as apool:
            async with AsyncPooledDatabase(apool).transaction() as conn:
                await apool.run_on(conn, work)

    asyncio.run(main())


def by_async_database_run(pool: ConnectionPool, work: Work) -> None:
    async def main() -> None:
        with around(pool) as apool:
            await AsyncPooledDatabase(apool).run(work)

    asyncio.run(main())


WAYS = [
    by_pool,
    by_database,
    by_run,
    by_psycopg2s_block,
    by_commit,
    by_legacy_calls,
    by_autocommitting_pool,
    by_async_pool,
    by_async_run,
    by_async_database,
    by_async_database_run,
]
every_way = pytest.mark.parametrize("transact", WAYS, ids=lambda way: way.__name__)
RETRYING = (by_run, by_async_database_run)


class TestLostAnswer:
    @every_way
    def test_of_a_commit_that_was_done_is_uncertain(
        self,
        server: Server,
        through: Proxy,
        where: dict[str, Any],
        number: int,
        transact: Transact,
    ) -> None:
        def pay(conn: Any) -> None:
            ask(conn, INSERT.format(number))
            through.cut_after(to_client=0)

        with ConnectionPool(**where) as pool:
            with pytest.raises(CommitUncertain) as raised:
                transact(pool, pay)
            assert type(raised.value.__cause__) in (
                psycopg2.OperationalError,
                psycopg2.InterfaceError,
            )
            wait_until(lambda: is_stored(server, number))
            assert_whole(pool)

    @every_way
    def test_because_the_backend_was_ended_is_uncertain(
        self, where: dict[str, Any], transact: Transact
    ) -> None:
        """It was not done this time, which nobody can tell from the other case."""
        with ConnectionPool(**where) as pool:
            with pytest.raises(CommitUncertain):
                transact(pool, lambda conn: ask(conn, "INSERT INTO deadly VALUES (1)"))
            assert_whole(pool)

    @every_way
    def test_in_a_black_hole_is_uncertain(
        self, through: Proxy, where: dict[str, Any], number: int, transact: Transact
    ) -> None:
        conns: list[Any] = []

        def pay(conn: Any) -> None:
            ask(conn, INSERT.format(number))
            through.freeze()
            conns.append(conn)

        with ConnectionPool(**where) as pool:
            paying = in_thread(transact, pool, pay)
            wait_until(lambda: conns)
            is_waiting = ext.TRANSACTION_STATUS_ACTIVE
            wait_until(lambda: conns[0].get_transaction_status() == is_waiting)
            through.cut()  # what the kernel does after tcp_user_timeout
            assert isinstance(paying.error(), CommitUncertain)
            through.forward()
            assert_whole(pool)

    def test_makes_the_other_connections_suspect(
        self, through: Proxy, where: dict[str, Any], number: int
    ) -> None:
        with ConnectionPool(**where) as pool:
            with pool.conn(), pool.conn():
                pass
            with pytest.raises(CommitUncertain), pool.transaction() as conn:
                ask(conn, INSERT.format(number))
                through.cut_after(to_client=0, only=conn)
            assert [conn.pool_record.suspect for conn in pool._store.idle] == [True]
            assert_whole(pool)

    def test_is_caught_as_what_it_was_before(self) -> None:
        assert issubclass(CommitUncertain, psycopg2.OperationalError)


class TestRefusedCommit:
    """The server has answered: it was not done."""

    @every_way
    def test_for_a_deferred_constraint_is_what_psycopg2_raises(
        self, where: dict[str, Any], transact: Transact
    ) -> None:
        with ConnectionPool(**where) as pool:
            with pytest.raises(psycopg2.errors.UniqueViolation):
                transact(pool, lambda conn: ask(conn, "INSERT INTO one VALUES (1), (1)"))
            assert_whole(pool)

    @pytest.mark.parametrize(
        "transact", [way for way in WAYS if way not in RETRYING], ids=lambda way: way.__name__
    )
    def test_for_a_conflict_is_what_psycopg2_raises(
        self, server: Server, where: dict[str, Any], number: int, transact: Transact
    ) -> None:
        other = psycopg2.connect(**server.params)
        other.isolation_level = ext.ISOLATION_LEVEL_SERIALIZABLE
        look = "SELECT count(*) FROM payment"

        def meet(conn: Any) -> None:
            ask(conn, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            ask(conn, look)
            ask(other, look)
            ask(conn, INSERT.format(number))
            ask(other, INSERT.format(-number))
            other.commit()

        with contextlib.closing(other), ConnectionPool(**where) as pool:
            with pytest.raises(psycopg2.errors.SerializationFailure):
                transact(pool, meet)
            assert_whole(pool)
        assert not is_stored(server, number)


class TestLostBefore:
    """Nothing can have been done where COMMIT was not sent."""

    @pytest.mark.parametrize("transact", [by_pool, by_psycopg2s_block, by_commit, by_database])
    def test_and_swallowed_is_no_uncertain_commit(
        self, server: Server, where: dict[str, Any], number: int, transact: Transact
    ) -> None:
        def lose(conn: Any) -> None:
            ask(conn, INSERT.format(number))
            server.terminate_backend(pid_of(conn))
            with contextlib.suppress(psycopg2.Error):
                ask(conn)

        with ConnectionPool(**where) as pool:
            with pytest.raises(psycopg2.Error) as raised:
                transact(pool, lose)
            assert not isinstance(raised.value, CommitUncertain)
        assert not is_stored(server, number)

    def test_in_a_failed_transaction_is_no_uncertain_commit(
        self, through: Proxy, where: dict[str, Any]
    ) -> None:
        with ConnectionPool(**where) as pool:
            with pytest.raises(psycopg2.Error) as raised, pool.transaction() as conn:
                with contextlib.suppress(psycopg2.Error):
                    ask(conn, "SELECT 1 / 0")
                through.cut_after(to_client=0)
            assert not isinstance(raised.value, CommitUncertain)

    def test_with_nothing_to_commit_is_no_error(
        self, through: Proxy, where: dict[str, Any]
    ) -> None:
        with ConnectionPool(**where) as pool:
            with pool.transaction():
                through.cut()
            assert_whole(pool)


class TestCancelledTask:
    """It gets its CancelledError, as asyncio wants it, and finds the reason there."""

    @pytest.mark.parametrize("kind", ["pool", "database"])
    def test_during_commit_is_told_in_the_cause(
        self, through: Proxy, where: dict[str, Any], number: int, kind: str
    ) -> None:
        async def pay(apool: AsyncConnectionPool) -> None:
            owner = apool if kind == "pool" else AsyncPooledDatabase(apool)
            async with owner.transaction() as conn:
                await apool.run_on(conn, ask, INSERT.format(number))
                through.freeze(only=conn)
                began.append(conn)

        began: list[Any] = []

        def is_committing() -> bool:
            return bool(began) and began[0].get_transaction_status() == ACTIVE

        async def main() -> BaseException | None:
            async with AsyncConnectionPool(**where, test_timeout=1) as apool:
                task = asyncio.create_task(pay(apool))
                await asyncio.to_thread(wait_until, is_committing)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError as cancelled:
                    return cancelled.__cause__
                finally:
                    through.forward()
                raise AssertionError("it was not cancelled")

        assert isinstance(asyncio.run(main()), CommitUncertain)

    @pytest.mark.parametrize("kind", ["pool", "database"])
    def test_before_it_has_no_such_cause(self, where: dict[str, Any], kind: str) -> None:
        async def sleep(apool: AsyncConnectionPool, began: asyncio.Event) -> None:
            owner = apool if kind == "pool" else AsyncPooledDatabase(apool)
            async with owner.transaction() as conn:
                await apool.run_on(conn, ask)
                began.set()
                await asyncio.sleep(60)

        async def main() -> BaseException | None:
            async with AsyncConnectionPool(**where) as apool:
                began = asyncio.Event()
                task = asyncio.create_task(sleep(apool, began))
                await began.wait()
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError as cancelled:
                    return cancelled.__cause__
                raise AssertionError("it was not cancelled")

        assert asyncio.run(main()) is None


ACTIVE = ext.TRANSACTION_STATUS_ACTIVE
