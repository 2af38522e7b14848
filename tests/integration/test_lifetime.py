"""Age: connections are retired by it, without anybody noticing."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from psycopg2_pool2 import PoolStats
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.monitor import get_monitor
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
from tests.support.waiting import in_thread, wait_until


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
        wait_until(lambda: round_trip(pool) != pid)

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


class TestRotation:
    """Many are born together; they end one by one, and nobody who borrows pays for it."""

    def test_is_spread_over_a_fifth_of_the_lifetime(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(0, 20, lifetime_timeout=1000)
        fill(pool, 20)
        records = pool._store.all_records()
        lives = sorted(record.expires_at - record.born for record in records)
        assert 900 <= lives[0] < lives[-1] <= 1100
        assert lives[-1] - lives[0] > 80

    def test_costs_those_who_borrow_all_the_time_no_wait(self, make_pool: MakePool) -> None:
        threads: set[str] = set()

        def note_thread() -> dict[str, Any]:
            threads.add(threading.current_thread().name)
            return {}

        # Replacements are opened from five seconds before the end: time enough for all.
        pool = make_pool(8, 10, lifetime_timeout=1000, connect_params=note_thread)
        pool.wait()
        queued = pool.get_stats()["requests_queued"]
        most = 0

        def all_replaced() -> bool:
            nonlocal most
            stats = pool.get_stats()
            most = max(most, stats["pool_size"])
            return bool(stats["connections_num"] >= 16)

        def use() -> None:
            while not done.is_set():
                round_trip(pool)

        done = threading.Event()
        borrowers = [in_thread(use) for _ in range(2)]
        for record in pool._store.all_records():
            record.expires_at = time.monotonic() + 4.5
        get_monitor().submit(pool._upkeep.rotate)
        try:
            wait_until(all_replaced)
        finally:
            done.set()
        for borrower in borrowers:
            borrower.result()
        assert pool.get_stats()["requests_queued"] == queued
        assert threads == {"psycopg2_pool2-worker"}
        assert most <= 10

    def test_of_one_that_is_in_use_has_another_ready_when_it_comes_back(
        self, make_pool: MakePool
    ) -> None:
        pool = make_pool(1, 2, lifetime_timeout=0.2)
        conn: Any = pool.getconn(timeout=10)
        wait_until(lambda: conn.pool_record.retired)
        wait_until(lambda: pool.stats() == PoolStats(in_use=1, idle=1))
        pool.putconn(conn)
        wait_until(lambda: conn.closed)

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_by_several_at_once_opens_one_replacement_each(
        self, make_pool: MakePool, num_workers: int
    ) -> None:
        slow = threading.Event()

        def connect_slowly() -> dict[str, Any]:
            if slow.is_set():
                time.sleep(0.05)
            return {}

        pool = make_pool(
            2,
            12,
            lifetime_timeout=1000,
            num_workers=num_workers,
            connect_params=connect_slowly,
        )
        fill(pool, 2)
        for record in pool._store.all_records():
            record.expires_at = 0.0
        slow.set()
        rotations = [in_thread(pool._upkeep.rotate) for _ in range(6)]
        for rotation in rotations:
            rotation.result()
        assert pool.stats() == PoolStats(in_use=0, idle=2)
        assert pool.get_stats()["connections_num"] == 4
