"""Who waits is woken at once; that each also looks around by itself must hide no missing wake-up.

Here nobody looks around by itself: where a wake-up is missing, the wait ends with its timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, PoolClosed, desk, keyed
from psycopg2_pool2 import pool as pool_module
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    Park,
    ask,
    borrow,
    fill,
    give_back,
    parked,
    pid_of,
    start_waiter,
)
from tests.support.rude_server import Accept, Login, Refuse, Reply, RudeServer
from tests.support.waiting import Running, in_thread, wait_until

FOR_EVER = 10_000.0


@pytest.fixture(autouse=True)
def nobody_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (desk, keyed, pool_module):
        monkeypatch.setattr(module, "_LOOK_AGAIN", FOR_EVER)
    monkeypatch.setattr(desk, "_LOOK_AGAIN_IN_CROWD", FOR_EVER)


def return_in_transaction(pool: ConnectionPool, conn: Any) -> None:
    ask(conn)
    pool.putconn(conn)


def return_closed(pool: ConnectionPool, conn: Any) -> None:
    conn.close()
    pool.putconn(conn)


ENDS: dict[str, Callable[[ConnectionPool, Any], object]] = {
    "is returned": ConnectionPool.putconn,
    "is returned in a transaction": return_in_transaction,
    "is returned to be closed": partial(ConnectionPool.putconn, close=True),
    "is returned closed": return_closed,
    "is returned by its block": lambda pool, conn: pool._end_block(conn, 0, 0.0, None),
    "is detached": lambda pool, conn: pool.detach(conn).close(),
}


class TestWaiter:
    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    def test_is_served_when_another_s_connection(
        self, make_any_pool: MakePool, end: Callable[[ConnectionPool, Any], object]
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool, timeout=FOR_EVER)
        end(pool, conn)
        pool.putconn(waiter.result())

    def test_is_served_when_the_server_ends_a_session_in_use(
        self, make_any_pool: MakePool, server: Server
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool, timeout=FOR_EVER)
        server.terminate_backend(pid_of(conn))
        pool.putconn(conn)
        pool.putconn(waiter.result())

    def test_is_served_when_the_pool_is_enlarged(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool, timeout=FOR_EVER)
        pool.resize(0, 2)
        give_back(pool, [conn, waiter.result()])

    def test_is_served_when_several_are_closed_at_once(self, make_any_pool: MakePool) -> None:
        """Without workers the first waiter is woken for each, and opens one."""
        pool = make_any_pool(maxconn=3)
        conns = borrow(pool, 3)
        waiters = [start_waiter(pool, timeout=FOR_EVER) for _ in range(3)]
        for conn in conns:
            pool.putconn(conn, close=True)
        give_back(pool, [waiter.result() for waiter in waiters])

    def test_opens_one_beside_another_that_takes_long(self, make_any_pool: MakePool) -> None:
        both, are_slow = threading.Barrier(2), threading.Event()

        def configure(conn: Any) -> None:
            if are_slow.is_set():
                both.wait(20)

        pool = make_any_pool(maxconn=2, configure=configure)
        conns = borrow(pool, 2)
        waiters = [start_waiter(pool, timeout=FOR_EVER) for _ in range(2)]
        are_slow.set()
        for conn in conns:
            pool.putconn(conn, close=True)
        give_back(pool, [waiter.result() for waiter in waiters])

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_is_served_when_the_first_attempt_after_an_outage_succeeds(
        self, num_workers: int
    ) -> None:
        """Until then there is one attempt at a time."""
        arrived, goes_on = threading.Event(), threading.Event()

        def decide(login: Login) -> Reply:
            if login.number == 1:
                return Refuse("57P03", "the database system is starting up")
            arrived.set()
            assert goes_on.wait(20)
            return Accept()

        with (
            RudeServer(decide) as rude,
            ConnectionPool(0, 2, num_workers=num_workers, **rude.params) as pool,
        ):
            first = start_waiter(pool, timeout=FOR_EVER)
            assert arrived.wait(20)
            second = start_waiter(pool, timeout=FOR_EVER)
            goes_on.set()
            give_back(pool, [first.result(), second.result()])

    def test_is_told_when_the_pool_is_closed(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool, timeout=FOR_EVER)
        pool.shutdown()
        assert isinstance(waiter.error(), PoolClosed)
        pool.putconn(conn)

    def test_is_served_when_what_was_tested_is_good(self, make_any_pool: MakePool) -> None:
        park = Park()
        pool = make_any_pool(maxconn=1, test_on_borrow=park)
        fill(pool, 1)
        with parked(park, pool.check):
            waiter = start_waiter(pool, timeout=FOR_EVER)
        pool.putconn(waiter.result())

    def test_is_served_when_what_was_tested_is_bad(self, make_any_pool: MakePool) -> None:
        park = Park()
        bad = True

        def test(conn: Any) -> None:
            nonlocal bad
            park()
            if bad:
                bad = False
                raise ValueError("it is bad")

        pool = make_any_pool(maxconn=1, test_on_borrow=test, test_idle_after=FOR_EVER)
        fill(pool, 1)
        with parked(park, pool.check):
            waiter = start_waiter(pool, timeout=FOR_EVER)
        pool.putconn(waiter.result())


class TestOthers:
    def test_of_shutdown_that_waits_for_those_in_use(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conns = borrow(pool, 2)
        closing: Running[None] = in_thread(pool.shutdown, timeout=FOR_EVER)
        wait_until(lambda: pool._supply.emptied._gates)
        give_back(pool, conns)
        closing.result()

    def test_of_wait_when_minconn_are_open(self, make_pool: MakePool) -> None:
        park = Park()
        pool = make_pool(minconn=1, configure=park)
        pool.wait()

        def wait_for_two() -> None:
            pool.resize(2, 2)
            pool.wait(FOR_EVER)

        with parked(park, wait_for_two) as waiting:
            wait_until(lambda: pool._supply.opened._gates)
        waiting.result()

    def test_of_one_that_asks_for_a_key_that_another_is_about_to_borrow(
        self, make_any_pool: MakePool
    ) -> None:
        park = Park()
        pool = make_any_pool(maxconn=2, test_on_borrow=park)
        fill(pool, 1)
        with parked(park, lambda: pool.getconn("key")) as first:
            [loan] = pool._desk._keyed._loans.values()
            second = in_thread(pool.getconn, "key", timeout=FOR_EVER)
            wait_until(lambda: loan.bell._gates)
        conn = first.result()
        assert second.result() is conn
        pool.putconn(conn)
