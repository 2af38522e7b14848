"""The cursors of a loan, which end with it.

A cursor that works on after its loan would do so in the next borrower's
transaction.  So each cursor that a connection makes while it is lent is noted on
the connection's record, weakly, and closed when the connection comes back.

**Client-side cursors** are closed by psycopg2's own ``close()``, which sends
nothing.  What a class of the program's does in its ``close()`` is not called: it
may raise, or execute something.

**Named cursors** have ended on the server when the transaction has.  psycopg2
does not know that: its ``close()`` would send a CLOSE, which may meet a cursor of
the next borrower's that has the same name.  So they are instances of a subclass
(:class:`NamedCursor`), and get another class when they end, whose methods refuse.

**The protocol between a return and another thread that makes a cursor:**

1. The maker notes the cursor, *then* sets the record's attention, *then* looks
   whether the connection still is lent.
2. A return takes the record out of those lent, *then* reads its attention, *then*
   ends what is noted.
3. Whichever comes second sees the other: the cursor is ended, or refused.

A cursor that a finalizer saves from the garbage collector, which clears weak
references first, is not noted any more.
"""

from __future__ import annotations

import functools
from typing import Any

import psycopg2
from psycopg2 import extensions as ext

from .interruptions import let_through

CURSORS = 2
"""What a record's ``attention`` is if nothing but its cursors asks for it.

It is written over False only.  Another thread's True may be overwritten all the
same; so whoever finds it reads the reasons too.
"""

_plain = ext.cursor
_close = ext.cursor.close
_MOST_CLASSES = 64  # for which subclasses are kept
_SETTABLE = (
    "arraysize",
    "itersize",
    "tzinfo_factory",
    "row_factory",
    "string_types",
    "binary_types",
    "scrollable",
    "withhold",
)


def note(record: Any, made: Any) -> Any:
    """Have a cursor end with the loan of its connection; return it, or one in its place.

    What is no cursor of psycopg2's, such as a wrapper, is returned as it is.
    """
    if not issubclass(type(made), ext.cursor):
        return made
    if made.name is not None:
        made = _endable(record, made)
    record.cursors.add(made)
    if not record.attention:
        record.attention = CURSORS
    return made


def end(record: Any) -> bool:
    """Close the cursors of a loan without a statement; tell whether none is left to close."""
    left = None
    for reference in record.cursors:
        cursor = reference()
        if type(cursor) is _plain and cursor.name is None:
            _close(cursor)
        elif cursor is not None and not _is_ended(cursor):
            left = [*(left or ()), reference]
    if left is not None:
        record.cursors[:] = left
        return False
    record.cursors.clear()
    return not record.held


def _is_ended(cursor: Any) -> bool:
    """End a cursor; False if only a statement could."""
    if isinstance(cursor, NamedCursor):
        return _has_class(cursor, type(cursor).pool_ended)
    if cursor.name is None:
        _close(cursor)
        return True
    return isinstance(cursor, _Ended)  # noted twice


def close_the_rest(record: Any) -> None:
    """Close what :func:`end` could not, in the loan's own transaction; raises psycopg2's errors."""
    for reference in record.cursors:
        cursor = reference()
        if cursor is not None:
            _close(cursor)
    record.cursors.clear()


# -- named cursors ---------------------------------------------------------


def _endable(record: Any, made: Any) -> Any:
    """Return a named cursor that can be ended without a statement, if there is a way."""
    kind = type(made)
    if issubclass(kind, NamedCursor):
        return made
    if kind is not ext.cursor:
        if _has_class(made, _subclass(kind)):  # type: ignore[arg-type]  # a class is hashable
            return made
    elif made.query is None:
        return _copy(made)
    # The class of the program's cannot be subclassed, or its function has executed something
    # already: this one's return takes a CLOSE.
    record.touched = record.attention = True
    return made


def _has_class(cursor: Any, kind: Any) -> bool:
    """Give a cursor another class; False if that cannot be."""
    try:
        object.__setattr__(cursor, "__class__", kind)
    except TypeError:
        return False
    return True


def _copy(made: Any) -> Any:
    """Return a cursor like one of psycopg2's own class, whose instances keep their class."""
    copy = NamedCursor(made.connection, made.name)
    for name in _SETTABLE:
        setattr(copy, name, getattr(made, name))
    return copy


@functools.lru_cache(_MOST_CLASSES)
def _subclass(kind: type) -> type | None:
    """Return the class of a program's named cursors while their loan lasts."""
    body = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__slots__": (),
    }
    try:
        ended: Any = type(kind)(kind.__name__, (_Ended, kind, _EndedBelow), dict(body))
        body["pool_ended"] = ended
        return type(kind)(kind.__name__, (kind, NamedCursor), body)
    except Exception as error:  # of the program's metaclass, or it is final
        let_through(error)
        return None


def _refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise psycopg2.InterfaceError("cursor already closed")


class _Ended:
    """What comes before a class of the program's when its cursor has ended."""

    __slots__ = ()

    execute = executemany = callproc = mogrify = scroll = _refuse
    fetchone = fetchmany = fetchall = nextset = _refuse
    copy_from = copy_to = copy_expert = cast = _refuse
    __iter__ = __next__ = __enter__ = _refuse

    @property
    def closed(self) -> bool:
        return True

    def close(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


class _EndedBelow(ext.cursor):
    """The same below it, for a method of the program's that somebody has kept."""

    __slots__ = ()
    __module__ = ext.cursor.__module__
    locals().update({name: x for name, x in vars(_Ended).items() if name not in vars(object)})


class _EndedNamedCursor(_Ended, _EndedBelow):
    __slots__ = ()
    __module__ = ext.cursor.__module__


class NamedCursor(ext.cursor):
    """A server-side cursor that can end without a statement.

    Its methods look whether it has ended, for those who have kept one of them;
    they send a statement, beside which that takes no time.  Not so iteration:
    there it is the class that changes.
    """

    __slots__ = ()
    __module__ = ext.cursor.__module__

    pool_ended: type = _EndedNamedCursor

    def execute(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`psycopg2.extensions.cursor.execute`."""
        _look(self)
        if self.withhold:
            _hold(self)  # first: it may be interrupted
        return ext.cursor.execute(self, *args, **kwargs)

    def fetchone(self) -> Any:
        """See :meth:`psycopg2.extensions.cursor.fetchone`."""
        _look(self)
        return ext.cursor.fetchone(self)

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`psycopg2.extensions.cursor.fetchmany`."""
        _look(self)
        return ext.cursor.fetchmany(self, *args, **kwargs)

    def fetchall(self) -> Any:
        """See :meth:`psycopg2.extensions.cursor.fetchall`."""
        _look(self)
        return ext.cursor.fetchall(self)

    def scroll(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`psycopg2.extensions.cursor.scroll`."""
        _look(self)
        return ext.cursor.scroll(self, *args, **kwargs)

    def close(self) -> None:
        """See :meth:`psycopg2.extensions.cursor.close`."""
        if not isinstance(self, _Ended):
            _close(self)
            _release(self)


def _look(cursor: Any) -> None:
    if isinstance(cursor, _Ended):
        _refuse(cursor)


def _hold(cursor: Any) -> None:
    """Note that a cursor outlives its transaction on the server, even when it is dropped here."""
    conn = cursor.connection
    if getattr(conn, "pool_lent", None) is not None:
        conn.pool_record.held.add(cursor.name)
        conn._touched()


def _release(cursor: Any) -> None:
    record = getattr(cursor.connection, "pool_record", None)
    if record is not None:
        record.held.discard(cursor.name)
