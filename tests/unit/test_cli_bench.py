"""The benchmark's arithmetic, and its turns with pools that are none."""

from __future__ import annotations

import queue
import time
from dataclasses import replace

import pytest

from psycopg2_pool2.cli.bench.figures import figures
from psycopg2_pool2.cli.bench.measure import (
    CONNECTIONS,
    ROUNDS,
    THREADS,
    Crowd,
    Samples,
    crowd,
    cycle,
    measure,
)
from psycopg2_pool2.cli.bench.peers import Peer
from psycopg2_pool2.cli.bench.render import report
from psycopg2_pool2.cli.patience import NoAnswer
from psycopg2_pool2.cli.plain import plain_text


class Cursor:
    """A connection, and its cursor, of a server that answers at once."""

    def cursor(self) -> Cursor:
        return self

    def execute(self, sql: str) -> None:
        assert sql == "SELECT 1"

    def fetchall(self) -> list[tuple[int]]:
        return [(1,)]

    def close(self) -> None:
        pass


class Broken(Cursor):
    """The same of one that has gone."""

    def execute(self, sql: str) -> None:
        raise NoAnswer("gone")


def peer(name: str, conn: Cursor | None = None, *, waits: bool = True) -> Peer:
    conns: queue.SimpleQueue[Cursor] = queue.SimpleQueue()
    for _ in range(CONNECTIONS):
        conns.put(conn or Cursor())
    return Peer(name, "1.0", conns.get, conns.put, lambda: None, waits)


def samples(name: str, cycles: list[float], *speeds: float) -> Samples:
    crowds = [Crowd((int(speed), int(2 * speed)), 1.0, speed / 1000) for speed in speeds]
    return Samples(peer(name, waits=bool(speeds)), cycles, crowds)


class TestFigures:
    def test_ratios_are_of_the_same_round(self) -> None:
        ours = samples("ours", [1.0, 2.0, 9.0], 100, 200, 300)
        its = samples("its", [2.0, 4.0, 18.0], 50, 100, 150)
        first, second = figures([ours, its])
        assert first.ours_to_its == 1.0
        assert second.ours_to_its == 0.5
        assert second.cycle_seconds == 4.0
        assert second.crowded is not None
        assert second.crowded.ours_to_its == 2.0

    def test_the_worst_of_all_rounds_is_told(self) -> None:
        [ours] = figures([samples("ours", [1.0], 100, 200, 300)])
        assert ours.crowded is not None
        assert (ours.crowded.fewest, ours.crowded.most) == (100, 600)
        assert ours.crowded.longest_wait_seconds == 0.3
        assert ours.crowded.per_second == 600

    def test_there_is_no_ratio_to_nothing(self) -> None:
        _, its = figures([samples("ours", [1.0], 1), samples("its", [1.0], 0)])
        assert its.crowded is not None
        assert its.crowded.ours_to_its is None

    def test_a_pool_that_does_not_wait_is_not_in_the_crowd(self) -> None:
        found = figures([samples("ours", [1e-6], 1), samples("its", [2e-6])])
        assert found[1].crowded is None
        text = plain_text(report(found))
        assert "does not wait" in text
        assert "2.00 us      0.50" in text


class TestTurns:
    def test_everybody_has_as_many(self) -> None:
        found = measure([peer("a"), peer("b", waits=False), peer("c")], 0.3)
        assert [len(each.cycles) for each in found] == [ROUNDS] * 3
        assert [len(each.crowds) for each in found] == [ROUNDS, 0, ROUNDS]

    def test_nobody_always_comes_first(self) -> None:
        order: list[str] = []

        def logging(name: str, *, waits: bool) -> Peer:
            plain = peer(name, waits=waits)

            def borrow() -> Cursor:
                if order[-1:] != [name]:
                    order.append(name)
                conn: Cursor = plain.borrow()
                return conn

            return replace(plain, borrow=borrow)

        measure([logging(name, waits=name == "a") for name in "abc"], 0.1)
        # The crowd of the only one that waits ends each round.
        assert "".join(order) == "abca" + "bca" + "caba"

    def test_a_crowd_counts_each_thread(self) -> None:
        seen = crowd(peer("a"), 0.05)
        assert len(seen.borrows) == THREADS
        assert sum(seen.borrows) > 0
        assert seen.seconds >= 0.05
        assert seen.longest_wait >= 0

    def test_an_error_in_the_crowd_is_raised(self) -> None:
        with pytest.raises(NoAnswer, match="gone"):
            crowd(peer("a", Broken()), 0.05)

    def test_a_slow_cycle_does_not_take_longer_than_its_turn(self) -> None:
        calls: list[int] = []

        def slow() -> Cursor:
            time.sleep(0.01)
            calls.append(1)
            return Cursor()

        taken = cycle(Peer("slow", "1.0", slow, lambda conn: None, lambda: None), 0.05)
        assert taken >= 0.01
        assert len(calls) < 20
