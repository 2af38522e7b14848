"""Whether a connection is good: before it is lent, while it is idle, and when it comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import psycopg2

from .connector import ACTIVE, IDLE, Connection, Connector
from .monitor import Monitor
from .stats import Counters
from .store import Record

logger = logging.getLogger("psycopg2_pool2")


class Care:
    """Tests and cleans connections that are in the caller's hands.

    What goes over the network is guarded: after ``test_timeout`` seconds the
    socket is shut down under it.  (Not without the monitor: then the kernel's
    ``tcp_user_timeout`` is the limit.)
    """

    def __init__(
        self,
        name: str,
        connector: Connector,
        monitor: Monitor | None,
        test_timeout: float,
        counters: Counters,
    ) -> None:
        self.name = name
        self._connector = connector
        self._guard: Callable[[int, float], AbstractContextManager[None]]
        self._guard = _unguarded if monitor is None else monitor.guard
        self._test_timeout = test_timeout
        self._counters = counters

    def fault(
        self, conn: Connection, *, test: bool, seconds: float | None = None
    ) -> Exception | None:
        """Return what is wrong with a connection, by a test within ``seconds`` or a free probe.

        None if it is good.  What a test raises is returned, logged and counted.
        """
        record: Record = conn.pool_record
        if conn.closed or ((record.hung_up or not test) and not self._connector.probe(conn)):
            return psycopg2.OperationalError("the connection was lost")
        record.hung_up = False
        if not test:
            return None
        try:
            with self._guard(conn.fileno(), self._test_timeout if seconds is None else seconds):
                self._connector.test(conn)
        except Exception as error:
            self._counters.add("tests_failed")
            logger.debug("pool %r: a connection failed its test: %s", self.name, error)
            return error.with_traceback(None)
        record.suspect = False
        if conn.get_transaction_status() != IDLE:
            return psycopg2.ProgrammingError("the test left a transaction behind")
        return None

    def tidy(self, conn: Connection, record: Record) -> bool:
        """Clean up after a loan; False if the connection is lost or in doubt.

        What ``reset`` or ``configure`` raise is logged.
        """
        record.attention = False  # before the reasons are read
        if conn.closed or conn.get_transaction_status() == ACTIVE:
            return False
        if record.hung_up:
            if not self._connector.probe(conn):
                return False
            record.hung_up = False
        try:
            with self._guard(conn.fileno(), self._test_timeout):
                return self._connector.tidy(conn)
        except Exception as error:
            if not conn.closed:
                logger.warning("pool %r: cleaning a connection failed: %s", self.name, error)
            return False


def _unguarded(fd: int, seconds: float) -> AbstractContextManager[None]:
    return nullcontext()
