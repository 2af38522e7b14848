"""A transaction, a savepoint in it, and what the answer to COMMIT means."""

from __future__ import annotations

import contextlib
import itertools
from types import TracebackType
from typing import Any

import psycopg2
import psycopg2.errors
from psycopg2 import extensions as ext

from .commits import commit
from .connector import INERROR, Connection
from .failures import says_lost

_numbers = itertools.count(1)


def is_lost(conn: Connection, error: BaseException) -> bool:
    """Tell whether a connection is gone after this error."""
    return bool(conn.closed) or says_lost(error)


class Transaction:
    """A transaction for the time of a ``with`` block: committed, or rolled back on an exception.

    Under autocommit too.  ``isolation_level``, ``readonly`` and ``deferrable``
    are those of psycopg2's ``set_session``, for this connection until it is
    returned.

    Raises :class:`CommitUncertain` if the connection is lost during COMMIT, and
    psycopg2's ``InFailedSqlTransaction`` if the block swallowed an error after
    which the server can only roll back.
    """

    __slots__ = ("_characteristics", "_conn")

    def __init__(self, conn: Connection, **characteristics: Any) -> None:
        self._conn = conn
        self._characteristics = characteristics

    def __enter__(self) -> Connection:
        if self._characteristics:
            self._conn.set_session(**self._characteristics)
        self._conn.__enter__()
        return self._conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._commit()
        else:
            with contextlib.suppress(psycopg2.Error):  # the block's own exception says more
                self._conn.__exit__(exc_type, exc, traceback)

    def _commit(self) -> None:
        conn = self._conn
        if conn.get_transaction_status() == INERROR:
            # COMMIT would roll back, and say nothing.
            conn.__exit__(psycopg2.Error, None, None)
            raise psycopg2.errors.InFailedSqlTransaction(
                "a statement in the transaction failed; it was rolled back"
            )
        if conn.closed:
            raise psycopg2.OperationalError("the connection was lost before COMMIT")
        commit(conn, lambda: conn.__exit__(None, None, None))


class Savepoint:
    """A part of a transaction for the time of a ``with`` block; undone alone on an exception."""

    __slots__ = ("_conn", "_name")

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._name = f"psycopg2_pool2_{next(_numbers)}"

    def __enter__(self) -> Connection:
        self._execute("SAVEPOINT {0}")
        return self._conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self._undo()
            return
        try:
            self._execute("RELEASE {0}")
        except psycopg2.Error:
            self._undo()
            raise

    def _undo(self) -> None:
        with contextlib.suppress(psycopg2.Error):  # what led here says more
            self._execute("ROLLBACK TO {0}; RELEASE {0}")

    def _execute(self, sql: str) -> None:
        with self._conn.cursor(cursor_factory=ext.cursor) as cursor:
            cursor.execute(sql.format(self._name))
