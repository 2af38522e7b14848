"""SQLAlchemy at work on a pool: sessions, streams, threads, and connections that are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import bindparam, event, exc, func, select, text, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from psycopg2_pool2 import CommitUncertain, ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.sqlalchemy import create_engine
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    end_sessions,
    pid_of,
    wait_until_at_rest,
)
from tests.support.servers import MakeServer, StatementLog
from tests.support.swallowing import swallowing
from tests.support.waiting import in_thread, wait_until

QUESTION = text("SELECT 40 + 2")


class Base(DeclarativeBase):
    """The tables of these tests; each test has them in a schema of its own."""


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


@pytest.fixture
def pool(make_any_pool: MakePool) -> Iterator[ConnectionPool]:
    """Make a pool of three, with the background thread and without it; it is whole at the end."""
    made = make_any_pool(maxconn=3, timeout=30)
    yield made
    assert_whole(made)


@pytest.fixture
def engine(pool: ConnectionPool) -> Engine:
    return create_engine(pool)


@pytest.fixture
def accounts(server: Server, app: str, pool: ConnectionPool) -> Iterator[Engine]:
    """Return an engine whose tables are in a schema of their own: ten accounts with 100 each."""
    schema = f"accounts_{app.replace('-', '_')}"
    server.execute(f"CREATE SCHEMA {schema}")
    engine = create_engine(pool, execution_options={"schema_translate_map": {None: schema}})
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Account(id=number, balance=100) for number in range(10))
    yield engine
    server.execute(f"DROP SCHEMA {schema} CASCADE")


def pid(connection: Connection) -> int:
    """Return the process id of a connection's backend, without asking the server."""
    return pid_of(connection.connection.dbapi_connection)


def use(engine: Engine) -> int:
    """Borrow, ask, give back; tell which backend it was."""
    with engine.connect() as connection:
        assert connection.scalar(QUESTION) == 42
        return pid(connection)


def use_two(engine: Engine) -> set[int]:
    """Use two connections at a time; tell their backends."""
    with engine.connect() as one, engine.connect() as two:
        assert (one.scalar(QUESTION), two.scalar(QUESTION)) == (42, 42)
        return {pid(one), pid(two)}


class TestSessions:
    def test_keep_what_is_committed_and_undo_the_rest(
        self, pool: ConnectionPool, accounts: Engine
    ) -> None:
        make_session = sessionmaker(accounts)
        with make_session.begin() as session:
            session.add(Account(id=10, balance=1))
        with make_session() as session:
            session.add(Account(id=11, balance=1))
            session.flush()
            assert pool.stats().in_use == 1
        with make_session() as session:
            assert session.get(Account, 10)
            assert not session.get(Account, 11)
            session.rollback()
            assert pool.stats().in_use == 0
            assert session.get(Account, 10)  # borrows again
            assert pool.stats().in_use == 1

    def test_have_savepoints(self, accounts: Engine) -> None:
        with Session(accounts) as session, session.begin():
            session.add(Account(id=10, balance=1))
            with pytest.raises(exc.IntegrityError), session.begin_nested():
                session.add(Account(id=1, balance=1))
            session.add(Account(id=11, balance=1))
        with Session(accounts) as session:
            assert session.scalar(select(func.count()).select_from(Account)) == 12

    def test_stream_what_they_select(
        self, pool: ConnectionPool, accounts: Engine, statement_log: StatementLog
    ) -> None:
        statement_log.clear()
        with Session(accounts) as session:
            accounts_by_id = select(Account).order_by(Account.id).limit(8)
            found = session.scalars(accounts_by_id, execution_options={"yield_per": 3})
            assert [account.id for account in found] == list(range(8))
        fetches = [sql for sql in statement_log.statements() if sql.startswith("FETCH")]
        assert len(fetches) > 2
        with accounts.connect() as connection:
            stream = connection.execution_options(yield_per=3).execute(select(Account.id))
            assert len(next(stream.partitions())) == 3  # and is left unread
        assert pool.stats().in_use == 0

    def test_insert_many_at_once(self, accounts: Engine) -> None:
        with Session(accounts) as session, session.begin():
            session.add_all(Account(id=number, balance=number) for number in range(10, 2010))
        with accounts.begin() as connection:
            table = Account.__table__
            statement = update(table).where(table.c.id == bindparam("which")).values(balance=0)  # type: ignore[arg-type]
            connection.execute(statement, [{"which": number} for number in range(100)])
            total = select(func.sum(Account.balance))
            assert connection.scalar(total) == sum(range(100, 2010))

    def test_in_many_threads_on_few_connections(
        self, pool: ConnectionPool, accounts: Engine
    ) -> None:
        make_session = sessionmaker(accounts)

        def transfer(start: int) -> None:
            for number in range(start, start + 15):
                giver, taker = sorted((number % 10, (number * 3 + 1) % 10))
                with make_session.begin() as session:
                    by_id = select(Account).where(Account.id.in_((giver, taker)))
                    locked = session.scalars(by_id.order_by(Account.id).with_for_update()).all()
                    locked[0].balance -= 1
                    locked[-1].balance += 1

        threads = [in_thread(transfer, start) for start in range(8)]
        for thread in threads:
            thread.result(60)
        with Session(accounts) as session:
            assert session.scalar(select(func.sum(Account.balance))) == 1000
        assert pool.stats().in_use == 0
        assert pool.get_stats()["pool_size"] <= 3


class TestLoss:
    """A connection whose server has gone, and what becomes of it and of the others."""

    @pytest.fixture
    def lose(self, server: Server) -> Callable[[Connection], None]:
        """Return what ends a connection's session on the server."""
        return lambda connection: server.terminate_backend(pid(connection))

    def test_of_idle_connections_is_not_noticed(
        self, server: Server, app: str, engine: Engine
    ) -> None:
        old = use_two(engine)
        assert set(end_sessions(server, app)) == old
        assert not use_two(engine) & old

    def test_in_a_transaction_has_to_be_rolled_back(
        self, pool: ConnectionPool, engine: Engine, lose: Callable[[Connection], None]
    ) -> None:
        with engine.connect() as connection:
            old = pid(connection)
            with connection.begin() as transaction:
                lose(connection)
                with pytest.raises(exc.OperationalError) as raised:
                    connection.execute(QUESTION)
                assert raised.value.connection_invalidated
                assert connection.invalidated
                assert pool.stats().in_use == 0
                with pytest.raises(exc.PendingRollbackError):
                    connection.execute(QUESTION)
                transaction.rollback()
            assert connection.scalar(QUESTION) == 42
            assert pid(connection) != old

    @pytest.mark.parametrize("leave", [lambda: None, lambda: 1 / 0], ids=["quietly", "by an error"])
    def test_that_nobody_saw_is_no_trouble_on_return(
        self,
        pool: ConnectionPool,
        engine: Engine,
        lose: Callable[[Connection], None],
        leave: Callable[[], object],
    ) -> None:
        def use_and_lose() -> None:
            with engine.connect() as connection:
                connection.execute(QUESTION)
                lose(connection)
                leave()

        try:
            use_and_lose()
        except (ZeroDivisionError, exc.OperationalError):
            pass  # of the rollback
        assert pool.stats() == PoolStats(0, 0)
        assert use(engine)

    def test_at_commit_is_an_error(
        self, engine: Engine, lose: Callable[[Connection], None]
    ) -> None:
        with pytest.raises(exc.OperationalError), engine.begin() as connection:
            connection.execute(QUESTION)
            lose(connection)
        assert use(engine)

    def test_of_the_answer_to_commit_says_so_in_the_original_error(
        self, server: Server, make_pool: MakePool
    ) -> None:
        with swallowing(server) as proxy:
            place = {**server.params, "host": proxy.host, "port": proxy.port}
            pool = make_pool(maxconn=1, timeout=10, **place)
            engine = create_engine(pool)
            use(engine)
            with pytest.raises(exc.OperationalError) as raised, engine.begin() as connection:
                connection.execute(text("CREATE TABLE perhaps (n int)"))
                proxy.armed = True
            assert isinstance(raised.value.orig, CommitUncertain)
            assert raised.value.connection_invalidated
            assert use(engine)
        server.execute("DROP TABLE perhaps")

    def test_in_a_stream_is_an_error(
        self, engine: Engine, lose: Callable[[Connection], None]
    ) -> None:
        many = text("SELECT repeat('x', 1000) FROM generate_series(1, 10000)")
        with engine.connect() as connection:
            stream = connection.execution_options(stream_results=True).execute(many)
            assert len(stream.fetchmany(10)) == 10
            lose(connection)
            with pytest.raises(exc.OperationalError) as raised:
                stream.fetchall()
            assert raised.value.connection_invalidated
            connection.rollback()
            assert connection.scalar(QUESTION) == 42

    def test_in_a_session_costs_its_transaction(
        self, accounts: Engine, lose: Callable[[Connection], None]
    ) -> None:
        with Session(accounts) as session:
            session.add(Account(id=10, balance=1))
            session.flush()
            lose(session.connection())
            with pytest.raises(exc.OperationalError):
                session.get(Account, 1)
            session.rollback()
            assert not session.get(Account, 10)
            session.add(Account(id=11, balance=1))
            session.commit()

    def test_leaves_transactions_that_can_be_rolled_back(self, engine: Engine) -> None:
        with engine.connect() as connection:
            transaction = connection.begin()
            savepoint = connection.begin_nested()
            connection.invalidate()
            connection.invalidate()  # harmless
            savepoint.rollback()
            transaction.rollback()
            assert connection.scalar(QUESTION) == 42

    def test_makes_the_others_suspect(
        self,
        make_any_pool: MakePool,
        statement_log: StatementLog,
        lose: Callable[[Connection], None],
    ) -> None:
        pool = make_any_pool(maxconn=2, test_idle_after=3600, timeout=10)
        engine = create_engine(pool)
        use_two(engine)
        with engine.connect() as connection:
            assert statement_log.during(lambda: use(engine)).count("SELECT 1") == 0
            lose(connection)
            with pytest.raises(exc.OperationalError):
                connection.execute(QUESTION)
        wait_until_at_rest()
        assert statement_log.during(lambda: use(engine)).count("SELECT 1") == 1
        assert_whole(pool)

    def test_while_the_dialect_looks_at_the_server(
        self, pool: ConnectionPool, engine: Engine, server: Server
    ) -> None:
        @event.listens_for(engine, "connect", once=True, insert=True)
        def lose(conn: Any, record: Any) -> None:
            server.terminate_backend(pid_of(conn))

        with pytest.raises(exc.OperationalError):
            engine.connect()
        assert pool.stats() == PoolStats(0, 0)
        assert use(engine)
        assert engine.dialect.server_version_info is not None

    def test_that_only_the_program_knows_of_replaces_all(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        old = use_two(engine)

        @event.listens_for(engine, "handle_error", once=True)
        def judge(context: Any) -> None:
            context.is_disconnect = True

        with engine.connect() as connection, pytest.raises(exc.ProgrammingError):
            connection.execute(text("SELECT nonsense"))
        assert not use_two(engine) & old

    def test_of_which_the_program_says_that_it_concerns_one_alone(self, engine: Engine) -> None:
        old = use_two(engine)

        @event.listens_for(engine, "handle_error", once=True)
        def judge(context: Any) -> None:
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False

        with engine.connect() as connection, pytest.raises(exc.ProgrammingError):
            connection.execute(text("SELECT nonsense"))
        assert len(use_two(engine) & old) == 1

    def test_by_invalidate_concerns_that_connection_alone(
        self, pool: ConnectionPool, engine: Engine, statement_log: StatementLog
    ) -> None:
        old = use_two(engine)
        with engine.connect() as connection:
            given_up = pid(connection)
            assert statement_log.during(connection.invalidate) == []
            assert pool.stats() == PoolStats(in_use=0, idle=1)
            assert connection.scalar(QUESTION) == 42
            assert pid(connection) in old - {given_up}

    def test_by_invalidate_in_the_middle_of_a_statement_cancels_that(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=1, timeout=30)
        engine = create_engine(pool)
        napping = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
        with engine.connect() as connection:
            conn = connection.connection.dbapi_connection
            running = in_thread(ask, conn, "SELECT pg_sleep(60)")
            wait_until(lambda: server.execute(napping, [app]))
            connection.invalidate()
            assert isinstance(running.error(), psycopg2.Error)
            wait_until(lambda: not server.execute(napping, [app]))
        assert use(engine)
        assert_whole(pool)

    def test_that_two_threads_tell_of_is_told_once(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        old = use_two(engine)
        conn = engine.raw_connection()
        conn.invalidate()
        engine.pool._invalidate(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        assert use(engine) in old

    def test_by_restart_of_the_server(self, fresh_server: Server) -> None:
        with ConnectionPool(0, 2, timeout=30, **fresh_server.params) as pool:
            engine = create_engine(pool)
            old = use_two(engine)
            fresh_server.restart()
            assert not use_two(engine) & old
            with engine.connect() as connection:
                connection.execute(QUESTION)
                fresh_server.restart("immediate")
                with pytest.raises(exc.OperationalError) as raised:
                    connection.execute(QUESTION)
                assert raised.value.connection_invalidated
                connection.rollback()
                assert connection.scalar(QUESTION) == 42
            assert_whole(pool)


class TestTwoPhases:
    def test_commit_roll_back_and_outlive_the_connection(self, make_server: MakeServer) -> None:
        params = make_server(max_prepared_transactions=4).params
        with ConnectionPool(0, 2, timeout=30, **params) as pool:
            engine = create_engine(pool)
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE kept (n int)"))

            def insert(connection: Connection, number: int) -> Any:
                transaction = connection.begin_twophase()
                connection.execute(text("INSERT INTO kept VALUES (:n)"), {"n": number})
                return transaction

            with engine.connect() as connection:
                transaction = insert(connection, 1)
                transaction.prepare()
                transaction.commit()
                insert(connection, 2).rollback()
                insert(connection, 3).commit()
            with engine.connect() as connection:
                insert(connection, 4)  # is left
            with engine.connect() as connection:
                transaction = insert(connection, 5)
                connection.invalidate()
                transaction.rollback()
            with engine.connect() as connection:
                transaction = insert(connection, 6)
                transaction.prepare()
                connection.invalidate()  # the server keeps what is prepared
            with engine.connect() as connection:
                assert connection.recover_twophase() == [transaction.xid]
                connection.commit_prepared(transaction.xid, recover=True)
            with engine.connect() as connection:
                kept = connection.scalars(text("SELECT n FROM kept ORDER BY n")).all()
            assert kept == [1, 3, 6]
            assert_whole(pool)
