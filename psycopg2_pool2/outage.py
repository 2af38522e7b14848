"""While a pool cannot connect: the last error, what it means for newcomers, and the log of it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from .failure_kinds import FailureKind
from .failures import classify, copy_error
from .log import logger
from .timing import Clock

REMEMBERED = 0.25
"""Seconds that a mistake is told to newcomers instead of being tried again."""
LONGEST_PAUSE = 60.0
"""Seconds between attempts that nobody waits for, when the last error was a mistake."""
LONG_ENOUGH = 30.0
"""Seconds between two outages that are logged as a warning; a server may come and go."""


class Outage:
    """What is known of a pool's failures since it last connected; safe to use from any thread.

    One warning is logged when an outage begins and one message when it ends.
    """

    def __init__(self, name: str, tell: Callable[[BaseException], str], clock: Clock) -> None:
        self._name = name
        self._tell = tell
        self._clock = clock
        self._lock = threading.RLock()  # guards what follows
        self._last: BaseException | None = None
        self._mistake: BaseException | None = None
        self._mistake_since = 0.0
        self._mistake_pause = REMEMBERED
        self._since: float | None = None
        self._attempts = 0
        self._warned = False
        self._silent_until = -math.inf

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last attempt, if it failed."""
        return self._last

    @property
    def mistake(self) -> BaseException | None:
        """What libpq rejected before it connected, while that is told instead of tried again."""
        with self._lock:
            return self._mistake if self._is_remembered_locked() else None

    def rest(self) -> float:
        """Return in how many seconds the next attempt is due after a mistake."""
        with self._lock:
            if not self._is_remembered_locked():
                return 0.0
            return self._mistake_since + self._mistake_pause - self._clock()

    def _is_remembered_locked(self) -> bool:
        return self._mistake is not None and self._clock() < self._mistake_since + REMEMBERED

    def end(self) -> None:
        """Note that an attempt has succeeded."""
        with self._lock:
            self._last = self._mistake = None
            self._mistake_pause = REMEMBERED
            since, self._since = self._since, None
            attempts, self._attempts = self._attempts, 0
        if since is not None:
            logger.log(
                logging.INFO if self._warned else logging.DEBUG,
                "pool %r: connected again after %.1f s and %d failed attempts",
                self._name,
                self._clock() - since,
                attempts,
            )

    def note(self, error: BaseException) -> None:
        """Note that an attempt has failed."""
        kept = copy_error(error)
        with self._lock:
            now = self._clock()
            self._last = kept
            if classify(error) is FailureKind.MISTAKE:
                if self._mistake is not None:
                    self._mistake_pause = min(self._mistake_pause * 2, LONGEST_PAUSE)
                self._mistake, self._mistake_since = kept, now
            self._attempts += 1
            is_first, self._since = self._since is None, self._since or now
            self._warned = self._warned if not is_first else now >= self._silent_until
            warns = is_first and self._warned
            if warns:
                self._silent_until = now + LONG_ENOUGH
        level = logging.WARNING if warns else logging.DEBUG
        kind = classify(kept)
        logger.log(
            level,
            "pool %r: cannot connect (%s): %s",
            self._name,
            "unknown" if kind is None else kind.label,
            self._tell(kept),
        )
