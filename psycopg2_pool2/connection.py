"""The class of the connections that a pool lends.

It is the user's ``connection_factory`` (psycopg2's own class unless given) with
three additions that cost an ordinary statement nothing: it carries the pool's
record, it tells when the program changes a setting or closes the connection,
and it never touches a session that belongs to the parent of a forked process.

Without the second, every return would have to compare seven attributes: a third
of a whole borrow and return without test.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from .sockets import cut_off

_SLOTS = (
    "pool_baseline",
    "pool_cancel_request",
    "pool_home",
    "pool_pid",
    "pool_record",
    "pool_token",
)
_OURS = frozenset(_SLOTS)


class InheritedError(psycopg2.InterfaceError):
    """A forked child went on with what its parent had begun."""


class Tracked:
    """Mixin: tell the pool's record what the program does to its connection."""

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pool_pid = os.getpid()  # first: a fork may come while it is being opened
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in _OURS:
            self._touched()

    def set_session(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`psycopg2.extensions.connection.set_session`."""
        self._touched()
        super().set_session(*args, **kwargs)  # type: ignore[misc]

    def set_isolation_level(self, level: int | None) -> None:
        """See :meth:`psycopg2.extensions.connection.set_isolation_level`."""
        self._touched()
        super().set_isolation_level(level)  # type: ignore[misc]

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
            cut_off(self.fileno())  # type: ignore[attr-defined]
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
        whose session would end.
        """
        if self.is_inherited():
            return
        record = getattr(self, "pool_record", None)
        if record is not None:
            record.hung_up = record.attention = True
        super().close()  # type: ignore[misc]

    def is_inherited(self) -> bool:
        """Tell whether it was opened by a process of which this is a forked child."""
        return bool(getattr(self, "pool_pid", os.getpid()) != os.getpid())

    def _touched(self) -> None:
        record = getattr(self, "pool_record", None)
        if record is not None:
            record.attention = True


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

    __slots__ = _SLOTS


class ReturningConnection(Returning, connection):
    """A psycopg2 connection whose ``close()`` gives it back to its pool."""

    __slots__ = _SLOTS


def pooled_factory(factory: Callable[..., Any] | None, returning: bool) -> Callable[..., Any]:
    """Return the connection factory that a pool passes to psycopg2.

    A class is subclassed.  Any other callable is called, and the class of what
    it returns is replaced; that works for instances of Python classes only, so
    one that returns plain psycopg2 connections is a :class:`TypeError`, raised
    when the first connection is made.
    """
    mixin = Returning if returning else Tracked
    if factory is None or factory is connection:
        return ReturningConnection if returning else PooledConnection
    if isinstance(factory, type):
        slots = {"__slots__": PooledConnection.__slots__}
        return type(f"Pooled{factory.__name__}", (mixin, factory), slots)

    classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()

    def make(*args: Any, **kwargs: Any) -> Any:
        conn = factory(*args, **kwargs)
        made = type(conn)
        try:
            if made not in classes:
                classes[made] = type(f"Pooled{made.__name__}", (mixin, made), {"__slots__": ()})
            object.__setattr__(conn, "__class__", classes[made])
            conn.pool_pid = os.getpid()
        except TypeError:
            raise TypeError(
                "connection_factory must be a class, or return instances of a Python class;"
                f" it returned a {made.__name__}"
            ) from None
        return conn

    return make


def really_close(conn: Any) -> None:
    """Close the connection itself, whatever its ``close`` means to the program."""
    if isinstance(conn, Tracked):
        if not conn.is_inherited():
            super(Tracked, conn).close()  # type: ignore[misc]
    else:
        conn.close()
