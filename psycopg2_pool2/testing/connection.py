"""What a connection and its cursors are while they are lent in a test.

Each lent connection keeps a session of its own, in which nothing happens: the
pool tests, watches and cleans that one.  What the program sends goes to the
shared session instead.  For that the connection is given another class for the
time of its loan, with the overrides just above psycopg2's own class, below all
that the program's ``connection_factory`` and ``cursor_factory`` add.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import extensions as ext

from .session import Loan
from .statements import Control, control

if TYPE_CHECKING:
    from .pool import Sandbox

_own_connection: Any = vars(ext.cursor)["connection"].__get__
_own_closed: Any = vars(ext.connection)["closed"].__get__


def _delegate(name: str) -> Any:
    """Return a property that is the shared session's attribute or method."""

    def get(self: Any) -> Any:
        return getattr(self._loan.session.conn, name)

    return property(get)


def _guarded(name: str) -> Any:
    """Return psycopg2's own attribute, which cannot be set in a transaction."""
    own = getattr(ext.connection, name)

    def set_value(self: Any, value: Any) -> None:
        self._require_idle(name)
        own.__set__(self, value)

    return property(own.__get__, set_value)


def _refused(name: str) -> Any:
    def refuse(self: Any, *_: Any) -> Any:
        raise psycopg2.NotSupportedError(f"{name} is not possible in a test that is rolled back")

    return refuse


class LentConnection(ext.connection):
    """Overrides for the time of a loan."""

    __slots__ = ()

    _sandbox: Sandbox

    @property
    def _loan(self) -> Loan:
        return self._sandbox.loans[self]

    # -- what goes to the shared session -----------------------------------

    cancel = _delegate("cancel")
    get_backend_pid = _delegate("get_backend_pid")
    get_parameter_status = _delegate("get_parameter_status")
    info = _delegate("info")
    isexecuting = _delegate("isexecuting")
    poll = _delegate("poll")

    @property
    def notices(self) -> Any:
        """What the server said to the shared session."""
        return self._loan.session.conn.notices

    @notices.setter
    def notices(self, value: Any) -> None:
        self._loan.session.conn.notices = value

    @property
    def notifies(self) -> Any:
        """What other sessions have notified the shared session of."""
        return self._loan.session.conn.notifies

    @notifies.setter
    def notifies(self, value: Any) -> None:
        self._loan.session.conn.notifies = value

    def cursor(
        self,
        name: Any = None,
        cursor_factory: Any = None,
        withhold: bool = False,
        scrollable: Any = None,
    ) -> Any:
        """Return a cursor of the shared session that takes this one for its connection."""
        loan = self._loan
        loan.check()
        shared = loan.session.conn
        # What the program has register_type'd for this connection.
        shared.string_types.update(self.string_types)
        shared.binary_types.update(self.binary_types)
        own: Any = self.cursor_factory
        factory = _lent_cursor(cursor_factory or own or ext.cursor)
        made = ext.connection.cursor(shared, name, factory, withhold, scrollable)
        vars(made).update(_loan=loan, _lent=self)
        return made

    def fileno(self) -> int:
        """Return the shared session's socket; after the test the pool is to find its own."""
        session = self._loan.session
        return ext.connection.fileno(self if session.over else session.conn)

    def lobject(self, *args: Any, **kwargs: Any) -> Any:
        """Open a large object in the shared session, in this borrower's transaction."""
        if self._loan.is_single:
            raise psycopg2.ProgrammingError("can't use a lobject outside of transactions")
        with self._loan.statement():
            return ext.connection.lobject(self._loan.session.conn, *args, **kwargs)

    # -- transactions ------------------------------------------------------

    @property
    def closed(self) -> int:
        """As psycopg2 has it; 2 if the shared session is lost."""
        own: int = _own_closed(self)
        session = self._loan.session
        return own if session.over else own or session.conn.closed

    @property
    def status(self) -> int:
        """As psycopg2 has it: whether this borrower is in a transaction."""
        return ext.STATUS_BEGIN if self._loan.begun else ext.STATUS_READY

    def get_transaction_status(self) -> int:
        """Return what libpq would say of a session of its own."""
        return self._loan.transaction_status()

    def commit(self) -> None:
        """Keep what was done, until the test ends."""
        self._loan.check()
        if not self._is_left_alone():
            self._loan.commit()

    def rollback(self) -> None:
        """Undo what was done since the last commit."""
        self._loan.check()
        if not self._is_left_alone():
            self._loan.rollback()

    def _is_left_alone(self) -> bool:
        # Under autocommit psycopg2 leaves an explicit BEGIN to the program.
        return bool(self.autocommit) and not self._loan.entered

    def __enter__(self) -> Any:
        loan = self._loan
        loan.check()
        if loan.entered:
            raise psycopg2.ProgrammingError("the connection cannot be re-entered recursively")
        loan.entered = True
        return self

    def __exit__(self, exc_type: Any, *_: Any) -> None:
        try:
            if exc_type is None:
                self.commit()
            else:
                self.rollback()
        finally:
            self._loan.entered = False

    def close(self) -> None:
        """Close it: what was not committed is undone, and the pool will discard it."""
        try:
            self._loan.leave()
        finally:
            ext.connection.close(self)

    # -- settings ----------------------------------------------------------

    autocommit = _guarded("autocommit")
    deferrable = _guarded("deferrable")
    isolation_level = _guarded("isolation_level")
    readonly = _guarded("readonly")

    def set_session(self, *args: Any, **kwargs: Any) -> None:
        """Set it; only ``readonly`` and ``autocommit`` have an effect on what is sent."""
        self._require_idle("set_session")
        ext.connection.set_session(self, *args, **kwargs)

    def set_isolation_level(self, level: int | None) -> None:
        """Roll back and set it, as psycopg2 does; transactions go on as they are."""
        self._loan.rollback()
        ext.connection.set_isolation_level(self, level)

    def reset(self) -> None:
        """Roll back and set settings and role back."""
        self._loan.rollback()
        ext.connection.reset(self)
        with self._loan.session.lock:
            session = self._loan.session
            session.begin(self._loan)
            session.run("RESET ALL; SET SESSION AUTHORIZATION DEFAULT")
            session.commit(self._loan)

    def set_client_encoding(self, encoding: str) -> None:
        """Refuse another encoding: psycopg2 changes it outside transactions only."""
        if ext.encodings.get(encoding.upper()) != ext.encodings.get(self.encoding):
            raise psycopg2.NotSupportedError(
                "the client encoding cannot be changed in a test that is rolled back"
            )

    def _require_idle(self, what: str) -> None:
        if self._loan.begun:
            raise psycopg2.ProgrammingError(f"{what} cannot be used inside a transaction")

    tpc_begin = _refused("a two-phase commit")
    tpc_prepare = _refused("a two-phase commit")
    tpc_commit = _refused("a two-phase commit")
    tpc_rollback = _refused("a two-phase commit")
    tpc_recover = _refused("a two-phase commit")


def _sending(name: str) -> Any:
    """Return a cursor's method as it is, sent in the borrower's transaction."""
    own: Callable[..., Any] = getattr(ext.cursor, name)

    @functools.wraps(own)
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._loan.statement():
            return own(self, *args, **kwargs)

    return send


def _fetching(name: str) -> Any:
    """Return a cursor's method as it is; with a named cursor it sends something."""
    own: Callable[..., Any] = getattr(ext.cursor, name)
    send = _sending(name)

    @functools.wraps(own)
    def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.name is None or self.closed:
            return own(self, *args, **kwargs)
        return send(self, *args, **kwargs)

    return fetch


class LentCursor(ext.cursor):
    """Overrides for the cursors of a lent connection."""

    _loan: Loan
    _lent: Any

    @property
    def connection(self) -> Any:  # type: ignore[override]
        """The connection that was borrowed."""
        return vars(self).get("_lent") or _own_connection(self)

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002
        """Execute a statement in the borrower's transaction; BEGIN, COMMIT and ROLLBACK are its."""
        loan = self._loan
        found = self._control(query)
        if found is not None:
            getattr(loan, found)()
            return
        if self.name is not None and loan.is_single and not self.withhold:
            raise psycopg2.ProgrammingError("can't use a named cursor outside of transactions")
        with loan.statement():
            ext.cursor.execute(self, query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        """Execute a statement for each of these, in the borrower's transaction."""
        if self._control(query) is not None:
            raise psycopg2.NotSupportedError("BEGIN, COMMIT and ROLLBACK are for execute()")
        with self._loan.statement():
            ext.cursor.executemany(self, query, vars_list)

    def _control(self, query: Any) -> Control | None:
        """Return what a statement does to the transaction; raise if that is not possible here."""
        if isinstance(query, (bytes, bytearray)):
            query = bytes(query).decode("latin-1")
        elif hasattr(query, "as_string"):
            query = query.as_string(self.connection)
        found = control(str(query))
        if found == "forbidden":
            raise psycopg2.NotSupportedError(
                "transaction control among other statements, AND CHAIN and PREPARE TRANSACTION"
                " are not possible in a test that is rolled back: send BEGIN, COMMIT and ROLLBACK"
                " by themselves"
            )
        return found

    callproc = _sending("callproc")
    copy_expert = _sending("copy_expert")
    copy_from = _sending("copy_from")
    copy_to = _sending("copy_to")

    close = _fetching("close")
    fetchall = _fetching("fetchall")
    fetchmany = _fetching("fetchmany")
    fetchone = _fetching("fetchone")
    scroll = _fetching("scroll")
    __next__ = _fetching("__next__")


_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def _lent_class(factory: type) -> type:
    if factory not in _classes:
        _classes[factory] = _new_class(factory)
    return _classes[factory]


def _new_class(factory: type) -> type:
    bases = (LentCursor,) if factory is ext.cursor else (factory, LentCursor)
    return type(f"Lent{factory.__name__}", bases, {})


def _lent_cursor(factory: Any) -> Any:
    """Return a cursor factory that makes what this one makes, with the overrides."""
    if isinstance(factory, type):
        return _lent_class(factory)

    def make(*args: Any, **kwargs: Any) -> Any:
        made = factory(*args, **kwargs)
        if type(made) is ext.cursor:
            raise TypeError("cursor_factory must return instances of a Python class")
        made.__class__ = _lent_class(type(made))
        return made

    return make
