"""Idleness: what nobody needs is closed, down to minconn."""

from __future__ import annotations

import time

import pytest

from psycopg2_pool2 import PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.fakes import FakeClock, fake_pool
from tests.support.pools import (
    MakePool,
    borrow,
    fill,
    give_back,
    round_trip,
    wait_for_backends,
)
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until


class TestByItself:
    def test_closes_what_is_idle_and_keeps_minconn(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(1, 5, idle_timeout=0.1, reap_idle_interval=0.02)
        fill(pool, 5)
        wait_for_backends(server, app, 1)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_closes_the_surplus_though_each_is_used_in_turn(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        """First in, first out: no connection is ever idle for long, and most are not needed."""
        pool = make_pool(1, 5, idle_timeout=0.2, reap_idle_interval=0.05, test_on_borrow=False)
        fill(pool, 5)

        def trickle_until_small() -> bool:
            round_trip(pool)
            return bool(pool.get_stats()["pool_size"] == 1)

        wait_until(trickle_until_small)
        wait_for_backends(server, app, 1)

    def test_keeps_what_is_needed_at_times(self, statement_log: StatementLog) -> None:
        clock = FakeClock()
        with fake_pool(clock, 0, 5, idle_timeout=300, **statement_log.params) as pool:
            fill(pool, 5)
            for _ in range(60):
                clock.advance(10)
                fill(pool, 3)
            # Two were never needed; three were all the time.
            assert pool.get_stats()["pool_size"] == 3
            assert pool.get_stats()["connections_num"] == 5

    def test_closes_the_same_surplus_once(self, statement_log: StatementLog) -> None:
        clock = FakeClock()
        options = {"idle_timeout": 300, "reap_idle_interval": 0, **statement_log.params}
        with fake_pool(clock, 0, 5, **options) as pool:
            fill(pool, 5)
            pool.reap_idle_connections()  # from now on it is known how many are needed
            for _ in range(31):
                clock.advance(10)
                # Each in its turn, and three at a time.
                fill(pool, 3)
                fill(pool, 3)
            assert [pool.reap_idle_connections() for _ in range(3)] == [2, 0, 0]
            assert pool.stats() == PoolStats(in_use=0, idle=3)

    def test_takes_one_that_was_opened_for_a_borrower_for_needed(
        self, statement_log: StatementLog
    ) -> None:
        clock = FakeClock()
        options = {"idle_timeout": 300, "reap_idle_interval": 0, **statement_log.params}
        with fake_pool(clock, 0, 5, **options) as pool:
            fill(pool, 2)
            pool.reap_idle_connections()
            clock.advance(10)
            fill(pool, 3)
            clock.advance(295)
            assert pool.reap_idle_connections() == 0

    def test_without_a_thread_happens_on_return_to_one_at_a_time(
        self, statement_log: StatementLog
    ) -> None:
        clock = FakeClock()
        with fake_pool(clock, 0, 5, idle_timeout=300, **statement_log.params) as pool:
            fill(pool, 5)
            sizes = []
            for _ in range(5):
                clock.advance(301)
                round_trip(pool)
                sizes.append(pool.get_stats()["pool_size"])
            assert sizes == [4, 3, 2, 1, 1]


class TestFromOutside:
    def test_tells_how_many_it_closed_and_keeps_minconn(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(2, 5, idle_timeout=0.1, reap_idle_interval=0)
        fill(pool, 5)
        time.sleep(0.15)
        assert pool.stats().idle == 5  # nothing reaps by itself
        assert pool.reap_idle_connections() == 3
        assert pool.stats() == PoolStats(in_use=0, idle=2)
        wait_for_backends(server, app, 2)
        assert pool.reap_idle_connections() == 0

    def test_closes_nothing_that_was_used_lately(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(0, 5, idle_timeout=300, reap_idle_interval=0)
        fill(pool, 5)
        assert pool.reap_idle_connections() == 0
        assert pool.stats().idle == 5

    def test_closes_the_oldest_and_nothing_in_use(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(0, 5, idle_timeout=0.1, reap_idle_interval=0)
        fill(pool, 5)
        conns = borrow(pool, 2)
        time.sleep(0.15)
        assert pool.reap_idle_connections() == 3
        assert pool.stats() == PoolStats(in_use=2, idle=0)
        give_back(pool, conns)
        assert pool.stats() == PoolStats(in_use=0, idle=2)

    def test_counts_those_in_use_towards_minconn(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(3, 5, idle_timeout=0.1, reap_idle_interval=0)
        fill(pool, 5)
        conns = borrow(pool, 2)
        time.sleep(0.15)
        assert pool.reap_idle_connections() == 2
        assert pool.stats() == PoolStats(in_use=2, idle=1)
        give_back(pool, conns)

    def test_may_be_called_by_many_at_once(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(1, 5, idle_timeout=0.1, reap_idle_interval=0)
        fill(pool, 5)
        time.sleep(0.15)
        reapers = [in_thread(pool.reap_idle_connections) for _ in range(8)]
        assert sum(reaper.result() for reaper in reapers) == 4
        assert pool.stats().idle == 1


class TestExtremes:
    def test_zero_closes_on_return_what_is_above_minconn(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(1, 4, idle_timeout=0)
        fill(pool, 4)
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        wait_for_backends(server, app, 1)

    def test_zero_takes_nothing_from_waiters(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(0, 1, idle_timeout=0)
        pids = [round_trip(pool)]
        waiters = [in_thread(round_trip, pool) for _ in range(4)]
        pids += [waiter.result() for waiter in waiters]
        assert pool.stats() == PoolStats(in_use=0, idle=0)

    @pytest.mark.parametrize("reap_idle_interval", [0, 0.02])
    def test_none_closes_nothing(self, make_any_pool: MakePool, reap_idle_interval: float) -> None:
        pool = make_any_pool(0, 3, idle_timeout=None, reap_idle_interval=reap_idle_interval)
        fill(pool, 3)
        time.sleep(0.1)
        assert pool.reap_idle_connections() == 0
        assert pool.stats().idle == 3
