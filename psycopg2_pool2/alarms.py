"""Timers for event loops, of which thousands cost little.

Most borrowers who wait are served long before their time is over.  A timer of the
loop's own for each of them would be the dearest part of the wait: it sorts them, in
Python.  Here those that are due at about the same time share one.

Nobody but the loop holds what is due, by its timer.  So a loop that was closed with
tasks pending lets go of them: one that is still in the pool's queue does not keep
those alive that happened to wait until the same moment.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import MutableMapping

_TICK = 0.01
"""Seconds by which an alarm may be late."""

_Futures = set[asyncio.Future[None]]
"""What is due at one tick."""
_Due = MutableMapping[int, _Futures]

_due: MutableMapping[asyncio.AbstractEventLoop, _Due] = weakref.WeakKeyDictionary()
"""For each loop what is due, by the tick of its clock; touched by the loop's thread only."""


class Alarm:
    """What resolves a future when its time is over, unless it is cancelled."""

    __slots__ = ("_future", "_futures")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], seconds: float
    ) -> None:
        due = _due.get(loop)
        if due is None:
            due = _due[loop] = weakref.WeakValueDictionary()
        tick = math.ceil((loop.time() + seconds) / _TICK)
        futures = due.get(tick)
        if futures is None:
            futures = due[tick] = set()
            loop.call_at(tick * _TICK, _ring, due, tick, futures)
        futures.add(future)
        self._future = future
        self._futures = weakref.ref(futures)

    def cancel(self) -> None:
        """Leave the future alone; harmless when repeated."""
        futures = self._futures()
        if futures is not None:
            futures.discard(self._future)


def _ring(due: _Due, tick: int, futures: _Futures) -> None:
    due.pop(tick)
    for future in futures:
        resolve(future)


def resolve(future: asyncio.Future[None]) -> None:
    """End the wait for a future; harmless when it has ended."""
    if not future.done():
        future.set_result(None)
