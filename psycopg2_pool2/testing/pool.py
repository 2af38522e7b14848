"""A pool whose borrowers share one session, for the time of a test."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

from ..connection import Tracked
from ..connector import Connection
from ..options import PoolOptions
from ..pool import ConnectionPool
from ..proxies import real_connection
from ..steps import Steps
from .connection import LentConnection
from .session import Loan, SharedSession

P = TypeVar("P", bound=ConnectionPool)


class Sandbox:
    """The loans of a pool whose borrowers share one session."""

    def __init__(self, conn: Connection) -> None:
        self.session = SharedSession(conn)
        self.loans: weakref.WeakKeyDictionary[Connection, Loan] = weakref.WeakKeyDictionary()
        self._classes: dict[type, type] = {}

    def lend(self, conn: Connection) -> None:
        """Have a connection that the pool has lent send everything to the shared session."""
        if conn in self.loans:  # lent before, under a key
            return
        if not self.loans:
            self.session.conn.notices, self.session.conn.notifies = [], []
        self.loans[conn] = Loan(self.session, conn)
        _set_class(conn, self._class(type(conn)))
        if self.session.over:  # the test ended while this thread borrowed
            _have_discarded(conn)

    def take_back(self, conn: Connection, options: PoolOptions) -> None:
        """Undo what was not committed, and have the connection be what it was, also if that fails.

        Raises :class:`NeedsRealTransactions`, or what ``configure`` raises.
        """
        loan = self.loans.get(conn) if isinstance(conn, LentConnection) else None
        if loan is None:
            return
        try:
            loan.leave()
            if options.reset == "session" and not conn.closed and loan.discard_state():
                if options.configure is not None:
                    options.configure(conn)
                    loan.commit()
        finally:
            loan.returned = True
            del self.loans[conn]
            _set_class(conn, type(conn).__bases__[0])

    def close(self) -> None:
        """Undo everything; what is still lent raises from now on, and is discarded on return."""
        self.session.over = True
        for reference in self.loans.keyrefs():  # a copy: other threads may still borrow
            conn = reference()
            if conn is not None:
                _have_discarded(conn)
        self.session.close()

    def _class(self, made: type) -> type:
        if made not in self._classes:
            # Tracked.cursor asks the next class, which is LentConnection.
            body = {"__slots__": (), "_sandbox": self, "cursor": Tracked.cursor}
            self._classes[made] = type(made.__name__, (made, LentConnection), body)
        return self._classes[made]


class RolledBackPool(ConnectionPool):
    """Overrides for the time of a test."""

    _sandbox: Sandbox

    def getconn(self, *args: Any, **kwargs: Any) -> Connection:
        """Borrow as always."""
        sandbox = self._sandbox
        conn = super().getconn(*args, **kwargs)
        sandbox.lend(real_connection(conn))
        return conn

    def _lending(self, *args: Any) -> Steps[Connection]:
        sandbox = self._sandbox
        conn = yield from super()._lending(*args)
        sandbox.lend(real_connection(conn))
        return conn

    def _returns_at_once(self, conn: Any) -> bool:
        return False  # what the borrower left open is undone then

    def putconn(self, conn: Connection, *args: Any, **kwargs: Any) -> None:
        """Return as always; raise if what was undone was not the borrower's alone."""
        try:
            self._sandbox.take_back(real_connection(conn), self._options)
        finally:
            super().putconn(conn, *args, **kwargs)

    def detach(self, conn: Connection) -> Connection:
        """Take a connection out of the pool, though not out of the test."""
        real = real_connection(conn)
        if not isinstance(real, LentConnection):
            return super().detach(conn)
        lent = type(real)
        _set_class(real, lent.__bases__[0])  # its own socket is no longer to be watched
        try:
            return super().detach(conn)
        finally:
            _set_class(real, lent)


def _have_discarded(conn: Connection) -> None:
    conn.pool_record.retired = conn.pool_record.attention = True


def _set_class(conn: Connection, cls: type) -> None:
    # Past Tracked, which would take it for a setting.
    object.__setattr__(conn, "__class__", cls)


@contextlib.contextmanager
def rolled_back(pool: P) -> Iterator[P]:
    """Undo, at the end of the block, all that is done with a pool's connections inside.

    The pool stays the same object with the same limits, counts and errors.  What
    it lends inside the block shares one session, which is taken out of the pool
    and never commits: the program's transactions are savepoints there.  Borrowers
    see what others have done, committed or not; nobody else sees anything.

    A block inside another undoes its own part, so that what the outer one has
    prepared is there for each.  Connections that were borrowed before the block
    are left alone; those not returned inside it raise
    :class:`psycopg2.InterfaceError` afterwards.

    Raises :class:`NeedsRealTransactions`, from ``rollback()`` or ``putconn()``,
    if undoing what one borrower did undid what another had done since.
    """
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"rolled_back() takes a ConnectionPool, not a {type(pool).__name__}")
    if isinstance(pool, RolledBackPool):
        pool._sandbox.session.enter()
        try:
            yield pool
        finally:
            pool._sandbox.session.leave()
        return
    sandbox = Sandbox(real_connection(pool.detach(pool.getconn())))
    own = type(pool)
    pool.__class__ = type(own.__name__, (RolledBackPool, own), {"_sandbox": sandbox})
    try:
        yield pool
    finally:
        pool.__class__ = own
        sandbox.close()
