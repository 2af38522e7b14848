"""Borrowers that do all that borrowers must not do, sixty-four at a time."""

from __future__ import annotations

import contextlib
import gc
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolError
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    end_sessions,
    wait_for_backends,
    watched_sessions,
)
from tests.support.waiting import in_thread

pytestmark = pytest.mark.integration

THREADS = 64
ROUNDS = 12
MAXCONN = 5


class Misuse(Exception):
    """What a borrower raises in its block."""


def use_well(pool: ConnectionPool) -> None:
    with pool.transaction(timeout=60) as conn:
        nonce = random.random()
        assert ask(conn, "SELECT %s::float", nonce) == nonce


def raise_inside(pool: ConnectionPool) -> None:
    with pool.conn(timeout=60) as conn:
        ask(conn)
        raise Misuse


def fail_a_statement(pool: ConnectionPool) -> None:
    with pool.transaction(timeout=60) as conn:
        ask(conn, "SELECT 1/0")


def close_inside(pool: ConnectionPool) -> None:
    with pool.conn(timeout=60) as conn:
        conn.close()


def close_after(pool: ConnectionPool) -> None:
    conn = pool.getconn(timeout=60)
    pool.putconn(conn, close=True)


def end_the_backend(pool: ConnectionPool) -> None:
    with pool.conn(timeout=60) as conn:
        ask(conn, "SELECT pg_terminate_backend(pg_backend_pid())")


def drop(pool: ConnectionPool) -> None:
    ask(pool.getconn(timeout=60))
    gc.collect(0)


def return_twice(pool: ConnectionPool) -> None:
    conn = pool.getconn(timeout=60)
    pool.putconn(conn, close=True)
    pool.putconn(conn)


def return_in_a_transaction_with_other_settings(pool: ConnectionPool) -> None:
    conn = pool.getconn(timeout=60)
    conn.set_session(isolation_level="SERIALIZABLE", readonly=True)
    ask(conn)
    pool.putconn(conn)


def give_up_soon(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn(timeout=0.001))


def detach(pool: ConnectionPool) -> None:
    conn = pool.getconn(timeout=60)
    conn.autocommit = True
    ask(conn, "SET application_name TO 'detached'")  # it does not count any more
    pool.detach(conn).close()


ACTS: list[Callable[[ConnectionPool], None]] = [
    *(use_well, use_well, use_well, use_well),
    *(raise_inside, fail_a_statement, close_inside, close_after, end_the_backend),
    *(drop, return_twice, return_in_a_transaction_with_other_settings, give_up_soon, detach),
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hostile_threads_never_exceed_maxconn_and_lose_no_slot(
    server: Server, app: str, make_any_pool: MakePool
) -> None:
    pool = make_any_pool(maxconn=MAXCONN)
    seen: Counter[str] = Counter()

    def misbehave(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(ROUNDS):
            act = choose.choice(ACTS)
            with contextlib.suppress(psycopg2.Error, Misuse):
                act(pool)
                seen[act.__name__] += 1

    with watched_sessions(server, app, limit=MAXCONN) as watch:
        threads = [in_thread(misbehave, seed) for seed in range(THREADS)]
        for thread in threads:
            thread.result(timeout=100)
    assert watch.peak <= MAXCONN
    assert watch.samples > 10
    assert seen["use_well"] > THREADS
    assert_whole(pool)
    wait_for_backends(server, app, MAXCONN)


def test_borrowers_survive_an_administrator_who_ends_all_sessions_again_and_again(
    server: Server, app: str, make_any_pool: MakePool
) -> None:
    """A borrower may lose what it has, and never gets one that was dead already."""
    pool = make_any_pool(maxconn=MAXCONN)
    stop: list[bool] = []
    outcomes: Counter[str] = Counter()

    def use() -> str:
        try:
            with pool.conn(timeout=30) as conn:
                ask(conn)
        except PoolError:
            raise
        except psycopg2.Error:
            return "lost"
        return "good"

    def work() -> None:
        while not stop:
            outcomes[use()] += 1

    workers = [in_thread(work) for _ in range(16)]
    kills = 0
    for _ in range(10):
        kills += len(end_sessions(server, app))
    stop.append(True)
    for worker in workers:
        worker.result(timeout=40)
    assert outcomes["lost"] <= kills
    assert outcomes["good"] > 0
    assert_whole(pool)


def test_no_connection_is_lent_to_two_at_a_time(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=MAXCONN, test_on_borrow=False)
    held: set[int] = set()
    twice: list[Any] = []

    def borrow_and_look() -> None:
        for _ in range(100):
            conn = pool.getconn(timeout=60)
            if id(conn) in held:
                twice.append(conn)
            held.add(id(conn))
            held.discard(id(conn))
            pool.putconn(conn)

    for borrower in [in_thread(borrow_and_look) for _ in range(THREADS)]:
        borrower.result(timeout=60)
    assert twice == []
    assert_whole(pool)
