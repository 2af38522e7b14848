"""The connection pool that psycopg2 programs deserve."""

import typing as _typing

from .breaker import CircuitBreaker
from .errors import (
    CommitUncertain,
    ConnectionReturned,
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
    from .adaptive import AdaptiveConnectionPool
    from .aio import AsyncConnectionPool
    from .aio_database import AsyncPooledDatabase
    from .database import PooledDatabase
    from .manager import PoolManager, get_pool
    from .snapshots import EndpointStats, PoolStats
    from .threaded import SimpleConnectionPool, ThreadedConnectionPool

ThreadSafeConnectionPool = ConnectionPool

__version__ = "0.2.0"

__all__ = [
    "AdaptiveConnectionPool",
    "AsyncConnectionPool",
    "AsyncPooledDatabase",
    "CircuitBreaker",
    "CommitUncertain",
    "ConnectionPool",
    "ConnectionReturned",
    "EndpointStats",
    "HostResolutionError",
    "PoolClosed",
    "PoolDeadlock",
    "PoolError",
    "PoolExhausted",
    "PoolManager",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "PooledDatabase",
    "SimpleConnectionPool",
    "ThreadSafeConnectionPool",
    "ThreadedConnectionPool",
    "TooManyRequests",
    "get_pool",
]


# Imported when they are asked for: most programs need few of them.
_LATER = {
    "AdaptiveConnectionPool": "adaptive",
    "AsyncConnectionPool": "aio",
    "AsyncPooledDatabase": "aio_database",
    "EndpointStats": "snapshots",
    "PoolManager": "manager",
    "PoolStats": "snapshots",
    "PooledDatabase": "database",
    "SimpleConnectionPool": "threaded",
    "ThreadedConnectionPool": "threaded",
    "get_pool": "manager",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
