"""Whatever is slow in one thread, others borrow and return meanwhile: no lock is held.

Each test parks one slow thing at an event, so none of them depends on a time.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

import psycopg2.extensions
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    Park,
    ask,
    assert_whole,
    borrow,
    fill,
    give_back,
    parked,
    pid_of,
    round_trip,
)
from tests.support.waiting import Running, in_thread, wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def park() -> Park:
    return Park()


def others_go_on(pool: ConnectionPool, running: Running[Any]) -> None:
    """See that others borrow, return, count, check and reap while something hangs."""
    for call in (round_trip, round_trip, ConnectionPool.stats, ConnectionPool.get_stats):
        in_thread(call, pool).result()
    in_thread(pool.reap_idle_connections).result()
    assert not running.done


def test_opening(make_any_pool: MakePool, park: Park) -> None:
    def connect_params() -> dict[str, Any]:
        park()
        return {}

    pool = make_any_pool(maxconn=3, connect_params=connect_params)
    conns = borrow(pool, 2)
    with parked(park, lambda: pool.putconn(pool.getconn(timeout=30))):
        give_back(pool, conns)  # the first may be handed to the borrower who waits
        in_thread(round_trip, pool).result()
    assert_whole(pool)


def test_configure(make_any_pool: MakePool, park: Park) -> None:
    pool = make_any_pool(maxconn=3, configure=park)
    conns = borrow(pool, 2)
    with parked(park, lambda: pool.putconn(pool.getconn(timeout=30))):
        give_back(pool, conns)
        in_thread(round_trip, pool).result()
    assert_whole(pool)


def test_a_borrow_test(make_any_pool: MakePool, park: Park) -> None:
    pool = make_any_pool(maxconn=3, test_on_borrow=park)
    fill(pool, 3)
    with parked(park, lambda: pool.putconn(pool.getconn())) as running:
        others_go_on(pool, running)
    assert_whole(pool)


def test_a_health_check(make_any_pool: MakePool, park: Park) -> None:
    pool = make_any_pool(maxconn=3, test_on_borrow=park)
    fill(pool, 3)
    with parked(park, pool.check) as running:
        others_go_on(pool, running)
    assert_whole(pool)


def test_a_reset(make_any_pool: MakePool, park: Park) -> None:
    pool = make_any_pool(maxconn=3, reset=park)
    conn, *others = borrow(pool, 3)
    give_back(pool, others)
    with parked(park, lambda: pool.putconn(conn)) as running:
        others_go_on(pool, running)
    assert_whole(pool)


def test_a_rollback(server: Server, make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=3, test_timeout=60)
    conn, *others = borrow(pool, 3)
    ask(conn)
    give_back(pool, others)
    server.freeze_backend(pid_of(conn))
    try:
        returning = in_thread(pool.putconn, conn)
        others_go_on(pool, returning)
    finally:
        server.thaw_backend(pid_of(conn))
    returning.result()
    assert_whole(pool)


@pytest.mark.parametrize("how", ["close=True", "discard_all_idle", "reap", "shutdown of another"])
def test_closing(make_any_pool: MakePool, park: Park, how: str) -> None:
    class Slow(psycopg2.extensions.connection):
        def close(self) -> None:
            park()
            super().close()

    pool = make_any_pool(maxconn=4, connection_factory=Slow, idle_timeout=300)
    other = make_any_pool(maxconn=4, connection_factory=Slow)
    conns = borrow(pool, 3)
    fill(other, 1)

    def discard() -> None:
        pool.putconn(conns.pop())
        pool.discard_all_idle()

    def reap() -> None:
        pool.putconn(conns.pop())
        pool.resize(0, 2)

    closing = {
        "close=True": lambda: pool.putconn(conns.pop(), close=True),
        "discard_all_idle": discard,
        "reap": reap,
        "shutdown of another": other.shutdown,
    }[how]
    with parked(park, closing):
        wait_until(lambda: len(conns) == (3 if closing == other.shutdown else 2))
        pool.putconn(conns.pop())
        in_thread(round_trip, pool).result()
    give_back(pool, conns)
    assert_whole(pool)


def test_a_log_handler(make_any_pool: MakePool, park: Park) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            park()

    def reset(conn: Any) -> None:
        if conn.info.transaction_status or failing:
            failing.clear()
            raise RuntimeError("log this")

    failing = [True]
    handler = Slow(logging.WARNING)
    logger = logging.getLogger("psycopg2_pool2")
    pool = make_any_pool(maxconn=3, reset=reset)
    conn, *others = borrow(pool, 3)
    logger.addHandler(handler)
    try:
        with parked(park, lambda: pool.putconn(conn)) as running:
            give_back(pool, others)
            others_go_on(pool, running)
    finally:
        logger.removeHandler(handler)
    assert_whole(pool)


def test_a_log_handler_that_tells_of_a_dropped_connection(
    make_any_pool: MakePool, park: Park
) -> None:
    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            park()

    handler = Slow(logging.WARNING)
    logger = logging.getLogger("psycopg2_pool2")
    pool = make_any_pool(maxconn=3, test_on_borrow=False)
    conns = borrow(pool, 3)
    logger.addHandler(handler)

    def drop_and_look() -> None:
        conns.pop()
        gc.collect()
        pool.stats()
        wait_until(park.arrived.is_set)

    try:
        with parked(park, drop_and_look):
            give_back(pool, conns)
            for _ in range(3):
                in_thread(round_trip, pool).result()
    finally:
        logger.removeHandler(handler)
    assert_whole(pool)


def test_a_log_handler_that_uses_the_pool(make_any_pool: MakePool) -> None:
    """A log line under a lock would wait for itself here."""
    pool = make_any_pool(maxconn=3, reset=lambda conn: 1 / 0)

    class Nosy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(pool.stats())
            pool.get_stats()
            repr(pool)

    seen: list[object] = []
    handler = Nosy(logging.DEBUG)
    logger = logging.getLogger("psycopg2_pool2")
    logger.addHandler(handler)
    try:
        in_thread(round_trip, pool).result()
    finally:
        logger.removeHandler(handler)
    assert seen
