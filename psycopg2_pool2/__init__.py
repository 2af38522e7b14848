"""The connection pool that psycopg2 programs deserve."""

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
from .stats import PoolStats
from .supply import EndpointStats

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
