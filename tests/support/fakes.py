"""Stand-ins for what tests must control."""

from __future__ import annotations

import inspect
from typing import Any

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.options import PoolOptions


class FakeClock:
    """A clock that stands still until it is told to go on: `FakeClock()` is callable."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


def options(**given: Any) -> PoolOptions:
    """Return a pool's options, as its defaults are unless given."""
    parameters = inspect.signature(ConnectionPool).parameters
    names = inspect.signature(PoolOptions).parameters
    return PoolOptions(**{name: given.get(name, parameters[name].default) for name in names})
