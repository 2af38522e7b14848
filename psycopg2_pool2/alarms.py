"""Timers for event loops, of which thousands cost little.

Most borrowers who wait are served long before their time is over.  A timer of the
loop's own for each of them would be the dearest part of the wait: it sorts them, in
Python.  Here those that are due at about the same time share one.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import MutableMapping

_TICK = 0.01
"""Seconds by which an alarm may be late."""

_Futures = set[asyncio.Future[None]]
"""What is due at one tick; held by the loop, through its timer."""
_Due = MutableMapping[int, _Futures]

_due: MutableMapping[asyncio.AbstractEventLoop, _Due] = weakref.WeakKeyDictionary()
"""For each loop what is due, by the tick of its clock; touched by the loop's thread only."""


def set_alarm(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], seconds: float
) -> _Futures:
    """Resolve a future in so many seconds, unless it is taken out of the set returned here."""
    due = _due.get(loop)
    if due is None:
        due = _due[loop] = weakref.WeakValueDictionary()
    tick = math.ceil((loop.time() + seconds) / _TICK)
    futures = due.get(tick)
    if futures is None:
        futures = due[tick] = set()
        loop.call_at(tick * _TICK, _ring, due, tick, futures)
    futures.add(future)
    return futures


def _ring(due: _Due, tick: int, futures: _Futures) -> None:
    due.pop(tick)
    for future in futures:
        resolve(future)


def resolve(future: asyncio.Future[None]) -> None:
    """End the wait for a future; harmless when it has ended."""
    if not future.done():
        future.set_result(None)
