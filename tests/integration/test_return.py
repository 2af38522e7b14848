"""Returning: what is sent, what is closed, what is put back, what is refused."""

from __future__ import annotations

import io
import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions

from psycopg2_pool2 import ConnectionPool, PoolError, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    end_sessions,
    fill,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
)
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

IDLE = extensions.TRANSACTION_STATUS_IDLE


def is_clean(conn: Any) -> bool:
    return bool(conn.status == extensions.STATUS_READY and conn.get_transaction_status() == IDLE)


def sleeps(server: Server, pid: int) -> bool:
    """Ask whether a backend is in the middle of pg_sleep."""
    return server.execute(
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", [pid]
    ) == [(1,)]


class TestWhatIsSent:
    def test_nothing_for_a_clean_connection(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        ask(conn)
        conn.commit()
        assert statement_log.during(lambda: pool.putconn(conn)) == []

    def test_one_rollback_inside_a_transaction(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        ask(conn, "CREATE TABLE never_committed (n int)")
        assert statement_log.during(lambda: pool.putconn(conn)) == ["ROLLBACK"]
        with pool.conn() as again:
            assert again is conn
            assert is_clean(again)
            assert ask(again, "SELECT to_regclass('never_committed')") is None

    def test_one_rollback_in_an_aborted_transaction(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        with pytest.raises(psycopg2.errors.DivisionByZero):
            ask(conn, "SELECT 1/0")
        assert statement_log.during(lambda: pool.putconn(conn)) == ["ROLLBACK"]
        assert round_trip(pool) == pid_of(conn)

    def test_one_rollback_for_an_explicit_begin_under_autocommit(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(configure=_autocommit_on)
        conn = pool.getconn()
        ask(conn, "BEGIN")
        assert statement_log.during(lambda: pool.putconn(conn)) == ["ROLLBACK"]
        with pool.conn() as again:
            assert again is conn
            assert is_clean(again)

    @pytest.mark.parametrize("typed", ["COMMIT", "ROLLBACK"])
    def test_at_most_one_rollback_after_an_end_typed_by_hand(
        self, make_any_pool: MakePool, statement_log: StatementLog, typed: str
    ) -> None:
        """psycopg2 thinks then that a transaction is open; the next borrower must not suffer."""
        pool = make_any_pool(test_on_borrow=False)
        conn = pool.getconn()
        ask(conn)
        ask(conn, typed)
        assert statement_log.during(lambda: pool.putconn(conn)) in ([], ["ROLLBACK"])
        again = pool.getconn()
        assert is_clean(again)
        assert again.notices == []
        assert statement_log.during(lambda: ask(again)) == ["BEGIN", "SELECT 1"]
        pool.putconn(again)

    def test_nothing_in_a_thousand_borrows_without_statements(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_on_borrow=False)
        fill(pool, 2)

        def a_thousand_times() -> None:
            for _ in range(1000):
                pool.putconn(pool.getconn())

        assert statement_log.during(a_thousand_times) == []

    def test_nothing_is_returned(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        put: Callable[[Any], object] = pool.putconn
        assert put(pool.getconn()) is None


class TestBlocks:
    def test_conn_commits_nothing_and_rolls_back_what_is_open(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_on_borrow=False)

        def use() -> None:
            with pool.conn() as conn:
                ask(conn)

        assert statement_log.during(use) == ["BEGIN", "SELECT 1", "ROLLBACK"]

    def test_transaction_commits_on_success(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_on_borrow=False)

        def use() -> None:
            with pool.transaction() as conn:
                ask(conn)

        assert statement_log.during(use) == ["BEGIN", "SELECT 1", "COMMIT"]

    def test_transaction_rolls_back_on_an_exception(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_on_borrow=False)

        def use() -> None:
            with pool.transaction() as conn:
                ask(conn)
                raise KeyError

        statement_log.clear()
        with pytest.raises(KeyError):
            use()
        assert statement_log.statements() == ["BEGIN", "SELECT 1", "ROLLBACK"]
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_an_error_that_says_the_server_has_gone_discards_that_connection(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        pid = round_trip(pool)

        def use() -> None:
            with pool.conn() as conn:
                server.terminate_backend(pid_of(conn))
                ask(conn)

        with pytest.raises(psycopg2.OperationalError):
            use()
        assert round_trip(pool) != pid
        assert_whole(pool)

    def test_an_error_that_says_the_server_has_gone_has_the_others_tested(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        """Though the session goes on, as one of a PgBouncer does, whose server has gone."""
        pool = make_any_pool(maxconn=2, test_idle_after=300)
        fill(pool, 2)

        def use() -> None:
            with pool.conn() as conn:
                ask(conn, "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01'; END $$")

        with pytest.raises(psycopg2.errors.AdminShutdown):
            use()
        wait_until(lambda: pool.stats().idle == 1)
        assert statement_log.during(lambda: pool.putconn(pool.getconn())) == ["SELECT 1"]

    def test_an_error_of_a_lost_role_discards_that_connection(
        self, make_any_pool: MakePool
    ) -> None:
        """SQLSTATE 25006: the server takes no writes any more, as after a failover."""
        pool = make_any_pool(maxconn=1, target_session_attrs="read-write")
        pid = round_trip(pool)

        def use() -> None:
            with pool.conn() as conn:
                ask(conn, "SET default_transaction_read_only = on")
                conn.commit()
                ask(conn, "CREATE TABLE refused (n int)")

        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            use()
        assert round_trip(pool) != pid


class TestDoubtfulConnections:
    def test_one_with_a_running_statement_is_closed_and_not_reused(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        pid = pid_of(conn)
        statement = in_thread(ask, conn, "SELECT pg_sleep(60)")
        wait_until(lambda: sleeps(server, pid))
        started = time.monotonic()
        pool.putconn(conn)
        assert time.monotonic() - started < 20
        assert isinstance(statement.error(), psycopg2.Error)
        assert round_trip(pool) != pid
        wait_until(lambda: pid not in server.backends(app))
        assert_whole(pool)

    def test_one_with_a_copy_in_progress_is_closed_and_not_reused(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        pid = pid_of(conn)
        reading, go_on = threading.Event(), threading.Event()

        class Slow(io.StringIO):
            def read(self, size: int | None = -1, /) -> str:
                reading.set()
                assert go_on.wait(10)
                return ""

        def copy() -> None:
            with conn.cursor() as cursor:
                cursor.execute("CREATE TEMPORARY TABLE copied (n int)")
                cursor.copy_expert("COPY copied FROM STDIN", Slow())

        copying = in_thread(copy)
        assert reading.wait(10)
        pool.putconn(conn)
        assert round_trip(pool) != pid
        go_on.set()
        assert isinstance(copying.error(), psycopg2.Error)
        wait_until(lambda: pid not in server.backends(app))
        assert_whole(pool)

    def test_a_closed_one_frees_its_slot(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        conn.close()
        pool.putconn(conn)
        assert_whole(pool)

    def test_a_closed_one_raises_no_doubt_of_the_others(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        """It was the program that closed it, and not the server that went away."""
        pool = make_any_pool(maxconn=2, test_idle_after=300)
        conns = borrow(pool, 2)
        pool.putconn(conns.pop())
        conns[0].close()
        give_back(pool, conns)
        assert statement_log.during(lambda: pool.putconn(pool.getconn())) == []

    def test_one_that_lost_its_backend_in_a_transaction_frees_its_slot(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        """In psycopg2.pool putconn raises then, and the slot is lost for ever."""
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        ask(conn)
        server.terminate_backend(pid_of(conn))
        pool.putconn(conn)
        assert_whole(pool)

    def test_one_that_lost_its_backend_unnoticed_frees_its_slot(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        pid = pid_of(conn)
        server.terminate_backend(pid)
        pool.putconn(conn)
        assert round_trip(pool) != pid
        assert_whole(pool)

    def test_a_lost_one_lets_the_next_waiter_have_another(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        ask(conn)
        waiter = start_waiter(pool)
        server.terminate_backend(pid_of(conn))
        pool.putconn(conn)
        assert ask(waiter.result()) == 1
        pool.putconn(waiter.result())

    def test_close_closes(self, server: Server, app: str, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conn, kept = borrow(pool, 2)
        pool.putconn(conn, close=True)
        assert conn.closed
        wait_until(lambda: server.backends(app) == [pid_of(kept)])
        pool.putconn(kept)
        assert_whole(pool)


class TestRefusals:
    def test_a_foreign_connection(self, server: Server, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        foreign = psycopg2.connect(server.dsn)
        with pytest.raises(PoolError):
            pool.putconn(foreign)
        assert ask(foreign) == 1
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        foreign.close()

    def test_a_connection_of_another_pool_stays_in_use_there(self, make_any_pool: MakePool) -> None:
        pool, other = make_any_pool(), make_any_pool()
        conn = other.getconn()
        with pytest.raises(PoolError):
            pool.putconn(conn)
        assert other.stats() == PoolStats(in_use=1, idle=0)
        assert ask(conn) == 1
        other.putconn(conn)
        assert_whole(other)

    def test_a_second_return_changes_nothing(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        pool.putconn(conn)
        with pytest.raises(PoolError):
            pool.putconn(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        assert round_trip(pool) == pid_of(conn)
        assert_whole(pool)

    def test_a_second_return_after_it_was_closed(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        pool.putconn(conn, close=True)
        with pytest.raises(PoolError):
            pool.putconn(conn)
        assert_whole(pool)

    @pytest.mark.parametrize("thing", [None, 42, object()])
    def test_what_is_no_connection(self, make_any_pool: MakePool, thing: Any) -> None:
        pool = make_any_pool()
        with pytest.raises(PoolError):
            pool.putconn(thing)

    def test_of_two_threads_that_return_the_same_one_gets_an_error(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        barrier = threading.Barrier(2)

        def put(conn: Any) -> bool:
            barrier.wait()
            try:
                pool.putconn(conn)
            except PoolError:
                return False
            return True

        for _ in range(50):
            conn = pool.getconn()
            both = [in_thread(put, conn) for _ in range(2)]
            assert sorted(one.result() for one in both) == [False, True]
        assert_whole(pool)


def _autocommit_on(conn: Any) -> None:
    conn.autocommit = True


def _readonly(conn: Any) -> None:
    conn.readonly = True


def _all_kinds(conn: Any) -> None:
    conn.set_session(isolation_level="REPEATABLE READ", readonly=True, deferrable=True)


def _readonly_under_autocommit(conn: Any) -> None:
    conn.set_session(readonly=True, autocommit=True)


CHANGES = list(
    itertools.product(
        (True, False),
        (None, extensions.ISOLATION_LEVEL_SERIALIZABLE, extensions.ISOLATION_LEVEL_READ_COMMITTED),
        (None, True, False),
        (None, True),
    )
)


def settings(conn: Any) -> tuple[Any, ...]:
    """Return what psycopg2 believes, and what the server shows in a transaction."""
    believed = (conn.autocommit, conn.isolation_level, conn.readonly, conn.deferrable)
    ask(conn, "BEGIN") if conn.autocommit else None
    names = ("isolation", "read_only", "deferrable")
    shown = tuple(ask(conn, f"SHOW transaction_{name}") for name in names)
    ask(conn, "ROLLBACK") if conn.autocommit else conn.rollback()
    return (*believed, *shown)


class TestSettings:
    @pytest.mark.parametrize(
        "configure", [None, _autocommit_on, _readonly, _all_kinds, _readonly_under_autocommit]
    )
    @pytest.mark.parametrize("autocommit_first", [True, False])
    def test_are_put_back_whatever_was_changed(
        self, make_pool: MakePool, configure: Any, autocommit_first: bool
    ) -> None:
        pool = make_pool(maxconn=1, configure=configure, test_on_borrow=False)
        with pool.conn() as conn:
            pid, before = pid_of(conn), settings(conn)
        for autocommit, isolation, readonly, deferrable in CHANGES:
            with pool.conn() as conn:
                if autocommit_first:
                    conn.autocommit = autocommit
                conn.isolation_level = isolation
                conn.readonly = readonly
                conn.deferrable = deferrable
                conn.autocommit = autocommit
            with pool.conn() as conn:
                change = (autocommit, isolation, readonly, deferrable)
                assert (pid_of(conn), change, settings(conn)) == (pid, change, before)

    @pytest.mark.parametrize("configure", [None, _readonly, _all_kinds])
    def test_are_put_back_without_a_round_trip_where_psycopg2_keeps_them(
        self, make_any_pool: MakePool, statement_log: StatementLog, configure: Any
    ) -> None:
        pool = make_any_pool(configure=configure)
        for autocommit in (False, True):
            conn: Any = pool.getconn()
            if autocommit:
                # While another setting is set, psycopg2 itself sends a SET here.
                conn.set_session(
                    isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT"
                )
                conn.autocommit = True
            else:
                conn.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=False)
            assert statement_log.during(partial(pool.putconn, conn)) == []

    def test_set_by_set_session_and_set_isolation_level_are_put_back(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn() as conn:
            before = settings(conn)
        with pool.conn() as conn:
            conn.set_session("SERIALIZABLE", True, True, True)
        with pool.conn() as conn:
            assert settings(conn) == before
            conn.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT)
        with pool.conn() as conn:
            assert settings(conn) == before

    @pytest.mark.parametrize("configured", [None, psycopg2.extras.DictCursor])
    def test_of_the_cursor_factory_are_put_back(
        self, make_any_pool: MakePool, configured: Any
    ) -> None:
        def configure(conn: Any) -> None:
            conn.cursor_factory = configured

        pool = make_any_pool(maxconn=1, configure=configure)
        with pool.conn() as conn:
            conn.cursor_factory = psycopg2.extras.RealDictCursor
        with pool.conn() as conn:
            assert conn.cursor_factory is configured

    def test_notices_and_notifications_do_not_reach_the_next_borrower(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn() as conn:
            conn.autocommit = True
            ask(conn, "LISTEN gossip")
            ask(conn, "NOTIFY gossip, 'heard it?'")
            ask(conn, "DO $$ BEGIN RAISE NOTICE 'mind the gap'; END $$")
            assert len(conn.notices) == len(conn.notifies) == 1
            pid = pid_of(conn)
        with pool.conn() as conn:
            assert (pid_of(conn), conn.notices, conn.notifies) == (pid, [], [])

    def test_of_the_pool_survive_a_test_on_borrow_and_a_health_check(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, configure=_all_kinds)
        with pool.conn() as conn:
            before = settings(conn)
        assert pool.check() == 0
        with pool.conn() as conn:
            assert settings(conn) == before


def leave_traces(conn: Any) -> None:
    """Leave in the session all that a server keeps for it."""
    conn.autocommit = True
    for sql in (
        "SET work_mem = '7MB'",
        "SET statement_timeout = 12345",
        "CREATE TEMPORARY TABLE trace (n int)",
        "SELECT pg_advisory_lock(4711)",
        "LISTEN trace",
        "PREPARE trace AS SELECT 1",
        "BEGIN; DECLARE trace CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SET SESSION AUTHORIZATION pg_monitor",
        "SET ROLE pg_read_all_stats",
    ):
        ask(conn, sql)


TRACES = """
    SELECT format('%s %s %s %s %s %s %s %s %s', current_setting('work_mem'),
        current_setting('statement_timeout'), to_regclass('pg_temp.trace'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors
        WHERE name = 'trace'), session_user, current_user)
"""


class TestReset:
    def test_session_clears_all_that_the_server_keeps(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, reset="session")
        with pool.conn() as conn:
            pid, before = pid_of(conn), ask(conn, TRACES)
        with pool.conn() as conn:
            leave_traces(conn)
            assert ask(conn, TRACES) != before
        with pool.conn() as conn:
            assert (pid_of(conn), ask(conn, TRACES)) == (pid, before)

    @pytest.mark.parametrize(
        ("sql", "number"), [("SELECT 1", 2), ("COMMIT", 1)], ids=["in a transaction", "outside"]
    )
    def test_session_costs_one_round_trip_beside_a_rollback(
        self, make_any_pool: MakePool, statement_log: StatementLog, sql: str, number: int
    ) -> None:
        pool = make_any_pool(maxconn=1, reset="session")
        conn = pool.getconn()
        conn.autocommit = sql == "COMMIT"
        ask(conn, "SELECT 1")
        sent = statement_log.during(lambda: pool.putconn(conn))
        assert len(sent) == number, sent

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_session_keeps_what_configure_has_set(
        self, make_any_pool: MakePool, autocommit: bool
    ) -> None:
        def configure(conn: Any) -> None:
            ask(conn, "SET work_mem = '5MB'")
            conn.commit()
            conn.autocommit = autocommit

        pool = make_any_pool(maxconn=1, reset="session", configure=configure)
        for _ in range(3):
            with pool.conn() as conn:
                assert (ask(conn, "SHOW work_mem"), conn.autocommit) == ("5MB", autocommit)
                conn.rollback()
                leave_traces(conn)

    def test_a_callable_is_called_once_for_each_return(self, make_any_pool: MakePool) -> None:
        seen: list[Any] = []
        pool = make_any_pool(maxconn=1, reset=seen.append)
        conn = pool.getconn()
        ask(conn)
        assert seen == []
        pool.putconn(conn)
        assert seen == [conn]
        round_trip(pool)
        assert seen == [conn, conn]

    def test_a_callable_may_leave_a_transaction_and_settings_behind(
        self, make_any_pool: MakePool
    ) -> None:
        def reset(conn: Any) -> None:
            conn.readonly = True
            ask(conn)

        pool = make_any_pool(maxconn=1, reset=reset)
        pid = round_trip(pool)
        with pool.conn() as conn:
            assert (pid_of(conn), conn.readonly) == (pid, None)
            assert is_clean(conn)

    def test_a_callable_that_raises_is_logged_and_costs_the_connection_only(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        def reset(conn: Any) -> None:
            raise RuntimeError("reset went wrong")

        pool = make_any_pool(maxconn=1, reset=reset, name="unlucky")
        assert round_trip(pool) != round_trip(pool)
        [record, _] = [r for r in caplog.records if "reset went wrong" in r.getMessage()]
        assert record.levelno >= logging.WARNING
        assert "unlucky" in record.getMessage()
        assert pool.stats().in_use == 0
        conn = pool.getconn(timeout=5)
        assert ask(conn) == 1
        pool.putconn(conn, close=True)

    def test_an_interrupted_callable_loses_no_slot(self, make_any_pool: MakePool) -> None:
        interrupts = [KeyboardInterrupt()]

        def reset(conn: Any) -> None:
            if interrupts:
                raise interrupts.pop()

        pool = make_any_pool(maxconn=1, reset=reset)
        conn = pool.getconn()
        with pytest.raises(KeyboardInterrupt):
            pool.putconn(conn)
        assert_whole(pool)


class TestConfigure:
    def test_is_called_once_for_each_connection(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        configured: list[int] = []
        pool = make_any_pool(maxconn=2, configure=lambda conn: configured.append(pid_of(conn)))
        pids: list[int] = []
        for _ in range(3):
            pids += fill(pool, 2)
            fill(pool, 2)
            end_sessions(server, app)
        assert configured == pids

    def test_is_committed(self, make_any_pool: MakePool, statement_log: StatementLog) -> None:
        pool = make_any_pool(configure=lambda conn: ask(conn, "SET work_mem = '6MB'"))
        with pool.conn() as conn:
            assert statement_log.statements()[:3] == ["BEGIN", "SET work_mem = '6MB'", "COMMIT"]
            assert is_clean(conn)
            assert ask(conn, "SHOW work_mem") == "6MB"

    @pytest.mark.parametrize("timeout", [0, 10])
    @pytest.mark.parametrize("raised", [LookupError, psycopg2.ProgrammingError, SystemExit])
    def test_that_raises_reaches_the_borrower_and_loses_no_slot(
        self,
        server: Server,
        app: str,
        make_any_pool: MakePool,
        timeout: float,
        raised: type[BaseException],
    ) -> None:
        armed = True

        def configure(conn: Any) -> None:
            if armed:
                raise raised("not today")

        pool = make_any_pool(maxconn=1, configure=configure)
        with pytest.raises(raised, match="not today"):
            in_thread(pool.getconn, timeout=timeout).result()
        wait_until(lambda: server.backends(app) == [])
        armed = False
        wait_until(lambda: not isinstance(_error_of_borrow(pool), raised))
        assert_whole(pool)

    def test_that_loses_its_connection_is_an_error_of_the_server(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        lose = [True]

        def configure(conn: Any) -> None:
            if lose:
                lose.pop()
                server.terminate_backend(pid_of(conn))

        pool = make_any_pool(maxconn=1, configure=configure)
        round_trip(pool)
        assert_whole(pool)


def _error_of_borrow(pool: ConnectionPool) -> BaseException | None:
    """Borrow and return; errors that cannot be mended are remembered for a quarter of a second."""
    try:
        pool.putconn(pool.getconn(timeout=5))
    except BaseException as error:
        return error
    return None


class TestCloseReturns:
    def test_close_gives_the_connection_back(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, close_returns=True)
        conn = pool.getconn()
        ask(conn)
        conn.close()
        assert not conn.closed
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        assert pool.getconn() is conn

    def test_closing_twice_is_harmless(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, close_returns=True)
        conn = pool.getconn()
        conn.close()
        conn.close()
        assert not conn.closed
        assert_whole(pool)

    def test_what_the_pool_closes_is_closed(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2, close_returns=True)
        first, second = borrow(pool, 2)
        pool.putconn(first, close=True)
        assert first.closed
        second.close()
        pool.shutdown()
        assert second.closed
        wait_until(lambda: server.backends(app) == [])


class TestClosingWhatIsInUse:
    @pytest.mark.parametrize("close", [True, False])
    def test_does_not_wait_for_the_statement_of_another_thread(
        self, server: Server, app: str, make_pool: MakePool, close: bool
    ) -> None:
        pool = make_pool(maxconn=1)
        conn = pool.getconn()
        pid = pid_of(conn)
        running = in_thread(lambda: ask(conn, "SELECT pg_sleep(60)"))
        # A server that has not begun with the statement yet has nothing to cancel.
        wait_until(lambda: sleeps(server, pid))
        pool.putconn(conn, close=close)
        assert isinstance(running.error(), psycopg2.Error)
        wait_until(lambda: not server.backends(app))
        assert_whole(pool)
