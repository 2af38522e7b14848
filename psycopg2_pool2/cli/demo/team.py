"""Workers who transfer money all the time, and the tally of what befalls them."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psycopg2

from psycopg2_pool2 import PoolClosed

from .bank import Bank, Transfer

_ATTEMPTS = 20
_REST = 0.01
"""The longest rest of a worker between two transfers."""


@dataclass
class Tally:
    """What befell the workers."""

    transfers: int = 0
    repeated: int = 0
    borrow_errors: int = 0
    longest_wait: float = 0.0
    failures: list[BaseException] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, transfers: int = 0, repeated: int = 0, borrow_errors: int = 0) -> None:
        """Count one more of something."""
        with self._lock:
            self.transfers += transfers
            self.repeated += repeated
            self.borrow_errors += borrow_errors

    def waited(self, seconds: float) -> None:
        """Note how long a borrow took."""
        with self._lock:
            self.longest_wait = max(self.longest_wait, seconds)

    def absorb(self, other: Tally) -> None:
        """Add what another one has counted."""
        self.add(
            transfers=other.transfers, repeated=other.repeated, borrow_errors=other.borrow_errors
        )
        self.waited(other.longest_wait)

    def __str__(self) -> str:
        return (
            f"{self.transfers:,} transfers, borrow errors: {self.borrow_errors},"
            f" transactions repeated: {self.repeated},"
            f" longest wait: {self.longest_wait * 1000:,.0f} ms"
        )


class Team:
    """Workers, each a thread, who transfer money from the block's beginning to its end."""

    def __init__(self, bank: Bank, size: int) -> None:
        self.tally = Tally()
        self._bank = bank
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]

    def __enter__(self) -> Team:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        if exc is not None:
            self._bank.pool.shutdown()  # sends home who waits for a connection
        for thread in self._threads:
            thread.join()
        if exc is None and self.tally.failures:
            failure = self.tally.failures[0]
            raise RuntimeError(f"a worker failed: {failure!r}") from failure

    def _work(self) -> None:
        try:
            while not self._end.wait(random.uniform(0, _REST)):
                self._complete(self._bank.invent())
        except PoolClosed:
            pass
        except BaseException as error:
            self.tally.failures.append(error)

    def _complete(self, transfer: Transfer) -> None:
        """Try until it is done: the pool finds connections, but repeating is for who knows how."""
        for _ in range(_ATTEMPTS):
            if self._try(transfer):
                self.tally.add(transfers=1)
                return
        raise RuntimeError(f"transfer {transfer.number} was given up after {_ATTEMPTS} attempts")

    def _try(self, transfer: Transfer) -> bool:
        """Tell whether it was done; false when its connection, or the borrow of one, failed."""
        conn: Any = None
        started = time.monotonic()
        try:
            with self._bank.pool.transaction() as conn:
                self.tally.waited(time.monotonic() - started)
                self._bank.move(conn, transfer)
            return True
        except PoolClosed:
            raise
        except psycopg2.Error:
            if conn is None:
                self.tally.add(borrow_errors=1)
            elif conn.closed:
                self.tally.add(repeated=1)
            else:
                raise
            return False
