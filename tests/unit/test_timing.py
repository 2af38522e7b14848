"""Deadlines, jumps of a clock, and jitter."""

from __future__ import annotations

import math
import time

import pytest

from psycopg2_pool2.timing import (
    ClockJumps,
    Deadline,
    SteadyClock,
    bounded,
    jitter,
    monotonic,
    wakeful_clock,
)
from tests.support.fakes import FakeClock
from tests.support.processes import run_program
from tests.support.programs import skip_without


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


class TestSteadyClock:
    """Whatever the clock says that it reads: it goes forward, or stands still."""

    def test_says_what_a_good_clock_says(self) -> None:
        clock = FakeClock(50)
        steady = SteadyClock(clock)
        assert steady() == 50
        clock.advance(3600)
        assert steady() == 3650

    def test_goes_on_from_where_it_was_when_the_other_is_set_back(self) -> None:
        clock = FakeClock(1e9)
        steady = SteadyClock(clock)
        clock.now = 100.0
        assert steady() == 1e9
        clock.advance(5)
        assert steady() == 1e9 + 5

    @pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf])
    def test_stands_still_while_the_other_says_nonsense(self, nonsense: float) -> None:
        clock = FakeClock(50)
        steady = SteadyClock(clock)
        clock.now = nonsense
        assert steady() == 50
        clock.now = 60.0
        assert steady() == 60

    def test_may_begin_with_nonsense(self) -> None:
        clock = FakeClock(math.nan)
        steady = SteadyClock(clock)
        assert steady() == 0
        clock.now = 60.0
        assert steady() == 60


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-1e9, 0.0),
        (-math.inf, 0.0),
        (-0.0, 0.0),
        (0.5, 0.5),
        (3600.5, 3600.0),
        (math.inf, 3600.0),
        (math.nan, 3600.0),
    ],
)
def test_bounded_seconds_are_a_pause_that_ends(seconds: float, expected: float) -> None:
    assert bounded(seconds, 3600.0) == expected


def test_monotonic_clock_is_the_systems_and_not_the_one_that_tests_replace() -> None:
    assert time.monotonic() <= monotonic() <= time.monotonic()
    assert monotonic is not time.monotonic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: 0.0)
        assert monotonic() > 0


def test_clocks_are_real_for_one_who_imports_this_package_while_they_are_frozen() -> None:
    skip_without("freezegun")
    program = """
from freezegun import freeze_time
import time
real, today = time.monotonic(), time.time()
with freeze_time("1975-01-01"):
    from psycopg2_pool2 import timing
    timing._BOOTTIME = None
    assert time.monotonic() > real + 1e6
    assert real <= timing.monotonic() < real + 1000
    assert today <= timing.wakeful_clock() < today + 1000
assert real <= timing.monotonic() < real + 1000
print("real")
"""
    ended = run_program(program)
    assert (ended.output, ended.errors) == ("real\n", "")
