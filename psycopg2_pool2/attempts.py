"""When a transaction is tried again: only where it cannot have been done.

Until COMMIT is sent nothing has been done, whatever went wrong.  So a connection
that is lost before, and a conflict with other transactions, which the server
answers by rolling back, are reasons to begin anew.  A connection lost during
COMMIT never is: then nobody can say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import psycopg2

from . import checks
from .connector import Connection
from .errors import CommitUncertain
from .timing import chance
from .transactions import Transaction, is_lost

T = TypeVar("T")
Work = Callable[[Connection], T]

RETRIES = 3
"""How often to begin anew, after the first attempt."""
_CONFLICTS = ("40001", "40P01")  # serialization_failure, deadlock_detected
_PAUSE = 0.01
_LONGEST_PAUSE = 1.0


class Attempt:
    """One attempt, as a ``with`` block that swallows the error after which to begin anew.

    ``pause`` is how many seconds to wait before: those who were in conflict are
    not to meet again.
    """

    __slots__ = ("_conflict", "_is_last", "_mendable", "_retries_conflicts", "pause")

    def __init__(self, pause: float, is_last: bool, retries_conflicts: bool) -> None:
        self.pause = pause
        self._is_last = is_last
        self._retries_conflicts = retries_conflicts
        self._mendable: BaseException | None = None
        self._conflict = False

    @property
    def was_conflict(self) -> bool:
        """Whether it failed because of other transactions."""
        return self._conflict

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # That very error: what comes while its connection is returned, such as
        # an interrupt, is not to be swallowed.
        return exc is not None and exc is self._mendable and not self._is_last

    @contextmanager
    def judging(self, conn: Connection) -> Iterator[None]:
        """Note, in the block in which the connection is used, what its error means."""
        try:
            yield
        except psycopg2.Error as error:
            self._judge(conn, error)
            raise

    def transact(self, conn: Connection, work: Work[T]) -> T:
        """Return what ``work`` returns, in a transaction of its own."""
        try:
            with Transaction(conn):
                return work(conn)
        except psycopg2.Error as error:
            self._judge(conn, error)
            raise

    def _judge(self, conn: Connection, error: psycopg2.Error) -> None:
        if isinstance(error, CommitUncertain):
            return
        self._conflict = self._retries_conflicts and error.pgcode in _CONFLICTS
        if self._conflict or is_lost(conn, error):
            self._mendable = error


def attempts(retries: int = RETRIES, *, conflicts: bool = False) -> Iterator[Attempt]:
    """Yield one attempt after the other; leave the loop when one has succeeded.

    ``conflicts``: begin anew after serialization failures and deadlocks too.
    """
    checks.count("retries", retries)
    pause = 0.0
    for number in range(retries + 1):
        attempt = Attempt(pause, number == retries, conflicts)
        yield attempt
        longest = min(_PAUSE * 2.0**number, _LONGEST_PAUSE)
        pause = chance() * longest if attempt.was_conflict else 0.0
