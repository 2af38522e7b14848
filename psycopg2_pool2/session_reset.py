"""What ``reset="session"`` sends: DISCARD ALL, or its parts where a server does not know that.

Some servers and poolers that speak PostgreSQL's protocol refuse DISCARD ALL.
What it does can be asked for one by one, and what such a server refuses of that
too it cannot have kept.  Which statements it takes is found out once for each pool,
and then they are sent together, in one round trip as before.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg2

from .log import logger

Execute = Callable[[str], object]

DISCARD_ALL = "DISCARD ALL"
_PARTS = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ROLE",
    "RESET ALL",
    "DEALLOCATE ALL",
    "UNLISTEN *",
    "SELECT pg_advisory_unlock_all()",
    "DISCARD PLANS",
    "DISCARD SEQUENCES",
    "DISCARD TEMP",
)
"""What DISCARD ALL stands for, as PostgreSQL documents it; RESET ROLE is a part of the second."""
_INDISPENSABLE = "RESET ALL"
# feature_not_supported, syntax_error, undefined_function, undefined_object; on a standby
# read_only_sql_transaction.
_UNKNOWN_THERE = ("0A000", "42601", "42883", "42704", "25006")
_PASSING = ("08", "40", "53", "55", "57", "58")
"""Classes of errors that say nothing of what a server knows: the next time may be another."""


class ResetRefused(psycopg2.ProgrammingError):
    """The server cannot clear a session, so that each connection is closed after its loan."""


class SessionReset:
    """Clears sessions of one pool's servers; safe to use from any thread.

    Threads that find out at the same time find out the same.
    """

    __slots__ = ("_refused", "_statement", "_told")

    def __init__(self) -> None:
        self._statement = DISCARD_ALL
        self._refused: str | None = None  # why nothing helps
        self._told = [True]  # until a refusal is logged

    def send(self, execute: Execute, is_usable: Callable[[], bool]) -> None:
        """Clear a session by ``execute``, each of whose statements is a transaction of its own.

        ``is_usable`` tells whether the session has outlived a statement's error.
        Raises :class:`ResetRefused`, or what psycopg2 raises when the connection is lost.
        """
        if self._refused is not None:
            raise ResetRefused(self._refused)
        try:
            execute(self._statement)
        except psycopg2.Error as error:
            if _is_passing(error) or not is_usable():
                raise
            self._find_another_way(execute, is_usable, error)

    def _find_another_way(
        self, execute: Execute, is_usable: Callable[[], bool], refusal: psycopg2.Error
    ) -> None:
        """Send the parts one by one, and remember those that the server takes."""
        taken, unknown = [], []
        for sql in _PARTS:
            try:
                execute(sql)
            except psycopg2.Error as error:
                if _is_passing(error) or not is_usable():
                    raise
                if error.pgcode not in _UNKNOWN_THERE or sql == _INDISPENSABLE:
                    self._give_up(refusal, sql, error)
                unknown.append(sql)
            else:
                taken.append(sql)
        self._statement = "; ".join(taken)
        left = f"; it does not know {', '.join(unknown)} either" if unknown else ""
        self._tell(
            f'the server refuses DISCARD ALL, which reset="session" sends ({_reason(refusal)}):'
            f" its parts are sent instead{left}"
        )

    def _give_up(self, refusal: psycopg2.Error, sql: str, error: psycopg2.Error) -> None:
        why = (
            f'the server refuses DISCARD ALL, which reset="session" sends ({_reason(refusal)}),'
            f" and {sql} ({_reason(error)}): every connection is closed after one loan, so that"
            " each loan costs a login; give the pool a reset function that this server can serve,"
            " or reset=None"
        )
        self._refused = why
        self._tell(why)
        raise ResetRefused(why) from error

    def _tell(self, why: str) -> None:
        try:
            self._told.pop()  # one thread gets it
        except IndexError:
            return
        logger.warning("%s", why)


def _is_passing(error: psycopg2.Error) -> bool:
    return (error.pgcode or "").startswith(_PASSING)


def _reason(error: psycopg2.Error) -> str:
    return str(error).strip().partition("\n")[0]
