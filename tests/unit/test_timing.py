"""Deadlines, jumps of a clock, and jitter."""

from __future__ import annotations

import time

import pytest

from psycopg2_pool2.timing import ClockJumps, Deadline, jitter, wakeful_clock
from tests.support.fakes import FakeClock


def test_a_deadline_counts_down_to_zero_and_stays_there() -> None:
    clock = FakeClock()
    deadline = Deadline(5, clock, clock())
    assert deadline.remaining() == 5
    clock.advance(3)
    assert (deadline.remaining(), deadline.elapsed()) == (2, 3)
    clock.advance(30)
    assert (deadline.remaining(), deadline.elapsed()) == (0, 33)


def test_without_a_timeout_there_is_time_for_ever() -> None:
    clock = FakeClock()
    deadline = Deadline(None, clock, clock())
    clock.advance(1e9)
    assert deadline.remaining() is None
    assert deadline.slice(0.5) == 0.5


def test_a_slice_is_never_longer_than_what_is_left() -> None:
    clock = FakeClock()
    deadline = Deadline(1, clock, clock())
    assert deadline.slice(0.5) == 0.5
    clock.advance(0.75)
    assert deadline.slice(0.5) == 0.25


def test_jitter_stays_within_its_share_and_moves_both_ways() -> None:
    values = [jitter(100, 0.1) for _ in range(1000)]
    assert 90 <= min(values) < 95
    assert 105 < max(values) <= 110


class TestClockJumps:
    """Two clocks that should go at one pace."""

    def test_none_happens_while_both_go_on(self) -> None:
        clock, wakeful = FakeClock(50), FakeClock(9000)
        jumps = ClockJumps(clock, wakeful)
        for _ in range(10):
            for each in (clock, wakeful):
                each.advance(3600)
            assert not jumps.happened()

    @pytest.mark.parametrize("seconds", [1.5, 3600.0, -3600.0])
    def test_one_is_told_once(self, seconds: float) -> None:
        clock, wakeful = FakeClock(), FakeClock()
        jumps = ClockJumps(clock, wakeful)
        clock.advance(10)
        wakeful.advance(10 + seconds)
        assert jumps.happened()
        assert not jumps.happened()
        wakeful.advance(seconds)
        assert jumps.happened()

    def test_a_clock_that_is_slewed_does_not_jump(self) -> None:
        """Adjusted by half a thousandth, as NTP does it at most, and asked every minute."""
        clock, wakeful = FakeClock(), FakeClock()
        jumps = ClockJumps(clock, wakeful)
        for _ in range(1000):
            clock.advance(60)
            wakeful.advance(60.03)
            assert not jumps.happened()

    def test_one_since_before_the_pool_is_none(self) -> None:
        assert not ClockJumps(FakeClock(0), FakeClock(1e9)).happened()

    def test_none_happens_on_the_clocks_of_this_machine(self) -> None:
        jumps = ClockJumps(time.monotonic, wakeful_clock)
        assert not any(jumps.happened() for _ in range(1000))


def test_the_wakeful_clock_counts_seconds() -> None:
    before = wakeful_clock()
    started = time.monotonic()
    while time.monotonic() - started < 0.01:
        pass
    assert 0.009 <= wakeful_clock() - before < 5
