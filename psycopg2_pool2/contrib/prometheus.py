"""A collector for prometheus_client: ``REGISTRY.register(PoolCollector(pool))``."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, get_args

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily as Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..breaker import State
from ..snapshots import EndpointStats
from .metrics import BUCKETS, ObservedPools, pool_of

PREFIX = "psycopg2_pool2_"

_POOL = ("pool",)
_PLACE = ("pool", "host", "address", "port")

_FAMILIES: dict[str, tuple[Callable[..., Metric], str, tuple[str, ...]]] = {
    "connections": (Gauge, "Connections by state.", (*_POOL, "state")),
    "min_connections": (Gauge, "How many connections are kept open.", _POOL),
    "max_connections": (Gauge, "How many connections may be open at a time.", _POOL),
    "target_connections": (Gauge, "How many an adaptive pool keeps open at present.", _POOL),
    "waiters": (Gauge, "Borrowers who wait.", _POOL),
    "borrows": (Counter, "Connections that were lent.", _POOL),
    "borrows_queued": (Counter, "Borrowers who had to queue.", _POOL),
    "queued_seconds": (Counter, "Time that borrowers spent in the queue.", _POOL),
    "borrow_errors": (Counter, "Borrowers who got no connection.", _POOL),
    "borrow_timeouts": (Counter, "Those of them for whom none was free in time.", _POOL),
    "connect_attempts": (Counter, "Attempts to open a connection.", _POOL),
    "connect_errors": (Counter, "Those of them that failed.", _POOL),
    "connections_lost": (Counter, "Idle connections that were found dead.", _POOL),
    "connections_leaked": (Counter, "Connections dropped by their borrowers.", _POOL),
    "connections_detached": (Counter, "Connections taken out of the pool for good.", _POOL),
    "connections_reaped": (Counter, "Connections closed since nobody needed them.", _POOL),
    "connections_retired": (Counter, "Connections closed for age, uses, or a move.", _POOL),
    "returns_bad": (Counter, "Connections that came back lost, or in doubt.", _POOL),
    "tests_failed": (Counter, "Tests that a connection failed.", _POOL),
    "wait_seconds": (Histogram, "Time from asking for a connection to getting it.", _POOL),
    "use_seconds": (Histogram, "Time from getting a connection to returning it.", _POOL),
    "connect_seconds": (Histogram, "Time that it took to open a connection.", _POOL),
    "endpoint_connections": (Gauge, "Connections to an endpoint.", _PLACE),
    "endpoint_state": (Gauge, "1 for the state of its circuit breaker.", (*_PLACE, "state")),
    "endpoint_failures": (Gauge, "Failed attempts to connect to it, in a row.", _PLACE),
    "endpoint_connect_seconds": (Gauge, "Time that the last connect to it took.", _PLACE),
}
_FIGURES = {
    "pool_min": "min_connections",
    "pool_max": "max_connections",
    "pool_target": "target_connections",
    "requests_waiting": "waiters",
    "requests_num": "borrows",
    "requests_queued": "borrows_queued",
    "requests_errors": "borrow_errors",
    "requests_timeouts": "borrow_timeouts",
    "connections_num": "connect_attempts",
    "connections_errors": "connect_errors",
    "connections_lost": "connections_lost",
    "connections_leaked": "connections_leaked",
    "connections_detached": "connections_detached",
    "connections_reaped": "connections_reaped",
    "connections_retired": "connections_retired",
    "returns_bad": "returns_bad",
    "tests_failed": "tests_failed",
}
"""The figures that are shown as :meth:`ConnectionPool.get_stats` has them."""
_BOUNDS = [*map(str, BUCKETS), "+Inf"]


class Durations:
    """How many durations there were, up to each of :data:`BUCKETS`, and their sum.

    prometheus_client's own histograms have locks that a thread must not enter
    again, which the garbage collector may have it do by returning a connection,
    and that a fork may leave locked.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts = [0] * len(_BOUNDS)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        with self._lock:
            self._counts[bisect_left(BUCKETS, seconds)] += 1
            self._sum += seconds

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative counts, each with its bound, and the sum."""
        with self._lock:
            counts, total = self._counts.copy(), self._sum
        return list(zip(_BOUNDS, accumulate(counts), strict=True)), total


class PoolObserver:
    """Keeps the durations that one pool tells of."""

    def __init__(self) -> None:
        self.forked()

    def forked(self) -> None:
        """Start at zero, with locks that nobody holds."""
        self.waits, self.uses, self.connects = Durations(), Durations(), Durations()

    def waited(self, seconds: float) -> None:
        """Count a borrow."""
        self.waits.add(seconds)

    def used(self, seconds: float) -> None:
        """Count a return."""
        self.uses.add(seconds)

    def connected(self, seconds: float) -> None:
        """Count a connect."""
        self.connects.add(seconds)


class PoolCollector(Collector):
    """Shows pools to Prometheus, labelled by their names.

    ``pools`` may be of any class that this package has.  They are held weakly:
    one that is collected is no longer shown.  From now on each of them measures
    how long borrowers wait and use its connections, which costs a borrow some
    microseconds.  Safe to use from any thread.

    A registry takes one such collector; :meth:`add` gives it further pools.
    Raises what :meth:`add` does.
    """

    def __init__(self, *pools: Any) -> None:
        self._pools = ObservedPools(lambda pool: PoolObserver())
        for pool in pools:
            self.add(pool)

    def add(self, pool: Any) -> None:
        """Show one more pool; harmless when repeated.

        Raises :class:`TypeError` if it is none, and :class:`ValueError` if
        another one that is open has its name.
        """
        self._pools.add(pool_of(pool))

    def remove(self, pool: Any) -> None:
        """Show a pool no longer, and have it measure nothing; harmless when repeated."""
        self._pools.remove(pool_of(pool))

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, as prometheus_client asks for them."""
        families = _families()
        for pool in self._pools:
            _add_figures(families, pool.name, pool.get_stats())
            _add_durations(families, pool.name, self._pools.observer(pool))
            _add_endpoints(families, pool.name, pool.endpoints())
        return [family for family in families.values() if family.samples]

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, so that a registry can tell of a clash."""
        return list(_families().values())


def _families() -> dict[str, Any]:
    return {
        name: kind(
            PREFIX + name,
            text,
            labels=labels,
            unit="seconds" if name.endswith("_seconds") else "",
        )
        for name, (kind, text, labels) in _FAMILIES.items()
    }


def _add_figures(families: Mapping[str, Any], pool: str, figures: Mapping[str, Any]) -> None:
    states = {
        "idle": figures["pool_available"],
        "in_use": figures["pool_in_use"],
        "opening": figures["pool_opening"],
    }
    # The figures are not of one moment.
    states["upkeep"] = max(0, figures["pool_size"] - sum(states.values()))
    for state, number in states.items():
        families["connections"].add_metric((pool, state), number)
    for figure, family in _FIGURES.items():
        if figure in figures:
            families[family].add_metric((pool,), figures[figure])
    families["queued_seconds"].add_metric((pool,), figures["requests_wait_ms"] / 1000)


def _add_durations(families: Mapping[str, Any], pool: str, observer: PoolObserver | None) -> None:
    if observer is None:
        return  # removed at this moment
    families["wait_seconds"].add_metric((pool,), *observer.waits.read())
    families["use_seconds"].add_metric((pool,), *observer.uses.read())
    families["connect_seconds"].add_metric((pool,), *observer.connects.read())


def _add_endpoints(
    families: Mapping[str, Any], pool: str, endpoints: Iterable[EndpointStats]
) -> None:
    for endpoint in endpoints:
        place = (pool, endpoint.host or "", endpoint.address or "", str(endpoint.port or ""))
        families["endpoint_connections"].add_metric(place, endpoint.connections)
        families["endpoint_failures"].add_metric(place, endpoint.failures)
        for state in get_args(State):
            families["endpoint_state"].add_metric((*place, state), float(state == endpoint.state))
        if endpoint.connect_seconds is not None:
            families["endpoint_connect_seconds"].add_metric(place, endpoint.connect_seconds)
