"""A circuit breaker: when to leave a failing endpoint alone, and when to try again.

It does no I/O, starts no thread and reads no clock: its user passes the time in
and guards it with a lock.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Literal

from .timing import jitter

State = Literal["closed", "open", "half-open"]

PROMPT_RETRY = 0.25
"""Seconds, at least, until an endpoint that answers with a refusal is probed again."""
LONGEST_PROMPT_RETRY = 5.0
"""Seconds, at most, until such an endpoint is probed again."""
SHARE_OF_OUTAGE = 0.1
"""The pause between these limits, as a share of the time that the endpoint has been away."""
FORGOTTEN_AFTER = 60.0
"""Seconds without an attempt after which nobody knows how long an endpoint has been away."""
JITTER = 0.2
"""The share by which each pause is longer or shorter at random."""


def prompt_pause(away: float) -> float:
    """Return the pause, without jitter, before an endpoint that answers is asked again."""
    return max(PROMPT_RETRY, min(away * SHARE_OF_OUTAGE, LONGEST_PROMPT_RETRY))


class Attempt:
    """One attempt under way; a breaker counts it for as long as it is referenced.

    An interrupted thread drops its attempt, which ends it.  ``endpoint`` is for
    the caller's own use.
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

    An endpoint that *refuses* answers the moment its server is back, so it is
    probed often; but a server that is starting spends a process on each probe,
    and there may be a thousand pools.  The pause is a tenth of the time that the
    endpoint has been away, which is since the first failure after its last
    success: at least a quarter of a second, at most 5 s (±20 %), and never more
    than ``max_backoff``.  One that is *silent* costs a whole connect timeout
    each time: the pause doubles with each silence from ``backoff`` up to
    ``max_backoff`` seconds (±20 %).  The jitter keeps processes from marching in
    step.

    An instance given to a pool is a template; see :meth:`copy`.
    """

    __slots__ = (
        "_attempts",
        "_away_since",
        "_failed_at",
        "_openings",
        "_silences",
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
        self._openings = 0  # ever: tells an attempt that began before the last of them
        self._silences = 0  # openings since the last success that a silence caused
        self._away_since = 0.0  # the first failure since the last success
        self._failed_at = 0.0

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
        self.failures = self._silences = 0

    def abandon(self, attempt: Attempt) -> None:
        """Note that an attempt ended without telling anything of the endpoint."""
        self._attempts.discard(attempt)

    def fail(self, attempt: Attempt, now: float, *, prompt: bool) -> None:
        """Note that an attempt failed; ``prompt`` if the endpoint answered at all.

        One that began before the breaker last opened tells nothing new of a
        silence; a refusal may bring the next probe forward, never put it off.
        """
        self._attempts.discard(attempt)
        if not self.failures or now - self._failed_at > FORGOTTEN_AFTER:
            self._away_since = now
        self._failed_at = now
        self.failures += 1
        if self.failures < self.threshold:
            return
        retry_at = now + jitter(self._pause(now, prompt), JITTER)
        if attempt.openings == self._openings:
            self._openings += 1
            self._silences += not prompt
            self.retry_at = retry_at
        elif prompt:
            self.retry_at = min(self.retry_at, retry_at)

    def _pause(self, now: float, prompt: bool) -> float:
        if not prompt:
            return min(self.backoff * 2.0 ** min(self._silences, 60), self.max_backoff)
        return min(prompt_pause(now - self._away_since), self.max_backoff / (1.0 + JITTER))
