"""What an error met while connecting means, and how it is told: pure.

libpq reports no SQLSTATE for a failed connection, only the text, so errors are
told apart by the (English) words of the server's messages; a server that speaks
another language is taken for one that may recover.
"""

from __future__ import annotations

import copy
import enum
import re

import psycopg2


class Verdict(enum.Enum):
    """What trying again can do about a failure."""

    FINAL = "trying again cannot mend it"
    FULL = "the server has no room for more connections"
    REFUSED = "the server answered, or its machine did"
    SILENT = "nobody answered"


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
)
# SQLSTATE 53300.
_FULL = (
    r"too many clients already|remaining connection slots are reserved|too many connections for"
    r"|no more connections allowed"  # PgBouncer
)
_SILENT = r"timeout expired|timed out|No route to host|Network is unreachable"


def judge(error: BaseException) -> Verdict:
    """Tell what trying again can do about an error met while connecting."""
    if not isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError, OSError)):
        return Verdict.FINAL
    text = str(error)
    if re.search(_FULL, text):
        return Verdict.FULL
    if re.search(_FINAL, text):
        return Verdict.FINAL
    return Verdict.SILENT if re.search(_SILENT, text) else Verdict.REFUSED


def reissue(error: BaseException) -> BaseException:
    """Return a copy to raise, since one exception raised in two threads mixes their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:  # a foreign exception that cannot be copied
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = True
    return twin.with_traceback(None)


def censored(error: psycopg2.Error, secrets: list[str]) -> psycopg2.Error:
    """Return the error without the given texts and without the newline libpq ends it with."""
    text = str(error).strip()
    for secret in secrets:
        text = text.replace(secret, "***")
    return type(error)(text)


# Class 08 and shutdowns: the session is gone.  25006: the server takes no writes
# any more, as after a failover.
_LOST = r"08...|57P0[1-5]|25006"


def says_lost(error: BaseException) -> bool:
    """Tell whether a statement's error says that the server has gone or changed its role.

    After a server's farewell psycopg2 reports no SQLSTATE: then the closed
    connection tells.
    """
    pgcode = getattr(error, "pgcode", None)
    return isinstance(error, psycopg2.Error) and bool(pgcode and re.fullmatch(_LOST, pgcode))
