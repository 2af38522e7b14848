"""Who is told how long borrowing, using and connecting took: mostly nobody.

Then no clock is read for it, and the fast path does not know of it.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from .interruptions import let_through
from .log import logger


class Observer(Protocol):
    """Is told of durations, in seconds, when they are over.

    In the thread of the borrower, or of the worker that connects; under no lock
    of the pool; by several threads at a time, and again while it is being told,
    since the garbage collector may return a connection anywhere.  It should not
    block.
    """

    def waited(self, seconds: float) -> None:
        """Note that a borrower has got a connection after so long."""

    def used(self, seconds: float) -> None:
        """Note that a connection has come back after so long."""

    def connected(self, seconds: float) -> None:
        """Note that a connection was opened and prepared in so long."""

    def forked(self) -> None:
        """Start at zero, as the pool's counters do: this is a forked child."""


class Observers:
    """Those of one pool, in ``all``, which is replaced and never changed.

    What they raise is logged, once as a warning and then at level DEBUG.  Only
    what is no :class:`Exception`, such as an interrupt, is raised.
    """

    __slots__ = ("_has_warned", "_name", "all", "lock")

    def __init__(self, name: str, observers: tuple[Observer, ...] = ()) -> None:
        self._name = name
        self._has_warned = False
        self.all = observers
        self.lock = threading.RLock()  # held by who changes them, and what depends on them

    def add(self, observer: Observer) -> None:
        """Tell this one too, unless it is told already."""
        with self.lock:
            if observer not in self.all:
                self.all = (*self.all, observer)

    def remove(self, observer: Observer) -> None:
        """Tell this one no more; harmless when repeated."""
        with self.lock:
            self.all = tuple(other for other in self.all if other is not observer)

    def in_child(self) -> Observers:
        """Return the same ones for a forked child, where a lock may be held for ever."""
        inherited = Observers(self._name, self.all)
        inherited._tell("forked")
        return inherited

    def waited(self, seconds: float) -> None:
        """Tell all, as :class:`Observer` says."""
        self._tell("waited", seconds)

    def used(self, seconds: float) -> None:
        """Tell all, as :class:`Observer` says."""
        self._tell("used", seconds)

    def connected(self, seconds: float) -> None:
        """Tell all, as :class:`Observer` says."""
        self._tell("connected", seconds)

    def _tell(self, event: str, *seconds: float) -> None:
        for observer in self.all:
            self._tell_one(observer, event, *seconds)

    def _tell_one(self, observer: Observer, event: str, *seconds: float) -> None:
        try:
            getattr(observer, event)(*seconds)
        except Exception as error:
            let_through(error)
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            logger.log(level, "pool %r: %r failed", self._name, observer, exc_info=True)
