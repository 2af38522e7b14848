"""Connections borrowed under a key, in psycopg2's manner: one key, one connection while in use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from operator import attrgetter
from typing import Any

from .bell import Bell
from .timing import Deadline

_LOOK_AGAIN = 0.5


class _KeyedLoan:
    """What is borrowed under one key; the bell rings when that is known."""

    __slots__ = ("bell", "conn", "record", "settled")

    def __init__(self) -> None:
        # Held strongly, as psycopg2 does: a program may know it by its key alone.
        self.conn: Any = None
        self.record: Any = None
        self.settled = False
        self.bell = Bell()

    def is_settled(self) -> bool:
        """Tell whether it is known."""
        return self.settled


class KeyedLoans:
    """Which connection is lent under which key.

    Of several who ask for the same key at once the first one borrows and the
    others wait for him, each until his own deadline; if he fails, the next one
    tries.
    """

    def __init__(
        self,
        is_lent: Callable[[Any], bool],
        record_of: Callable[[Any], Any] = attrgetter("pool_record"),
    ) -> None:
        self._is_lent = is_lent  # whether the connection of a record still is in use
        self._record_of = record_of
        self._lock = threading.RLock()
        self._loans: dict[Hashable, _KeyedLoan] = {}

    def get(self, key: Hashable, borrow: Callable[[], Any], deadline: Deadline) -> Any:
        """Return the connection lent under ``key``, borrowing one if there is none.

        Returns None if the first one has not finished by the deadline.
        """
        while True:
            mine = _KeyedLoan()
            try:
                loan = self._loans.setdefault(key, mine)
                if loan is mine:
                    return self._borrow(key, mine, borrow)
            except BaseException:
                self._drop(key, mine)
                raise
            finally:
                mine.settled = True  # not in a call, whose beginning can be interrupted
                mine.bell.ring()
            while not loan.bell.wait(deadline.slice(_LOOK_AGAIN), loan.is_settled):
                if deadline.remaining() == 0:
                    return None
            conn = loan.conn
            if conn is not None and self._loans.get(key) is loan:
                # Else the thread that returned it was interrupted.
                if self._is_lent(loan.record):
                    return conn
            self._drop(key, loan)  # it failed, or came back

    def end(self, record: Any) -> None:
        """Free the key of a connection that comes back."""
        loan = self._loans.get(record.key)
        if loan is not None and loan.record is record:
            self._drop(record.key, loan)
        record.key = None

    def _borrow(self, key: Hashable, loan: _KeyedLoan, borrow: Callable[[], Any]) -> Any:
        conn = borrow()
        record = self._record_of(conn)
        record.key, record.attention = key, True  # so that end() is called
        loan.record, loan.conn = record, conn
        return conn

    def _drop(self, key: Hashable, loan: _KeyedLoan) -> None:
        with self._lock:
            if self._loans.get(key) is loan:
                del self._loans[key]
