"""The log: what the library tells there, whatever the program's filters and handlers do.

Filters and handlers are the program's code.  One that raises must not stop what the pool is in the
middle of, so no call here raises an :class:`Exception` of theirs: it is reported on standard error,
as :mod:`logging` reports what :meth:`logging.Handler.emit` raises.
"""

from __future__ import annotations

import logging

from .interruptions import raised_by_handler
from .threads import is_own_thread
from .timing import Clock, monotonic

_logger = logging.getLogger("psycopg2_pool2")
_reporter = logging.NullHandler()


class Logger:
    """Logs under the library's name, and raises only what is meant for the calling thread.

    That is what a signal handler raises during the call, and in a thread of the program whatever
    is no :class:`Exception`, such as ``KeyboardInterrupt``.  In the library's own threads nobody
    waits for it, and it is reported like the rest.
    """

    def debug(self, message: str, *args: object) -> None:
        """Log at level DEBUG."""
        self._log(logging.DEBUG, message, args)

    def info(self, message: str, *args: object) -> None:
        """Log at level INFO."""
        self._log(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """Log at level WARNING."""
        self._log(logging.WARNING, message, args)

    def exception(self, message: str, *args: object) -> None:
        """Log at level ERROR, with the exception that is being handled."""
        self._log(logging.ERROR, message, args, exc_info=True)

    def log(self, level: int, message: str, *args: object, exc_info: bool = False) -> None:
        """Log at any level."""
        self._log(level, message, args, exc_info=exc_info)

    def _log(
        self, level: int, message: str, args: tuple[object, ...], *, exc_info: bool = False
    ) -> None:
        try:
            # The record names the module that calls, not this one.
            _logger.log(level, message, *args, exc_info=exc_info, stacklevel=3)
        except BaseException as error:
            if not is_own_thread() and _is_for_the_caller(error):
                raise
            _report(level, message, args)


logger = Logger()


class Seldom:
    """Limits how often something is logged: once in ``interval`` seconds."""

    def __init__(self, interval: float, clock: Clock = monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._due = -float("inf")

    def is_due(self) -> bool:
        """Tell whether it is time; if so, not again before the interval has passed."""
        now = self._clock()
        if now < self._due:
            return False
        self._due = now + self._interval
        return True


def _is_for_the_caller(error: BaseException) -> bool:
    return not isinstance(error, Exception) or raised_by_handler(error)


def _report(level: int, message: str, args: tuple[object, ...]) -> None:
    """Tell standard error of the exception that is being handled; raises nothing."""
    try:
        record = logging.LogRecord(_logger.name, level, __file__, 0, message, args, None)
        _reporter.handleError(record)  # heeds logging.raiseExceptions
    except BaseException as error:
        if not is_own_thread() and _is_for_the_caller(error):
            raise
