"""A pool that keeps as many warm as recent demand asks for, on a real server."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from psycopg2_pool2 import AdaptiveConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import borrow, fill, give_back, round_trip, wait_for_backends
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until

Make = Callable[..., AdaptiveConnectionPool]
QUICK = {"idle_timeout": 0.5, "reap_idle_interval": 0.05}


@pytest.fixture
def adaptive(statement_log: StatementLog) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(minconn: int = 1, maxconn: float = 20, **kwargs: Any) -> AdaptiveConnectionPool:
            pool = AdaptiveConnectionPool(minconn, maxconn, **{**statement_log.params, **kwargs})
            stack.callback(pool.shutdown)
            return pool

        yield make


def target(pool: AdaptiveConnectionPool) -> int:
    """Return the warm target."""
    value: int = pool.get_stats()["pool_target"]
    return value


def see_in_use(pool: AdaptiveConnectionPool, number: int, expected: int) -> None:
    """Have so many in use again and again until the target is as expected."""
    meanwhile(pool, number, lambda: target(pool) == expected)


def meanwhile(pool: AdaptiveConnectionPool, number: int, seen: Callable[[], bool]) -> None:
    """Have so many in use again and again until something is seen."""
    wait_until(lambda: (fill(pool, number), seen())[1])


class TestWithWorkers:
    def test_opens_in_advance_and_closes_again(
        self, server: Server, app: str, adaptive: Make
    ) -> None:
        pool = adaptive(**QUICK)
        meanwhile(pool, 7, lambda: target(pool) == 10 and len(server.backends(app)) == 10)
        # Nobody borrows any more: the timer alone brings it back.
        wait_until(lambda: target(pool) == 1)
        wait_for_backends(server, app, 1)
        assert pool.minconn == 1
        assert pool.get_stats()["pool_target_reason"].startswith("fell from 2 to 1: ")

    def test_has_one_idle_for_a_borrower_when_the_usual_peak_is_in_use(
        self, adaptive: Make
    ) -> None:
        pool = adaptive(idle_timeout=5)
        meanwhile(pool, 7, lambda: pool.stats().idle == 10)
        queued = pool.get_stats()["requests_queued"]
        conns = borrow(pool, 10)
        assert pool.get_stats()["requests_queued"] == queued
        give_back(pool, conns)

    def test_replaces_what_is_lost(self, server: Server, app: str, adaptive: Make) -> None:
        pool = adaptive(idle_timeout=2)
        meanwhile(pool, 7, lambda: len(server.backends(app)) == 10)
        lost = set(server.backends(app)[:4])
        for pid in lost:
            server.terminate_backend(pid)

        def are_replaced() -> bool:
            backends = set(server.backends(app))
            return len(backends) == 10 and not lost & backends

        meanwhile(pool, 7, lambda: target(pool) == 10 and are_replaced())

    def test_never_opens_more_than_maxconn(self, server: Server, app: str, adaptive: Make) -> None:
        pool = adaptive(0, 8, **QUICK)
        see_in_use(pool, 7, 8)  # 10 would be wanted
        meanwhile(pool, 7, lambda: len(server.backends(app)) == 8)

    def test_logs_why(self, adaptive: Make, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "psycopg2_pool2")
        pool = adaptive(idle_timeout=2, name="tell")
        see_in_use(pool, 3, 5)

        def is_told() -> bool:
            begin, end = "pool 'tell': the warm target rose from ", " to 5: up to 3 in use"
            return any(m.startswith(begin) and m.endswith(end) for m in caplog.messages)

        wait_until(is_told)

    def test_that_nobody_holds_any_more_is_collected(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = AdaptiveConnectionPool(1, 20, 2, **statement_log.params)
        meanwhile(pool, 7, lambda: len(server.backends(app)) == 10)
        del pool
        gc.collect()
        wait_for_backends(server, app, 0)


class TestWithoutWorkers:
    def test_looks_at_returns_and_opens_when_it_is_reaped_from_outside(
        self, server: Server, app: str, adaptive: Make
    ) -> None:
        pool = adaptive(num_workers=0, idle_timeout=0.5, reap_idle_interval=0)
        see_in_use(pool, 7, 10)
        assert len(server.backends(app)) == 7

        def warmed() -> bool:
            pool.reap_idle_connections()
            return len(server.backends(app)) == 10

        meanwhile(pool, 7, warmed)

        def shrunk() -> bool:
            round_trip(pool)
            pool.reap_idle_connections()
            return target(pool) == 2 and pool.get_stats()["pool_size"] == 2

        wait_until(shrunk)
        wait_for_backends(server, app, 2)

    def test_shrinks_at_returns(self, server: Server, app: str, adaptive: Make) -> None:
        pool = adaptive(num_workers=0, **QUICK)
        see_in_use(pool, 7, 10)

        def shrunk() -> bool:
            round_trip(pool)
            return target(pool) == 2 and pool.get_stats()["pool_size"] == 2

        wait_until(shrunk)
        wait_for_backends(server, app, 2)


def test_the_environment_makes_one_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    with AdaptiveConnectionPool.from_env(minconn=0, target_utilization=0.5) as pool:
        assert isinstance(pool, AdaptiveConnectionPool)
        assert pool.target_utilization == 0.5
        assert round_trip(pool)
