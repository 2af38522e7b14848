"""Finalizers that return connections after the collector has cleared the references to them.

The record of such a connection says that it has gone.  It has not, and counts.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolExhausted, PoolStats, ThreadedConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    end_sessions,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
    watched_sessions,
)
from tests.support.processes import in_child
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

Finalizer = Callable[[ConnectionPool, Any], object]


class Session:
    """What borrows when it is made, in a reference cycle, and gives back when it is collected."""

    def __init__(
        self, pool: ConnectionPool, end: Finalizer = ConnectionPool.putconn, key: object = None
    ) -> None:
        is_psycopg2s = isinstance(pool, ThreadedConnectionPool)
        self.conn = pool.getconn(key) if is_psycopg2s else pool.getconn(key, timeout=30)
        self._pool = pool
        self._end = end
        self._me = self
        self.pid = pid_of(self.conn)

    def __del__(self) -> None:
        self._end(self._pool, self.conn)


def collect_one(
    pool: ConnectionPool, end: Finalizer = ConnectionPool.putconn, key: object = None
) -> int:
    """Have a session end by a garbage collection; return which backend it had."""
    session = Session(pool, end, key)
    gone = weakref.ref(session)
    pid = session.pid
    del session
    gc.collect()
    wait_until(lambda: gone() is None)  # the collection of another thread may have it
    return pid


def close(pool: ConnectionPool, conn: Any) -> None:
    conn.close()


def look_and_return(pool: ConnectionPool, conn: Any) -> None:
    assert pool.stats().in_use, "it is gone from the books"
    pool.putconn(conn)


def leave_transaction(pool: ConnectionPool, conn: Any) -> None:
    ask(conn)
    pool.putconn(conn)


@pytest.mark.parametrize(
    ("end", "options", "key"),
    [
        (ConnectionPool.putconn, {}, None),
        (ConnectionPool.putconn, {"test_on_borrow": False}, None),
        (ConnectionPool.putconn, {"debug": True}, None),
        (look_and_return, {"test_on_borrow": False}, None),
        (leave_transaction, {}, None),
        (close, {"close_returns": True}, None),
    ],
    ids=["tested", "untested", "debug", "looked at", "in a transaction", "close_returns"],
)
def test_what_a_finalizer_returns_stays_in_the_pool(
    server: Server,
    app: str,
    make_any_pool: MakePool,
    end: Finalizer,
    options: dict[str, Any],
    key: object,
) -> None:
    pool = make_any_pool(maxconn=2, **options)
    conn = pool.getconn(timeout=10)
    pids = {collect_one(pool, end, key) for _ in range(5)}
    assert len(pids) == 1
    pool.stats()  # looks for what was lost
    other = pool.getconn(timeout=10)
    assert pid_of(other) in pids
    with pytest.raises(PoolExhausted):
        pool.getconn(timeout=0)
    assert len(server.backends(app)) == 2
    give_back(pool, [conn, other])
    assert_whole(pool)
    assert pool.get_stats()["connections_leaked"] == pool.get_stats()["connections_lost"] == 0


def test_what_is_known_by_a_key_is_no_garbage(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=1)
    for _ in range(3):
        collect_one(pool, lambda pool, conn: pool.putconn(conn, "key"), "key")
    assert pool.stats() == PoolStats(in_use=0, idle=1)
    assert_whole(pool)


def test_what_a_finalizer_closes_or_detaches_leaves_the_pool(
    server: Server, app: str, make_any_pool: MakePool
) -> None:
    pool = make_any_pool(maxconn=2)
    taken: list[Any] = []
    for _ in range(3):
        collect_one(pool, lambda pool, conn: taken.append(pool.detach(conn)))
        collect_one(pool, lambda pool, conn: pool.putconn(conn, close=True))
        assert pool.stats() == PoolStats(in_use=0, idle=0)
    assert [ask(conn) for conn in taken] == [1, 1, 1]
    for conn in taken:
        conn.close()
    assert_whole(pool)
    wait_for_backends(server, app, 2)


def test_what_a_finalizer_keeps_counts_until_it_is_dropped(
    server: Server, app: str, make_any_pool: MakePool
) -> None:
    pool = make_any_pool(maxconn=1)
    kept: list[Any] = []
    collect_one(pool, lambda pool, conn: kept.append(conn))
    for _ in range(3):
        assert pool.stats() == PoolStats(in_use=1, idle=0)
        assert list(pool.connections_in_use) == kept
        with pytest.raises(PoolExhausted):
            pool.getconn(timeout=0)
    waiter = start_waiter(pool)
    kept.clear()
    pool.putconn(waiter.result())
    del waiter
    assert pool.get_stats()["connections_leaked"] == 1
    assert_whole(pool)
    wait_for_backends(server, app, 1)


def test_what_a_finalizer_drops_gives_its_slot_back(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=1)
    for _ in range(3):
        collect_one(pool, lambda pool, conn: None)
        assert pool.stats().in_use == 0
    assert pool.get_stats()["connections_leaked"] == 3
    assert_whole(pool)


def test_nobody_gets_the_slot_between_the_death_of_the_reference_and_the_return(
    server: Server, app: str, make_any_pool: MakePool
) -> None:
    pool = make_any_pool(maxconn=1)
    died, looked = threading.Event(), threading.Event()

    def end(pool: ConnectionPool, conn: Any) -> None:
        assert conn.pool_record() is None, "the collector clears the references first"
        died.set()
        assert looked.wait(30)
        pool.putconn(conn)

    with watched_sessions(server, app, limit=1) as watch:
        session = Session(pool, end)
        pid = session.pid
        del session
        collector = in_thread(gc.collect)
        assert died.wait(30)
        with pytest.raises(PoolExhausted):
            pool.getconn(timeout=0)
        waiter = start_waiter(pool)
        assert pool.stats() == PoolStats(in_use=1, idle=0)
        looked.set()
        collector.result()
        assert pid_of(waiter.result()) == pid
        pool.putconn(waiter.result())
    assert watch.peak == 1
    del waiter
    assert_whole(pool)


def test_a_generator_that_is_collected_leaves_its_block(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=1)
    pids = set()

    def work() -> Generator[int, Any, None]:
        with pool.conn(timeout=10) as conn:
            me = yield pid_of(conn)
            yield me.gi_frame.f_lineno
        del me

    for _ in range(3):
        generator = work()
        pids.add(next(generator))
        generator.send(generator)  # which refers to itself now
        del generator
        gc.collect()
        assert pool.stats() == PoolStats(in_use=0, idle=1)
    assert len(pids) == 1
    assert_whole(pool)


def test_weakref_finalize_returns(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=1)

    class Owner:
        def __init__(self) -> None:
            self.me = self
            weakref.finalize(self, pool.putconn, pool.getconn(timeout=10))

    for _ in range(3):
        Owner()
        gc.collect()
        assert pool.stats() == PoolStats(in_use=0, idle=1)
    assert_whole(pool)


def test_a_connection_that_finalizes_itself_is_returned(make_any_pool: MakePool) -> None:
    pools: list[ConnectionPool] = []

    class Faithful(psycopg2.extensions.connection):
        def __del__(self) -> None:
            if self.pool_record in pools[0]._store.lent:  # type: ignore[attr-defined]
                pools[0].putconn(self)

    pools.append(make_any_pool(maxconn=1, connection_factory=Faithful))
    pid = round_trip(pools[0])
    conn: Any = pools[0].getconn(timeout=10)
    conn.me = conn
    del conn
    gc.collect()
    assert pools[0].stats() == PoolStats(in_use=0, idle=1)
    assert round_trip(pools[0]) == pid
    assert_whole(pools[0])
    pools[0].shutdown()
    pools.clear()


class TestAfterwards:
    """What came back by a finalizer is cared for like every other."""

    def test_it_is_replaced_when_its_server_hangs_up(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(minconn=1, maxconn=1)
        pid = collect_one(pool)
        assert end_sessions(server, app) == [pid]
        wait_for_backends(server, app, 1)

    def test_it_is_replaced_when_its_time_is_over(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2, lifetime_timeout=1000)
        pid = collect_one(pool)
        pool._store.idle[0].pool_record.expires_at = 0
        pool._upkeep.rotate()
        assert pid not in borrowed_pids(pool, 2)

    def test_it_is_among_those_in_use(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        collect_one(pool)
        conns = borrow(pool, 2)
        assert set(pool.connections_in_use) == set(conns)
        give_back(pool, conns)

    def test_it_is_closed_with_its_pool(self, statement_log: StatementLog) -> None:
        pool = ThreadedConnectionPool(1, 1, **statement_log.params)
        collect_one(pool)
        conn: Any = pool.getconn()
        assert conn.pool_record() is None
        pool.closeall()
        assert conn.closed

    def test_a_forked_child_cannot_use_it(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        collect_one(pool)
        conn = pool.getconn(timeout=10)

        def use() -> str:
            with pytest.raises(psycopg2.Error):
                ask(conn)
            return "it failed"

        assert in_child(use) == "it failed"
        assert ask(conn) == 1
        pool.putconn(conn)


@pytest.fixture
def eager_collector() -> Iterator[None]:
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # so that a collection takes little time
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


THREADS = 6
ROUNDS = 60
MAXCONN = 3


@pytest.mark.usefixtures("eager_collector")
@pytest.mark.parametrize("test_on_borrow", [True, False], ids=["tested", "untested"])
def test_maxconn_holds_whatever_the_collector_and_finalizers_do(
    server: Server, app: str, make_any_pool: MakePool, test_on_borrow: bool
) -> None:
    pool = make_any_pool(maxconn=MAXCONN, test_on_borrow=test_on_borrow)
    kept: list[Any] = []
    done = threading.Event()
    ends: list[Finalizer] = [
        *(ConnectionPool.putconn, ConnectionPool.putconn, look_and_return, leave_transaction),
        lambda pool, conn: pool.putconn(conn, close=True),
        lambda pool, conn: kept.append(conn),
        lambda pool, conn: None,
    ]

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(ROUNDS):
            session = Session(pool, choose.choice(ends))
            assert ask(session.conn) == 1
            session.conn.rollback()
            del session

    def collect() -> None:
        # The collector may find a session later only, when nobody allocates any more.
        while not done.wait(0.001):
            kept.clear()
            gc.collect()

    with watched_sessions(server, app, limit=MAXCONN) as watch:
        collector = in_thread(collect)
        threads = [in_thread(work, seed) for seed in range(THREADS)]
        try:
            for thread in threads:
                thread.result(timeout=100)
        finally:
            done.set()
        collector.result()
    assert watch.peak <= MAXCONN
    assert watch.samples > 10
    kept.clear()
    assert_whole(pool)
    wait_for_backends(server, app, MAXCONN)
