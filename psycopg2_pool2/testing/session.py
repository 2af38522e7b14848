"""One session for all borrowers of a pool, whose transactions are savepoints of its own.

Savepoints are a stack, transactions are not: that of one borrower may end while
that of another, begun later, goes on.  So a level of the stack whose transaction
was committed is released only when it comes to the top, and before a second
borrower begins, the levels on top that have written nothing are let go: nothing
would be undone by rolling them back.  The server knows which those are, for a
level that has written has a transaction id, and holds a lock on it.

What remains is a borrower who has written, and who rolls back after another,
begun later, has written too: with sessions of their own the other's work would
stay, here it goes.  That is an error, not a result to be trusted.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from itertools import count
from typing import Any

import psycopg2
from psycopg2 import errors
from psycopg2 import extensions as ext

from ..connection import really_close
from ..connector import IDLE, INERROR, Connection
from ..sockets import cut_off
from ..waits import ask_to_stop

_PATIENCE = 5.0
"""Seconds that the end of a test waits for a statement of another thread."""

_WRITTEN = """SELECT count(*) FROM pg_catalog.pg_locks
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND pid = pg_backend_pid()"""

# What DISCARD ALL does, which is refused inside a transaction.
_DISCARD = """RESET SESSION AUTHORIZATION; RESET ALL; SET datestyle TO 'ISO'; CLOSE ALL;
UNLISTEN *; DEALLOCATE ALL; DISCARD TEMP; DISCARD SEQUENCES; SELECT pg_advisory_unlock_all()"""

# Deferred constraints are checked as COMMIT does, and are deferred afterwards as before.
_CHECK = """SAVEPOINT psycopg2_pool2_check; SET CONSTRAINTS ALL IMMEDIATE;
ROLLBACK TO SAVEPOINT psycopg2_pool2_check; RELEASE SAVEPOINT psycopg2_pool2_check"""


class NeedsRealTransactions(psycopg2.NotSupportedError):
    """What a test did cannot be done in one session: it needs a database of its own."""


class Loan:
    """What one borrower does in the shared session."""

    def __init__(self, session: SharedSession, conn: Connection) -> None:
        self.session = session
        self.entered = False  # inside psycopg2's `with conn:`
        self.explicit = False  # after BEGIN under autocommit
        self.begun = False
        self.failed = False  # its work was undone, which it is to be told
        self.returned = False
        self._conn = weakref.ref(conn)

    @property
    def is_lost(self) -> bool:
        """Whether its borrower dropped the connection."""
        return self._conn() is None

    @property
    def is_single(self) -> bool:
        """Whether each statement is a transaction."""
        conn = self._conn()
        autocommit = conn is not None and conn.autocommit
        return bool(autocommit) and not (self.entered or self.explicit)

    @property
    def is_read_only(self) -> bool:
        """Whether its transactions may write nothing."""
        conn = self._conn()
        return conn is not None and bool(conn.readonly)

    def transaction_status(self) -> int:
        """Return what libpq would say of a session of its own."""
        if self.session.over or not (self.begun or self.session.conn.closed):
            return IDLE
        status: int = self.session.conn.get_transaction_status()
        if self.session.conn.closed:
            return status
        if self.failed or (status == INERROR and self.session.owner is self):
            return INERROR
        return ext.TRANSACTION_STATUS_INTRANS

    def check(self) -> None:
        """Raise :class:`psycopg2.InterfaceError` if it is over."""
        if self.session.over:
            raise psycopg2.InterfaceError("the test that this connection was lent to has ended")
        if self.returned:
            raise psycopg2.InterfaceError("the connection was returned to its pool")
        if self.session.conn.is_inherited():
            raise psycopg2.InterfaceError("the process was forked inside rolled_back()")
        conn = self._conn()
        if conn is None or conn.closed:
            raise psycopg2.InterfaceError("connection already closed")

    @contextlib.contextmanager
    def statement(self) -> Iterator[None]:
        """Send something of this borrower, in its transaction, during the block."""
        self.check()  # before the lock, which a forked child may have inherited
        session = self.session
        with session.lock:
            if self.failed:
                raise errors.InFailedSqlTransaction("current transaction is aborted")
            session.require_transaction()
            session.begin(self)
            try:
                yield
            except BaseException:
                if self.is_single and not session.conn.closed:
                    session.rollback(self)
                raise
            session.require_transaction()
            if self.is_single:
                session.commit(self)

    def begin(self) -> None:
        """Begin a transaction, as BEGIN does."""
        with self.statement():
            self.explicit = True

    def commit(self) -> None:
        """Keep what was done, as COMMIT does: until the test ends."""
        self._end(self.session.commit)

    def rollback(self) -> None:
        """Undo what was done since the last commit."""
        self._end(self.session.rollback)

    def leave(self) -> None:
        """Undo what was not committed, even on a connection that is closed."""
        session = self.session
        if session.is_lost:
            return
        with session.lock:
            session.rollback(self)

    def _end(self, how: Any) -> None:
        self.check()
        with self.session.lock:
            self.explicit = False
            how(self)

    def discard_state(self) -> bool:
        """Do what DISCARD ALL would; False if that would harm another borrower."""
        if self.session.is_lost:
            return False
        with self.session.lock:
            if not self.session.is_free:
                return False
            self.session.begin(self)
            self.session.run(_DISCARD)
            self.session.commit(self)
            return True


class _Level:
    """One savepoint: the transaction of a borrower, or the floor of a test."""

    __slots__ = ("done", "holds_others", "name", "owner")

    def __init__(self, name: str, owner: Loan | None) -> None:
        self.name = name
        self.owner = owner  # None: a floor
        self.done = False  # committed
        self.holds_others = False  # what another borrower committed is inside


class SharedSession:
    """A session in a transaction that is never committed, and the stack of its savepoints."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.lock = threading.RLock()
        self.over = False
        self._levels: list[_Level] = []
        self._numbers = count(1)
        ext.connection.set_session(conn, readonly="default", deferrable="default", autocommit=False)
        _sessions.add(self)
        self.enter()

    @property
    def owner(self) -> Loan | None:
        """The borrower whose savepoint is the last."""
        return self._levels[-1].owner

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more."""
        return bool(self.over or self.conn.closed or self.conn.is_inherited())

    @property
    def is_free(self) -> bool:
        """Whether no borrower is in a transaction."""
        return self.owner is None

    # -- a test ------------------------------------------------------------

    def enter(self) -> None:
        """Begin a test, or a test inside another."""
        with self.lock:
            self._require_free()
            self._push(None)

    def leave(self) -> None:
        """Undo what was done since :meth:`enter`."""
        if self.is_lost:
            return
        with self._last_words():
            floor = max(i for i, level in enumerate(self._levels) if level.owner is None)
            self._cut(floor)

    def close(self) -> None:
        """Undo everything, and close the session."""
        self.over = True
        if self.conn.is_inherited():
            return
        with self._last_words():
            with contextlib.suppress(psycopg2.Error):
                ext.connection.rollback(self.conn)
            really_close(self.conn)

    @contextlib.contextmanager
    def _last_words(self) -> Iterator[None]:
        """Have the session for oneself; cancel what another thread does not finish in time."""
        mine = self.lock.acquire(timeout=_PATIENCE)
        if not mine:
            ask_to_stop(self.conn, _PATIENCE)
            mine = self.lock.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            if mine:
                self.lock.release()

    # -- transactions ------------------------------------------------------

    def begin(self, loan: Loan) -> None:
        """Have this borrower's savepoint be the last."""
        self._forget_lost()
        if self.owner is not loan:
            if self.owner is not None:
                self._leave_aborted(loan)
                self._let_readers_go()
            self._push(loan)
        loan.begun = True

    def commit(self, loan: Loan) -> None:
        """Keep this borrower's work; raise what a deferred constraint raises."""
        if loan.failed or self._is_aborted_by(loan):
            self.rollback(loan)
            return
        self._leave_aborted(loan)
        if self.owner is loan:
            try:
                self.run(_CHECK)
            except psycopg2.Error:
                self.rollback(loan)
                raise
        for level in self._of(loan):
            level.done = True
        loan.begun = False
        self._release_done()

    def rollback(self, loan: Loan) -> None:
        """Undo this borrower's work, and raise if that undoes another's."""
        self._leave_aborted(loan)
        if len(self._levels) - 1 > self._lowest(loan):
            self._let_readers_go()
        lowest = self._lowest(loan)
        levels = self._levels[lowest:]
        others = [level for level in levels if level.owner is not loan]
        if levels:
            self._cut(lowest)
        loan.begun = loan.failed = False
        self._release_done()
        if others or any(level.holds_others for level in levels):
            raise NeedsRealTransactions(
                "a rollback undid what another borrower has done since: both are in one session"
                " in this test, which needs a database of its own"
            )

    def require_transaction(self) -> None:
        """Raise if a statement ended the test's transaction, however it managed to."""
        if not self.conn.closed and self.conn.get_transaction_status() == IDLE:
            self.over = True
            raise NeedsRealTransactions(
                "a statement ended the transaction of the test: what was done so far"
                " may be in the database"
            )

    # -- the stack ---------------------------------------------------------

    def run(self, sql: str) -> Any:
        """Execute something of our own; return the first value of its answer."""
        cursor = ext.cursor(self.conn)
        cursor.execute(sql)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]

    def _of(self, loan: Loan) -> list[_Level]:
        return [level for level in self._levels if level.owner is loan and not level.done]

    def _lowest(self, loan: Loan) -> int:
        """Return the index of a borrower's first level, that above all if it has none."""
        own = self._of(loan)
        return self._levels.index(own[0]) if own else len(self._levels)

    def _push(self, owner: Loan | None) -> None:
        level = _Level(f"psycopg2_pool2_{next(self._numbers)}", owner)
        read_only = owner is not None and owner.is_read_only
        # Ends with the savepoint; an isolation level cannot be set inside a transaction.
        self.run(f"SAVEPOINT {level.name}" + ("; SET TRANSACTION READ ONLY" if read_only else ""))
        self._levels.append(level)

    def _cut(self, index: int) -> None:
        """Undo what was done at this level and above it."""
        name = self._levels[index].name
        self.run(f"ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}")
        for level in self._levels[index:]:
            if level.owner is not None and not level.done:
                level.owner.failed = True
        del self._levels[index:]

    def _release(self, index: int) -> None:
        self.run(f"RELEASE SAVEPOINT {self._levels[index].name}")
        del self._levels[index:]

    def _release_done(self) -> None:
        """Release what was committed and has come to the top."""
        while self._levels[-1].done:
            top, below = self._levels[-1], self._levels[-2]
            if below.owner is not None and below.owner is not top.owner:
                below.holds_others |= top.holds_others or self._written() == len(self._levels)
            self._release(len(self._levels) - 1)

    def _let_readers_go(self) -> None:
        """Release the levels on top that have written nothing."""
        floor = max(i for i, level in enumerate(self._levels) if level.owner is None)
        first = max(self._written(), floor + 1)
        if first < len(self._levels):
            self._release(first)

    def _written(self) -> int:
        """Return how many levels have written, counted from below; at most all.

        A level that has, has a transaction id, and so have those below it and the
        transaction itself.  A program's own savepoints count as well: then a
        level that has only read may be taken for one that has written.
        """
        written: int = self.run(_WRITTEN) - 1  # without the transaction itself
        return min(max(0, written), len(self._levels))

    def _is_aborted_by(self, loan: Loan) -> bool:
        return self.conn.get_transaction_status() == INERROR and self.owner is loan

    def _leave_aborted(self, loan: Loan) -> None:
        """Undo the level that a failed statement has aborted, on behalf of this borrower.

        If it is another's, he is told by his next statement.
        """
        if self.conn.get_transaction_status() == INERROR and self.owner is not None:
            self._cut(len(self._levels) - 1)

    def _forget_lost(self) -> None:
        """Roll back those who dropped their connections in a transaction."""
        for loan in {level.owner for level in self._levels if level.owner is not None}:
            if loan.is_lost and self._of(loan):
                self.rollback(loan)

    def _require_free(self) -> None:
        if self._levels and not self.is_free:
            raise NeedsRealTransactions("a transaction is open where a test begins")


_sessions: weakref.WeakSet[SharedSession] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Have the sessions of the parent survive whatever the child does with its copies."""
    for session in list(_sessions):
        with contextlib.suppress(Exception):
            cut_off(session.conn)


os.register_at_fork(after_in_child=_after_fork_in_child)
