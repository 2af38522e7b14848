"""Metrics for OpenTelemetry, after its semantic conventions: ``instrument(pool)``."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from opentelemetry.metrics import (
    CallbackOptions,
    Histogram,
    MeterProvider,
    Observation,
    get_meter,
    get_meter_provider,
)

from .. import __version__
from ..log import logger
from ..pool import ConnectionPool
from .metrics import BUCKETS, ObservedPools, pool_of

_PREFIX = "db.client.connection."
_POOL_NAME = _PREFIX + "pool.name"
_STATE = _PREFIX + "state"


def instrument(pool: Any, meter_provider: MeterProvider | None = None) -> None:
    """Report a pool's metrics, until :func:`uninstrument`, or until the pool is collected.

    ``pool`` may be of any class that this package has.  ``meter_provider`` is
    the global one unless given; that may be set later.  From now on the pool
    measures how long borrowers wait and use its connections, which costs a
    borrow some microseconds.  Safe to call from any thread.

    A pool that is instrumented already stays as it is, with a warning.  Raises
    :class:`TypeError` for what is no pool, and :class:`ValueError` if another
    one that is open has the same name.
    """
    found = pool_of(pool)
    with _lock:
        if any(reporter.pools.observer(found) for reporter in _reporters.values()):
            logger.warning("pool %r is instrumented already", found.name)
            return
        _reporter_for(meter_provider).pools.add(found)


def uninstrument(pool: Any) -> None:
    """Report a pool no longer, and have it measure nothing; harmless when repeated."""
    found = pool_of(pool)
    with _lock:
        for reporter in _reporters.values():
            reporter.pools.remove(found)


class Recorder:
    """Records the durations that one pool tells of."""

    def __init__(self, create: Histogram, wait: Histogram, use: Histogram, name: str) -> None:
        self._create = create
        self._wait = wait
        self._use = use
        self._attributes = {_POOL_NAME: name}

    def connected(self, seconds: float) -> None:
        """Record a connect."""
        self._create.record(seconds, self._attributes)

    def waited(self, seconds: float) -> None:
        """Record a borrow."""
        self._wait.record(seconds, self._attributes)

    def used(self, seconds: float) -> None:
        """Record a return."""
        self._use.record(seconds, self._attributes)

    def forked(self) -> None:
        """Leave what was recorded to the meter provider, whose it is."""


class Reporter:
    """The instruments of one meter provider, and the pools that they report."""

    def __init__(self, meter_provider: MeterProvider | None) -> None:
        meter = get_meter("psycopg2_pool2", __version__, meter_provider)
        create, wait, use = (
            meter.create_histogram(
                _PREFIX + name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS
            )
            for name, description in _HISTOGRAMS.items()
        )
        self.pools = ObservedPools(lambda pool: Recorder(create, wait, use, pool.name))
        meter.create_observable_up_down_counter(
            _PREFIX + "count", [self._states], "{connection}", "Connections by state."
        )
        for name, (unit, description, read) in _GAUGES.items():
            look = partial(self._values, read)
            meter.create_observable_up_down_counter(_PREFIX + name, [look], unit, description)
        for name, (unit, description, read) in _COUNTERS.items():
            look = partial(self._values, read)
            meter.create_observable_counter(_PREFIX + name, [look], unit, description)

    def _states(self, options: CallbackOptions) -> Iterable[Observation]:
        for pool in self.pools:
            stats = pool.stats()
            yield Observation(stats.idle, {_POOL_NAME: pool.name, _STATE: "idle"})
            yield Observation(stats.in_use, {_POOL_NAME: pool.name, _STATE: "used"})

    def _values(
        self, read: Callable[[ConnectionPool], float], options: CallbackOptions
    ) -> Iterable[Observation]:
        for pool in self.pools:
            value = read(pool)
            if value < math.inf:  # no limit is no number
                yield Observation(value, {_POOL_NAME: pool.name})


def _most_idle(pool: ConnectionPool) -> float:
    return pool.minconn if pool.idle_timeout == 0 else pool.maxconn


def _least_open(pool: ConnectionPool) -> float:
    return pool.minconn


def _most_open(pool: ConnectionPool) -> float:
    return pool.maxconn


def _waiters(pool: ConnectionPool) -> float:
    return float(pool.get_stats()["requests_waiting"])


def _timeouts(pool: ConnectionPool) -> float:
    return float(pool.get_stats()["requests_timeouts"])


_HISTOGRAMS = {
    "create_time": "Time that it took to open a connection.",
    "wait_time": "Time from asking for a connection to getting it.",
    "use_time": "Time from getting a connection to returning it.",
}
_GAUGES = {
    "idle.max": ("{connection}", "How many connections may be idle.", _most_idle),
    "idle.min": ("{connection}", "How many connections are kept open.", _least_open),
    "max": ("{connection}", "How many connections may be open.", _most_open),
    "pending_requests": ("{request}", "Borrowers who wait.", _waiters),
}
_COUNTERS = {
    "timeouts": ("{timeout}", "Borrowers for whom none was free in time.", _timeouts),
}

_lock = threading.RLock()
_reporters: dict[MeterProvider | None, Reporter] = {}
"""By meter provider; None is the global one, whether it has been set or not."""


def _reporter_for(meter_provider: MeterProvider | None) -> Reporter:
    # A provider makes an instrument once, and calls its first callback only.
    key = None if meter_provider is get_meter_provider() else meter_provider
    if key not in _reporters:
        _reporters[key] = Reporter(key)
    return _reporters[key]
