"""How many connections there are: limits, warm ones, resizing, replacing, counting."""

from __future__ import annotations

import threading
import time
from dataclasses import FrozenInstanceError
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolClosed, PoolError, PoolStats, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server, free_port
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
    round_trip,
    start_waiter,
    wait_for_backends,
    waiting,
    watched_sessions,
)
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

GAUGES = {"pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting"}
COUNTERS = {
    "usage_ms",
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
}


class TestMaxconn:
    @pytest.mark.parametrize("max_uses", [None, 3])
    def test_is_never_exceeded_under_load(
        self, server: Server, app: str, make_any_pool: MakePool, max_uses: int | None
    ) -> None:
        pool = make_any_pool(maxconn=4, timeout=30, max_uses=max_uses)
        start = threading.Barrier(24)

        def work() -> None:
            start.wait()
            for _ in range(10):
                round_trip(pool, timeout=30)

        with watched_sessions(server, app, limit=4) as watch:
            workers = [in_thread(work) for _ in range(24)]
            for worker in workers:
                worker.result(timeout=60)
        assert 1 < watch.peak <= 4
        assert_whole(pool)

    def test_holds_at_a_start_all_at_once(self, make_any_pool: MakePool) -> None:
        """In the pools of others the check and the opening are two steps."""
        pool = make_any_pool(maxconn=4)
        start = threading.Barrier(32)

        def try_one() -> Any:
            start.wait()
            try:
                return pool.getconn(timeout=0)
            except PoolError:
                return None

        borrowers = [in_thread(try_one) for _ in range(32)]
        conns = [conn for conn in (borrower.result() for borrower in borrowers) if conn]
        assert len({id(conn) for conn in conns}) == len(conns) == 4
        give_back(pool, conns)
        assert_whole(pool)


class TestMinconn:
    def test_are_warm_soon_though_nobody_borrows(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(minconn=3)
        wait_for_backends(server, app, 3)
        wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=3))
        assert pool.prewarmed

    def test_are_opened_by_the_constructor_on_demand(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(minconn=3, background_prewarm=False)
        assert pool.stats() == PoolStats(in_use=0, idle=3)
        assert pool.prewarmed
        assert pool.get_stats()["connections_num"] == 3

    def test_that_the_constructor_cannot_open_are_its_error(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        closed_port: dict[str, Any] = {"host": "127.0.0.1", "port": free_port(), "user": "postgres"}
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            make_any_pool(minconn=2, background_prewarm=False, **closed_port)

    def test_that_configure_refuses_are_the_constructors_error(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        configured: list[Any] = []

        def configure(conn: Any) -> None:
            configured.append(conn)
            if len(configured) == 2:
                raise LookupError("not the second one")

        with pytest.raises(LookupError, match="not the second one"):
            make_any_pool(minconn=3, background_prewarm=False, configure=configure)
        wait_for_backends(server, app, 0)

    def test_are_replaced_after_a_loss(self, server: Server, app: str, make_pool: MakePool) -> None:
        pool = make_pool(minconn=3)
        pool.wait()
        lost = end_sessions(server, app)
        wait_until(lambda: pool.stats().idle == 3 and pool.get_stats()["pool_size"] == 3)
        assert not set(borrowed_pids(pool, 3)) & set(lost)

    def test_are_replaced_after_a_loss_when_somebody_reaps_from_outside(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(minconn=3, num_workers=0, background_prewarm=False)
        lost = end_sessions(server, app)

        def replaced() -> bool:
            pool.check()
            pool.reap_idle_connections()
            return pool.stats().idle == 3

        wait_until(replaced)
        assert not set(borrowed_pids(pool, 3)) & set(lost)

    def test_are_replaced_when_a_borrower_closes_one(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        pool.wait()
        pool.putconn(pool.getconn(), close=True)
        wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=2))

    def test_count_those_in_use(self, make_pool: MakePool) -> None:
        """`minconn` is a floor of what is open, idle and in use together."""
        pool = make_pool(minconn=2, maxconn=4)
        pool.wait()
        conns = borrow(pool, 2)
        pool.reap_idle_connections()
        assert pool.get_stats()["pool_size"] == 2
        give_back(pool, conns)


class TestWait:
    def test_returns_when_minconn_are_warm(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(minconn=3)
        pool.wait(timeout=10)
        assert pool.stats() == PoolStats(in_use=0, idle=3)

    def test_raises_in_time_and_says_why(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(minconn=1, host="127.0.0.1", port=free_port(), user="postgres")
        started = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            pool.wait(timeout=0.2)
        assert time.monotonic() - started < 10
        assert "refused" in str(caught.value.__cause__)

    def test_ends_when_the_pool_is_closed(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=1, host="127.0.0.1", port=free_port(), user="postgres")
        waiter = in_thread(pool.wait, timeout=30)
        wait_until(lambda: pool.get_stats()["connections_errors"])
        pool.shutdown()
        assert isinstance(waiter.error(), PoolClosed)


class TestResize:
    def test_up_lets_waiters_in_at_once(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conns = borrow(pool, 1)
        waiters = [start_waiter(pool), start_waiter(pool)]
        pool.resize(0, 3)
        conns += [waiter.result() for waiter in waiters]
        assert (pool.maxconn, pool.stats().in_use) == (3, 3)
        give_back(pool, conns)
        assert_whole(pool)

    def test_up_warms_more(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=1, maxconn=4)
        pool.resize(3, 4)
        wait_until(lambda: pool.stats().idle == 3)
        assert pool.minconn == 3

    def test_down_closes_idle_ones_at_once(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=4)
        fill(pool, 4)
        pool.resize(0, 2)
        assert pool.stats().idle == 2
        wait_for_backends(server, app, 2)
        assert_whole(pool)

    def test_down_closes_those_in_use_as_they_come_back(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=4)
        conns = borrow(pool, 4)
        pool.resize(0, 1)
        assert [ask(conn) for conn in conns] == [1] * 4
        with pytest.raises(PoolError):
            pool.getconn(timeout=0)
        give_back(pool, conns)
        wait_for_backends(server, app, 1)
        assert_whole(pool)

    @pytest.mark.parametrize("sizes", [(-1, 2), (3, 2), (0, 0)])
    def test_to_nonsense_changes_nothing(self, make_pool: MakePool, sizes: tuple[int, int]) -> None:
        pool = make_pool(minconn=0, maxconn=4)
        with pytest.raises(ValueError, match=r"minconn|maxconn"):
            pool.resize(*sizes)
        assert (pool.minconn, pool.maxconn) == (0, 4)


class TestReplacing:
    def test_max_uses_retires_after_so_many_borrows(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, max_uses=3)
        pids = [round_trip(pool) for _ in range(6)]
        assert pids == [pids[0]] * 3 + [pids[3]] * 3
        assert pids[0] != pids[3]
        wait_for_backends(server, app, 0)

    def test_drain_replaces_the_idle_now_and_those_in_use_when_they_come_back(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=4)
        old = fill(pool, 4)
        conns = borrow(pool, 2)
        pool.drain()
        wait_until(lambda: set(server.backends(app)) & set(old) == set(old[:2]))
        assert [ask(conn) for conn in conns] == [1, 1]
        give_back(pool, conns)
        assert not set(borrowed_pids(pool, 4)) & set(old)
        assert_whole(pool)

    def test_drain_keeps_minconn_warm(self, server: Server, app: str, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        pool.wait()
        old = set(server.backends(app))
        pool.drain()
        wait_until(lambda: pool.stats().idle == 2)
        assert not old & set(borrowed_pids(pool, 2))

    @pytest.mark.parametrize("name", ["discard_all_idle", "clear"])
    def test_discarding_all_idle_leaves_those_in_use_alone(
        self, server: Server, app: str, make_any_pool: MakePool, name: str
    ) -> None:
        pool = make_any_pool(maxconn=4)
        pids = fill(pool, 4)
        conn = pool.getconn()
        getattr(pool, name)()
        assert pool.stats() == PoolStats(in_use=1, idle=0)
        wait_until(lambda: server.backends(app) == [pids[0]])
        pool.putconn(conn)
        assert round_trip(pool) == pids[0]

    def test_discarding_all_idle_warms_minconn_anew(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        pool.wait()
        old = borrowed_pids(pool, 2)
        pool.discard_all_idle()
        wait_until(lambda: pool.stats().idle == 2)
        assert not set(old) & set(borrowed_pids(pool, 2))


class TestDetach:
    def test_makes_the_connection_the_callers_and_frees_its_slot(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        assert pool.detach(conn) is conn
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        assert round_trip(pool) != pid_of(conn)
        pool.shutdown()
        assert ask(conn) == 1
        conn.close()
        assert conn.closed

    def test_lets_a_waiter_in(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        waiter = start_waiter(pool)
        pool.detach(conn)
        assert ask(waiter.result()) == 1
        pool.putconn(waiter.result())
        conn.close()

    def test_is_no_return(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.detach(pool.getconn())
        for refused in (pool.putconn, pool.detach):
            with pytest.raises(PoolError):
                refused(conn)
        conn.close()
        assert_whole(pool)

    def test_inside_a_block_is_left_alone_at_its_end(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn() as conn:
            pool.detach(conn)
        assert ask(conn) == 1
        conn.close()
        assert_whole(pool)

    def test_under_close_returns_has_close_close(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(close_returns=True)
        conn = pool.detach(pool.getconn())
        conn.close()
        assert conn.closed

    def test_of_a_foreign_connection_is_an_error(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool()
        foreign = psycopg2.connect(server.dsn)
        with pytest.raises(PoolError):
            pool.detach(foreign)
        foreign.close()


class TestCheck:
    def test_discards_the_dead_and_tells_how_many(
        self, server: Server, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=4, num_workers=0)
        pids = fill(pool, 4)
        for pid in pids[1:3]:
            server.terminate_backend(pid)
        assert pool.check() == 2
        assert pool.check() == 0
        assert borrowed_pids(pool, 2) == [pids[0], pids[3]]

    def test_discards_what_fails_the_test(self, make_any_pool: MakePool) -> None:
        bad: list[int] = []

        def test(conn: Any) -> None:
            assert pid_of(conn) not in bad

        pool = make_any_pool(maxconn=3, test_on_borrow=test)
        pids = fill(pool, 3)
        assert pool.check() == 0
        bad.append(pids[1])
        assert pool.check() == 1
        assert pids[1] not in borrowed_pids(pool, 3)
        assert_whole(pool)

    def test_tests_each_idle_connection_once(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(maxconn=4)
        fill(pool, 4)
        conn = pool.getconn()
        assert statement_log.during(pool.check) == ["SELECT 1"] * 3
        pool.putconn(conn)

    def test_runs_by_itself_every_health_check_interval(
        self, make_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_pool(health_check_interval=0.05)
        fill(pool, 2)
        statement_log.clear()
        wait_until(lambda: statement_log.statements().count("SELECT 1") >= 4)
        assert set(statement_log.statements()) == {"SELECT 1"}

    def test_is_off_with_a_health_check_interval_of_zero(
        self, make_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_pool(health_check_interval=0)
        fill(pool, 2)
        assert statement_log.during(lambda: time.sleep(0.2)) == []


class TestCounts:
    def test_stats_are_a_frozen_record_of_in_use_and_idle(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conns = borrow(pool, 3)
        pool.putconn(conns.pop())
        stats = pool.stats()
        assert (stats.in_use, stats.idle) == (2, 1)
        with pytest.raises(FrozenInstanceError):
            stats.idle = 5  # type: ignore[misc]
        give_back(pool, conns)
        assert pool.stats() == PoolStats(in_use=0, idle=3)

    def test_get_stats_has_the_names_of_psycopg_pool(self, make_any_pool: MakePool) -> None:
        stats = make_any_pool().get_stats()
        assert stats.keys() >= GAUGES | COUNTERS
        first = list(stats)[: len(GAUGES | COUNTERS)]
        assert set(first) == GAUGES | COUNTERS, "this pool's own come after them"

    def test_get_stats_tells_what_is_now(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(minconn=0, maxconn=2)
        conns = borrow(pool, 2)
        waiter = start_waiter(pool)
        stats = pool.get_stats()
        assert {name: stats[name] for name in GAUGES} == {
            "pool_min": 0,
            "pool_max": 2,
            "pool_size": 2,
            "pool_available": 0,
            "requests_waiting": 1,
        }
        give_back(pool, conns)
        pool.putconn(waiter.result())
        assert pool.get_stats()["pool_available"] == 2
        assert waiting(pool) == 0

    def test_get_stats_counts_what_has_happened(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with pytest.raises(PoolError):
            pool.getconn(timeout=0.05)
        ask(conn)
        server.terminate_backend(pid_of(conn))
        pool.putconn(conn)
        with pool.conn() as conn:
            ask(conn, "SELECT pg_sleep(0.02)")
        stats = pool.get_stats()
        assert stats["connections_num"] == 2
        assert stats["requests_errors"] == 1
        assert stats["returns_bad"] == 1
        assert stats["requests_wait_ms"] >= 50
        assert stats["usage_ms"] >= 20
        assert stats["requests_queued"] >= 1

    def test_get_stats_counts_requests_by_hand_and_in_blocks(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        before = pool.get_stats()["requests_num"]
        for _ in range(3):
            round_trip(pool)
            with pool.conn():
                pass
        assert pool.get_stats()["requests_num"] - before == 6

    def test_pop_stats_starts_anew_for_its_callers_only(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        fill(pool, 2)
        first = pool.pop_stats()
        assert (first["requests_num"], first["connections_num"]) == (2, 2)
        round_trip(pool)
        second = pool.pop_stats()
        assert (second["requests_num"], second["connections_num"]) == (1, 0)
        assert second["pool_available"] == 2
        total = pool.get_stats()
        assert (total["requests_num"], total["connections_num"]) == (3, 2)

    def test_counters_never_go_backwards(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(max_uses=2)
        last = pool.get_stats()
        for action in (fill_twice, round_trip, pool_drain, round_trip):
            action(pool)
            now = pool.get_stats()
            assert {name for name in COUNTERS if now[name] < last[name]} == set()
            last = now
        assert last["requests_num"] == 6


def fill_twice(pool: ConnectionPool) -> None:
    fill(pool, 2)
    fill(pool, 2)


def pool_drain(pool: ConnectionPool) -> None:
    pool.drain()
