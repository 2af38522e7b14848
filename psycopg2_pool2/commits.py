"""What it means that COMMIT fails: that nothing was done, or that nobody can know.

A server that refuses COMMIT has rolled back: a deferred constraint, a serialization
failure.  When the connection is lost after COMMIT was sent, or the server says that
it does not know, the transaction may have been done or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg2
from psycopg2 import extensions as ext

from .errors import CommitUncertain
from .failures import says_lost

T = TypeVar("T")

_OPEN = (ext.TRANSACTION_STATUS_INTRANS, ext.TRANSACTION_STATUS_ACTIVE)
_COMPLETION_UNKNOWN = "40003"
# integrity_constraint_violation, transaction_rollback: the reason for which it was rolled back.
_DEFINITE = ("23", "40")


def commit(conn: Any, send: Callable[[], T]) -> T:
    """Return what ``send()`` returns, which commits the transaction of ``conn``.

    Raises :class:`CommitUncertain` where the answer to COMMIT is lost, and else what
    ``send`` raises.  A connection that is lost already, or in a failed
    transaction, commits nothing for certain.
    """
    if getattr(conn, "closed", True) or conn.get_transaction_status() not in _OPEN:
        return send()  # so does a mock, or a proxy that forwards nothing
    try:
        return send()
    except psycopg2.Error as error:
        if isinstance(error, CommitUncertain) or not _is_uncertain(conn, error):
            raise
        raise CommitUncertain(
            f"the connection was lost during COMMIT, which may have been done or not: {error}"
        ) from error


def _is_uncertain(conn: Any, error: psycopg2.Error) -> bool:
    pgcode = error.pgcode or ""
    if pgcode == _COMPLETION_UNKNOWN or says_lost(error):
        return True
    return bool(conn.closed) and not pgcode.startswith(_DEFINITE)
