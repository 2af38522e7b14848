"""The circuit breaker: a state machine that is told the time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from psycopg2_pool2 import CircuitBreaker


def fail(breaker: CircuitBreaker, now: float, *, prompt: bool = False) -> None:
    breaker.fail(breaker.begin(), now, prompt=prompt)


def opened(prompt: bool = False, **limits: Any) -> CircuitBreaker:
    breaker = CircuitBreaker(**limits)
    while breaker.state() == "closed":
        fail(breaker, 0.0, prompt=prompt)
    return breaker


def test_it_is_closed_until_threshold_failures_in_a_row() -> None:
    breaker = CircuitBreaker(threshold=3)
    for _ in range(2):
        fail(breaker, 0.0)
        assert breaker.state() == "closed"
        assert breaker.failing
        assert breaker.wait(0.0) == 0
    breaker.succeed(breaker.begin())
    assert not breaker.failing
    for _ in range(3):
        assert breaker.state() == "closed"
        fail(breaker, 0.0)
    assert breaker.state() == "open"


def test_it_opens_for_its_backoff_and_then_lets_one_attempt_probe() -> None:
    breaker = opened(backoff=1.0)
    pause = breaker.wait(0.0)
    assert 0.8 <= pause <= 1.2
    assert breaker.wait(pause / 2) == pytest.approx(pause / 2)
    assert breaker.wait(pause) == 0
    attempt = breaker.begin()
    assert breaker.state() == "half-open"
    breaker.succeed(attempt)
    assert breaker.state() == "closed"


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker = opened(backoff=1.0, max_backoff=10.0)
    for expected in (2, 4, 8, 10, 10):
        fail(breaker, 100.0)
        assert breaker.state() == "open"
        assert 0.8 * expected <= breaker.wait(100.0) <= 1.2 * expected


@pytest.mark.parametrize(
    ("away", "pause"),
    [(0, 0.25), (1, 0.25), (2.5, 0.25), (5, 0.5), (20, 2), (50, 5), (120, 5), (86_400, 5)],
)
def test_a_refusal_pauses_for_a_tenth_of_the_time_away(away: float, pause: float) -> None:
    breaker = opened(prompt=True)
    for at in range(30, int(away), 30):  # it is tried all the time
        fail(breaker, at, prompt=True)
    fail(breaker, away, prompt=True)
    assert 0.8 * pause <= breaker.wait(away) <= 1.2 * pause


def test_an_outage_that_nobody_has_looked_at_for_long_begins_anew() -> None:
    breaker = opened(prompt=True)
    fail(breaker, 3600.0, prompt=True)
    assert 0.2 <= breaker.wait(3600.0) <= 0.3


def test_a_clock_that_stands_still_leaves_the_shortest_pause() -> None:
    breaker = opened(prompt=True)
    for _ in range(20):
        assert 0.2 <= breaker.wait(0.0) <= 0.3
        fail(breaker, 0.0, prompt=True)


def test_a_clock_that_goes_back_leaves_the_shortest_pause() -> None:
    breaker = opened(prompt=True)
    fail(breaker, -1000.0, prompt=True)
    assert 0.2 <= breaker.wait(-1000.0) <= 0.3


def test_time_away_begins_with_the_first_failure_not_with_the_opening() -> None:
    breaker = CircuitBreaker(threshold=3)
    for now in (100.0, 110.0, 120.0):
        fail(breaker, now, prompt=True)
    assert 1.6 <= breaker.wait(120.0) <= 2.4


def test_time_away_begins_anew_after_a_success() -> None:
    breaker = opened(prompt=True)
    fail(breaker, 100.0, prompt=True)
    breaker.succeed(breaker.begin())
    for _ in range(3):
        fail(breaker, 200.0, prompt=True)
    assert 0.2 <= breaker.wait(200.0) <= 0.3


def test_time_away_begins_with_a_silence_too() -> None:
    breaker = opened(prompt=False)
    fail(breaker, 30.0, prompt=True)
    assert 2.4 <= breaker.wait(30.0) <= 3.6


def test_a_refusal_after_a_long_silence_is_prompt_again() -> None:
    """The machine is back, its server about to be: the pause does not stay long."""
    breaker = opened(backoff=1.0)
    for _ in range(10):
        fail(breaker, 10.0)
    assert breaker.wait(10.0) >= 24
    fail(breaker, 10.0, prompt=True)
    assert breaker.wait(10.0) <= 1.2


def test_the_first_silence_after_many_refusals_pauses_for_the_first_backoff() -> None:
    """A machine that reboots refuses first and is silent then."""
    breaker = opened(prompt=True, backoff=1.0)
    for _ in range(20):
        fail(breaker, 5.0, prompt=True)
    for expected in (1, 2, 4):
        fail(breaker, 5.0)
        assert 0.8 * expected <= breaker.wait(5.0) <= 1.2 * expected


def test_refusals_between_silences_do_not_shorten_their_backoff() -> None:
    breaker = opened(backoff=1.0)
    for expected in (2, 4, 8):
        fail(breaker, 0.0, prompt=True)
        fail(breaker, 0.0)
        assert 0.8 * expected <= breaker.wait(0.0) <= 1.2 * expected


def test_a_success_makes_the_next_outage_begin_as_the_first_one_did() -> None:
    breaker = opened(backoff=1.0)
    for _ in range(10):
        fail(breaker, 0.0)
    breaker.succeed(breaker.begin())
    for _ in range(3):
        assert breaker.wait(0.0) == 0
        fail(breaker, 0.0)
    assert 0.8 <= breaker.wait(0.0) <= 1.2


def test_failures_of_attempts_begun_together_open_it_for_one_backoff() -> None:
    breaker = CircuitBreaker(backoff=1.0)
    for attempt in [breaker.begin() for _ in range(10)]:
        breaker.fail(attempt, 5.0, prompt=False)
    assert breaker.wait(5.0) <= 1.2


def test_refusals_of_attempts_begun_together_do_not_put_the_probe_off() -> None:
    breaker = CircuitBreaker()
    attempts = [breaker.begin() for _ in range(10)]
    for attempt in attempts[:3]:
        breaker.fail(attempt, 5.0, prompt=True)
    probe_at = 5.0 + breaker.wait(5.0)
    for late, attempt in enumerate(attempts[3:], start=6):
        breaker.fail(attempt, float(late), prompt=True)
    assert breaker.retry_at == pytest.approx(probe_at)


def test_a_refusal_of_an_attempt_begun_before_the_silence_brings_the_probe_forward() -> None:
    breaker = CircuitBreaker(backoff=20.0)
    before = breaker.begin()
    for _ in range(3):
        fail(breaker, 0.0)
    assert breaker.wait(1.0) >= 15
    breaker.fail(before, 1.0, prompt=True)
    assert 0.2 <= breaker.wait(1.0) <= 0.3


def test_an_attempt_begun_before_the_opening_does_not_make_the_probe_one_of_before() -> None:
    breaker = CircuitBreaker(backoff=1.0)
    before = breaker.begin()
    for _ in range(3):
        fail(breaker, 0.0)
    probe = breaker.begin()
    breaker.fail(before, 2.0, prompt=True)
    breaker.fail(probe, 3.0, prompt=False)
    assert 1.6 <= breaker.wait(3.0) <= 2.4


def test_a_silence_of_an_attempt_begun_in_an_outage_before_is_not_news() -> None:
    breaker = opened(backoff=1.0)
    before = breaker.begin()
    breaker.succeed(breaker.begin())
    for _ in range(3):
        fail(breaker, 10.0)
    breaker.fail(before, 11.0, prompt=False)
    assert breaker.retry_at <= 11.2


@pytest.mark.parametrize("away", [0.0, 60.0])
def test_max_backoff_limits_the_pause_after_a_refusal_with_its_jitter(away: float) -> None:
    pauses = set()
    for _ in range(50):
        breaker = opened(prompt=True, backoff=0.01, max_backoff=0.05)
        fail(breaker, away, prompt=True)
        pauses.add(breaker.wait(away))
    assert max(pauses) <= 0.05 + 1e-9
    assert len(pauses) > 40, "they do not gather at the limit"


def test_an_attempt_that_tells_nothing_changes_nothing() -> None:
    breaker = opened()
    before = breaker.failures, breaker.retry_at
    attempt = breaker.begin()
    assert breaker.state() == "half-open"
    breaker.abandon(attempt)
    assert breaker.state() == "open"
    assert (breaker.failures, breaker.retry_at) == before


def test_an_attempt_whose_thread_was_interrupted_is_over() -> None:
    breaker = opened()
    breaker.begin()
    assert breaker.state() == "open"
    assert not breaker.in_flight


def test_after_very_many_failures_it_still_counts() -> None:
    breaker = CircuitBreaker(threshold=1)
    for _ in range(5000):
        fail(breaker, 0.0)
    assert breaker.wait(0.0) <= 36


def test_pauses_differ_so_that_processes_do_not_march_in_step() -> None:
    assert len({opened().wait(0.0) for _ in range(10)}) > 1


def test_a_copy_has_the_limits_and_none_of_the_state() -> None:
    copy = opened(threshold=2, backoff=0.5, max_backoff=7.0).copy()
    assert (copy.threshold, copy.backoff, copy.max_backoff) == (2, 0.5, 7.0)
    assert (copy.state(), copy.failures) == ("closed", 0)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"threshold": 0}, ValueError),
        ({"threshold": True}, TypeError),
        ({"threshold": 1.5}, TypeError),
        ({"backoff": 0}, ValueError),
        ({"backoff": "1"}, TypeError),
        ({"max_backoff": math.inf}, ValueError),
        ({"max_backoff": math.nan}, ValueError),
        ({"max_backoff": True}, TypeError),
        ({"backoff": 2, "max_backoff": 1}, ValueError),
    ],
)
def test_bad_limits_are_refused_by_name(limits: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(limits))):
        CircuitBreaker(**limits)
