"""What an error met while connecting means, and how it is told: pure.

libpq reports no SQLSTATE for a failed connection, only the text, so errors are
told apart by the (English) words of the server's messages; a server that speaks
another language is taken for one that may recover.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import re

import psycopg2

from .errors import HostResolutionError


class Verdict(enum.Enum):
    """What trying again can do about a failure."""

    FINAL = "trying again cannot mend it"
    FULL = "the server has no room for more connections"
    REFUSED = "the server answered, or its machine did"
    SILENT = "nobody answered"
    ROLE = "the server is not in the role that is wanted"


class SilenceError(psycopg2.OperationalError):
    """The server did not answer within the time that a test or a clean-up may take."""

    pool_verdict = Verdict.SILENT
    since: float  # by the monotonic clock


def silence(since: float, seconds: float) -> SilenceError:
    """Return the error for a server that was given so many seconds."""
    error = SilenceError(f"the server did not answer within {seconds:.2f} s")
    error.since = since
    return error


class WrongRoleError(psycopg2.OperationalError):
    """The server is not in the role any more that the pool is for."""

    pool_verdict = Verdict.ROLE


# Compiled at their first use.
# SQLSTATE 28P01, 28000, 3D000, 42501, and what libpq cannot make sense of.
_FINAL = (
    r"password authentication failed|no password supplied|authentication failed for user"
    r"|no pg_hba\.conf entry|pg_hba\.conf rejects|role .* does not exist"
    r"|is not permitted to log in|database .* does not exist|permission denied for database"
    r"|is not currently accepting connections|authentication method .* not supported"
    r"|invalid \S+ value|invalid port number|invalid connection option|could not match \d+"
    r"|definition of service|service file|does not support SSL, but SSL was required"
    r"|root certificate file|certificate verify failed|does not match host name"
    r"|unsupported (options )?startup parameter"  # PgBouncer
    r"|Feature not supported: RDS Proxy"
)
# SQLSTATE 53300.
_FULL = (
    r"too many clients already|remaining connection slots are reserved|too many connections for"
    r"|no more connections allowed"  # PgBouncer
)
# libpq's, for target_session_attrs.
_ROLE = r"session is (not )?read-only|server is (not )?in hot standby mode"
_SILENT = r"timeout expired|timed out|No route to host|Network is unreachable"
_MEANINGS = (
    (_ROLE, Verdict.ROLE),
    (_FULL, Verdict.FULL),
    (_FINAL, Verdict.FINAL),
    (_SILENT, Verdict.SILENT),
)


def judge(error: BaseException) -> Verdict:
    """Tell what trying again can do about an error met while connecting."""
    verdict = getattr(error, "pool_verdict", None)
    if isinstance(verdict, Verdict):
        return verdict
    if not isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError, OSError)):
        return Verdict.FINAL
    if isinstance(error, HostResolutionError):
        return Verdict.FINAL if error.is_definite else Verdict.SILENT
    text = str(error)
    return next((v for pattern, v in _MEANINGS if re.search(pattern, text)), Verdict.REFUSED)


def transient(error: Exception) -> None:
    """Mark an error of a user's callback as one that trying again may mend."""
    with contextlib.suppress(AttributeError):  # of a class with slots
        error.pool_verdict = Verdict.REFUSED  # type: ignore[attr-defined]


def reissue(error: BaseException) -> BaseException:
    """Return a copy to raise, since one exception raised in two threads mixes their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:  # a foreign exception that cannot be copied
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    return twin.with_traceback(None)


# Class 08 and shutdowns: the session is gone.
_LOST = r"08...|57P0[1-5]"


def says_lost(error: BaseException) -> bool:
    """Tell whether a statement's error says that the server has gone.

    After a server's farewell psycopg2 reports no SQLSTATE: then the closed
    connection tells.
    """
    pgcode = getattr(error, "pgcode", None)
    return isinstance(error, psycopg2.Error) and bool(pgcode and re.fullmatch(_LOST, pgcode))
