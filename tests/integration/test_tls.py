"""Pools on a server with TLS: names are verified, and all that a pool does works there too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    end_sessions,
    fill,
    give_back,
    pid_of,
    pool_maker,
    round_trip,
    wait_for_backends,
    wait_until_lost,
)
from tests.support.processes import in_child
from tests.support.servers import StatementLog
from tests.support.tls import TlsServer
from tests.support.waiting import in_thread, wait_until

WITHIN = 15.0


@pytest.fixture
def tls_log(tls_server: TlsServer, app: str) -> StatementLog:
    """Return where to connect to, under the test's application name."""
    return StatementLog(tls_server, app)


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_tls_pool(tls_log: StatementLog, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    """Make pools that verify the server's certificate, with the background thread and without."""
    with pool_maker(num_workers=request.param) as make:

        def make_there(minconn: int = 0, maxconn: float = 4, **kwargs: Any) -> ConnectionPool:
            return make(minconn, maxconn, **{**tls_log.params, **kwargs})

        yield make_there


@contextmanager
def wrong_certificate(server: TlsServer) -> Iterator[None]:
    """Have the server present a certificate for another name during the block."""
    server.present("wrong")
    try:
        yield
    finally:
        server.present("server")


def here(name: str) -> list[str]:
    """Resolve every name to the server's address."""
    return ["127.0.0.1"]


class TestVerification:
    def test_is_of_the_name_while_the_pool_resolves_it(self, make_tls_pool: MakePool) -> None:
        asked: list[str] = []

        def resolve(name: str) -> list[str]:
            asked.append(name)
            return here(name)

        pool = make_tls_pool(maxconn=2, host="db.test", resolver=resolve)
        with pool.conn(timeout=10) as conn:
            assert conn.info.ssl_in_use
            parameters = conn.get_dsn_parameters()
            assert parameters["host"] == "db.test"
            assert parameters["hostaddr"] == "127.0.0.1"
            assert parameters["sslmode"] == "verify-full"
        assert set(asked) == {"db.test"}
        assert pool.hostname == "db.test"
        [endpoint] = pool.endpoints()
        assert (endpoint.host, endpoint.address) == ("db.test", "127.0.0.1")
        assert_whole(pool)

    def test_refuses_a_name_that_the_certificate_is_not_for(self, make_tls_pool: MakePool) -> None:
        pool = make_tls_pool(host="elsewhere.test", resolver=here)
        with pytest.raises(psycopg2.OperationalError, match=r"does not match.*elsewhere\.test"):
            in_thread(pool.getconn, timeout=30).result(WITHIN)

    @pytest.mark.parametrize("timeout", [0, 30])
    def test_refuses_a_wrong_certificate_at_once_and_says_so(
        self, tls_server: TlsServer, make_tls_pool: MakePool, timeout: float
    ) -> None:
        with wrong_certificate(tls_server):
            pool = make_tls_pool()
            error = in_thread(pool.getconn, timeout=timeout).error(WITHIN)
            assert isinstance(error, psycopg2.OperationalError)
            assert "does not match host name" in str(error)
            assert "elsewhere.test" in str(error)

    def test_refuses_a_certificate_of_unknown_origin(
        self, tls_server: TlsServer, make_tls_pool: MakePool
    ) -> None:
        another = str(tls_server.certificates.folder / "server.crt")
        pool = make_tls_pool(sslrootcert=another, sslmode="verify-ca")
        error = in_thread(pool.getconn, timeout=30).error(WITHIN)
        assert isinstance(error, psycopg2.OperationalError)
        assert "certificate verify failed" in str(error)

    def test_that_fails_makes_no_storm(
        self, tls_server: TlsServer, make_tls_pool: MakePool
    ) -> None:
        with wrong_certificate(tls_server):
            pool = make_tls_pool(minconn=2, maxconn=5)
            borrowers = [in_thread(pool.getconn, timeout=30) for _ in range(30)]
            for borrower in borrowers:
                assert "does not match host name" in str(borrower.error())
            for _ in range(50):
                with pytest.raises(psycopg2.OperationalError, match="does not match host name"):
                    pool.getconn()
            # After 1, 2, 4, ... seconds; several may have begun at first.
            assert pool.get_stats()["connections_num"] <= 5 + 5
            assert [endpoint.state for endpoint in pool.endpoints()] == ["open"]

    def test_that_succeeds_again_is_noticed_soon(
        self, tls_server: TlsServer, make_tls_pool: MakePool
    ) -> None:
        with wrong_certificate(tls_server):
            pool = make_tls_pool(maxconn=2)
            for _ in range(5):
                with pytest.raises(psycopg2.OperationalError):
                    pool.getconn(timeout=10)
        wait_until(lambda: _borrows(pool), timeout=WITHIN)
        assert_whole(pool)

    def test_concerns_new_connections_only(
        self, tls_server: TlsServer, make_tls_pool: MakePool
    ) -> None:
        """A certificate that is renewed wrongly: what is open goes on."""
        pool = make_tls_pool(maxconn=2, test_idle_after=0)
        pids = fill(pool, 1)
        with wrong_certificate(tls_server):
            conn = pool.getconn(timeout=10)
            assert pid_of(conn) in pids
            with pytest.raises(psycopg2.OperationalError, match="does not match host name"):
                pool.getconn(timeout=10)
            pool.putconn(conn)
            assert round_trip(pool) in pids


def _borrows(pool: ConnectionPool) -> bool:
    try:
        round_trip(pool)
    except psycopg2.OperationalError:
        return False
    return True


class TestIdleConnections:
    def test_that_lost_their_backends_are_never_lent(
        self, tls_server: TlsServer, app: str, make_tls_pool: MakePool
    ) -> None:
        """The farewell comes encrypted, and after it TLS says good-bye too."""
        for test_on_borrow in (True, False):
            pool = make_tls_pool(maxconn=3, test_on_borrow=test_on_borrow)
            fill(pool, 3)
            dead = end_sessions(tls_server, app)
            if not test_on_borrow:
                wait_until_lost(pool, 3)
            assert not set(borrowed_pids(pool, 3)) & set(dead)
            pool.shutdown()
            wait_for_backends(tls_server, app, 0)

    def test_are_replaced_by_the_monitor_before_anybody_borrows(
        self, tls_server: TlsServer, app: str, tls_log: StatementLog
    ) -> None:
        with ConnectionPool(2, 2, **tls_log.params) as pool:
            pool.wait()
            dead = end_sessions(tls_server, app)
            wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=2))
            alive = wait_for_backends(tls_server, app, 2)
            assert not set(alive) & set(dead)

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    @pytest.mark.parametrize("is_checked", [True, False])
    def test_with_notifications_waiting_are_kept_and_those_dropped(
        self,
        tls_server: TlsServer,
        make_tls_pool: MakePool,
        test_on_borrow: bool,
        is_checked: bool,
    ) -> None:
        """They make a healthy socket readable; more than one TLS record of them."""
        pool = make_tls_pool(maxconn=1, test_on_borrow=test_on_borrow)
        with pool.conn() as conn:
            pid = pid_of(conn)
            conn.autocommit = True
            ask(conn, "LISTEN gossip")
        tls_server.execute(
            "SELECT pg_notify('gossip', n || repeat('x', 2000)) FROM generate_series(1, 30) n"
        )
        # Whoever looks first may be the monitor, a check or the borrower.
        if is_checked:
            assert pool.check() == 0
        with pool.conn() as conn:
            assert pid_of(conn) == pid
            left = len(conn.notifies)
            assert left == 0
            assert ask(conn) == 1
        assert pool.get_stats()["connections_lost"] == 0

    def test_that_died_behind_a_notification_are_not_lent(
        self, tls_server: TlsServer, app: str, make_tls_pool: MakePool
    ) -> None:
        pool = make_tls_pool(maxconn=1, test_on_borrow=False)
        with pool.conn() as conn:
            pid = pid_of(conn)
            conn.autocommit = True
            ask(conn, "LISTEN gossip")
        tls_server.execute("NOTIFY gossip")
        end_sessions(tls_server, app)
        wait_until_lost(pool)
        assert round_trip(pool) != pid


class TestReset:
    def test_of_the_session_works_and_keeps_the_connection(self, make_tls_pool: MakePool) -> None:
        pool = make_tls_pool(maxconn=1, reset="session")
        with pool.conn() as conn:
            pid = pid_of(conn)
            ask(conn, "SET work_mem = '7MB'")
            conn.commit()
            ask(conn, "CREATE TEMPORARY TABLE trace (n int)")
            # More than one TLS record, which is not read to its end.
            with conn.cursor() as cursor:
                cursor.execute("SELECT repeat('x', 1000) FROM generate_series(1, 200)")
        with pool.conn() as conn:
            assert pid_of(conn) == pid
            assert ask(conn, "SHOW work_mem") != "7MB"

    def test_of_one_with_a_running_statement_closes_it_in_time(
        self, tls_server: TlsServer, app: str, make_tls_pool: MakePool
    ) -> None:
        pool = make_tls_pool(maxconn=1)
        conn = pool.getconn()
        pid = pid_of(conn)
        statement = in_thread(ask, conn, "SELECT pg_sleep(60)")
        wait_until(lambda: _sleeps(tls_server, pid))
        pool.putconn(conn)
        assert isinstance(statement.error(), psycopg2.Error)
        assert round_trip(pool) != pid
        wait_until(lambda: pid not in tls_server.backends(app))


def _sleeps(server: Server, pid: int) -> bool:
    return server.execute(
        "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'", [pid]
    ) == [(1,)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestForks:
    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_leave_the_parents_sessions_alone(
        self, tls_server: TlsServer, app: str, tls_log: StatementLog, num_workers: int
    ) -> None:
        """Whatever the child sends would break the sequence of the parent's records."""
        with ConnectionPool(0, 3, num_workers=num_workers, **tls_log.params) as pool:
            conns = borrow(pool, 3)
            kept = conns.pop()
            ask(kept, "CREATE TEMPORARY TABLE trace (n int)")
            give_back(pool, conns)
            before = tls_server.backends(app)

            def child() -> object:
                kept.close()
                pool.putconn(kept)
                mine = borrowed_pids(pool, 3)
                pool.check()
                pool.shutdown()
                return not set(mine) & set(before)

            assert in_child(child) == "True"
            assert ask(kept, "SELECT count(*) FROM trace") == 0
            pool.putconn(kept)
            assert sorted(borrowed_pids(pool, 3)) == sorted(before)
            assert sorted(tls_server.backends(app)) == sorted(before)
