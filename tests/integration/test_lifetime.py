"""Age: connections are retired by it, without anybody noticing."""

from __future__ import annotations

import pytest

from psycopg2_pool2 import PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    borrow,
    fill,
    give_back,
    pid_of,
    round_trip,
    wait_for_backends,
)
from tests.support.waiting import wait_until


class TestLifetime:
    def test_has_warm_connections_replaced_though_nobody_borrows(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(minconn=2, maxconn=4, lifetime_timeout=0.2)
        pool.wait()
        old = set(server.backends(app))
        wait_until(lambda: not old & set(server.backends(app)))
        wait_until(lambda: pool.stats().idle >= 2)

    def test_keeps_minconn_warm_while_it_replaces(self, make_pool: MakePool) -> None:
        """The replacement is opened first, where there is room."""
        pool = make_pool(minconn=2, maxconn=4, lifetime_timeout=0.2)
        pool.wait()
        fewest = 2

        def replaced_thrice() -> bool:
            nonlocal fewest
            fewest = min(fewest, pool.stats().idle)
            return bool(pool.get_stats()["connections_num"] >= 8)

        wait_until(replaced_thrice)
        assert fewest == 2

    def test_never_exceeds_maxconn_while_it_replaces(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2, maxconn=2, lifetime_timeout=0.1)
        most = 0

        def replaced_thrice() -> bool:
            nonlocal most
            stats = pool.get_stats()
            most = max(most, stats["pool_size"])
            return bool(stats["connections_num"] >= 8)

        wait_until(replaced_thrice)
        assert most == 2

    def test_ends_for_one_that_is_never_idle_for_long(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, lifetime_timeout=0.2)
        pid = round_trip(pool)
        wait_until(lambda: round_trip(pool) != pid, timeout=2)

    def test_ends_on_return_for_one_in_use_and_interrupts_nobody(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, lifetime_timeout=0.1)
        conn = pool.getconn()
        assert ask(conn, "SELECT pg_sleep(0.2)") == ""
        assert ask(conn) == 1
        pool.putconn(conn)
        assert round_trip(pool) != pid_of(conn)

    def test_of_zero_ends_on_return(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2, lifetime_timeout=0)
        conns = borrow(pool, 2)
        assert [ask(conn) for conn in conns] == [1, 1]
        give_back(pool, conns)
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        wait_for_backends(server, app, 0)
        assert round_trip(pool) != round_trip(pool)

    @pytest.mark.parametrize("lifetime_timeout", [None, 3600])
    def test_without_an_end_in_sight_replaces_nothing(
        self, make_any_pool: MakePool, lifetime_timeout: float | None
    ) -> None:
        pool = make_any_pool(lifetime_timeout=lifetime_timeout)
        pids = fill(pool, 2)
        assert [round_trip(pool) for _ in range(20)] == pids * 10
