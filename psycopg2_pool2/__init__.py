"""The connection pool that psycopg2 programs deserve."""

import typing as _typing

from .breaker import CircuitBreaker
from .errors import (
    HostResolutionError,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolExhausted,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)
from .pool import ConnectionPool

if _typing.TYPE_CHECKING:
    from .snapshots import EndpointStats, PoolStats

ThreadSafeConnectionPool = ConnectionPool

__version__ = "0.1.0"

__all__ = [
    "CircuitBreaker",
    "ConnectionPool",
    "EndpointStats",
    "HostResolutionError",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolExhausted",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "ThreadSafeConnectionPool",
    "TooManyRequests",
]


def __getattr__(name: str) -> _typing.Any:
    if name in ("EndpointStats", "PoolStats"):
        from . import snapshots  # see there why not before

        return getattr(snapshots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
