"""Deadlines and jitter."""

from __future__ import annotations

from psycopg2_pool2.timing import Deadline, jitter
from tests.support.fakes import FakeClock


def test_a_deadline_counts_down_to_zero_and_stays_there() -> None:
    clock = FakeClock()
    deadline = Deadline(5, clock)
    assert deadline.remaining() == 5
    clock.advance(3)
    assert (deadline.remaining(), deadline.elapsed()) == (2, 3)
    clock.advance(30)
    assert (deadline.remaining(), deadline.elapsed()) == (0, 33)


def test_without_a_timeout_there_is_time_for_ever() -> None:
    clock = FakeClock()
    deadline = Deadline(None, clock)
    clock.advance(1e9)
    assert deadline.remaining() is None
    assert deadline.slice(0.5) == 0.5


def test_a_slice_is_never_longer_than_what_is_left() -> None:
    clock = FakeClock()
    deadline = Deadline(1, clock)
    assert deadline.slice(0.5) == 0.5
    clock.advance(0.75)
    assert deadline.slice(0.5) == 0.25


def test_jitter_stays_within_its_share_and_moves_both_ways() -> None:
    values = [jitter(100, 0.1) for _ in range(1000)]
    assert 90 <= min(values) < 95
    assert 105 < max(values) <= 110
