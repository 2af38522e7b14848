"""The class of the connections that a pool lends.

It is the user's ``connection_factory`` (psycopg2's own class unless given) with
four additions that cost an ordinary statement nothing: it carries the pool's
record, it tells when the program changes a setting or closes the connection,
it tells a COMMIT whose answer is lost from one that failed, and it never touches
a session that belongs to the parent of a forked process.

Without the second, every return would have to compare seven attributes: a third
of a whole borrow and return without test.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any
from weakref import ref

import psycopg2
from psycopg2._psycopg import ReplicationConnection
from psycopg2.extensions import connection, cursor

from .commits import commit
from .cursors import CURSORS, note
from .descriptors import leak
from .errors import ConnectionReturned
from .sockets import cut_off, owns_socket

_SLOTS = (
    "pool_baseline",
    "pool_cancel_request",
    "pool_casters",  # its own dict of the type casters that are registered on it
    "pool_configured_casters",  # a copy of that, made after ``configure``
    "pool_configured_ids",  # of the casters in the copy
    "pool_home",
    "pool_lent",  # the records of those lent; None while its cursors are nobody's business
    "pool_pid",
    "pool_proxy",  # see proxies.py; None where nothing traces
    "pool_record",
    "pool_socket",  # the identity of its socket
    "pool_token",  # its record's, see store.py
)
_OURS = frozenset(_SLOTS)
_MOST_LOOKED_AT = 100


class InheritedError(psycopg2.InterfaceError):
    """A forked child went on with what its parent had begun."""


class Tracked:
    """Mixin: tell the pool's record what the program does to its connection."""

    __slots__ = ()

    pool_lent: Any
    pool_record: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pool_pid = os.getpid()  # first: a fork may come while it is being opened
        self.pool_proxy = self.pool_lent = None
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in _OURS:
            self._touched()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor that ends with the loan.

        As :meth:`psycopg2.extensions.connection.cursor`.

        Raises :class:`ConnectionReturned` while the connection is not lent.
        """
        made = super().cursor(*args, **kwargs)  # type: ignore[misc]
        lent = self.pool_lent
        if lent is None:
            return made
        record = self.pool_record
        made = note(record, made)
        if record in lent:
            return made
        raise _not_lent()

    def set_session(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`psycopg2.extensions.connection.set_session`."""
        self._touched()
        super().set_session(*args, **kwargs)  # type: ignore[misc]

    def set_isolation_level(self, level: int | None) -> None:
        """See :meth:`psycopg2.extensions.connection.set_isolation_level`."""
        self._touched()
        super().set_isolation_level(level)  # type: ignore[misc]

    def commit(self) -> None:
        """Commit; raises :class:`CommitUncertain` where nobody can know whether that was done.

        So does psycopg2's ``with conn:``, which calls this.
        """
        commit(self, super().commit)  # type: ignore[misc]

    def set_client_encoding(self, encoding: str) -> None:
        """See :meth:`psycopg2.extensions.connection.set_client_encoding`."""
        self._touched()
        super().set_client_encoding(encoding)  # type: ignore[misc]

    def reset(self) -> None:
        """See :meth:`psycopg2.extensions.connection.reset`."""
        self._touched()
        super().reset()  # type: ignore[misc]

    def poll(self) -> Any:
        """Go on with what is under way; in a forked child that inherited it, fail.

        Greenlets live on in a child of gevent's fork.  One that waits there for
        an answer would read what is meant for the parent.
        """
        if self.is_inherited():
            cut_off(self)
            raise InheritedError("the connection belongs to the parent process")
        return super().poll()  # type: ignore[misc]

    def __exit__(self, *exc_info: Any) -> Any:
        """End psycopg2's ``with conn:``; in a forked child that inherited it, do nothing."""
        if self.is_inherited():
            return None
        return super().__exit__(*exc_info)  # type: ignore[misc]

    def close(self) -> None:
        """Close the connection; in a forked child that inherited it, do nothing.

        libpq would say good-bye on the socket that it shares with the parent,
        whose session would end.  Neither is one closed whose descriptor somebody
        else has closed: libpq would write to, and close, the file that has its
        number now.
        """
        if self.is_inherited():
            return
        record = getattr(self, "pool_record", None)
        if record is not None:
            record.hung_up = record.attention = True
        if owns_socket(self):
            super().close()  # type: ignore[misc]
        else:
            leak(self)

    def is_inherited(self) -> bool:
        """Tell whether it was opened by a process of which this is a forked child."""
        return bool(getattr(self, "pool_pid", os.getpid()) != os.getpid())

    def _touched(self) -> None:
        record = getattr(self, "pool_record", None)
        if record is not None:
            record.touched = record.attention = True


def _cursor(
    self: Any,
    name: Any = None,
    cursor_factory: Any = None,
    withhold: Any = False,
    scrollable: Any = None,
) -> Any:
    """Do what :meth:`Tracked.cursor` does, where nothing comes between that and psycopg2's.

    Written out: a loan with one cursor would take a third longer.
    """
    made = _make_cursor(self, name, cursor_factory, withhold, scrollable)
    lent = self.pool_lent
    if lent is None:
        return made
    record = self.pool_record
    if name is None and type(made) is _plain_cursor:
        noted = record.cursors
        noted.append(ref(made))
        if len(noted) > noted.most:
            noted.drop_gone()
        if not record.attention:
            record.attention = CURSORS
    else:
        made = note(record, made)
    if record in lent:
        return made
    raise _not_lent()


_cursor.__name__ = _cursor.__qualname__ = "cursor"
_make_cursor = connection.cursor
_plain_cursor = cursor


def _not_lent() -> ConnectionReturned:
    return ConnectionReturned(
        "the connection was returned to its pool, and is not lent to anybody now: borrow one"
        " instead of keeping it"
    )


class Messages(list[Any]):
    """The notices or notifications of a connection; tells the pool's record when one comes.

    psycopg2 calls ``append`` for each.  Looking into both lists at every return
    would cost a twelfth of a whole borrow and return.
    """

    __slots__ = ("_conn",)

    def __init__(self, conn: Any) -> None:
        super().__init__()
        self._conn = weakref.ref(conn)

    def append(self, message: Any) -> None:
        """Add a message, and have the connection cleaned on return."""
        super().append(message)
        conn = self._conn()
        if conn is not None:
            conn._touched()


class Returning(Tracked):
    """Mixin for ``close_returns``: closing gives the connection back to its pool."""

    __slots__ = ()

    def close(self) -> None:
        """Give the connection back; close it if its pool has gone or closed it out of its books."""
        home = getattr(self, "pool_home", None)
        pool = home() if home is not None else None
        if pool is None or not pool._take_back(self):
            super().close()


class PooledConnection(Tracked, connection):
    """A psycopg2 connection that belongs to a pool."""

    __module__ = connection.__module__  # after which tracers name what they trace
    __slots__ = _SLOTS
    cursor = _cursor


class ReturningConnection(Returning, connection):
    """A psycopg2 connection whose ``close()`` gives it back to its pool."""

    __module__ = connection.__module__
    __slots__ = _SLOTS
    cursor = _cursor


class _Noting(connection):
    """What comes below a class of the program's that makes cursors in its own way.

    That may return something that has the cursor inside.
    """

    __slots__ = ()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        made = super().cursor(*args, **kwargs)
        return made if self.pool_lent is None else note(self.pool_record, made)  # type: ignore[attr-defined]


def pooled_factory(factory: Callable[..., Any] | None, returning: bool) -> Callable[..., Any]:
    """Return the connection factory that a pool passes to psycopg2.

    A class is subclassed.  Any other callable is called, and the class of what
    it returns, or of the connection inside if that is a proxy, is replaced; that
    works for instances of Python classes only, so one that returns plain
    psycopg2 connections is a :class:`TypeError`, raised when the first
    connection is made.  So is one that makes replication connections; a class of
    these is refused here.
    """
    mixin = Returning if returning else Tracked
    if factory is None or factory is connection:
        return ReturningConnection if returning else PooledConnection
    if isinstance(factory, type):
        _refuse_replication(factory)
        return _subclass(mixin, factory, PooledConnection.__slots__)

    classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()

    def make(*args: Any, **kwargs: Any) -> Any:
        returned = factory(*args, **kwargs)
        conn = inner_connection(returned)
        made = type(conn)
        _refuse_replication(made)
        if not issubclass(made, connection):
            raise _no_class(made)
        try:
            if made not in classes:
                classes[made] = _subclass(mixin, made, ())
            object.__setattr__(conn, "__class__", classes[made])
            conn.pool_pid = os.getpid()
            conn.pool_proxy = conn.pool_lent = None
        except TypeError:
            raise _no_class(made) from None
        return returned

    return make


def _subclass(mixin: type, made: type, slots: tuple[str, ...]) -> type:
    body: dict[str, Any] = {"__module__": made.__module__, "__slots__": slots}
    below: tuple[type, ...] = (_Noting,)
    if made.cursor is connection.cursor:  # type: ignore[attr-defined]
        body["cursor"], below = _cursor, ()
    return type(f"Pooled{made.__name__}", (mixin, made, *below), body)


def _no_class(made: type) -> TypeError:
    return TypeError(
        "connection_factory must be a class, or return instances of a Python class;"
        f" it returned a {made.__name__}"
    )


def inner_connection(made: Any) -> Any:
    """Return psycopg2's connection inside of a proxy, or ``made`` itself if there is none.

    Looked for in a proxy's ``__wrapped__`` and its attributes, at any depth.
    """
    seen: list[Any] = [made]
    for candidate in seen:  # which grows meanwhile
        if issubclass(type(candidate), connection):
            return candidate
        if len(seen) < _MOST_LOOKED_AT:
            wrapped = getattr(candidate, "__wrapped__", None)
            seen += [wrapped, *getattr(candidate, "__dict__", {}).values()]
    return made


def _refuse_replication(made: type) -> None:
    if issubclass(made, ReplicationConnection):
        raise TypeError(
            "connection_factory must not make replication connections: their settings can be"
            " neither read nor put back, so that they cannot be pooled"
        )


def really_close(conn: Any) -> None:
    """Close the connection itself, whatever its ``close`` means to the program."""
    if not issubclass(type(conn), Tracked):  # a proxy is one to isinstance
        conn.close()
    elif conn.is_inherited():
        pass
    elif owns_socket(conn):
        super(Tracked, conn).close()
    else:
        leak(conn)
