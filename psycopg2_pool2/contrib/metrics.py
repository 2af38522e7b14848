"""What the metrics adapters have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from ..observers import Observer
from ..pool import ConnectionPool

T = TypeVar("T", bound=Observer)

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms' buckets, in seconds."""
_LAYERS = 3
"""An async database has an async pool, which has the pool."""


def pool_of(found: Any) -> ConnectionPool:
    """Return the :class:`ConnectionPool` that this is, or that it has as its ``pool``.

    Raises :class:`TypeError` for anything else.
    """
    inner = found
    for _ in range(_LAYERS):
        if isinstance(inner, ConnectionPool):
            return inner
        inner = getattr(inner, "pool", None)
    raise TypeError(f"pool must be a pool of this package, not a {type(found).__name__}")


class ObservedPools(Generic[T]):
    """The pools of one adapter, held weakly, each with the observer that was made for it."""

    def __init__(self, make_observer: Callable[[ConnectionPool], T]) -> None:
        self._make_observer = make_observer
        self._lock = threading.RLock()  # two who add a pool at a time
        self._observers: WeakKeyDictionary[ConnectionPool, T] = WeakKeyDictionary()

    def add(self, pool: ConnectionPool) -> None:
        """Observe a pool; harmless when repeated.

        Raises :class:`ValueError` if another one that is open has its name, by
        which they are told apart.
        """
        with self._lock:
            for other in self:
                if other is not pool and other.name == pool.name:
                    if not other.closed:
                        raise ValueError(f"pool: another one is named {pool.name!r} too")
                    self.remove(other)
            if pool not in self._observers:
                self._observers[pool] = self._make_observer(pool)
            pool._observe(self._observers[pool])

    def remove(self, pool: ConnectionPool) -> None:
        """Observe a pool no longer; harmless when repeated."""
        observer = self._observers.pop(pool, None)
        if observer is not None:
            pool._unobserve(observer)

    def observer(self, pool: ConnectionPool) -> T | None:
        """Return a pool's observer, None if it is not observed."""
        return self._observers.get(pool)

    def __iter__(self) -> Iterator[ConnectionPool]:
        # Not by the dictionary's own iterator, which another thread's add() would break.
        for ref in self._observers.keyrefs():
            pool = ref()
            if pool is not None:
                yield pool
