"""Stand-ins for what tests must control."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import ConnectionPool, connector
from psycopg2_pool2.connection import Tracked
from psycopg2_pool2.failures import copy_error
from psycopg2_pool2.options import PoolOptions


class FakeClock:
    """A clock that stands still until it is told to go on: `FakeClock()` is callable."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


def options(**given: Any) -> PoolOptions:
    """Return a pool's options, as its defaults are unless given."""
    parameters = inspect.signature(ConnectionPool).parameters
    names = inspect.signature(PoolOptions).parameters
    return PoolOptions(
        **{name: given.get(name, parameters[name].default) for name in names}
    ).checked()


class _Session:
    """What psycopg2's own class does: the part under `Tracked`."""

    def __init__(self, driver: FakeDriver, fd: int) -> None:
        self.driver = driver
        self.fd = fd
        self.closed = 0
        self.status = ext.STATUS_READY
        self.transaction = ext.TRANSACTION_STATUS_IDLE
        self.autocommit = False
        self.isolation_level = self.readonly = self.deferrable = self.cursor_factory = None
        self.encoding = "UTF8"
        self.string_types: dict[int, Any] = {}
        self.notices: list[str] = []
        self.notifies: list[object] = []

    @property
    def is_dead(self) -> bool:
        """Whether the server has gone away from this session."""
        return self.fd in self.driver.dead

    def ask(self) -> None:
        """Send something and wait for the answer."""
        if self.is_dead:
            self.closed = 2
        if self.closed:
            raise psycopg2.OperationalError("server closed the connection unexpectedly")

    def begin(self, status: int = ext.TRANSACTION_STATUS_INTRANS) -> None:
        """Be in a transaction, or in the middle of a statement."""
        self.transaction = status
        self.status = ext.STATUS_BEGIN

    def end(self, how: str = "rollback") -> None:
        self.ask()
        self.transaction, self.status = ext.TRANSACTION_STATUS_IDLE, ext.STATUS_READY

    def get_transaction_status(self) -> int:
        return ext.TRANSACTION_STATUS_UNKNOWN if self.closed else self.transaction

    def fileno(self) -> int:
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        return self.fd

    def poll(self) -> None:
        self.ask()

    def cursor(self, kind: type[ext.cursor] = ext.cursor) -> ext.cursor:
        return kind.__new__(kind)  # of no connection

    def close(self) -> None:
        self.closed = self.closed or 1
        self.driver.hang_up(self)

    def __del__(self) -> None:
        self.driver.sockets.discard(self.fd)


class FakeConnection(Tracked, _Session):
    """A connection that a pool takes for psycopg2's."""

    pool_cancel_request: Any
    pool_record: Any
    pool_token: object


class FakeCancelRequest:
    """Counts how often a session is asked to stop."""

    def __init__(self, conn: FakeConnection) -> None:
        self._driver = conn.driver  # not the connection, which would never be collected

    def send(self, seconds: float) -> bool:
        self._driver.cancelled += 1
        return True


class FakeDriver:
    """In place of psycopg2 and a server; knows which sockets are open."""

    def __init__(self) -> None:
        self.sockets: set[int] = set()
        self.dead: set[int] = set()  # whose server has gone
        self.error: Exception | None = None  # what connecting raises
        self.connects = 0
        self.cancelled = 0
        self.most = 0  # how many sockets were open at a time
        self.on_close: Callable[[Any], object] = lambda conn: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this in the driver's place."""
        patch.setattr(psycopg2, "connect", self.connect)
        patch.setattr(connector, "_readable", lambda fd: fd in self.dead)
        patch.setattr(connector, "cancel_request", FakeCancelRequest)
        patch.setattr(connector, "_forget_messages", lambda conn: None)
        patch.setattr(connector, "_match_encoding", lambda conn: None)
        patch.setattr(connector, "_restore_settings", lambda conn: None)
        patch.setattr(connector, "_end_transaction", lambda conn, how: conn.end(how))
        patch.setattr(connector, "_execute_alone", lambda conn, sql: conn.ask())
        patch.setattr(connector, "_set_notifies", lambda conn, messages: None)

    def connect(self, **kwargs: object) -> FakeConnection:
        self.connects += 1
        if self.error is not None:
            raise copy_error(self.error)  # a new one each time, as psycopg2's are
        conn = FakeConnection(self, self.connects)
        conn.pool_cancel_request = FakeCancelRequest(conn)
        self.sockets.add(conn.fd)
        self.most = max(self.most, len(self.sockets))
        return conn

    def hang_up(self, conn: Any) -> None:
        """Close a socket, once."""
        if conn.fd in self.sockets:
            self.on_close(conn)
            self.sockets.discard(conn.fd)


def fake_pool(clock: FakeClock, *args: Any, **kwargs: Any) -> ConnectionPool:
    """Make a pool that lives by this clock and has no threads."""
    timed = type("TimedPool", (ConnectionPool,), {"_clock": staticmethod(clock)})
    pool: ConnectionPool = timed(*args, **{"num_workers": 0, **kwargs})
    return pool
