"""Programs written for psycopg2.pool and for the package psycopg2-pool go on working."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2
import psycopg2.pool
import pytest

import psycopg2_pool2
from psycopg2_pool2 import ConnectionPool, PoolError, ThreadSafeConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import MakePool, borrow, give_back
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until


class TestPsycopg2Pool:
    def test_code_with_try_and_finally(self, statement_log: StatementLog) -> None:
        pool = ConnectionPool(1, 5, dsn=statement_log.dsn)
        conn = pool.getconn()
        try:
            with conn, conn.cursor() as cursor:
                cursor.execute("SELECT %s + 1", (41,))
                assert cursor.fetchone() == (42,)
        finally:
            pool.putconn(conn)
        pool.closeall()
        assert pool.closed

    def test_code_that_catches_its_errors(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with pytest.raises(psycopg2.pool.PoolError, match="connection pool exhausted"):
            pool.getconn()
        pool.putconn(conn)
        with pytest.raises(psycopg2.pool.PoolError, match="trying to put unkeyed connection"):
            pool.putconn(conn)
        pool.closeall()
        with pytest.raises(psycopg2.pool.PoolError, match="connection pool is closed"):
            pool.getconn()

    def test_code_with_a_key_for_each_thread(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=4)

        def work(key: int) -> bool:
            conn = pool.getconn(key, timeout=10)
            try:
                return pool.getconn(key) is conn
            finally:
                pool.putconn(conn, key)

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(work, range(40)))
        assert pool.stats().in_use == 0

    def test_code_that_closes_by_hand_before_the_return(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        for _ in range(3):
            conn = pool.getconn()
            conn.close()
            pool.putconn(conn)
        assert pool.stats().in_use == 0

    def test_code_that_uses_a_connection_as_a_transaction(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with conn, conn.cursor() as cursor:
            cursor.execute("CREATE TABLE committed_by_with AS SELECT 1 AS n")
        pool.putconn(conn)
        assert server.execute("SELECT n FROM committed_by_with") == [(1,)]
        server.execute("DROP TABLE committed_by_with")


class TestPsycopg2PoolPackage:
    def test_its_names_are_here(self) -> None:
        assert ThreadSafeConnectionPool is ConnectionPool
        assert issubclass(PoolError, psycopg2.pool.PoolError)
        assert psycopg2_pool2.ConnectionPool is ConnectionPool

    def test_its_attributes_are_here(self, server: Server, statement_log: StatementLog) -> None:
        pool = ThreadSafeConnectionPool(
            1,
            5,
            60,
            30,
            900,
            test_on_borrow=False,
            background_prewarm=False,
            dsn=statement_log.dsn,
        )
        assert (pool.minconn, pool.maxconn) == (1, 5)
        assert (pool.idle_timeout, pool.reap_idle_interval) == (60, 30)
        assert pool.lifetime_timeout == 900
        assert pool.test_on_borrow is False
        assert pool.connect_kwargs["dsn"] == statement_log.dsn
        assert pool.prewarmed is True
        assert pool.closed is False
        assert pool.hostname is None
        conn = pool.getconn()
        assert conn in pool.connections_in_use
        assert len(pool.connections_in_use) == 1
        pool.putconn(conn)
        assert len(pool.connections_in_use) == 0
        pool.close()
        assert pool.closed is True

    def test_connect_kwargs_are_those_given_and_a_connect_timeout(self, server: Server) -> None:
        with ConnectionPool(0, **server.params) as pool:
            assert pool.connect_kwargs.items() >= server.params.items()
            assert pool.connect_kwargs["connect_timeout"] == 5
        with ConnectionPool(0, connect_timeout=2, **server.params) as pool:
            assert pool.connect_kwargs["connect_timeout"] == 2

    @pytest.mark.parametrize(
        ("where", "hostname"),
        [
            ({"host": "db.example.com"}, "db.example.com"),
            ({"dsn": "postgresql://u@db.example.com:6543/x"}, "db.example.com"),
            ({"host": "127.0.0.1"}, None),
            ({"host": "::1"}, None),
            ({"host": "/var/run/postgresql"}, None),
        ],
    )
    def test_hostname_is_the_name_that_is_looked_up(
        self, where: dict[str, Any], hostname: str | None
    ) -> None:
        with ConnectionPool(0, num_workers=0, **where) as pool:
            assert pool.hostname == hostname

    def test_prewarmed_says_whether_minconn_are_open(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        wait_until(lambda: pool.prewarmed)
        assert pool.stats().idle == 2

    def test_maxconn_may_be_left_without_limit(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=math.inf)
        conns = borrow(pool, 12)
        give_back(pool, conns)
        assert pool.stats().idle == 12

    def test_an_outside_scheduler_reaps(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(0, 5, idle_timeout=0.01, reap_idle_interval=0)
        conns = borrow(pool, 3)
        give_back(pool, conns)
        wait_until(lambda: pool.reap_idle_connections() or pool.stats().idle == 0)
        wait_until(lambda: pool.stats().idle == 0)
