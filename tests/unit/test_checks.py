"""Checks of arguments, and of a pool's options as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from psycopg2_pool2 import CircuitBreaker, checks
from tests.support.fakes import options


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (checks.seconds, 0),
        (checks.seconds, 1.5),
        (checks.count, 0),
        (checks.count, 7),
        (checks.flag, True),
        (checks.function, print),
    ],
)
def test_good_values_are_returned(check: Callable[..., Any], value: Any) -> None:
    assert check("it", value) is value


@pytest.mark.parametrize(
    ("check", "value", "error"),
    [
        (checks.seconds, None, TypeError),
        (checks.seconds, True, TypeError),
        (checks.seconds, "5", TypeError),
        (checks.seconds, -1, ValueError),
        (checks.seconds, math.inf, ValueError),
        (checks.seconds, math.nan, ValueError),
        (checks.count, None, TypeError),
        (checks.count, True, TypeError),
        (checks.count, 1.0, TypeError),
        (checks.count, -1, ValueError),
        (checks.flag, 1, TypeError),
        (checks.flag, None, TypeError),
        (checks.function, None, TypeError),
        (checks.function, "session", TypeError),
    ],
)
def test_bad_values_are_refused_by_name(
    check: Callable[..., Any], value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"^the_name must be .*, not "):
        check("the_name", value)


def test_optional_values_may_be_none() -> None:
    assert checks.seconds("it", None, optional=True) is None
    assert checks.count("it", None, optional=True) is None


def test_a_positive_duration_is_not_zero() -> None:
    with pytest.raises(ValueError, match="positive"):
        checks.seconds("it", 0, positive=True)


def test_a_function_may_be_one_of_the_named_values_and_no_equal_one() -> None:
    assert checks.function("it", "session", None, "session") == "session"
    assert checks.function("it", True, True, False) is True
    with pytest.raises(TypeError, match="a callable or True or False"):
        checks.function("it", 1, True, False)


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ((-1, 5), ValueError),
        ((2, 1), ValueError),
        ((0, 0), ValueError),
        ((0, "5"), TypeError),
        (("0", 5), TypeError),
        ((0, 5.0), TypeError),
        ((0, math.nan), TypeError),
        ((0, -math.inf), TypeError),
        ((True, 5), TypeError),
    ],
)
def test_sizes_must_fit_together(sizes: tuple[Any, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="conn"):
        checks.sizes(*sizes)


def test_maxconn_may_be_infinite() -> None:
    assert checks.sizes(3, math.inf) == (3, math.inf)
    assert checks.sizes(3, 3) == (3, 3)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("idle_timeout", -1, ValueError),
        ("reap_idle_interval", None, TypeError),
        ("lifetime_timeout", math.inf, ValueError),
        ("timeout", "1", TypeError),
        ("max_waiting", -1, ValueError),
        ("max_uses", 0, ValueError),
        ("test_idle_after", None, TypeError),
        ("test_timeout", 0, ValueError),
        ("health_check_interval", None, TypeError),
        ("leak_timeout", 0, ValueError),
        ("num_workers", -1, ValueError),
        ("num_workers", 1.5, TypeError),
        ("background_prewarm", 1, TypeError),
        ("close_returns", None, TypeError),
        ("debug", "yes", TypeError),
        ("test_on_borrow", None, TypeError),
        ("configure", "SET x", TypeError),
        ("reset", "everything", TypeError),
        ("resolver", 5, TypeError),
        ("breaker", 3, TypeError),
        ("name", 3, TypeError),
        ("address_timeout", -1, ValueError),
    ],
)
def test_each_option_is_checked_by_name(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be "):
        options(**{name: value})


def test_every_option_takes_what_is_documented() -> None:
    options(
        idle_timeout=None,
        lifetime_timeout=None,
        timeout=None,
        test_on_borrow=print,
        configure=print,
        reset="session",
        leak_timeout=1,
        breaker=CircuitBreaker(),
        name="x",
        max_uses=1,
        max_waiting=0,
    )


@pytest.mark.parametrize(
    "given",
    [
        {"max_uses": 1},
        {"lifetime_timeout": 0},
        {"idle_timeout": 0},
        {"reset": "session"},
        {"num_workers": 0},
        {"debug": True},
        {"leak_timeout": 5},
    ],
)
def test_what_is_decided_at_return_is_known_beforehand(given: dict[str, Any]) -> None:
    assert not options().decides_at_return
    assert options(**given).decides_at_return
