"""A circuit breaker: when to leave a failing endpoint alone, and when to try again.

It does no I/O, starts no thread and reads no clock; whoever uses it passes the
time in and guards it with a lock of his own.
"""

from __future__ import annotations

import math
from typing import Literal

from .timing import jitter

State = Literal["closed", "open", "half-open"]

PROMPT_RETRY = 0.25
"""Seconds until an endpoint that answers with a refusal is asked again."""


class CircuitBreaker:
    """Decide whether an endpoint may be connected to.

    Closed: attempts are free. After ``threshold`` failures in a row it opens,
    and the endpoint is left alone; then one attempt probes it (half-open),
    which closes it again or opens it for longer.

    An endpoint that *refuses* comes back the moment its server does and an
    attempt costs it next to nothing, so it is probed every quarter of a second
    (±20 %). One that is *silent* costs a whole connect timeout each time: the
    pause doubles from ``backoff`` up to ``max_backoff`` seconds, with jitter so
    that processes do not march in step.

    An instance given to a pool is a template; see :meth:`copy`.
    """

    __slots__ = ("_in_flight", "backoff", "failures", "max_backoff", "retry_at", "threshold")

    def __init__(self, threshold: int = 3, backoff: float = 0.1, max_backoff: float = 30.0) -> None:
        if not isinstance(threshold, int) or isinstance(threshold, bool):
            raise TypeError(f"threshold must be an int, not {threshold!r}")
        if threshold < 1:
            raise ValueError(f"threshold must be at least 1, not {threshold!r}")
        for name, seconds in (("backoff", backoff), ("max_backoff", max_backoff)):
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise TypeError(f"{name} must be a number of seconds, not {seconds!r}")
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {seconds!r}")
        if backoff > max_backoff:
            raise ValueError(f"backoff must not exceed max_backoff, not {backoff!r}")
        self.threshold = threshold
        self.backoff = backoff
        self.max_backoff = max_backoff
        self.failures = 0
        self.retry_at = 0.0
        self._in_flight = 0

    def copy(self) -> CircuitBreaker:
        """Return a closed breaker with the same limits."""
        return CircuitBreaker(self.threshold, self.backoff, self.max_backoff)

    @property
    def failing(self) -> bool:
        """Whether the last attempt failed."""
        return self.failures > 0

    def state(self) -> State:
        """Return "closed", "open" or "half-open" (an attempt is probing)."""
        if self.failures < self.threshold:
            return "closed"
        return "half-open" if self._in_flight else "open"

    def wait(self, now: float) -> float:
        """Return the seconds until an attempt may start, 0.0 if one may now."""
        if self.failures < self.threshold:
            return 0.0
        return max(0.0, self.retry_at - now)

    def begin(self) -> None:
        """Note that an attempt starts."""
        self._in_flight += 1

    def succeed(self) -> None:
        """Note that an attempt succeeded: the breaker closes."""
        self._in_flight -= 1
        self.failures = 0

    def abandon(self) -> None:
        """Note that an attempt ended without telling anything of the endpoint."""
        self._in_flight -= 1

    def fail(self, now: float, *, prompt: bool) -> None:
        """Note that an attempt failed; ``prompt`` if the endpoint answered at all."""
        self._in_flight -= 1
        self.failures += 1
        excess = self.failures - self.threshold
        if excess < 0:
            return
        if prompt:
            pause = jitter(min(PROMPT_RETRY, self.max_backoff), 0.2)
        else:
            pause = jitter(min(self.backoff * 2.0 ** min(excess, 60), self.max_backoff), 0.2)
        self.retry_at = now + pause
