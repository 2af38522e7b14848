"""How long an endpoint that refuses a login is left alone."""

from __future__ import annotations

import math

import pytest

from psycopg2_pool2 import login_backoff
from psycopg2_pool2.login_backoff import FIRST_PAUSE, LONGEST_PAUSE, SPREAD, LoginBackoff


@pytest.fixture
def backoff() -> LoginBackoff:
    return LoginBackoff()


def pauses(backoff: LoginBackoff, number: int) -> list[float]:
    """Refuse so many logins, each as soon as it may be tried; return the pauses."""
    now, found = 1000.0, []
    for _ in range(number):
        backoff.refuse(now)
        found.append(backoff.retry_at - now)
        now = backoff.retry_at
    return found


def test_a_new_one_allows_an_attempt_at_any_time(backoff: LoginBackoff) -> None:
    assert not backoff.is_refused
    assert backoff.refusals == 0
    assert backoff.retry_at == -math.inf


def test_pauses_double_up_to_a_minute(
    backoff: LoginBackoff, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_backoff, "chance", lambda: 0.0)
    assert pauses(backoff, 9) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.is_refused
    assert backoff.refusals == 9


def test_pauses_are_longer_at_random_and_never_shorter(backoff: LoginBackoff) -> None:
    usual = [min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) for number in range(200)]
    found = pauses(backoff, 200)
    shares = [pause / least - 1 for pause, least in zip(found, usual, strict=True)]
    assert all(-1e-9 <= share <= SPREAD + 1e-9 for share in shares)
    assert max(shares) - min(shares) > SPREAD / 2


def test_pauses_stay_finite_however_often_a_login_is_refused(backoff: LoginBackoff) -> None:
    assert all(pause <= LONGEST_PAUSE * (1 + SPREAD) for pause in pauses(backoff, 5000))


def test_a_login_that_is_not_refused_clears_it(backoff: LoginBackoff) -> None:
    pauses(backoff, 5)
    backoff.clear()
    assert not backoff.is_refused
    assert backoff.retry_at == -math.inf
    assert pauses(backoff, 1)[0] <= FIRST_PAUSE * (1 + SPREAD)


def test_a_change_allows_an_attempt_at_once_and_forgets_no_refusal(backoff: LoginBackoff) -> None:
    pauses(backoff, 5)
    backoff.retry_now()
    assert backoff.retry_at == -math.inf
    assert backoff.is_refused
    assert pauses(backoff, 1)[0] >= 32
