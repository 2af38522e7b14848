"""Clock, deadline, jitter and back-off: pure, no threads."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds that never go backwards, as :func:`time.monotonic` does."""


class Deadline:
    """One absolute moment that every phase of an operation shares.

    ``timeout`` is in seconds from now; None means never.
    """

    __slots__ = ("_at", "_clock", "started")

    def __init__(self, timeout: float | None, clock: Clock) -> None:
        self._clock = clock
        self.started = clock()
        self._at = None if timeout is None else self.started + timeout

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
        left = self.remaining()
        return longest if left is None else min(left, longest)


def jitter(value: float, share: float) -> float:
    """Return ``value`` moved at random by at most ``share`` of it, either way."""
    import random  # its import is dear, and no pool needs it before its first connection

    return value * random.uniform(1.0 - share, 1.0 + share)
