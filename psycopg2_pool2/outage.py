"""While a pool cannot connect: the last error, what it means for newcomers, and the log of it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from .failures import Verdict, judge, reissue
from .log import logger
from .timing import Clock

REMEMBERED = 0.25
"""Seconds that a final error is told to newcomers instead of being asked for again."""
LONGEST_FINAL_PAUSE = 60.0
"""Seconds between attempts that nobody waits for, when the last error was final."""
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
        self._final: BaseException | None = None
        self._final_since = 0.0
        self._final_pause = REMEMBERED
        self._since: float | None = None
        self._attempts = 0
        self._warned = False
        self._silent_until = -math.inf

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last attempt, if it failed."""
        return self._last

    @property
    def final_error(self) -> BaseException | None:
        """The error that trying again cannot mend, while it is told instead of asked for again."""
        with self._lock:
            return self._final if self._is_remembered_locked() else None

    def rest(self) -> float:
        """Return in how many seconds the next attempt is due after a final error."""
        with self._lock:
            if not self._is_remembered_locked():
                return 0.0
            return self._final_since + self._final_pause - self._clock()

    def _is_remembered_locked(self) -> bool:
        return self._final is not None and self._clock() < self._final_since + REMEMBERED

    def end(self) -> None:
        """Note that an attempt has succeeded."""
        with self._lock:
            self._last = self._final = None
            self._final_pause = REMEMBERED
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
        kept = reissue(error)
        with self._lock:
            now = self._clock()
            self._last = kept
            if judge(error) is Verdict.FINAL:
                if self._final is not None:
                    self._final_pause = min(self._final_pause * 2, LONGEST_FINAL_PAUSE)
                self._final, self._final_since = kept, now
            self._attempts += 1
            is_first, self._since = self._since is None, self._since or now
            self._warned = self._warned if not is_first else now >= self._silent_until
            warns = is_first and self._warned
            if warns:
                self._silent_until = now + LONG_ENOUGH
        level = logging.WARNING if warns else logging.DEBUG
        logger.log(level, "pool %r: cannot connect: %s", self._name, self._tell(kept))
