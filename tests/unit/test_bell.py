"""The bell: nobody who waits misses what came true."""

from __future__ import annotations

import threading

from psycopg2_pool2.bell import Bell
from tests.support.waiting import in_thread, wait_until


def test_it_wakes_all_who_wait() -> None:
    bell, true = Bell(), threading.Event()
    waiting = [in_thread(bell.wait, 60, true.is_set) for _ in range(3)]
    wait_until(lambda: len(bell._gates) == 3)
    true.set()
    bell.ring()
    assert [waiter.result() for waiter in waiting] == [True] * 3


def test_a_ring_between_the_look_and_the_wait_is_heard() -> None:
    """1. One looks: not yet. 2. It comes true; the bell rings. 3. He waits, and is let through."""
    bell, answers = Bell(), [False, True]

    def until() -> bool:
        answer = answers.pop(0)
        if not answer:
            bell.ring()
        return answer

    assert in_thread(bell.wait, 60, until).result(timeout=10)


def test_nobody_waits_for_what_is_true_already() -> None:
    assert Bell().wait(60, lambda: True)


def test_one_whose_time_is_over_leaves_nothing_behind() -> None:
    bell = Bell()
    assert not bell.wait(0.01, lambda: False)
    assert not bell._gates
    bell.ring()
