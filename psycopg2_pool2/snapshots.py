"""What a pool returns when it is asked how it is.

Imported when somebody asks: dataclasses cost a program that only imports the
pool a fifth of the whole import.
"""

from __future__ import annotations

from dataclasses import dataclass

from .breaker import State


@dataclass(frozen=True)
class PoolStats:
    """How many connections are in use and how many are idle."""

    in_use: int
    idle: int


@dataclass(frozen=True)
class EndpointStats:
    """One place that the pool connects to."""

    host: str | None
    address: str | None
    port: int | None
    state: State
    connections: int
    failures: int
    last_error: str | None
    connect_seconds: float | None
