"""Programs whose log filters raise at every record, in whatever thread: the pool goes on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.threads import is_own_thread
from tests.support.pools import (
    MakePool,
    assert_whole,
    end_sessions,
    fill,
    round_trip,
    wait_for_backends,
)
from tests.support.servers import MakeServer
from tests.support.waiting import in_thread, wait_until


class Filter(logging.Filter):
    """Raises whatever is told: in the pool's own threads `error`, in others an Exception."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.told: list[str] = []
        self._error = error

    def filter(self, record: logging.LogRecord) -> bool:
        self.told.append(record.getMessage())
        raise (self._error if is_own_thread() else KeyError)("request_id")


@pytest.fixture(params=[KeyError, SystemExit])
def told(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Return what was told to a filter that raises in each call."""
    log, added = logging.getLogger("psycopg2_pool2"), Filter(request.param)
    log.addFilter(added)
    log.setLevel(logging.DEBUG)
    yield added.told
    log.removeFilter(added)
    log.setLevel(logging.NOTSET)


def saw(told: list[str], text: str) -> bool:
    return any(text in message for message in told)


def test_idle_connection_that_dies_is_replaced(
    told: list[str], make_pool: MakePool, server: Server, app: str
) -> None:
    pool = make_pool(2, 2)
    pool.wait(20)
    old = set(end_sessions(server, app))
    wait_until(lambda: saw(told, "lost while idle"))
    assert not old & set(wait_for_backends(server, app, 2))
    assert_whole(pool)


def test_restart_of_the_server_is_survived(told: list[str], make_server: MakeServer) -> None:
    server = make_server()
    with ConnectionPool(1, 2, dsn=server.dsn, timeout=20) as pool:
        pool.wait(20)
        server.stop()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.3)
        waiter = in_thread(round_trip, pool)
        server.start()
        waiter.result()
        assert_whole(pool)
        assert saw(told, "cannot connect")
        wait_until(lambda: saw(told, "connected again"))


def test_connection_that_is_dropped_is_collected(told: list[str], make_pool: MakePool) -> None:
    pool = make_pool(0, 1)
    assert pool.getconn(timeout=10) is not None
    gc.collect()
    round_trip(pool)
    assert saw(told, "dropped without being returned")
    assert_whole(pool)


def test_loan_that_lasts_is_returned(told: list[str], make_pool: MakePool) -> None:
    pool = make_pool(0, 1, leak_timeout=0.01)
    with pool.conn(timeout=10):
        wait_until(lambda: saw(told, "has been in use"))
    assert saw(told, "came back after")
    assert_whole(pool)


def test_reset_that_fails_closes_the_connection(told: list[str], make_pool: MakePool) -> None:
    failures = [ValueError("no")]

    def reset(conn: Any) -> None:
        if failures:
            raise failures.pop()

    pool = make_pool(0, 1, reset=reset)
    conn = pool.getconn(timeout=10)
    pool.putconn(conn)
    assert conn.closed
    assert saw(told, "cleaning a connection failed")
    assert_whole(pool)


def test_connection_that_fails_its_test_is_replaced(told: list[str], make_pool: MakePool) -> None:
    failures: list[Exception] = []

    def test(conn: Any) -> None:
        if failures:
            raise failures.pop()

    pool = make_pool(0, 1, test_on_borrow=test)
    fill(pool, 1)
    failures.append(psycopg2.OperationalError("no"))
    round_trip(pool)
    assert saw(told, "failed its test")
    assert_whole(pool)


def test_idle_ones_are_reaped(
    told: list[str], make_pool: MakePool, server: Server, app: str
) -> None:
    pool = make_pool(1, 4, idle_timeout=0.1, reap_idle_interval=0.02)
    fill(pool, 4)
    wait_for_backends(server, app, 1)
    wait_until(lambda: saw(told, "reaped"))
    assert_whole(pool)


def test_observer_that_fails_is_told_again(told: list[str], make_pool: MakePool) -> None:
    class Observer:
        def __getattr__(self, name: str) -> Any:
            raise ValueError(name)

    pool = make_pool(0, 2)
    pool._observe(Observer())
    for _ in range(3):
        round_trip(pool)
    assert saw(told, "failed")
    assert_whole(pool)
