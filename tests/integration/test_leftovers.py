"""Type casters and encodings that a loan leaves, and what a `reset` does about the rest."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

import psycopg2
import pytest
from psycopg2 import extensions as ext
from psycopg2 import extras

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import MakePool, ask, assert_whole, pid_of, round_trip
from tests.support.refusing import refusing
from tests.support.servers import StatementLog

READ_FLOATS = ext.new_type(ext.DECIMAL.values, "FLOATS", lambda text, _: text and float(text))
READ_LENGTHS = ext.new_type((25,), "LENGTHS", lambda text, _: text and len(text))
NO_RESET: Callable[[Any], None] = lambda conn: None  # noqa: E731
POLICIES = [
    pytest.param(None, id="None"),
    pytest.param("session", id="session"),
    pytest.param(NO_RESET, id="callable"),
]


@pytest.fixture(scope="module", autouse=True)
def types(server: Server) -> Iterator[None]:
    """Make the types that extensions and programs have."""
    server.execute("CREATE TYPE pair AS (first int, second text)")
    yield
    server.execute("DROP TYPE pair")


class Caster(NamedTuple):
    """How a borrower registers one, and a statement whose value it reads."""

    register: Callable[[Any], object]
    look: str


CASTERS = {
    "a type": Caster(partial(ext.register_type, READ_FLOATS), "SELECT 1.5::numeric"),
    "an array of it": Caster(
        partial(ext.register_type, ext.new_array_type((1231,), "FLOATS[]", READ_FLOATS)),
        "SELECT '{1.5}'::numeric[]",
    ),
    "json": Caster(lambda c: extras.register_default_json(c, loads=str), "SELECT '{}'::json"),
    "jsonb": Caster(lambda c: extras.register_default_jsonb(c, loads=str), "SELECT '{}'::jsonb"),
    "uuid": Caster(
        lambda c: extras.register_uuid(None, c),  # type: ignore[no-untyped-call]
        f"SELECT '{uuid.UUID(int=7)}'::uuid",
    ),
    "hstore": Caster(
        lambda c: extras.register_hstore(c, oid=25, array_oid=1009),  # text, as if it were one
        'SELECT \'"a"=>"1"\'::text',
    ),
    "composite": Caster(lambda c: extras.register_composite("pair", c), "SELECT (1, 'a')::pair"),
    "range": Caster(
        lambda c: extras.register_range("int4range", "Whole", c), "SELECT '[1,2)'::int4range"
    ),
    "the dict itself": Caster(
        lambda c: c.string_types.update({25: READ_LENGTHS}), "SELECT 'x'::text"
    ),
}


class TestCasters:
    @pytest.mark.parametrize("kind", CASTERS)
    @pytest.mark.parametrize("reset", POLICIES)
    def test_of_a_borrower_end_with_its_loan(
        self, make_any_pool: MakePool, reset: Any, kind: str
    ) -> None:
        register, look = CASTERS[kind]
        pool = make_any_pool(maxconn=1, reset=reset, test_on_borrow=False)
        with pool.conn() as conn:
            before = ask(conn, look)
        with pool.conn() as conn:
            register(conn)
            assert conn.string_types
        with pool.conn() as again:
            assert again is conn
            assert not conn.string_types
            after = ask(conn, look)
        assert (type(after), after) == (type(before), before)

    def test_are_put_back_without_a_statement(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        ext.register_type(READ_FLOATS, conn)
        assert statement_log.during(lambda: pool.putconn(conn)) == []

    @pytest.mark.parametrize("reset", POLICIES)
    def test_of_configure_stay(self, make_any_pool: MakePool, reset: Any) -> None:
        def configure(conn: Any) -> None:
            extras.register_default_json(conn, loads=partial(json.loads, parse_int=Decimal))

        look = "SELECT '1'::json"
        pool = make_any_pool(maxconn=1, reset=reset, configure=configure, test_on_borrow=False)
        for meddle in (
            lambda conn: None,
            lambda conn: extras.register_default_json(conn, loads=str),  # replaces it
            lambda conn: ext.register_type(READ_FLOATS, conn),  # adds one
            lambda conn: conn.string_types.clear(),
        ):
            with pool.conn() as conn:
                assert type(ask(conn, look)) is Decimal
                assert type(ask(conn, "SELECT 1.5")) is Decimal
                meddle(conn)
        with pool.conn() as conn:
            assert type(ask(conn, look)) is Decimal
            assert type(ask(conn, "SELECT 1.5")) is Decimal

    def test_of_the_connections_class_stay(self, make_any_pool: MakePool) -> None:
        class Floating(ext.connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                ext.register_type(READ_FLOATS, self)

        pool = make_any_pool(maxconn=1, connection_factory=Floating)
        for _ in range(2):
            with pool.conn() as conn:
                assert type(ask(conn, "SELECT 1.5")) is float
                ext.register_type(ext.DECIMAL, conn)

    def test_of_a_reset_function_do_not_stay(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, reset=lambda conn: ext.register_type(READ_FLOATS, conn))
        for _ in range(3):
            with pool.conn() as conn:
                assert type(ask(conn, "SELECT 1.5")) is Decimal
                conn.rollback()

    def test_of_a_cursor_are_its_own(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn() as conn, conn.cursor() as cursor:
            ext.register_type(READ_FLOATS, cursor)
            cursor.execute("SELECT 1.5")
            assert [type(value) for row in cursor for value in row] == [float]
        with pool.conn() as conn:
            assert type(ask(conn, "SELECT 1.5")) is Decimal

    def test_of_a_task_end_with_its_loan(self, server: Server) -> None:
        async def main() -> list[Any]:
            async with AsyncConnectionPool(0, 1, test_on_borrow=False, **server.params) as pool:
                async with pool.conn() as conn:
                    ext.register_type(READ_FLOATS, conn)
                return [await pool.run(ask, "SELECT 1.5") for _ in range(2)]

        assert [type(value) for value in asyncio.run(main())] == [Decimal, Decimal]

    def test_cost_other_loans_no_cleaning(
        self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def configure(conn: Any) -> None:
            ext.register_type(READ_FLOATS, conn)

        pool = make_pool(maxconn=1, configure=configure, test_on_borrow=False)
        round_trip(pool)
        cleaned: list[Any] = []
        monkeypatch.setattr(pool._desk, "take_back", lambda *args: cleaned.append(args))
        for _ in range(3):
            pool.putconn(pool.getconn())
        assert not cleaned


class TestEncoding:
    @pytest.mark.parametrize("reset", POLICIES)
    def test_is_put_back_after_a_transaction_too(self, make_any_pool: MakePool, reset: Any) -> None:
        pool = make_any_pool(maxconn=1, reset=reset, client_encoding="LATIN9")
        for _ in range(2):
            with pool.conn() as conn:
                assert (conn.encoding, ask(conn, "SHOW client_encoding")) == ("LATIN9", "LATIN9")
                conn.rollback()
                conn.set_client_encoding("UTF8")
                assert ask(conn, "SELECT '€'") == "€"

    @pytest.mark.parametrize("reset", POLICIES)
    def test_of_the_connections_class_stays(self, make_any_pool: MakePool, reset: Any) -> None:
        class Western(ext.connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.set_client_encoding("LATIN1")

        pool = make_any_pool(maxconn=1, connection_factory=Western, reset=reset)
        for _ in range(2):
            with pool.conn() as conn:
                assert (conn.encoding, ask(conn, "SHOW client_encoding")) == ("LATIN1", "LATIN1")


@pytest.fixture
def tenant(server: Server) -> Iterator[str]:
    """Make a role that borrowers take."""
    server.execute("CREATE ROLE tenant NOLOGIN")
    yield "tenant"
    server.execute("DROP ROLE tenant")


def reset_role(conn: Any) -> None:
    """Do what a program's function does, and leave the transaction open."""
    ask(conn, "RESET ROLE")


def reset_role_in_autocommit(conn: Any) -> None:
    conn.autocommit = True
    ask(conn, "RESET ROLE")


def reset_role_by_hand(conn: Any) -> None:
    conn.autocommit = True
    ask(conn, "BEGIN")
    ask(conn, "RESET ROLE")


def reset_role_and_commit(conn: Any) -> None:
    ask(conn, "RESET ROLE")
    conn.commit()


def reset_role_in_a_block(conn: Any) -> None:
    with conn:
        ask(conn, "RESET ROLE")


RESETS = [
    reset_role,
    reset_role_in_autocommit,
    reset_role_by_hand,
    reset_role_and_commit,
    reset_role_in_a_block,
]


def take_role(pool: ConnectionPool, role: str) -> int:
    """Borrow, take a role for the session, and return; tell the backend."""
    with pool.conn(timeout=10) as conn:
        with conn:
            ask(conn, f"SET ROLE {role}")
        ask(conn)  # what is rolled back on return
        return pid_of(conn)


class TestResetFunction:
    @pytest.mark.parametrize("reset", RESETS)
    @pytest.mark.parametrize("autocommit", [False, True])
    def test_is_committed(
        self,
        make_any_pool: MakePool,
        tenant: str,
        reset: Callable[[Any], None],
        autocommit: bool,
    ) -> None:
        def configure(conn: Any) -> None:
            conn.autocommit = autocommit

        pool = make_any_pool(maxconn=1, reset=reset, configure=configure)
        pid = take_role(pool, tenant)
        with pool.conn() as conn:
            assert pid_of(conn) == pid
            assert conn.autocommit is autocommit
            assert ask(conn, "SELECT current_user::text") == "postgres"
        assert pool.get_stats()["returns_bad"] == 0

    def test_that_raises_costs_the_connection(
        self, make_any_pool: MakePool, tenant: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def reset(conn: Any) -> None:
            ask(conn, "RESET ROLE")
            raise LookupError("the reset has a fault")

        pool = make_any_pool(maxconn=1, reset=reset)
        pid = take_role(pool, tenant)
        with pool.conn(timeout=10) as conn:
            assert pid_of(conn) != pid
            assert ask(conn, "SELECT current_user::text") == "postgres"
        assert "the reset has a fault" in caplog.text
        assert_whole(pool)

    def test_that_leaves_a_failed_transaction_costs_the_connection(
        self, make_any_pool: MakePool, tenant: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def reset(conn: Any) -> None:
            ask(conn, "RESET ROLE")
            with pytest.raises(psycopg2.Error):
                ask(conn, "SELECT 1 / 0")

        pool = make_any_pool(maxconn=1, reset=reset)
        pid = take_role(pool, tenant)
        with pool.conn(timeout=10) as conn:
            assert pid_of(conn) != pid
            assert ask(conn, "SELECT current_user::text") == "postgres"
        assert "failed transaction" in caplog.text

    def test_whose_commit_fails_costs_the_connection(self, make_any_pool: MakePool) -> None:
        def reset(conn: Any) -> None:
            ask(conn, "CREATE TEMP TABLE one (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            ask(conn, "INSERT INTO one VALUES (1), (1)")

        pool = make_any_pool(maxconn=1, reset=reset)
        pids = [round_trip(pool) for _ in range(2)]
        assert pids[0] != pids[1]


class TestServerWithoutDiscardAll:
    """It knows the parts of it, all or some, or not even the most important one."""

    def pool(self, where: Any, **options: Any) -> ConnectionPool:
        return ConnectionPool(
            0, 1, reset="session", host=where.host, port=where.port, timeout=10, **options
        )

    @pytest.mark.parametrize("unknown", [[], ["UNLISTEN *", "SET SESSION AUTHORIZATION"]])
    def test_is_sent_the_parts_and_told_of_once(
        self,
        server: Server,
        tenant: str,
        caplog: pytest.LogCaptureFixture,
        unknown: list[str],
    ) -> None:
        caplog.set_level(logging.INFO, "psycopg2_pool2")
        params = {name: server.params[name] for name in ("user", "dbname")}
        with (
            refusing(server, "DISCARD ALL", *unknown) as place,
            self.pool(place, **params) as pool,
        ):
            pids = set()
            for _ in range(3):
                with pool.conn() as conn:
                    assert ask(conn, "SELECT current_user::text") == "postgres"
                    assert ask(conn, "SHOW work_mem") == "4MB"
                    ask(conn, f"SET ROLE {tenant}")
                    ask(conn, "SET work_mem TO '9MB'")
                    ask(conn, "SELECT pg_advisory_lock(20, 28)")
                    conn.commit()
                    pids.add(pid_of(conn))
            assert len(pids) == 1
        told = [r.getMessage() for r in caplog.records if "DISCARD ALL" in r.getMessage()]
        assert len(told) == 1
        assert 'reset="session"' in told[0]
        assert all(sql in told[0] for sql in unknown if sql.startswith("UNLISTEN"))

    def test_costs_one_round_trip_once_it_is_known(
        self, server: Server, statement_log: StatementLog
    ) -> None:
        params = {k: v for k, v in statement_log.params.items() if k not in ("host", "port")}
        with refusing(server, "DISCARD ALL") as place, self.pool(place, **params) as pool:
            round_trip(pool)
            conn = pool.getconn()
            sent = statement_log.during(lambda: pool.putconn(conn))
        assert len(sent) == 1
        assert "RESET ALL" in sent[0]

    def test_is_told_of_once_where_nothing_helps(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "psycopg2_pool2")
        params = {name: server.params[name] for name in ("user", "dbname")}
        with (
            refusing(server, "DISCARD ALL", "RESET ALL") as place,
            self.pool(place, **params) as pool,
        ):
            pids = [round_trip(pool) for _ in range(3)]
            assert len(set(pids)) == 3
            assert pool.get_stats()["returns_bad"] >= 3
        told = [r.getMessage() for r in caplog.records if "DISCARD ALL" in r.getMessage()]
        assert len(told) == 1
        assert "each loan costs a login" in told[0]
