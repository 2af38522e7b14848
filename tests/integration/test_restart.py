"""A server that restarts: borrowers wait, nothing dead is lent, the log says it twice."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server, StopMode
from tests.support.pools import (
    ask,
    assert_whole,
    borrow,
    fill,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_waiters,
)
from tests.support.waiting import in_thread, wait_until

LOGGER = "psycopg2_pool2"


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def pool(fresh_server: Server, request: pytest.FixtureRequest) -> Iterator[ConnectionPool]:
    with ConnectionPool(
        0, 4, num_workers=request.param, name="survivor", **fresh_server.params
    ) as made:
        yield made


class TestRestart:
    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_is_not_noticed_by_those_who_wait(
        self,
        fresh_server: Server,
        request: pytest.FixtureRequest,
        mode: StopMode,
        test_on_borrow: bool,
    ) -> None:
        with ConnectionPool(0, 4, test_on_borrow=test_on_borrow, **fresh_server.params) as pool:
            conns = borrow(pool, 4)
            old = {pid_of(conn) for conn in conns}
            waiters = [start_waiter(pool) for _ in range(4)]
            fresh_server.stop(mode)
            if not test_on_borrow:  # then it is the monitor who sees it, a moment later
                wait_until(lambda: all(conn.pool_record.hung_up for conn in conns))
            give_back(pool, conns)
            wait_for_waiters(pool, 4)  # who has been handed a dead one finds that by its test
            fresh_server.start()
            conns = [waiter.result() for waiter in waiters]
            assert [ask(conn) for conn in conns] == [1] * 4
            assert not {pid_of(conn) for conn in conns} & old
            give_back(pool, conns)
            assert_whole(pool)

    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_between_two_borrows_is_not_noticed(
        self, fresh_server: Server, pool: ConnectionPool, mode: StopMode
    ) -> None:
        old = set(fill(pool, 4))
        fresh_server.restart(mode)
        conns = borrow(pool, 4)
        assert not {pid_of(conn) for conn in conns} & old
        assert [ask(conn) for conn in conns] == [1] * 4
        give_back(pool, conns)
        assert_whole(pool)

    def test_in_a_transaction_is_an_error_there_and_nowhere_else(
        self, fresh_server: Server, pool: ConnectionPool
    ) -> None:
        def use() -> None:
            with pool.conn() as conn:
                ask(conn)
                fresh_server.restart()
                ask(conn)

        with pytest.raises(psycopg2.Error):
            use()
        assert_whole(pool)

    def test_during_an_outage_borrowers_who_wait_are_served_after_it(
        self, fresh_server: Server, pool: ConnectionPool
    ) -> None:
        fresh_server.stop()
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(6)]
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 2)
        fresh_server.start()
        for waiter in waiters:
            assert waiter.result()
        assert_whole(pool)

    def test_is_followed_by_minconn_warm_connections_though_nobody_borrows(
        self, fresh_server: Server
    ) -> None:
        with ConnectionPool(3, 4, **fresh_server.params) as pool:
            pool.wait()
            fresh_server.stop()
            wait_until(lambda: pool.get_stats()["connections_errors"] >= 2)
            wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=0))
            fresh_server.start()
            wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=3))

    def test_of_a_killed_server_is_survived(
        self, fresh_server: Server, pool: ConnectionPool
    ) -> None:
        fill(pool, 4)
        fresh_server.kill()
        fresh_server.start()
        assert round_trip(pool)
        assert_whole(pool)


class TestLog:
    def test_of_an_outage_is_one_warning_and_of_its_end_one_info(
        self,
        fresh_server: Server,
        pool: ConnectionPool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        fill(pool, 4)

        def records() -> list[tuple[int, str]]:
            found = [record for record in caplog.records if record.name.startswith(LOGGER)]
            return [(record.levelno, record.getMessage()) for record in found]

        fresh_server.stop()
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(4)]
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 3)
        assert [level for level, _ in records()] == [logging.WARNING], records()
        fresh_server.start()
        for waiter in waiters:
            waiter.result()
        assert_whole(pool)
        assert [level for level, _ in records()] == [logging.WARNING, logging.INFO], records()
        assert all("survivor" in text for _, text in records())

    def test_of_a_restart_that_nobody_noticed_is_empty(
        self,
        fresh_server: Server,
        pool: ConnectionPool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        fill(pool, 2)
        fresh_server.restart()
        round_trip(pool)
        assert [r.getMessage() for r in caplog.records if r.name.startswith(LOGGER)] == []
