"""A circuit breaker: when to leave a failing endpoint alone, and when to try again.

It does no I/O, starts no thread and reads no clock; whoever uses it passes the
time in and guards it with a lock of his own.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Literal

from .timing import jitter

State = Literal["closed", "open", "half-open"]

PROMPT_RETRY = 0.25
"""Seconds until an endpoint that answers with a refusal is asked again."""


class Attempt:
    """One attempt under way; a breaker counts it for as long as somebody holds it.

    So one whose thread was interrupted is over without anybody's doing.
    ``endpoint`` is for the use of him who makes it.
    """

    __slots__ = ("__weakref__", "endpoint", "openings")

    def __init__(self, openings: int) -> None:
        self.openings = openings
        self.endpoint: Any = None


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

    __slots__ = (
        "_attempts",
        "_openings",
        "backoff",
        "failures",
        "max_backoff",
        "retry_at",
        "threshold",
    )

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
        self._attempts: weakref.WeakSet[Attempt] = weakref.WeakSet()
        self._openings = 0  # since the last success

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
        return "half-open" if self._attempts else "open"

    @property
    def in_flight(self) -> int:
        """How many attempts are under way."""
        return len(self._attempts)

    def wait(self, now: float) -> float:
        """Return the seconds until an attempt may start, 0.0 if one may now."""
        if self.failures < self.threshold:
            return 0.0
        return max(0.0, self.retry_at - now)

    def begin(self) -> Attempt:
        """Return an attempt, which is under way until it is ended below, or dropped."""
        attempt = Attempt(self._openings)
        self._attempts.add(attempt)
        return attempt

    def succeed(self, attempt: Attempt) -> None:
        """Note that an attempt succeeded: the breaker closes."""
        self._attempts.discard(attempt)
        self.failures = self._openings = 0

    def abandon(self, attempt: Attempt) -> None:
        """Note that an attempt ended without telling anything of the endpoint."""
        self._attempts.discard(attempt)

    def fail(self, attempt: Attempt, now: float, *, prompt: bool) -> None:
        """Note that an attempt failed; ``prompt`` if the endpoint answered at all.

        One that began before the breaker opened tells nothing new of a silence.
        """
        self._attempts.discard(attempt)
        self.failures += 1
        if self.failures < self.threshold:
            return
        if prompt:
            pause = min(PROMPT_RETRY, self.max_backoff)
        elif attempt.openings == self._openings:
            pause = min(self.backoff * 2.0 ** min(self._openings, 60), self.max_backoff)
        else:
            return
        self._openings += 1
        self.retry_at = now + jitter(pause, 0.2)
