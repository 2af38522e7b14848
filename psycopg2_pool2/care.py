"""Whether a connection is good: before it is lent, while it is idle, and when it comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psycopg2

from .connector import ACTIVE, IDLE, UNKNOWN, Connection, Connector
from .failure_kinds import FailureKind
from .failures import SilenceError, WrongRoleError, is_interruption, mark
from .guards import Guard, LocalGuard
from .log import logger
from .monitor import Monitor
from .session_reset import ResetRefused
from .sockets import owns_socket
from .stats import Counters
from .store import Record
from .timing import monotonic
from .waits import keeps_limits

VERIFIED_FOR = 0.001
"""Seconds for which a connection that had its own socket is taken to have it.

To look before every test would cost a twelfth of the test: after a wait for the server, all that a
system call needs has left the processor's caches.
"""


class Care:
    """Tests and cleans connections that are in the caller's hands.

    What goes over the network is guarded: after ``test_timeout`` seconds the
    connection is given up.
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
        self._guard: Callable[[Connection, float], Guard]
        self._guard = LocalGuard if monitor is None else monitor.guards.guard
        self._test_timeout = test_timeout
        self._counters = counters

    def fault(
        self, conn: Connection, *, test: bool, seconds: float | None = None
    ) -> Exception | None:
        """Return what is wrong with a connection, by a test within ``seconds`` or a free probe.

        None if it is good.  What a test raises is returned, logged and counted;
        a server that does not answer is a :class:`SilenceError`.
        """
        record: Record = conn.pool_record
        if self._is_lost(conn, probe=not test):
            return psycopg2.OperationalError("the connection was lost")
        if not test:
            return None
        error = self._bounded(self._connector.test, conn, seconds or self._test_timeout)
        if error is not None:
            self._counters.add("tests_failed")
            told = self._connector.tell(error)
            logger.debug("pool %r: a connection failed its test: %s", self.name, told)
            return error.with_traceback(None)
        record.suspect = False
        if record.attention:  # a message has come, which is not for the next borrower
            self._connector.forget_messages(conn)
        if conn.get_transaction_status() != IDLE:
            error = psycopg2.ProgrammingError("the test left a transaction behind")
            mark(error, FailureKind.CALLBACK)
            return error
        return None

    def _is_lost(self, conn: Connection, *, probe: bool) -> bool:
        """Tell whether a connection is closed, by a probe if it seems so or if that is wanted."""
        record: Record = conn.pool_record
        seems_lost, record.hung_up = record.hung_up, False  # before the probe, which may be outrun
        if conn.closed:
            return True
        now = monotonic()
        if seems_lost or now >= record.verified_until:  # it is about to be written to
            if not owns_socket(conn):
                return True
            record.verified_until = now + VERIFIED_FOR
        return (seems_lost or probe) and not self._connector.probe(conn)

    def prepare(self, conn: Connection) -> None:
        """Make a new connection ready for use; raises what ``configure`` raises."""
        error = self._bounded(self._connector.prepare, conn, self._test_timeout)
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback refers to this frame

    def is_busy(self, conn: Connection) -> bool:
        """Tell whether a statement may still be running."""
        return self._connector.is_busy(conn)

    def tidy(self, conn: Connection, record: Record) -> Exception | None:
        """Clean up after a loan; return why the connection is lost or in doubt, if it is.

        What ``reset`` or ``configure`` raise is logged.
        """
        if conn.closed or conn.get_transaction_status() in (ACTIVE, UNKNOWN):
            return psycopg2.OperationalError("the connection was lost, or in use")
        if self._is_lost(conn, probe=False):
            return psycopg2.OperationalError("the connection was lost")
        error = self._bounded(self._connector.tidy, conn, self._test_timeout)
        if error is not None:
            # That a server has gone is told when connecting fails; a refusal has been, once.
            lost = conn.closed or isinstance(error, (SilenceError, ResetRefused))
            logger.log(
                logging.DEBUG if lost else logging.WARNING,
                "pool %r: cleaning a connection failed: %s",
                self.name,
                self._connector.tell(error),
            )
            error.with_traceback(None)  # which refers to this frame
        if error is None and conn.get_transaction_status() != IDLE:
            return psycopg2.ProgrammingError("the reset left a transaction behind")
        if error is None and self._connector.has_lost_role(conn):
            return WrongRoleError("the server is not in its role any more")
        return error

    def _bounded(
        self, act: Callable[[Connection], object], conn: Connection, seconds: float
    ) -> Exception | None:
        """Do something on the network, for at most so many seconds; return its error."""
        # Where psycopg2 waits in Python the waiting itself can be given a limit.
        guard = LocalGuard(conn, seconds) if keeps_limits() else self._guard(conn, seconds)
        lost: Exception | None = None
        try:
            try:
                act(conn)
            finally:
                lost = guard.lift()
        except Exception as failure:
            if is_interruption(failure):
                raise
            if lost is None:
                return failure  # in no variable: its traceback refers to this frame
        return lost
