"""What one loan leaves for the next: the whole of a session's state under each `reset`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pgbouncer import MakePgBouncer
from tests.support.pools import (
    MakePool,
    Park,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    fill,
    give_back,
    parked,
    pid_of,
    pool_maker,
    round_trip,
    start_waiter,
)
from tests.support.servers import MakeServer, StatementLog, new_server
from tests.support.waiting import in_thread, wait_until

Act = Callable[[Any], object]


class State(NamedTuple):
    """A kind of state: how a borrower leaves it behind, and how the next one sees it."""

    leave: Act
    look: Act


def kept_by_server(leave: str, look: str) -> State:
    """Make one that is left by statements, outside a transaction."""

    def execute(conn: Any) -> None:
        conn.autocommit = True
        for sql in leave.split(";"):
            ask(conn, sql)

    return State(execute, lambda conn: ask(conn, look))


def kept_by_psycopg2(name: str, value: Any) -> State:
    """Make one that is an attribute of the connection."""
    return State(lambda conn: setattr(conn, name, value), lambda conn: getattr(conn, name))


def _notify(conn: Any) -> None:
    conn.autocommit = True
    for sql in ("LISTEN gossip", "NOTIFY gossip", "UNLISTEN gossip"):
        ask(conn, sql)
    assert conn.notifies


def _raise_notice(conn: Any) -> None:
    conn.autocommit = True
    ask(conn, "DO $$ BEGIN RAISE NOTICE 'mind the gap'; END $$")
    assert conn.notices


SERVER_STATE = {
    "search_path": kept_by_server("SET search_path TO pg_catalog", "SHOW search_path"),
    "a parameter": kept_by_server("SET statement_timeout TO 54321", "SHOW statement_timeout"),
    "a parameter of the program's own": kept_by_server(
        "SET app.tenant TO 'seven'", "SELECT coalesce(current_setting('app.tenant', true), '')"
    ),
    "read-only by default": kept_by_server(
        "SET default_transaction_read_only TO on", "SHOW default_transaction_read_only"
    ),
    "date style": kept_by_server("SET datestyle TO 'ISO, YMD'", "SHOW datestyle"),
    "role": kept_by_server("SET ROLE pg_monitor", "SELECT current_user::text"),
    "session authorization": kept_by_server(
        "SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user::text"
    ),
    "temporary table": kept_by_server(
        "CREATE TEMPORARY TABLE trace (n int)", "SELECT to_regclass('pg_temp.trace')::text"
    ),
    "sequence value": kept_by_server(
        "CREATE TEMPORARY SEQUENCE counter; SELECT nextval('counter')",
        "SELECT to_regclass('pg_temp.counter')::text",
    ),
    "cursor with hold": kept_by_server(
        "BEGIN; DECLARE trace CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT count(*) FROM pg_cursors WHERE name = 'trace'",
    ),
    "LISTEN": kept_by_server("LISTEN trace", "SELECT count(*) FROM pg_listening_channels()"),
    "advisory lock": kept_by_server(
        "SELECT pg_advisory_lock_shared(20, 26)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "prepared statement": kept_by_server(
        "PREPARE trace AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements"
    ),
}
CLIENT_STATE = {
    "client_encoding": State(
        lambda conn: conn.set_client_encoding("LATIN1"),
        lambda conn: (conn.encoding, ask(conn, "SHOW client_encoding")),
    ),
    "autocommit": kept_by_psycopg2("autocommit", True),
    "isolation_level": kept_by_psycopg2("isolation_level", extensions.ISOLATION_LEVEL_SERIALIZABLE),
    "readonly": kept_by_psycopg2("readonly", True),
    "deferrable": kept_by_psycopg2("deferrable", True),
    "cursor_factory": kept_by_psycopg2("cursor_factory", psycopg2.extras.DictCursor),
    "notices": State(_raise_notice, lambda conn: list(conn.notices)),
    "notifies": State(_notify, lambda conn: list(conn.notifies)),
}
TRANSACTION_STATE = {
    "SET LOCAL": State(
        lambda conn: ask(conn, "SET LOCAL work_mem TO '9MB'"),
        lambda conn: ask(conn, "SHOW work_mem"),
    ),
    "advisory lock of a transaction": State(
        lambda conn: ask(conn, "SELECT pg_advisory_xact_lock_shared(20, 27)"),
        lambda conn: ask(conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"),
    ),
    "cursor": State(
        lambda conn: ask(conn, "DECLARE trace CURSOR FOR SELECT 1"),
        lambda conn: ask(conn, "SELECT count(*) FROM pg_cursors WHERE name = 'trace'"),
    ),
    "SET": State(
        lambda conn: ask(conn, "SET work_mem TO '9MB'"), lambda conn: ask(conn, "SHOW work_mem")
    ),
}


def psycopg2s_reset(conn: Any) -> None:
    """Do what many programs do: it clears all, the pool's own settings too."""
    conn.reset()


POLICIES = [
    pytest.param(None, id="None"),
    pytest.param("session", id="session"),
    pytest.param(psycopg2s_reset, id="callable"),
]


def discard_all(conn: Any) -> None:
    """Reset the session by a statement, of whose effects psycopg2 is not told."""
    conn.autocommit = True
    ask(conn, "DISCARD ALL")


COSTS = [(None, []), ("session", ["DISCARD ALL"]), (psycopg2s_reset, ["DISCARD ALL"])]


def before_and_after(pool: ConnectionPool, state: State) -> tuple[Any, Any, Any]:
    """Return what a borrower finds, what he leaves, and what the next one finds there."""
    with pool.conn() as conn:
        found = state.look(conn)
    with pool.conn() as again:
        assert again is conn
        state.leave(conn)
        left = state.look(conn)
        conn.rollback() if state.leave not in _IN_TRANSACTION else None
    with pool.conn() as again:
        assert again is conn, "it was replaced, not reset"
        return found, left, state.look(conn)


_IN_TRANSACTION = [state.leave for state in TRANSACTION_STATE.values()]


class TestServerState:
    @pytest.mark.parametrize("kind", SERVER_STATE)
    @pytest.mark.parametrize("reset", POLICIES)
    def test_goes_by_a_reset_and_stays_without(
        self, make_any_pool: MakePool, reset: Any, kind: str
    ) -> None:
        pool = make_any_pool(maxconn=1, reset=reset)
        found, left, next_found = before_and_after(pool, SERVER_STATE[kind])
        assert left != found
        assert next_found == (left if reset is None else found)

    @pytest.mark.parametrize("reset", [*POLICIES, pytest.param(discard_all, id="by hand")])
    @pytest.mark.parametrize("configured", [None, "LATIN1"])
    def test_text_is_read_as_it_was_written(
        self, make_any_pool: MakePool, reset: Any, configured: str | None
    ) -> None:
        """The encoding is kept twice, by the server and by psycopg2."""

        def configure(conn: Any) -> None:
            if configured:
                conn.set_client_encoding(configured)

        pool = make_any_pool(maxconn=1, reset=reset, configure=configure)
        for encoding in ("LATIN1", "UTF8", "LATIN9"):
            with pool.conn() as conn:
                assert ask(conn, "SELECT U&'\\00fc'") == "ü"
                assert ask(conn, "SELECT ascii(%s)", "ü") == 0xFC
                conn.set_client_encoding(encoding)

    @pytest.mark.parametrize("kind", TRANSACTION_STATE)
    @pytest.mark.parametrize("reset", POLICIES)
    def test_of_a_transaction_goes_with_it(
        self, make_any_pool: MakePool, reset: Any, kind: str
    ) -> None:
        pool = make_any_pool(maxconn=1, reset=reset)
        found, left, next_found = before_and_after(pool, TRANSACTION_STATE[kind])
        assert left != found
        assert next_found == found

    @pytest.mark.parametrize("kind", SERVER_STATE)
    @pytest.mark.parametrize(("reset", "sent"), COSTS, ids=["None", "session", "callable"])
    def test_costs_one_round_trip_at_most_whatever_was_left(
        self,
        make_pool: MakePool,
        statement_log: StatementLog,
        reset: Any,
        sent: list[str],
        kind: str,
    ) -> None:
        pool = make_pool(maxconn=1, reset=reset)
        conn = pool.getconn()
        SERVER_STATE[kind].leave(conn)
        assert statement_log.during(lambda: pool.putconn(conn)) == sent


class TestClientState:
    @pytest.mark.parametrize("kind", CLIENT_STATE)
    @pytest.mark.parametrize("reset", POLICIES)
    def test_is_put_back_by_every_policy(
        self, make_any_pool: MakePool, reset: Any, kind: str
    ) -> None:
        # No test either, which might tidy up by the way.
        pool = make_any_pool(maxconn=1, reset=reset, test_on_borrow=False)
        found, left, next_found = before_and_after(pool, CLIENT_STATE[kind])
        assert left != found
        assert next_found == found

    @pytest.mark.parametrize("kind", CLIENT_STATE)
    @pytest.mark.parametrize(("reset", "sent"), COSTS, ids=["None", "session", "callable"])
    def test_costs_nothing_beside_the_reset(
        self,
        make_any_pool: MakePool,
        statement_log: StatementLog,
        reset: Any,
        sent: list[str],
        kind: str,
    ) -> None:
        pool = make_any_pool(maxconn=1, reset=reset)
        conn = pool.getconn()
        CLIENT_STATE[kind].leave(conn)
        told = statement_log.during(lambda: pool.putconn(conn))
        if kind == "client_encoding":  # which the server has to know, too
            assert len([sql for sql in told if "encoding" in sql]) == 1
            told = [sql for sql in told if "encoding" not in sql]
        assert told == sent

    @pytest.mark.parametrize("reset", POLICIES)
    def test_that_configure_has_chosen_survives_every_policy(
        self, make_any_pool: MakePool, statement_log: StatementLog, reset: Any
    ) -> None:
        """psycopg2's own reset would leave autocommit off, and the cursors to the borrower."""

        def configure(conn: Any) -> None:
            conn.autocommit = True
            conn.cursor_factory = psycopg2.extras.DictCursor

        pool = make_any_pool(maxconn=1, reset=reset, configure=configure, test_on_borrow=False)
        for _ in range(3):
            conn: Any = pool.getconn()
            assert conn.autocommit is True
            assert conn.cursor_factory is psycopg2.extras.DictCursor
            assert statement_log.during(partial(ask, conn)) == ["SELECT 1"]
            conn.autocommit = False
            conn.cursor_factory = None
            ask(conn)
            pool.putconn(conn)

    @pytest.mark.parametrize("reset", ["session", psycopg2s_reset])
    def test_that_configure_has_chosen_on_the_server_survives_a_reset(
        self, make_any_pool: MakePool, reset: Any
    ) -> None:
        """Under autocommit psycopg2 keeps these in the session, where DISCARD ALL clears them."""

        def configure(conn: Any) -> None:
            conn.set_session(readonly=True, autocommit=True)

        pool = make_any_pool(maxconn=1, reset=reset, configure=configure)
        for _ in range(2):
            with pool.conn() as conn:
                assert (conn.readonly, conn.autocommit) == (True, True)
                assert ask(conn, "SHOW transaction_read_only") == "on"

    def test_that_configure_has_chosen_for_the_server_is_put_back_there(
        self, make_any_pool: MakePool
    ) -> None:
        """psycopg2 clears it in the session, and not its own copy, as autocommit is left."""

        def configure(conn: Any) -> None:
            conn.set_session(readonly=True, autocommit=True)

        pool = make_any_pool(maxconn=1, configure=configure, test_on_borrow=False)
        with pool.conn() as conn:
            conn.autocommit = False
        with pool.conn() as conn:
            assert (conn.readonly, conn.autocommit) == (True, True)
            assert ask(conn, "SHOW transaction_read_only") == "on"


class TestConfigure:
    def test_is_called_once_for_each_connection_through_three_restarts(
        self, make_server: MakeServer, make_any_pool: MakePool
    ) -> None:
        configured: list[int] = []
        server = make_server()
        pool = make_any_pool(
            maxconn=2, configure=lambda conn: configured.append(pid_of(conn)), **server.params
        )
        seen = fill(pool, 2)
        for _ in range(3):
            server.restart("immediate")
            seen += borrowed_pids(pool, 2)
            borrowed_pids(pool, 2)
        # Of those that were lost before they were lent nobody knows.
        assert len(configured) == len(set(configured)) == len(seen) == 8
        assert set(configured) == set(seen)

    @pytest.mark.parametrize(
        ("reset", "calls"),
        [(None, 1), (lambda conn: None, 1), ("session", 4)],
        ids=["None", "callable", "session"],
    )
    def test_is_called_again_only_where_a_reset_has_undone_it(
        self, make_any_pool: MakePool, reset: Any, calls: int
    ) -> None:
        configured: list[int] = []

        def configure(conn: Any) -> None:
            configured.append(pid_of(conn))
            ask(conn, "SET work_mem = '5MB'")

        pool = make_any_pool(maxconn=1, reset=reset, configure=configure)
        pids = {round_trip(pool) for _ in range(3)}
        assert len(pids) == 1
        assert configured == [*pids] * calls

    @pytest.mark.parametrize("kind", [*SERVER_STATE, "client_encoding"])
    def test_is_lasting_whatever_it_has_set(self, make_any_pool: MakePool, kind: str) -> None:
        leave, look = (SERVER_STATE | CLIENT_STATE)[kind]

        def configure(conn: Any) -> None:
            conn.autocommit = True
            leave(conn)

        pool = make_any_pool(maxconn=1, reset="session", configure=configure)
        with pool.conn() as conn:
            found = look(conn)
        for _ in range(2):
            with pool.conn() as again:
                assert again is conn
                assert look(conn) == found

    def test_that_fails_after_a_reset_is_logged_and_costs_the_connection_only(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        configured: list[int] = []

        def configure(conn: Any) -> None:
            if pid_of(conn) in configured:
                raise LookupError("not a second time")
            configured.append(pid_of(conn))
            ask(conn, "SET work_mem = '5MB'")

        pool = make_any_pool(maxconn=1, reset="session", configure=configure, name="fussy")
        pids = [round_trip(pool) for _ in range(3)]
        assert configured == pids
        assert len(set(pids)) == 3
        told = [r for r in caplog.records if "not a second time" in r.getMessage()]
        assert [r.levelno for r in told] == [logging.WARNING] * 3
        assert all("fussy" in r.getMessage() for r in told)
        assert pool.stats().in_use == 0


HARMLESS = {"BEGIN", "SELECT 1", "COMMIT", "ROLLBACK"}


def live_a_whole_life(pool: ConnectionPool) -> None:
    """Do with a pool whatever a program may, settings of the client's side included."""
    for _ in range(3):
        conns = borrow(pool, 2)
        for conn in conns:
            ask(conn)
        conns[0].commit()
        give_back(pool, conns)
        with pool.conn() as conn:
            conn.set_session(isolation_level="SERIALIZABLE", readonly=True)
        with pool.conn() as conn:
            conn.autocommit = True
            ask(conn)
        with pool.transaction() as conn:
            ask(conn)
        pool.check()
        pool.reap_idle_connections()
    pool.drain()
    assert_whole(pool)
    pool.shutdown()


class TestDefaults:
    """Poolers in transaction mode and RDS Proxy pin or refuse sessions that are sent a SET."""

    def test_send_nothing_but_the_test_and_ends_of_transactions(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(minconn=1, maxconn=2)
        live_a_whole_life(pool)
        assert set(statement_log.statements()) <= HARMLESS | {
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY"
        }

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_pin_nothing_in_a_pgbouncer(
        self,
        statement_log: StatementLog,
        pgbouncer: MakePgBouncer,
        num_workers: int,
    ) -> None:
        bouncer = pgbouncer()
        app = statement_log.application_name
        with ConnectionPool(
            1, 2, num_workers=num_workers, timeout=10, application_name=app, **bouncer.params
        ) as pool:
            live_a_whole_life(pool)
        sent = set(statement_log.statements())
        assert "SELECT 1" in sent
        # PgBouncer itself hands the client's name on.
        assert {sql for sql in sent if "application_name" not in sql} <= HARMLESS


SECRETS = ["first", "second", "third", "fourth"]


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[Server]:
    """Make a server on which one user needs a password, which is to change."""
    with new_server(hba=["host all rotated 127.0.0.0/8 scram-sha-256"]) as server:
        server.execute("CREATE ROLE rotated LOGIN")
        yield server


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_guarded_pool(guarded_server: Server, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    params: dict[str, Any] = {**guarded_server.params, "user": "rotated"}
    with pool_maker(**params, num_workers=request.param) as make:
        yield make


class TokenServiceError(Exception):
    """What a cloud's library raises: no OSError."""


class TestConnectParams:
    def test_may_rotate_the_password_and_no_borrow_fails(
        self, guarded_server: Server, make_guarded_pool: MakePool
    ) -> None:
        calls: list[str] = []

        def connect_params() -> dict[str, Any]:
            calls.append(current)
            return {"password": current}

        pool = make_guarded_pool(maxconn=4, connect_params=connect_params)
        for current in SECRETS:
            guarded_server.execute(f"ALTER ROLE rotated PASSWORD '{current}'")
            # Those that came with the password before go on being lent.
            conns = borrow(pool, 4)
            assert [ask(conn) for conn in conns] == [1] * 4
            for conn in conns:
                pool.putconn(conn, close=True)
        stats = pool.get_stats()
        assert stats["connections_errors"] == 0
        assert len(calls) == stats["connections_num"]
        assert set(calls) == set(SECRETS)

    def test_are_called_once_for_an_attempt_that_fails_too(self, make_any_pool: MakePool) -> None:
        calls: list[int] = []

        def connect_params() -> dict[str, Any]:
            calls.append(len(calls))
            return {"dbname": "atlantis" if len(calls) == 1 else "postgres"}

        pool = make_any_pool(maxconn=1, connect_params=connect_params)
        with pytest.raises(psycopg2.OperationalError, match="atlantis"):
            pool.getconn(timeout=10)
        wait_until(lambda: _borrows(pool))
        assert len(calls) == pool.get_stats()["connections_num"] == 2

    def test_are_called_without_a_lock(self, make_any_pool: MakePool) -> None:
        park = Park()

        def connect_params() -> dict[str, Any]:
            park()
            return {}

        pool = make_any_pool(maxconn=3, connect_params=connect_params)
        conns = borrow(pool, 2)
        with parked(park, lambda: pool.putconn(pool.getconn(timeout=10))):
            in_thread(pool.stats).result()
            # Without workers the first goes to him who is parked.
            for conn in conns:
                in_thread(pool.putconn, conn).result()
            assert in_thread(round_trip, pool).result() in map(pid_of, conns)
        assert_whole(pool)

    @pytest.mark.parametrize("raised", [ConnectionError, TokenServiceError])
    def test_that_raise_are_a_failed_connect_which_a_patient_borrower_outwaits(
        self, make_any_pool: MakePool, raised: type[Exception]
    ) -> None:
        failures = [raised("the token service is down") for _ in range(2)]

        def connect_params() -> dict[str, Any]:
            if failures:
                raise failures.pop()
            return {}

        pool = make_any_pool(maxconn=1, connect_params=connect_params)
        assert round_trip(pool, timeout=10)
        assert pool.get_stats()["connections_errors"] == 2
        assert_whole(pool)

    def test_that_raise_are_told_and_lose_no_slot(self, make_any_pool: MakePool) -> None:
        down = True

        def connect_params() -> dict[str, Any]:
            if down:
                raise ConnectionError("the token service is down")
            return {}

        pool = make_any_pool(maxconn=1, connect_params=connect_params)
        with pytest.raises(ConnectionError, match="token service"):
            pool.getconn()
        with pytest.raises(ConnectionError, match="token service"):
            pool.getconn(timeout=0.05)
        waiter = start_waiter(pool, timeout=30)
        down = False
        pool.putconn(waiter.result())
        assert_whole(pool)


def _borrows(pool: ConnectionPool) -> bool:
    try:
        round_trip(pool)
    except psycopg2.OperationalError:
        return False
    return True
