"""Many threads that do with a pool whatever a program may, in an order drawn with a seed.

Every query carries a number of its own and its answer is checked, so that two
who hold the same connection, or a connection with somebody else's answer in it,
are found.  With ``torment`` exceptions are raised in the threads at any moment.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2

from psycopg2_pool2 import ConnectionPool
from tests.support.interleave import Injected
from tests.support.interrupts import interrupt
from tests.support.pools import ask, assert_whole
from tests.support.waiting import Running, in_thread, wait_until

THREADS = 12
_nonces = itertools.count(1)


class Failed(Exception):
    """Raised by a borrower in its block."""


class Actor:
    """One thread's worth of a program."""

    def __init__(self, pool: ConnectionPool, app: str, seed: int, over: threading.Event) -> None:
        self.pool = pool
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.busy = False  # it may be interrupted
        self._app = app
        self._over = over
        often: list[Callable[[], None]] = [self.borrow, self.transact]
        self._actions = often * 6 + [
            self.fail,
            self.close_it,
            self.close_on_return,
            self.drop,
            self.detach,
            self.kill_own,
            self.kill_another,
            self.resize,
            self.check,
            self.reap,
            self.drain,
        ]

    def run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Injected):
                self._act()

    def _act(self) -> None:
        action = self.draw.choice(self._actions)
        self.busy = True
        try:
            action()
        except (Injected, Failed):
            pass
        except psycopg2.Error as error:
            self.done[type(error).__name__] += 1
        finally:
            self.busy = False
        self.done[action.__name__] += 1

    @property
    def timeout(self) -> float:
        return self.draw.choice([0, 0.01, 1, 5])

    def ask(self, conn: Any) -> None:
        nonce = next(_nonces)
        if (answer := ask(conn, "SELECT %s", nonce)) != nonce:
            self.wrong.append(f"asked {nonce}, answered {answer}")

    # -- actions -----------------------------------------------------------

    def borrow(self) -> None:
        with self.pool.conn(self.timeout) as conn:
            self.done["loans"] += 1
            self.ask(conn)

    def transact(self) -> None:
        with self.pool.transaction(self.timeout) as conn:
            self.done["loans"] += 1
            self.ask(conn)
            self.ask(conn)

    def fail(self) -> None:
        with self.pool.transaction(self.timeout) as conn:
            self.done["loans"] += 1
            self.ask(conn)
            raise Failed

    def close_it(self) -> None:
        with self.pool.conn(self.timeout) as conn:
            self.done["loans"] += 1
            conn.close()

    def close_on_return(self) -> None:
        conn = self.pool.getconn(timeout=self.timeout)
        self.done["loans"] += 1
        self.pool.putconn(conn, close=True)

    def drop(self) -> None:
        conn = self.pool.getconn(timeout=self.timeout)
        self.done["loans"] += 1
        self.done["dropped"] += 1
        del conn

    def detach(self) -> None:
        conn = self.pool.getconn(timeout=self.timeout)
        self.done["loans"] += 1
        self.pool.detach(conn)
        self.done["detached"] += 1
        try:
            self.ask(conn)
        finally:
            conn.close()

    def kill_own(self) -> None:
        with self.pool.conn(self.timeout) as conn:
            self.done["loans"] += 1
            ask(conn, "SELECT pg_terminate_backend(pg_backend_pid())")

    def kill_another(self) -> None:
        with self.pool.conn(self.timeout) as conn:
            self.done["loans"] += 1
            ask(
                conn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s AND pid <> pg_backend_pid()"
                " ORDER BY random() LIMIT 1",
                self._app,
            )

    def resize(self) -> None:
        self.pool.resize(self.draw.randrange(3), self.draw.choice([3, 5, 8]))

    def check(self) -> None:
        self.pool.check()

    def reap(self) -> None:
        self.pool.reap_idle_connections()

    def drain(self) -> None:
        self.pool.drain()


@contextlib.contextmanager
def hurried_switching() -> Iterator[None]:
    """Have threads switch as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def no_log() -> Iterator[None]:
    """Log nothing: an interrupted thread can leave a lock of a log handler locked for ever."""
    logger = logging.getLogger("psycopg2_pool2")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def act_at_random(
    pool: ConnectionPool, app: str, seconds: float, seed: int, *, torment: bool
) -> Counter[str]:
    """Let the threads act for so long; then see that the pool is whole and its sums add up."""
    print(f"RANDOM_ACTIONS_SEED={seed}")
    over = threading.Event()
    actors = [Actor(pool, app, seed * 1000 + index, over) for index in range(THREADS)]
    with hurried_switching(), no_log() if torment else contextlib.nullcontext():
        runs = [in_thread(actor.run) for actor in actors]
        _wait(seconds, actors, runs, random.Random(seed) if torment else None)
        over.set()
        for run in runs:
            error = run.error(timeout=60)
            assert error is None or (torment and isinstance(error, Injected)), error
    done = sum((actor.done for actor in actors), Counter[str]())
    assert not [wrong for actor in actors for wrong in actor.wrong]
    assert done["loans"] > THREADS
    pool.resize(0, 6)
    gc.collect()
    wait_until(lambda: pool.stats().in_use == 0, timeout=20)
    if not torment:
        _check_sums(pool, done)
    wait_until(lambda: pool.get_stats()["pool_size"] <= 6, timeout=20)
    assert_whole(pool)
    print(f"RANDOM_ACTIONS_SEED={seed}: {dict(done)}")
    return done


def _wait(
    seconds: float, actors: list[Actor], runs: list[Running[None]], draw: random.Random | None
) -> None:
    end = time.monotonic() + seconds

    def is_over() -> bool:
        if draw is not None:
            index = draw.randrange(len(actors))
            if actors[index].busy:
                interrupt(runs[index].thread, Injected)
        return time.monotonic() >= end

    wait_until(is_over, timeout=seconds + 60)


def _check_sums(pool: ConnectionPool, done: Counter[str]) -> None:
    stats = pool.get_stats()
    assert stats["requests_num"] == done["loans"], (stats, done)
    assert stats["connections_detached"] == done["detached"]
    assert stats["connections_leaked"] == done["dropped"]
    assert stats["requests_waiting"] == stats["pool_in_use"] == 0


def seed_of_the_run(default: int) -> int:
    """Return the seed to repeat a run with, or the default."""
    return int(os.environ.get("RANDOM_ACTIONS_SEED", default))
