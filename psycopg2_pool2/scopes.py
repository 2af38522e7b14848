"""Which block a statement is part of: the connection that this thread or task is in.

A block is found by a context variable, so that threads and tasks have their own.
Tasks and threads that are started inside a block with a copy of its context (as
``asyncio`` does) are part of it while it lasts.  A connection does one thing
after the other, so their statements queue up at the block's lock; what comes too
late finds the block ended, and never the connection's next borrower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

import psycopg2

from .connector import IDLE, Connection
from .transactions import Savepoint, Transaction

T = TypeVar("T")


class Scope:
    """A block that has a connection; entering it makes it the current one of its database."""

    __slots__ = ("_in_transaction", "_is_open", "_lock", "_outer", "conn", "database")

    def __init__(self, database: object, conn: Connection, *, in_transaction: bool = False) -> None:
        self.database = database
        self.conn = conn
        self._in_transaction = in_transaction
        self._is_open = True
        self._lock = threading.RLock()  # one statement, or the end of the block, at a time

    def __enter__(self) -> Scope:
        self._outer = _current.get()
        _current.set(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
        self.end()

    def leave(self) -> None:
        """Be the current one no longer."""
        # Not by the token, which is refused in another context: that of a generator
        # which is closed elsewhere.
        _current.set(self._outer)

    def end(self, *, wait: bool = True) -> bool:
        """Let the statement that is running come to its end, and no other begin.

        Without ``wait``, return False if there is one that is running.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        self._is_open = False
        self._lock.release()
        return True

    def do(self, act: Callable[[Connection], T]) -> T:
        """Return ``act(conn)``; raise psycopg2's InterfaceError if the block has ended."""
        with self._lock:
            if not self._is_open:
                raise psycopg2.InterfaceError("the block of this connection has ended")
            return act(self.conn)

    def transaction(self, **characteristics: Any) -> AbstractContextManager[Connection]:
        """Return the transaction of a block in this one: a savepoint if there is one already."""
        if not self._in_transaction and self.conn.get_transaction_status() == IDLE:
            return self._outermost(Transaction(self.conn, **characteristics))
        if characteristics:
            raise ValueError(
                f"{', '.join(characteristics)}: can be set for the outermost transaction only"
            )
        return Savepoint(self.conn)

    @contextmanager
    def _outermost(self, transaction: Transaction) -> Iterator[Connection]:
        with transaction as conn:
            self._in_transaction = True
            try:
                yield conn
            finally:
                self._in_transaction = False


_current: ContextVar[Scope | None] = ContextVar("psycopg2_pool2_scope", default=None)


def current_scope(database: object) -> Scope | None:
    """Return the innermost block of this database that this thread or task is in."""
    scope = _current.get()
    while scope is not None and not (scope.database is database and scope._is_open):
        scope = scope._outer
    return scope
