"""SQLAlchemy engines that borrow from a pool: options, statements, events, settings, errors."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2 import extras
from sqlalchemy import create_engine as sqlalchemy_create_engine
from sqlalchemy import engine_from_config, event, exc, text
from sqlalchemy.engine import Connection, Engine

from psycopg2_pool2 import ConnectionPool, PoolExhausted, PoolStats, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.contrib.sqlalchemy import EnginePool, create_engine
from psycopg2_pool2.testing import rolled_back
from tests.support.pools import MakePool, ask, assert_whole, pid_of, wait_for_backends
from tests.support.processes import in_child
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until

QUESTION = text("SELECT 40 + 2")
TEST = "SELECT 1"
AN_HSTORE = """'"a"=>"1"'::hstore"""


@pytest.fixture
def pool(make_pool: MakePool) -> Iterator[ConnectionPool]:
    """Make a pool of two; it is whole at the end."""
    made = make_pool(maxconn=2, timeout=30)
    yield made
    if not made.closed:
        assert_whole(made)


@pytest.fixture
def engine(pool: ConnectionPool) -> Engine:
    return create_engine(pool)


@pytest.fixture(scope="module", autouse=True)
def hstore(server: Server) -> Iterator[None]:
    """Make what looks like the type of the extension, which may not be installed."""
    server.execute("""CREATE TYPE hstore AS ENUM ('"a"=>"1"')""")
    yield
    server.execute("DROP TYPE hstore")


@pytest.fixture
def unused() -> Iterator[ConnectionPool]:
    with ConnectionPool(0, 1) as made:
        yield made


def pid(connection: Connection) -> int:
    """Return the process id of a connection's backend, without asking the server."""
    return pid_of(connection.connection.dbapi_connection)


def use(engine: Engine) -> int:
    """Borrow, ask, give back; tell which backend it was."""
    with engine.connect() as connection:
        assert connection.scalar(QUESTION) == 42
        return pid(connection)


def level_of(connection: Connection) -> str:
    """Return the isolation level that statements have here."""
    conn: Any = connection.connection.dbapi_connection
    return "AUTOCOMMIT" if conn.autocommit else connection.get_isolation_level()


class TestMaking:
    @pytest.mark.parametrize("other", [None, "postgresql://", psycopg2.connect])
    def test_takes_a_pool_only(self, other: Any) -> None:
        with pytest.raises(TypeError, match="pool must be a ConnectionPool, not"):
            create_engine(other)

    @pytest.mark.parametrize(
        ("option", "instead"),
        [
            ("connect_args", "psycopg2's keywords"),
            ("max_overflow", "maxconn"),
            ("pool_pre_ping", "test_on_borrow"),
            ("pool_recycle", "lifetime_timeout"),
            ("pool_size", "maxconn"),
            ("pool_timeout", "timeout"),
            ("pool_use_lifo", "idle_timeout"),
        ],
    )
    def test_says_what_to_give_to_the_pool_instead(
        self, unused: ConnectionPool, option: str, instead: str
    ) -> None:
        with pytest.raises(TypeError, match=f"^{option} is not .* give {instead} to the pool"):
            create_engine(unused, **{option: 5})

    @pytest.mark.parametrize("option", ["creator", "poolclass", "pool", "url", "colour"])
    def test_refuses_what_it_has_already_or_does_not_know(
        self, unused: ConnectionPool, option: str
    ) -> None:
        with pytest.raises(TypeError, match=option):
            create_engine(unused, **{option: None})

    def test_opens_nothing(self, unused: ConnectionPool) -> None:
        engine = create_engine(unused)
        assert unused.stats() == PoolStats(0, 0)
        assert engine.dialect.driver == "psycopg2"

    def test_passes_the_other_options_on(
        self, pool: ConnectionPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "sqlalchemy.pool")
        engine = create_engine(
            pool,
            execution_options={"isolation_level": "AUTOCOMMIT"},
            pool_logging_name="ours",
            pool_reset_on_return="commit",
        )
        with engine.connect() as connection:
            assert connection.connection.dbapi_connection.autocommit  # type: ignore[union-attr]
        assert {record.name for record in caplog.records} == {"sqlalchemy.pool.EnginePool.ours"}
        assert "commit-on-return" in caplog.text

    @pytest.mark.parametrize(
        "make",
        [
            lambda pool: sqlalchemy_create_engine(
                "postgresql+psycopg2://", poolclass=EnginePool, creator=pool
            ),
            lambda pool: sqlalchemy_create_engine("postgresql+psycopg2://", pool=EnginePool(pool)),
            lambda pool: engine_from_config(
                {
                    "url": "postgresql+psycopg2://",
                    "poolclass": EnginePool,
                    "creator": pool,
                    "pool_logging_name": "ours",
                },
                prefix="",
            ),
        ],
        ids=["poolclass", "pool", "config"],
    )
    def test_others_may_make_the_engine(
        self, pool: ConnectionPool, make: Callable[[ConnectionPool], Engine]
    ) -> None:
        engine = make(pool)
        assert use(engine) == use(engine)
        assert pool.stats() == PoolStats(0, 1)

    def test_status_has_the_counts(self, pool: ConnectionPool, engine: Engine) -> None:
        with engine.connect(), engine.connect():
            assert "in use 2, idle 0" in engine.pool.status()
        assert "in use 0, idle 2" in engine.pool.status()
        assert pool.name in engine.pool.status()


class TestStatements:
    """What the server is sent: what the program asks for, and the pool's test."""

    @pytest.fixture(params=[True, False], ids=["tested", "untested"])
    def sent(
        self, make_pool: MakePool, statement_log: StatementLog, request: pytest.FixtureRequest
    ) -> Callable[[Callable[[Engine], object]], list[str]]:
        """Return what tells the statements of a use; the test of the borrow is not among them."""
        pool = make_pool(maxconn=1, test_on_borrow=request.param)
        engine = create_engine(pool)
        use(engine)

        def sent(call: Callable[[Engine], object]) -> list[str]:
            for _ in range(2):  # the second time, all is as the first has left it
                statements = statement_log.during(lambda: call(engine))
                if request.param:
                    assert statements.pop(0) == TEST
            assert pool.stats() == PoolStats(0, 1)
            return statements

        return sent

    def test_none_for_a_borrow_and_a_return(self, sent: Any) -> None:
        assert sent(lambda engine: engine.connect().close()) == []
        assert sent(lambda engine: engine.raw_connection().close()) == []

    def test_one_rollback_of_what_is_not_committed(self, sent: Any) -> None:
        assert sent(use) == ["BEGIN", "SELECT 40 + 2", "ROLLBACK"]

        def use_raw(engine: Engine) -> None:
            conn = engine.raw_connection()
            conn.cursor().execute("SELECT 1")
            conn.close()

        assert sent(use_raw) == ["BEGIN", "SELECT 1", "ROLLBACK"]

    def test_no_rollback_of_what_is_committed(self, sent: Any) -> None:
        def commit(engine: Engine) -> None:
            with engine.begin() as connection:
                connection.execute(QUESTION)

        assert sent(commit) == ["BEGIN", "SELECT 40 + 2", "COMMIT"]

    @pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ"])
    def test_the_isolation_level_comes_with_begin(self, sent: Any, level: str) -> None:
        assert sent(lambda engine: use(engine.execution_options(isolation_level=level))) == [
            f"BEGIN ISOLATION LEVEL {level}",
            "SELECT 40 + 2",
            "ROLLBACK",
        ]

    def test_under_autocommit_the_statement_alone(self, sent: Any) -> None:
        assert sent(lambda engine: use(engine.execution_options(isolation_level="AUTOCOMMIT"))) == [
            "SELECT 40 + 2"
        ]

    @pytest.mark.parametrize(
        ("level", "around"),
        [
            ("AUTOCOMMIT", ([], [])),
            ("SERIALIZABLE", (["BEGIN ISOLATION LEVEL SERIALIZABLE"], ["ROLLBACK"])),
        ],
    )
    def test_an_engines_own_level_costs_nothing_more(
        self,
        pool: ConnectionPool,
        statement_log: StatementLog,
        level: Any,
        around: tuple[list[str], list[str]],
    ) -> None:
        engine = create_engine(pool, isolation_level=level)
        use(engine)
        for _ in range(2):
            statements = statement_log.during(lambda: use(engine))
            assert statements == [TEST, *around[0], "SELECT 40 + 2", *around[1]]

    def test_the_dialect_looks_at_the_server_once(
        self, pool: ConnectionPool, engine: Engine, statement_log: StatementLog
    ) -> None:
        with engine.connect(), engine.connect():
            pass
        assert pool.stats() == PoolStats(0, 2)
        statements = statement_log.statements()
        assert len([sql for sql in statements if "version()" in sql]) == 1
        assert len([sql for sql in statements if "hstore" in sql]) == 1
        assert engine.dialect.server_version_info is not None
        assert engine.dialect.default_isolation_level == "READ COMMITTED"


class Heard:
    """The pool events of an engine, in order, and their connections and records."""

    NAMES = (
        *("first_connect", "connect", "checkout", "checkin", "reset"),
        *("invalidate", "soft_invalidate", "close", "detach", "close_detached"),
    )

    def __init__(self, engine: Engine) -> None:
        self.names: list[str] = []
        self.about: list[tuple[Any, Any]] = []
        for name in self.NAMES:
            event.listen(engine, name, self._listener(name), named=True)

    def _listener(self, name: str) -> Callable[..., None]:
        def hear(dbapi_connection: Any, connection_record: Any = None, **others: object) -> None:
            self.names.append(name)
            self.about.append((dbapi_connection and pid_of(dbapi_connection), connection_record))

        return hear

    def during(self, call: Callable[[], object]) -> list[str]:
        """Return what is heard during a call."""
        self.names.clear()
        self.about.clear()
        call()
        return self.names


class TestEvents:
    def test_connect_comes_once_for_a_connection_and_the_others_for_each_loan(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        heard = Heard(engine)
        loan = ["checkout", "reset", "checkin"]
        assert heard.during(lambda: use(engine)) == ["first_connect", "connect", *loan]
        known = heard.about[0]
        with pool.conn():  # somebody else's loan of the same pool
            pass
        assert heard.during(lambda: use(engine)) == loan
        assert heard.about == [known] * 3  # one record for as long as the connection lives
        with engine.connect():
            assert heard.during(lambda: use(engine)) == ["connect", *loan]

    def test_of_a_connection_that_is_given_up(self, pool: ConnectionPool, engine: Engine) -> None:
        heard = Heard(engine)

        def invalidate() -> None:
            with engine.connect() as connection:
                connection.invalidate()

        def invalidate_softly() -> None:
            conn = engine.raw_connection()
            conn.invalidate(soft=True)
            conn.close()

        def detach() -> None:
            with engine.connect() as connection:
                connection.detach()
            assert pool.stats() == PoolStats(0, 0)

        use(engine)
        assert heard.during(invalidate) == ["checkout", "invalidate", "close", "checkin"]
        assert pool.stats() == PoolStats(0, 0)
        use(engine)
        assert heard.during(invalidate_softly) == [
            *("checkout", "soft_invalidate", "reset", "checkin")
        ]
        assert pool.stats() == PoolStats(0, 0)
        use(engine)
        assert heard.during(detach) == ["checkout", "detach", "reset", "close_detached"]

    def test_info_lives_as_long_as_the_connection(self, engine: Engine) -> None:
        with engine.connect() as connection:
            connection.info["note"] = pid(connection)
        with engine.connect() as connection:
            assert connection.info["note"] == pid(connection)
            connection.invalidate()
        with engine.connect() as connection:
            assert "note" not in connection.info

    def test_no_record_keeps_a_connection_that_the_pool_closed(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        use(engine)
        assert isinstance(engine.pool, EnginePool)
        assert len(engine.pool._records) == 1
        pool.discard_all_idle()
        wait_until(lambda: pool.get_stats()["pool_size"] == 0)
        gc.collect()
        assert len(engine.pool._records) == 0

    def test_a_connect_handler_that_raises_costs_that_connection(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        faults: list[Exception] = [LookupError("no"), psycopg2.OperationalError("no")]

        @event.listens_for(engine, "connect")
        def refuse(*args: object) -> None:
            if faults:
                raise faults.pop()

        with pytest.raises(exc.OperationalError):
            engine.connect()
        with pytest.raises(LookupError):
            engine.connect()
        assert pool.stats() == PoolStats(0, 0)
        assert use(engine)

    def test_a_checkout_handler_that_refuses_gets_a_new_connection(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        with engine.connect() as one, engine.connect() as two:
            old = {pid(one), pid(two)}
        heard = Heard(engine)

        @event.listens_for(engine, "checkout")
        def refuse_the_old(conn: Any, record: Any, fairy: Any) -> None:
            record.info["seen"] = True
            if pid_of(conn) in old:
                raise exc.DisconnectionError("too old")

        assert use(engine) not in old
        assert heard.names.count("connect") == 1
        # It has none to spare: those that the handlers had seen are closed.
        assert pool.stats() == PoolStats(0, 1)

    def test_a_checkout_handler_may_refuse_the_whole_pool(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        with engine.connect() as one, engine.connect() as two:
            old = {pid(one), pid(two)}
        held = pool.getconn()

        @event.listens_for(engine, "checkout", once=True)
        def refuse_all(conn: Any, record: Any, fairy: Any) -> None:
            raise exc.InvalidatePoolError("all")

        assert use(engine) not in old
        pool.putconn(held)
        with engine.connect() as one, engine.connect() as two:
            assert not {pid(one), pid(two)} & old

    def test_a_checkout_handler_that_refuses_everything_gets_an_error(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        @event.listens_for(engine, "checkout")
        def refuse(*args: object) -> None:
            raise exc.DisconnectionError("no")

        with pytest.raises(exc.InvalidRequestError):
            engine.connect()
        assert pool.stats() == PoolStats(0, 0)


class TestSettings:
    """What `connect` handlers set is there in each loan, and in the loans of nobody else."""

    def test_of_a_handler_last(self, pool: ConnectionPool, engine: Engine) -> None:
        @event.listens_for(engine, "connect")
        def prepare(conn: Any, record: Any) -> None:
            conn.readonly = True
            conn.isolation_level = "REPEATABLE READ"
            with conn.cursor() as cursor:
                cursor.execute("SET statement_timeout = '31s'")
            conn.commit()

        for _ in range(3):
            with engine.connect() as connection:
                assert connection.scalar(text("SHOW transaction_read_only")) == "on"
                assert connection.scalar(text("SHOW transaction_isolation")) == "repeatable read"
                assert connection.scalar(text("SHOW statement_timeout")) == "31s"
            with pool.conn() as conn:
                assert ask(conn, "SHOW transaction_read_only") == "off"
                assert ask(conn, "SHOW transaction_isolation") == "read committed"

    def test_of_engines_that_share_a_pool_are_their_own(self, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=1)
        engines = {
            "READ COMMITTED": create_engine(pool),
            "AUTOCOMMIT": create_engine(pool, isolation_level="AUTOCOMMIT"),
            "SERIALIZABLE": create_engine(pool, isolation_level="SERIALIZABLE"),
        }
        pids = set()
        for _ in range(2):
            for level, engine in engines.items():
                with engine.connect() as connection:
                    assert level_of(connection) == level
                    pids.add(pid(connection))
        assert len(pids) == 1
        assert_whole(pool)

    @pytest.mark.parametrize("reset", [None, "session"])
    def test_of_how_values_are_read_are_each_engines_own(
        self, make_pool: MakePool, server: Server, reset: Any
    ) -> None:
        def of_program(conn: Any) -> None:
            extras.register_default_json(conn, loads=lambda text: ("program", text))

        look = text(f"SELECT '{{}}'::json, '{{}}'::jsonb, {AN_HSTORE}, ARRAY[{AN_HSTORE}]")
        pool = make_pool(maxconn=1, reset=reset)
        first = create_engine(pool, json_deserializer=lambda text: ("first", text))
        second = create_engine(
            pool, json_deserializer=lambda text: ("second", text), use_native_hstore=False
        )
        plain = create_engine(pool)

        def read(engine: Engine) -> tuple[Any, ...]:
            with engine.connect() as connection:
                return tuple(connection.execute(look).one())

        for _ in range(2):
            for engine in (first, second, plain, second, first):
                with pool.conn() as conn:
                    assert ask(conn, "SELECT '{}'::json") == {}
                    assert ask(conn, f"SELECT {AN_HSTORE}") == '"a"=>"1"'
                with pool.conn() as conn:
                    of_program(conn)
                name = {first: "first", second: "second"}.get(engine)
                as_text = '"a"=>"1"', r'{"\"a\"=>\"1\""}'
                hstore = as_text if engine is second else ({"a": "1"}, [{"a": "1"}])
                json = ({}, {}) if name is None else ((name, "{}"), (name, "{}"))
                assert read(engine) == (*json, *hstore)
        assert_whole(pool)

    @pytest.mark.parametrize("reset", [None, "session"])
    def test_of_the_encoding_is_each_engines_own(self, make_pool: MakePool, reset: Any) -> None:
        pool = make_pool(maxconn=1, reset=reset)
        western = create_engine(pool, client_encoding="latin1")
        other = create_engine(pool)
        for _ in range(3):
            for engine, encoding in ((western, "LATIN1"), (other, "UTF8")):
                with engine.connect() as connection:
                    assert connection.scalar(text("SHOW client_encoding")) == encoding
                    assert connection.scalar(text("SELECT 'ü'")) == "ü"
                with pool.conn() as conn:
                    assert (conn.encoding, ask(conn, "SHOW client_encoding")) == ("UTF8", "UTF8")

    def test_of_how_values_are_read_cost_no_cleaning(
        self, pool: ConnectionPool, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(engine)
        monkeypatch.setattr(pool._desk, "take_back", pytest.fail)
        with engine.connect() as connection:
            conn: Any = connection.connection.dbapi_connection
            assert conn.string_types
        monkeypatch.undo()

    def test_of_one_connection_end_with_its_loan(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        for level in ("SERIALIZABLE", "AUTOCOMMIT", "READ UNCOMMITTED"):
            with engine.connect().execution_options(isolation_level=level) as connection:
                assert level_of(connection) == level
            with engine.connect() as connection:
                assert level_of(connection) == "READ COMMITTED"
            with pool.conn() as conn:
                assert (conn.autocommit, conn.isolation_level) == (False, None)

    def test_autocommit_commits(self, engine: Engine) -> None:
        table = "of_autocommit"
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE TABLE {table} (n int)"))
        with engine.connect() as connection:
            connection.execute(text(f"DROP TABLE {table}"))  # rolled back
        with engine.begin() as connection:
            connection.execute(text(f"DROP TABLE {table}"))


class TestErrors:
    @pytest.mark.parametrize(("timeout", "cause"), [(0, PoolExhausted), (0.05, PoolTimeout)])
    def test_all_in_use_is_a_timeout(
        self, make_pool: MakePool, timeout: float, cause: type[Exception]
    ) -> None:
        pool = make_pool(maxconn=1, timeout=timeout)
        engine = create_engine(pool)
        with pool.conn(timeout=30):
            for borrow in (engine.connect, engine.raw_connection):
                with pytest.raises(exc.TimeoutError, match="in use 1, idle 0") as raised:
                    borrow()
                assert isinstance(raised.value.__cause__, cause)
        assert_whole(pool)

    @pytest.mark.parametrize("timeout", [0, 0.05])
    def test_no_server_is_an_operational_error(self, timeout: float) -> None:
        dsn = f"postgresql://nobody:s3cret@127.0.0.1:{free_port()}/nowhere"
        with ConnectionPool(0, 1, timeout=timeout, dsn=dsn) as pool:
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn(timeout=0)  # as long as it takes to be refused
            with pytest.raises(exc.OperationalError, match="Connection refused") as raised:
                create_engine(pool).connect()
            assert isinstance(raised.value.orig, psycopg2.OperationalError)
            assert "s3cret" not in str(raised.value)

    def test_a_closed_pool_is_a_dbapi_error(self, pool: ConnectionPool, engine: Engine) -> None:
        pool.shutdown()
        with pytest.raises(exc.DBAPIError, match="connection pool is closed") as raised:
            engine.connect()
        assert not raised.value.connection_invalidated
        engine.dispose()

    def test_what_a_statement_raises_costs_no_connection(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        with engine.connect() as connection:
            with pytest.raises(exc.ProgrammingError):
                connection.execute(text("SELECT nonsense"))
            connection.rollback()
            before = pid(connection)
        assert use(engine) == before


class TestDispose:
    def test_replaces_the_connections_and_leaves_the_pool(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        idle, used = engine.connect(), engine.connect()
        old = {pid(idle), pid(used)}
        idle.close()
        engine.dispose()
        assert pool.stats() == PoolStats(in_use=1, idle=0)
        assert used.scalar(QUESTION) == 42
        used.close()
        assert pool.stats() == PoolStats(0, 0)
        assert use(engine) not in old
        assert not pool.closed

    def test_keeps_the_events(self, engine: Engine) -> None:
        heard = Heard(engine)
        engine.dispose()
        engine.dispose(close=False)
        assert heard.during(lambda: use(engine)).count("connect") == 1

    def test_tells_the_server_before_it_returns(
        self, server: Server, app: str, engine: Engine
    ) -> None:
        use(engine)
        engine.dispose()
        wait_for_backends(server, app, 0)


class TestOwnership:
    @pytest.mark.parametrize("close_returns", [True, False])
    def test_a_detached_connection_is_the_programs(
        self, make_pool: MakePool, close_returns: bool
    ) -> None:
        pool = make_pool(maxconn=1, close_returns=close_returns)
        engine = create_engine(pool)
        with engine.connect() as connection:
            connection.detach()
            mine = connection.connection.dbapi_connection
            assert pool.stats() == PoolStats(0, 0)
            assert use(engine) != pid(connection)
            assert connection.scalar(QUESTION) == 42
        assert mine.closed  # type: ignore[union-attr]
        assert_whole(pool)

    def test_a_dropped_connection_comes_back(self, pool: ConnectionPool, engine: Engine) -> None:
        connection = engine.connect()
        connection.execute(text("CREATE TABLE of_the_dropped (n int)"))
        before = pid(connection)
        del connection
        gc.collect()
        assert pool.stats() == PoolStats(0, 1)
        with engine.connect() as connection:
            assert pid(connection) == before
            assert connection.scalar(text("SELECT to_regclass('of_the_dropped')")) is None

    def test_a_forgotten_engine_keeps_nothing(self, pool: ConnectionPool) -> None:
        use(create_engine(pool))
        gc.collect()
        # By their types: lazy objects of other libraries pretend to be of another class.
        assert not [found for found in gc.get_objects() if issubclass(type(found), EnginePool)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_a_forked_child_has_connections_of_its_own(
        self, server: Server, app: str, engine: Engine
    ) -> None:
        use(engine)
        with engine.connect() as connection:
            connection.execute(text("CREATE TABLE of_the_parent (n int)"))
            parents = pid(connection)

            def ask_in_child() -> int:
                engine.dispose(close=False)  # what SQLAlchemy advises; not needed here
                child = use(engine)
                assert use(engine) == child
                with pytest.raises(exc.OperationalError):
                    connection.execute(QUESTION)  # by the parent's, which is of no use here
                connection.rollback()
                assert connection.scalar(QUESTION) == 42
                return child

            assert int(in_child(ask_in_child)) != parents
            assert connection.scalar(QUESTION) == 42
            connection.commit()
        with engine.begin() as connection:
            assert pid(connection) == parents
            connection.execute(text("DROP TABLE of_the_parent"))
        wait_for_backends(server, app, 1)

    def test_in_tests_of_programs_nothing_is_left_behind(
        self, pool: ConnectionPool, engine: Engine
    ) -> None:
        with rolled_back(pool):
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE of_a_test (n int)"))
            with engine.connect() as connection:
                assert connection.scalar(text("SELECT count(*) FROM of_a_test")) == 0
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT to_regclass('of_a_test')")) is None
