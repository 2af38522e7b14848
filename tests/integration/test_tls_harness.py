"""The harness's server with TLS and its PgBouncer do what other tests rely on."""

from __future__ import annotations

import contextlib

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pgbouncer import MakePgBouncer
from tests.support.pools import ask, assert_whole, borrow, give_back, round_trip
from tests.support.servers import MakeProxy
from tests.support.tls import TlsServer
from tests.support.waiting import in_thread


class TestTlsServer:
    def test_proves_its_name_to_clients(self, tls_server: TlsServer) -> None:
        with contextlib.closing(psycopg2.connect(**tls_server.params)) as conn:
            assert ask(conn) == 1
            assert conn.info.ssl_in_use

    def test_proves_its_names_through_a_proxy(
        self, tls_server: TlsServer, proxy: MakeProxy
    ) -> None:
        through = {"host": "db.test", "hostaddr": "127.0.0.1", "port": proxy(tls_server).port}
        with contextlib.closing(psycopg2.connect(**{**tls_server.params, **through})) as conn:
            assert conn.info.ssl_in_use

    def test_is_refused_under_another_name(self, tls_server: TlsServer) -> None:
        elsewhere = {"host": "elsewhere.test", "hostaddr": "127.0.0.1"}
        with pytest.raises(psycopg2.OperationalError, match="does not match host name"):
            psycopg2.connect(**{**tls_server.params, **elsewhere})

    def test_is_refused_while_it_presents_the_wrong_certificate(
        self, tls_server: TlsServer
    ) -> None:
        tls_server.present("wrong")
        try:
            with pytest.raises(psycopg2.OperationalError, match="does not match host name"):
                psycopg2.connect(**tls_server.params)
        finally:
            tls_server.present("server")
        assert tls_server.execute("SELECT 1") == [(1,)]


class TestPgBouncer:
    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_serves_a_pool_as_the_server_does(
        self, server: Server, pgbouncer: MakePgBouncer, num_workers: int
    ) -> None:
        """Its protocol knows neither `options` nor most settings: the pool sends none."""
        bouncer = pgbouncer()
        with ConnectionPool(2, 4, num_workers=num_workers, **bouncer.params) as pool:
            with pool.transaction(timeout=10) as conn:
                assert ask(conn, "SHOW port") == str(server.port)
            assert_whole(pool)

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_is_survived_by_a_pool_when_it_restarts(
        self, pgbouncer: MakePgBouncer, num_workers: int
    ) -> None:
        bouncer = pgbouncer()
        with ConnectionPool(0, 4, num_workers=num_workers, **bouncer.params) as pool:
            conns = borrow(pool, 4)
            lent = conns.pop()
            ask(lent)
            give_back(pool, conns)
            bouncer.restart()
            pool.putconn(lent)
            assert round_trip(pool)
            assert_whole(pool)

    def test_refuses_while_it_is_stopped(self, pgbouncer: MakePgBouncer) -> None:
        bouncer = pgbouncer()
        bouncer.stop()
        assert not bouncer.running
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            psycopg2.connect(**bouncer.params)

    def test_lets_clients_wait_while_it_is_paused(self, pgbouncer: MakePgBouncer) -> None:
        bouncer = pgbouncer()
        with ConnectionPool(0, 1, **bouncer.params) as pool:
            assert round_trip(pool)
            bouncer.pause()
            waiting = in_thread(round_trip, pool)
            waiting.thread.join(0.1)
            assert not waiting.done
            bouncer.resume()
            assert waiting.result()
