"""When to try a login again that a server has refused: pure.

Whoever uses it passes the time in and guards it with a lock of its own.
"""

from __future__ import annotations

import math

from .timing import chance

FIRST_PAUSE = 1.0
"""Seconds between the first refusal and the second attempt; doubled each time."""
LONGEST_PAUSE = 60.0
SPREAD = 0.2
"""A pause is longer by up to so much of itself, at random: processes do not march in step.

Never shorter: a server that locks accounts after so many failed logins a minute
gets no more of them than the pauses say.
"""


class LoginBackoff:
    """How often a server has refused the login, and until when it is left alone."""

    __slots__ = ("refusals", "retry_at")

    def __init__(self) -> None:
        self.refusals = 0
        self.retry_at = -math.inf

    @property
    def is_refused(self) -> bool:
        """Whether the last login was refused."""
        return self.refusals > 0

    def refuse(self, now: float) -> None:
        """Note that the login was refused."""
        pause = min(FIRST_PAUSE * 2.0 ** min(self.refusals, 10), LONGEST_PAUSE)
        self.refusals += 1
        self.retry_at = now + pause * (1.0 + SPREAD * chance())

    def clear(self) -> None:
        """Note that the last login was not refused."""
        self.refusals = 0
        self.retry_at = -math.inf

    def retry_now(self) -> None:
        """Allow an attempt at once: something has changed."""
        self.retry_at = -math.inf
