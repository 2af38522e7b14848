"""Clock, deadline and jitter: pure, no threads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from types import ModuleType

Clock = Callable[[], float]
"""Returns seconds that never go backwards, as :func:`time.monotonic` does."""


def _unfaked_time() -> ModuleType:
    """Return a second instance of the built-in module ``time``, which nothing else refers to.

    Tests of a program freeze or move its clocks: they replace functions in the module ``time``, and
    wherever they were imported from it by name, perhaps before this package is imported.  Servers,
    sockets and the pool's threads live by the real time meanwhile.
    """
    spec = time.__spec__
    loader = None if spec is None else spec.loader
    if spec is None or loader is None:
        return time
    made = loader.create_module(spec)
    if made is None:
        return time
    loader.exec_module(made)
    return made if hasattr(made, "monotonic") else time


_time = _unfaked_time()

monotonic: Clock = _time.monotonic
"""The real :func:`time.monotonic`, at its cost, whatever a test makes of the program's clocks."""


def bounded(seconds: float, longest: float) -> float:
    """Return ``seconds``, but at least 0 and at most ``longest``, which NaN counts as."""
    return max(0.0, seconds) if seconds < longest else longest


class SteadyClock:
    """A clock that goes on where it was when the one that it reads is set back, or says nonsense.

    To be read under a lock.
    """

    __slots__ = ("_clock", "_last", "_lead")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lead = self._last = 0.0
        self._last = self()

    def __call__(self) -> float:
        """Return the seconds, never less than before, never NaN or infinite."""
        now = self._clock() + self._lead
        if not math.isfinite(now):
            return self._last
        if now < self._last:
            self._lead += self._last - now
            return self._last
        self._last = now
        return now


class Deadline:
    """One absolute moment that every phase of an operation shares.

    ``timeout`` is in seconds from ``started``, a reading of the clock; None
    means never.  One of zero is already over: who has it is not patient.
    """

    __slots__ = ("_at", "_clock", "is_patient", "started")

    def __init__(self, timeout: float | None, clock: Clock, started: float) -> None:
        self._clock = clock
        self.started = started
        self.is_patient = timeout != 0
        self._at = None if timeout is None else started + timeout

    def remaining(self) -> float | None:
        """Return the seconds that are left, 0.0 when it has passed, None for ever."""
        if self._at is None:
            return None
        return max(0.0, self._at - self._clock())

    def elapsed(self) -> float:
        """Return the seconds since the deadline was set."""
        return self._clock() - self.started

    def slice(self, longest: float) -> float:
        """Return how long to wait before looking again, at most ``longest`` seconds."""
        if self._at is None:
            return longest
        left = self._at - self._clock()
        return longest if left > longest else max(0.0, left)


_BOOTTIME: int | None = getattr(_time, "CLOCK_BOOTTIME", None)
JUMP = 1.0
"""Seconds by which one clock may overtake the other before it counts."""


def wakeful_clock() -> float:
    """Return seconds of a clock that goes on while the machine is suspended.

    ``CLOCK_BOOTTIME`` on Linux; elsewhere the time of day, which may jump for
    other reasons too: that costs a few tests.
    """
    seconds: float = _time.time() if _BOOTTIME is None else _time.clock_gettime(_BOOTTIME)
    return seconds


class ClockJumps:
    """Notices that the machine was suspended: one clock went on, the other did not.

    Meanwhile servers and firewalls have dropped connections whose age, by the
    monotonic clock, has not changed.
    """

    __slots__ = ("_clock", "_lead", "_wakeful")

    def __init__(self, clock: Clock, wakeful: Clock) -> None:
        self._clock = clock
        self._wakeful = wakeful
        self._lead = wakeful() - clock()

    def happened(self) -> bool:
        """Tell whether there was a jump since this was last asked."""
        before, self._lead = self._lead, self._wakeful() - self._clock()
        return abs(self._lead - before) > JUMP


def chance() -> float:
    """Return a random number from 0 to 1 that owes nothing to the program's own generator.

    Programs seed :mod:`random`, in each of their processes alike; these must not
    march in step because of that, nor may the pool use up their numbers.
    """
    return int.from_bytes(os.urandom(6), "big") / 2.0**48


def jitter(value: float, share: float) -> float:
    """Return ``value`` moved at random by at most ``share`` of it, either way."""
    return value * (1.0 - share + 2.0 * share * chance())
