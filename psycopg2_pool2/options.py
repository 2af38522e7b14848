"""The options of a pool, checked: one immutable object that all its parts read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import checks
from .breaker import CircuitBreaker
from .connector import Connection, Reset, Test


class PoolOptions(NamedTuple):
    """What :class:`~psycopg2_pool2.ConnectionPool` documents, beside sizes and connection."""

    idle_timeout: float | None
    reap_idle_interval: float
    lifetime_timeout: float | None
    test_on_borrow: Test
    background_prewarm: bool
    timeout: float | None
    max_waiting: int | None
    max_uses: int | None
    test_idle_after: float
    test_timeout: float
    health_check_interval: float
    configure: Callable[[Connection], object] | None
    reset: Reset
    leak_timeout: float | None
    close_returns: bool
    debug: bool
    num_workers: int
    address_timeout: float
    resolver: Any
    breaker: CircuitBreaker | None
    name: str | None

    def checked(self) -> PoolOptions:
        """Return the options; raise ValueError or TypeError naming the one that is bad."""
        for name in ("reap_idle_interval", "test_idle_after", "health_check_interval"):
            checks.seconds(name, getattr(self, name))
        for name in ("idle_timeout", "lifetime_timeout", "timeout"):
            checks.seconds(name, getattr(self, name), optional=True)
        checks.seconds("test_timeout", self.test_timeout, positive=True)
        checks.seconds("address_timeout", self.address_timeout)
        checks.seconds("leak_timeout", self.leak_timeout, optional=True, positive=True)
        checks.count("max_waiting", self.max_waiting, optional=True)
        checks.count("max_uses", self.max_uses, least=1, optional=True)
        checks.count("num_workers", self.num_workers)
        for name in ("background_prewarm", "close_returns", "debug"):
            checks.flag(name, getattr(self, name))
        checks.function("test_on_borrow", self.test_on_borrow, True, False)
        checks.function("configure", self.configure, None)
        checks.function("reset", self.reset, None, "session")
        if not hasattr(self.resolver, "resolve"):  # else a dnspython Resolver
            checks.function("resolver", self.resolver, None)
        checks.instance("breaker", self.breaker, CircuitBreaker)
        checks.instance("name", self.name, str)
        return self

    @property
    def tracks_loans(self) -> bool:
        """Whether it is recorded who borrowed what and where."""
        return self.debug or self.leak_timeout is not None

    @property
    def decides_at_return(self) -> bool:
        """Whether more than marks on its record decides if a connection that comes back is kept."""
        return (
            self.max_uses is not None
            or self.lifetime_timeout == 0
            or self.idle_timeout == 0
            or self.reset is not None
            or self.num_workers == 0
            or self.tracks_loans
        )
