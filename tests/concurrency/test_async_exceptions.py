"""Exceptions that strike anywhere: between any two instructions of a borrower."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.interrupts import MAY_STRIKE_ANYWHERE, interrupt
from tests.support.pools import MakePool, ask, assert_whole, watched_sessions
from tests.support.random_actions import no_log
from tests.support.waiting import place_of, wait_until

pytestmark = [pytest.mark.integration, MAY_STRIKE_ANYWHERE]

BORROWERS = 8
ROUNDS = 400
MAXCONN = 3


class Strike(BaseException):
    """What is thrown: no `except Exception` may stop it."""


@pytest.fixture
def quiet_strikes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have no report of a strike that nobody could catch: in a finalizer, at a thread's end."""
    at_thread_end, unraisable = threading.excepthook, sys.unraisablehook

    def thread_hook(args: Any) -> None:
        if not issubclass(args.exc_type, Strike):
            at_thread_end(args)

    def unraisable_hook(args: Any) -> None:
        if not issubclass(args.exc_type, Strike):
            unraisable(args)

    monkeypatch.setattr(threading, "excepthook", thread_hook)
    monkeypatch.setattr(sys, "unraisablehook", unraisable_hook)
    with no_log():
        yield


class Crowd:
    """Borrowers that are replaced when a strike has ended them."""

    def __init__(self, pool: ConnectionPool, by_hand: bool) -> None:
        self.borrows = 0
        self.mixed_up: list[object] = []
        self.stop = False
        self._pool = pool
        self._round = self._by_hand if by_hand else self._in_block
        self._nonces = itertools.count()
        self._threads = [self._new_thread() for _ in range(BORROWERS)]

    def strike_one(self) -> None:
        place = random.randrange(BORROWERS)
        if not self._threads[place].is_alive():
            self._threads[place] = self._new_thread()
        interrupt(self._threads[place], Strike)

    def wait_for_borrow(self, before: int) -> None:
        wait_until(lambda: self.borrows > before, message="somebody borrows")

    def end(self) -> None:
        self.stop = True
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), f"a borrower hangs at:\n{place_of(thread)}"

    def _new_thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while not self.stop:
            with contextlib.suppress(Strike):
                self._round()

    def _in_block(self) -> None:
        with self._pool.conn(timeout=30) as conn:
            self._query(conn)

    def _by_hand(self) -> None:
        conn = self._pool.getconn(timeout=30)
        try:
            self._query(conn)
        finally:
            self._pool.putconn(conn)

    def _query(self, conn: Any) -> None:
        nonce = next(self._nonces)
        answer = ask(conn, "SELECT %s", nonce)
        if answer != nonce:
            self.mixed_up.append((nonce, answer))
        self.borrows += 1


@contextlib.contextmanager
def crowd_of(pool: ConnectionPool, *, by_hand: bool) -> Iterator[Crowd]:
    crowd = Crowd(pool, by_hand)
    try:
        yield crowd
    finally:
        crowd.end()


@pytest.mark.usefixtures("quiet_strikes")
@pytest.mark.parametrize("by_hand", [False, True], ids=["block", "by-hand"])
@pytest.mark.parametrize("test_on_borrow", [True, False], ids=["tested", "untested"])
def test_strikes_lose_no_slot_and_mix_up_no_answers(
    server: Server, app: str, make_any_pool: MakePool, by_hand: bool, test_on_borrow: bool
) -> None:
    pool = make_any_pool(maxconn=MAXCONN, test_on_borrow=test_on_borrow)
    with (
        watched_sessions(server, app, limit=MAXCONN) as watch,
        crowd_of(pool, by_hand=by_hand) as crowd,
    ):
        for _ in range(ROUNDS):
            before = crowd.borrows
            crowd.strike_one()
            time.sleep(random.random() * 0.002)  # so that it strikes elsewhere each time
            crowd.wait_for_borrow(before)
    assert crowd.mixed_up == []
    assert watch.peak <= MAXCONN
    gc.collect()
    wait_until(lambda: pool.stats().in_use == 0)
    assert_whole(pool)


@pytest.mark.usefixtures("quiet_strikes")
def test_a_strike_at_waiters_takes_nothing_from_others(make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=1)
    for _ in range(30):
        conn = pool.getconn(timeout=10)
        waiter = threading.Thread(target=_wait_in_vain, args=[pool], daemon=True)
        waiter.start()
        wait_until(lambda: pool.get_stats()["requests_waiting"] == 1)
        interrupt(waiter, Strike)
        pool.putconn(conn)  # to the waiter, who is struck as it wakes
        waiter.join(10)
        assert not waiter.is_alive()
    gc.collect()
    assert_whole(pool)


def _wait_in_vain(pool: ConnectionPool) -> None:
    with contextlib.suppress(Strike, psycopg2.Error), pool.conn(timeout=10) as conn:
        ask(conn)
