"""Checks of arguments: each returns the value, or raises an error that names the argument."""

from __future__ import annotations

import math
from typing import Any


def _kind(value: Any) -> str:
    # Not the value: a dsn with a password, put in the wrong place, would be told.
    return "None" if value is None else f"a {type(value).__name__}"


def seconds(name: str, value: Any, *, optional: bool = False, positive: bool = False) -> Any:
    """Accept a finite number of seconds, not negative; None too if ``optional``."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        wanted = "a number of seconds or None" if optional else "a number of seconds"
        raise TypeError(f"{name} must be {wanted}, not {_kind(value)}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, not so large") from None
    if not 0 <= value < math.inf or (positive and value == 0):
        bound = "positive" if positive else "zero or more"
        raise ValueError(f"{name} must be {bound} and finite, not {value!r}")
    return value


def count(name: str, value: Any, *, least: int = 0, optional: bool = False) -> Any:
    """Accept a whole number of at least ``least``; None too if ``optional``."""
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{name} must be an int{' or None' if optional else ''}, not {_kind(value)}"
        )
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return value


def sizes(minconn: Any, maxconn: Any) -> tuple[int, float]:
    """Accept two sizes that fit together; ``maxconn`` may be ``math.inf``."""
    count("minconn", minconn)
    if isinstance(maxconn, float) and math.isinf(maxconn) and maxconn > 0:
        return minconn, maxconn
    count("maxconn", maxconn, least=1)
    if minconn > maxconn:
        raise ValueError(f"minconn must not exceed maxconn, not {minconn!r} > {maxconn!r}")
    return minconn, maxconn


def flag(name: str, value: Any) -> bool:
    """Accept True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {_kind(value)}")
    return value


def function(name: str, value: Any, *also: Any) -> Any:
    """Accept a callable, or one of ``also``."""
    if not callable(value) and not any(
        value is x or (isinstance(value, str) and value == x) for x in also
    ):
        names = " or ".join(["a callable", *map(repr, also)])
        raise TypeError(f"{name} must be {names}, not {_kind(value)}")
    return value


def instance(name: str, value: Any, wanted: type) -> Any:
    """Accept an instance of a class, or None."""
    if value is not None and not isinstance(value, wanted):
        raise TypeError(f"{name} must be a {wanted.__name__}, not {_kind(value)}")
    return value
