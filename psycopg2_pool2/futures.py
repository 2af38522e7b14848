"""What ends the waits of an event loop's tasks, so that thousands of them cost little.

**Timers.**  Most borrowers who wait are served long before their time is over.  A
timer of the loop's own for each of them would be the dearest part of the wait: it
sorts them, in Python.  Here those that are due at about the same time share one.

**News from threads.**  To wake a loop takes a system call, for each piece of news
again.  Here one knock announces all that comes until the loop has opened:

1. A thread adds a future to the news, *then* looks whether somebody has knocked;
   if not it notes that it does, *then* it knocks.
2. The loop clears that note, *then* takes out all news there is.  So what is added
   after that finds the note cleared.

Two threads may knock at once: then the loop finds nothing the second time.

Nobody but the loop holds what is due, by its timer, and nobody holds what the news
are about.  So a loop that was closed with tasks pending lets go of them: a task that
is still in the pool's queue does not keep those alive that happened to wait until
the same moment.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

_TICK = 0.01
"""Seconds by which a timer may be late."""

_Future = asyncio.Future[None]
_Due = dict[int, weakref.ref[set[_Future]]]


class Ends(Protocol):
    """What ends at some time, in some thread."""

    def when_ended(self, listener: Callable[..., object], *args: Any) -> None:
        """Have ``listener(*args, self)`` called by who ends it; at once if it has ended."""


class Futures:
    """The futures that the tasks of one loop wait for; used by its thread."""

    __slots__ = ("_due", "_has_knocked", "_news")

    def __init__(self) -> None:
        self._due: _Due = {}  # by the tick of the loop's clock
        self._news: deque[weakref.ref[_Future]] = deque()
        self._has_knocked = False

    def of(self, call: Ends) -> _Future:
        """Return a future that is resolved when a call has ended."""
        future = asyncio.get_running_loop().create_future()
        call.when_ended(Futures._tell, self, future)
        return future

    def ring_in(self, seconds: float, future: _Future) -> int:
        """Resolve a future when that time is over; return what :meth:`silence` needs."""
        loop = future.get_loop()
        tick = math.ceil((loop.time() + seconds) / _TICK)
        futures = self._at(tick)
        if futures is None:
            futures = set()
            self._due[tick] = weakref.ref(futures)
            loop.call_at(tick * _TICK, _ring, self._due, tick, futures)
        futures.add(future)
        return tick

    def silence(self, tick: int, future: _Future) -> None:
        """Leave a future alone that was to be resolved then; harmless when repeated."""
        futures = self._at(tick)
        if futures is not None:
            futures.discard(future)

    def _at(self, tick: int) -> set[_Future] | None:
        ref = self._due.get(tick)
        return None if ref is None else ref()

    def _tell(self, future: _Future, _: object) -> None:
        """Resolve a future soon; from any thread."""
        self._news.append(weakref.ref(future))
        if self._has_knocked:
            return
        self._has_knocked = True
        try:
            future.get_loop().call_soon_threadsafe(self._open)
        except RuntimeError:  # the loop is closed, nobody waits any more
            self._has_knocked = False
            self._news.clear()
        except BaseException:
            self._has_knocked = False
            raise

    def _open(self) -> None:
        self._has_knocked = False
        try:
            while self._news:
                future = self._news.popleft()()
                if future is not None:
                    resolve(future)
        except BaseException:  # the rest is not to wait for the next knock
            asyncio.get_running_loop().call_soon(self._open)
            raise


_of_loops: MutableMapping[asyncio.AbstractEventLoop, Futures] = weakref.WeakKeyDictionary()


def futures_of(loop: asyncio.AbstractEventLoop) -> Futures:
    """Return those of a loop; to be called in its thread."""
    futures = _of_loops.get(loop)
    if futures is None:
        futures = _of_loops[loop] = Futures()
    return futures


def resolve(future: _Future) -> None:
    """End the wait for a future; harmless when it has ended."""
    if not future.done():
        future.set_result(None)


def _ring(due: _Due, tick: int, futures: set[_Future]) -> None:
    due.pop(tick)
    for future in futures:
        resolve(future)
