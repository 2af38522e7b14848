"""A forked child has a pool of its own, and leaves its parent's sessions alone."""

from __future__ import annotations

import gc
import os
import sys
import threading

import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    fill,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
)
from tests.support.processes import in_child, run_program
from tests.support.waiting import in_thread

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


class TestChild:
    def test_starts_empty_and_works(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=3)
        pids = fill(pool, 3)

        def child() -> object:
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            mine = borrowed_pids(pool, 3)
            assert not set(mine) & set(pids)
            assert_whole(pool)
            pool.shutdown()
            return "fine"

        assert in_child(child) == "fine"
        assert borrowed_pids(pool, 3) == pids

    def test_has_all_of_maxconn_though_the_parent_has_lent_some(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2)
        conns = borrow(pool, 2)

        def child() -> object:
            assert_whole(pool)
            return "fine"

        assert in_child(child) == "fine"
        assert [ask(conn) for conn in conns] == [1, 1]
        give_back(pool, conns)
        assert_whole(pool)

    def test_warms_minconn_on_first_need(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        pool.wait()

        def child() -> object:
            round_trip(pool)
            pool.wait(timeout=5)
            return pool.stats().idle

        assert in_child(child) == "2"

    def test_returns_inherited_connections_without_effect(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conn, keyed = pool.getconn(), pool.getconn("key")

        def child() -> object:
            pool.putconn(conn)
            pool.putconn(keyed, "key")
            pool.putconn(conn, close=True)
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            assert_whole(pool)
            return "fine"

        assert in_child(child) == "fine"
        assert [ask(conn), ask(keyed)] == [1, 1]

    def test_closes_inherited_connections_without_effect(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conns = borrow(pool, 1)
        [pid] = fill(make_any_pool(maxconn=1), 1)

        def child() -> object:
            conns[0].close()
            conns.clear()
            gc.collect()
            pool.discard_all_idle()
            pool.drain()
            pool.shutdown()
            return "fine"

        assert in_child(child) == "fine"
        assert ask(conns[0]) == 1
        assert pid

    def test_leaves_the_block_of_its_parent_quietly(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)

        class Done(Exception):
            pass

        def child() -> object:
            block.__exit__(None, None, None)
            return "fine"

        for block in (pool.conn(), pool.transaction()):
            conn = block.__enter__()
            ask(conn)
            assert in_child(child) == "fine"
            assert ask(conn) == 1
            block.__exit__(None, None, None)
        assert_whole(pool)

    def test_of_a_closed_pool_has_a_closed_pool(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        pool.shutdown()
        assert in_child(lambda: pool.closed) == "True"

    def test_made_while_others_borrow_works(self, make_any_pool: MakePool) -> None:
        """Whatever locks the parent's other threads hold at that moment."""
        pool = make_any_pool(maxconn=3)
        stop = threading.Event()

        def borrow_on_and_on() -> None:
            while not stop.is_set():
                round_trip(pool, timeout=30)

        borrowers = [in_thread(borrow_on_and_on) for _ in range(6)]
        try:
            for _ in range(10):
                assert int(in_child(lambda: round_trip(pool, timeout=10)))
        finally:
            stop.set()
            for borrower in borrowers:
                borrower.result(timeout=30)
        assert_whole(pool)

    def test_has_no_waiters(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        waiter = start_waiter(pool)
        assert in_child(lambda: pool.get_stats()["requests_waiting"]) == "0"
        pool.putconn(conn)
        assert waiter.result() is conn
        pool.putconn(conn)

    def test_may_have_children_of_its_own(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        round_trip(pool)

        def child() -> object:
            mine = round_trip(pool)
            grandchilds = int(in_child(lambda: round_trip(pool)))
            assert mine != grandchilds
            return round_trip(pool) == mine

        assert in_child(child) == "True"


PROGRAM = """
import os, sys
from psycopg2_pool2 import ConnectionPool
pool = ConnectionPool(2, 4, dsn=sys.argv[1], num_workers=int(sys.argv[2]), background_prewarm=False)
def pids(number):
    conns = [pool.getconn(timeout=10) for _ in range(number)]
    for conn in conns:
        conn.cursor().execute("SELECT 1")
    found = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    return found
before = pids(3)
lent = pool.getconn()
with pool.conn() as in_block:
    in_block.cursor().execute("SELECT 1")
    child = os.fork()
    if child == 0:
        CHILD
    _, status = os.waitpid(child, 0)
    in_block.cursor().execute("SELECT 1")
lent.cursor().execute("SELECT 1")
pool.putconn(lent)
print(status, sorted(pids(3)) == sorted(before))
"""


@pytest.mark.parametrize("workers", ["3", "0"])
@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit()",
        "os._exit(0)",
        "pids(2); sys.exit()",
        "pids(2); os._exit(0)",
        "pool.close(); sys.exit()",
        "del pool, lent, in_block; sys.exit()",
    ],
)
def test_the_end_of_a_child_leaves_the_parents_sessions_alive_and_is_quiet(
    server: Server, workers: str, ending: str
) -> None:
    ended = run_program(PROGRAM.replace("CHILD", ending), server.dsn, workers)
    assert (ended.output, ended.errors, ended.status) == ("0 True\n", "", 0)


def test_many_children_work_at_once(server: Server, make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=3)
    pids = fill(pool, 3)
    children = [in_thread(in_child, lambda: borrowed_pids(pool, 2)) for _ in range(4)]
    for child in children:
        assert child.result(timeout=30)
    assert borrowed_pids(pool, 3) == pids


def test_pools_made_in_the_child_work(server: Server, app: str) -> None:
    def child() -> object:
        with ConnectionPool(1, 2, dsn=server.dsn) as pool:
            pool.wait(timeout=10)
            with pool.conn() as conn:
                return pid_of(conn) in server.backends()

    assert in_child(child) == "True"
    assert sys.exc_info() == (None, None, None)
