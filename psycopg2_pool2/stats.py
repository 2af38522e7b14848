"""Counters."""

from __future__ import annotations

import threading

from .observers import Observers


class Counters:
    """Sums that only grow; for the slow paths, since each addition takes a lock.

    What the fast path would have to count is counted by the records of the
    connections themselves.  Single durations go to the ``observers``.
    """

    __slots__ = ("_lock", "_sums", "observers")

    NAMES = (
        "usage_ms",
        "requests_queued",
        "requests_wait_ms",
        "requests_errors",
        "returns_bad",
        "connections_num",
        "connections_ms",
        "connections_errors",
        "connections_lost",
        "requests_timeouts",
        "connections_leaked",
        "connections_detached",
        "connections_reaped",
        "connections_retired",
        "tests_failed",
    )

    def __init__(self, observers: Observers | None = None) -> None:
        self.observers = observers or Observers("")
        self._lock = threading.RLock()
        self._sums: dict[str, float] = dict.fromkeys(self.NAMES, 0)

    def add(self, name: str, amount: float = 1) -> None:
        """Add to one sum."""
        with self._lock:
            self._sums[name] += amount

    def add_wait(self, seconds: float) -> None:
        """Add one wait; under one lock, since under contention every borrow comes here."""
        with self._lock:
            self._sums["requests_queued"] += 1
            self._sums["requests_wait_ms"] += seconds * 1000

    def read(self) -> dict[str, int]:
        """Return all sums at one moment, as whole numbers."""
        with self._lock:
            return {name: int(value) for name, value in self._sums.items()}
