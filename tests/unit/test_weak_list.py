"""The list keeps nothing alive, and does not grow by what has gone."""

from __future__ import annotations

import gc

from psycopg2_pool2.weak_list import WeakList


class Thing:
    pass


def test_references_to_what_has_gone_are_dropped() -> None:
    things = WeakList()
    kept = [Thing() for _ in range(1000)]
    for thing in kept:
        things.add(thing)
        for _ in range(10):
            things.add(Thing())
    assert {ref() for ref in things if ref()} == set(kept)
    assert len(things) <= 2 * len(kept) + 20
    kept.clear()
    del thing
    gc.collect()
    for _ in range(10_000):
        things.add(Thing())
    assert len(things) < 100


def test_references_are_dropped_by_one_thread_at_a_time() -> None:
    things = WeakList()
    things._turn.clear()  # another thread has it
    for _ in range(500):
        things.add(Thing())
    assert len(things) == 500
    things._turn.append(None)
    things.add(Thing())
    assert len(things) < 10
