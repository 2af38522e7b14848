"""What an error met while connecting means, and how it is told again: pure.

libpq reports no SQLSTATE for a failed connection, only a text, in the language
of the server.  What the text does not tell is found out by asking the server:
see :mod:`.inquiry`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2

from .errors import CommitUncertain, HostResolutionError
from .failure_kinds import FailureKind, is_answer, of_sqlstate, recognise
from .interruptions import let_through, raised_by_handler

T = TypeVar("T")

MOST_CAUSES = 10
"""How many causes of a cause are kept; they may go round in a circle."""


class SilenceError(psycopg2.OperationalError):
    """The server did not answer in time: a test, a clean-up, or a new connection."""

    pool_failure_kind = FailureKind.SILENT
    since: float  # by the monotonic clock


def silence(since: float, seconds: float) -> SilenceError:
    """Return the error for a server that was given so many seconds."""
    error = SilenceError(f"the server did not answer within {seconds:.2f} s")
    error.since = since
    return error


class WrongRoleError(psycopg2.OperationalError):
    """The server is no longer in the role that the pool is for."""

    pool_failure_kind = FailureKind.ROLE


def classify(error: BaseException) -> FailureKind | None:
    """Return what an error met while connecting means.

    None if the server answered in words that are not known: it has to be asked.
    """
    kind = getattr(error, "pool_failure_kind", None)
    if isinstance(kind, FailureKind):
        return kind
    if isinstance(error, HostResolutionError):
        return FailureKind.MISTAKE if error.is_definite else FailureKind.SILENT
    if isinstance(error, OSError):
        return FailureKind.CUT
    if not isinstance(error, psycopg2.Error):
        return FailureKind.CALLBACK
    text, pgcode = str(error), error.pgcode
    if isinstance(error, psycopg2.ProgrammingError) and not pgcode:
        return FailureKind.MISTAKE  # a dsn or keyword that cannot be read
    known = recognise(text)
    if known is None and pgcode:
        return of_sqlstate(pgcode)
    if known is None and not is_answer(text):
        return FailureKind.CUT
    return known


def mark(error: BaseException, kind: FailureKind) -> None:
    """Note on an error what it means, where its text does not tell."""
    object.__setattr__(error, "pool_failure_kind", kind)  # its own may refuse


def is_interruption(error: BaseException) -> bool:
    """Tell whether an error is neither the driver's, nor the system's, nor a callback's.

    It is the program's own then, raised by a signal handler or by another thread,
    and has to reach the borrower in whose thread it was raised.
    """
    if not isinstance(error, Exception) or raised_by_handler(error):
        return True
    known = isinstance(getattr(error, "pool_failure_kind", None), FailureKind)
    return not known and not isinstance(error, (psycopg2.Error, OSError))


def call_back(callback: Callable[..., T], *args: Any) -> T:
    """Call a function of the program's; note on what it raises that it was the function's."""
    try:
        return callback(*args)
    except Exception as error:
        if not raised_by_handler(error):
            mark(error, FailureKind.CALLBACK)
        raise


def copy_error(error: BaseException, causes: int = MOST_CAUSES) -> BaseException:
    """Return a copy to raise, since one exception raised in two threads mixes their tracebacks.

    Its causes are copies too: a traceback that is kept keeps all that was in use
    when it came about, the pool included.
    """
    try:
        twin = copy.copy(error)
    except Exception as failure:  # a foreign exception that cannot be copied
        let_through(failure)
        return error
    cause = error.__cause__
    cause = copy_error(cause, causes - 1) if causes and cause is not None else None
    # As an exception of the program's may refuse new attributes: a frozen dataclass does.
    object.__setattr__(twin, "__cause__", cause)
    object.__setattr__(twin, "__suppress_context__", True)
    kind = getattr(error, "pool_failure_kind", None)
    if isinstance(kind, FailureKind):
        mark(twin, kind)  # psycopg2's errors lose what was added to them
    return twin.with_traceback(None)


# Class 08 and shutdowns: the session is gone.
_LOST = r"08...|57P0[1-5]"


def says_lost(error: BaseException) -> bool:
    """Tell whether a statement's error says that the server has gone.

    After a server's farewell psycopg2 reports no SQLSTATE: then the closed
    connection tells.
    """
    pgcode = getattr(error, "pgcode", None)
    if isinstance(error, CommitUncertain):
        return True
    return isinstance(error, psycopg2.Error) and bool(pgcode and re.fullmatch(_LOST, pgcode))
