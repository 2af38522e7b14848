"""What a pool lends in place of a connection: a tracer's proxy, or a test's mock.

Tracers replace ``psycopg2.connect`` by a function that returns a proxy around
the connection.  The pool keeps, tests and cleans the connection itself and lends
the proxy.

**References.**  A proxy refers to its connection.  The connection refers to the
proxy while the pool has it, and only weakly while it is lent: otherwise both
would be a cycle, and a loan that the borrower drops would not be collected at
once.  Only the thread that has the connection in hand changes this.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions as ext

from .interruptions import let_through

Wrap = Callable[[Any], Any]
"""Returns a new proxy of a connection, or the connection itself where nothing traces any more."""


class LentProxy:
    """The proxy of one connection, in its attribute ``pool_proxy``."""

    __slots__ = ("_held", "_kind", "_ref", "_wrap")

    def __init__(self, proxy: Any, wrap: Wrap) -> None:
        self._wrap = wrap
        self._hold(proxy)

    def _hold(self, proxy: Any) -> None:
        self._kind = type(proxy)
        self._ref = _reference(proxy)
        self._held = proxy

    def current(self) -> Any:
        """Return the proxy; None if the borrower has dropped it."""
        return self._ref()

    def hand_out(self, conn: Any) -> Any:
        """Return the proxy of ``conn``, to be lent, and refer to it weakly from now on."""
        proxy = self._ref()
        self._held = None
        return conn if proxy is None else proxy  # an interrupted loan may have dropped it

    @property
    def is_weak(self) -> bool:
        """Whether the proxy can be referred to weakly; if not, it is held while it is lent too."""
        return isinstance(self._ref, weakref.ref)

    def release(self) -> None:
        """Hold the proxy no longer, since its connection is closed."""
        self._held = None
        if not self.is_weak:
            self._ref = _nothing

    def take_in(self, conn: Any, given: Any) -> None:
        """Hold the proxy of ``conn`` again; ``given`` is what came back in its place.

        That may be the connection itself, which a cursor's ``connection`` is, or
        a second proxy that the tracer made.  A proxy that the borrower has
        dropped is made again, without connecting.
        """
        self._held = self._ref()
        if self._held is not None:
            return
        proxy = given if type(given) is self._kind else self._wrapped_again(conn)
        if proxy is None or proxy is conn:
            conn.pool_proxy = None
        else:
            self._hold(proxy)

    def _wrapped_again(self, conn: Any) -> Any:
        try:
            return self._wrap(conn)
        except Exception as error:  # the tracer's
            let_through(error)
            return None


class StandIn:
    """What the pool keeps for a lent object that has none of the pool's connections inside.

    Such an object is what a test's mock of ``psycopg2.connect`` returns, or what
    another library does.  It is treated as in ``psycopg2.pool``: rolled back on
    return unless it is idle, discarded if it is closed.  It is not tested, reset
    or watched; what a mock counts are the program's calls.

    While the object is lent, the stand-in lives as long as the object does.

    Raises TypeError for an object without ``cursor()``.
    """

    __slots__ = (
        "__weakref__",
        "_is_closed",
        "pool_baseline",
        "pool_cancel_request",
        "pool_casters",
        "pool_configured_casters",
        "pool_configured_ids",
        "pool_home",
        "pool_lent",
        "pool_pid",
        "pool_proxy",
        "pool_record",
        "pool_token",
    )

    status = ext.STATUS_READY

    def __init__(self, foreign: Any) -> None:
        if not callable(getattr(foreign, "cursor", None)):
            name = type(foreign).__name__
            raise TypeError(f"psycopg2.connect was replaced and returned no connection: a {name}")
        self.pool_baseline = self.pool_cancel_request = self.pool_home = None
        self.pool_lent = None
        self.pool_casters = self.pool_configured_casters = self.pool_configured_ids = None
        self.pool_pid = os.getpid()
        self._is_closed = False
        self.pool_proxy = _LentForeign(foreign)

    @property
    def _foreign(self) -> Any:
        return self.pool_proxy.current()

    @property
    def closed(self) -> int:
        """What psycopg2's ``closed`` is; 0 where that is a mock's."""
        foreign = self._foreign
        closed = getattr(foreign, "closed", 0)
        return 1 if foreign is None else int(closed) if isinstance(closed, int) else 0

    def get_transaction_status(self) -> int:
        """Return idle unless a statement is under way or the connection is lost."""
        status = self._transaction_status()
        in_doubt = ext.TRANSACTION_STATUS_ACTIVE, ext.TRANSACTION_STATUS_UNKNOWN
        return status if status in in_doubt else ext.TRANSACTION_STATUS_IDLE

    def _transaction_status(self) -> int:
        # As psycopg2.pool reads it, which calls nothing; a mock's is not idle there either.
        info = getattr(self._foreign, "info", None)
        status = getattr(info, "transaction_status", ext.TRANSACTION_STATUS_IDLE)
        return status if isinstance(status, int) else ext.TRANSACTION_STATUS_INTRANS

    def fileno(self) -> int:
        """Return the socket of a connection of psycopg2's own; -1 for anything else."""
        foreign = self._foreign
        return foreign.fileno() if issubclass(type(foreign), ext.connection) else -1

    def is_inherited(self) -> bool:
        """Tell whether a process of which this is a forked child opened it."""
        return self.pool_pid != os.getpid()

    def prepare(self, configure: Callable[[Any], object] | None) -> None:
        """Call ``configure``, and commit what it left open."""
        if configure is not None:
            configure(self._foreign)
            if self._is_in_transaction():
                self._foreign.commit()

    def validate(self, test: Any) -> None:
        """Call ``test`` if it is the program's own function."""
        if callable(test):
            test(self._foreign)

    def clean(self, reset: Any) -> None:
        """Roll back unless it is idle, call ``reset`` if it is the program's own, and commit it."""
        if self._is_in_transaction():
            self._foreign.rollback()
        if callable(reset):
            reset(self._foreign)
            if self._is_in_transaction():
                self._foreign.commit()

    def _is_in_transaction(self) -> bool:
        # A mock that says nothing of `closed` was not made for such questions.
        tells = isinstance(getattr(self._foreign, "closed", None), int)
        return tells and self._transaction_status() != ext.TRANSACTION_STATUS_IDLE

    def close(self) -> None:
        """Close it, once; in a forked child that inherited it, do nothing."""
        if not self._is_closed and self._foreign is not None and not self.is_inherited():
            self._is_closed = True
            self._foreign.close()


_lent: dict[StandIn, Any] = {}
"""Those whose objects are lent, with a weak reference to each object that takes it out."""


class _LentForeign(LentProxy):
    """The object that a stand-in stands for."""

    __slots__ = ()

    def __init__(self, foreign: Any) -> None:
        super().__init__(foreign, lambda stand_in: None)

    def hand_out(self, stand_in: Any) -> Any:
        """Return the object; it does not refer to its stand-in, which is kept here."""
        _lent[stand_in] = _reference(self.current(), lambda _: _lent.pop(stand_in, None))
        return super().hand_out(stand_in)

    def take_in(self, stand_in: Any, given: Any) -> None:
        """Hold the object again."""
        foreign = self.current()
        if foreign is not None:  # else it was closed while it was lent
            self._hold(foreign)
        _lent.pop(stand_in, None)


def _nothing() -> None:
    return None


def _reference(item: Any, callback: Callable[[Any], object] | None = None) -> Callable[[], Any]:
    """Return a weak reference; a strong one to what cannot be referred to weakly."""
    try:
        return weakref.ref(item, callback)
    except TypeError:
        return lambda: item


def connect_is_mock() -> bool:
    """Tell whether ``psycopg2.connect`` is a mock of ``unittest.mock`` now."""
    connect: Any = psycopg2.connect
    # What autospec makes is a function with the mock in an attribute.
    kinds = type(getattr(connect, "mock", connect)).__mro__
    return any(kind.__name__ == "NonCallableMock" for kind in kinds)


def connect_is_replaced() -> bool:
    """Tell whether ``psycopg2.connect`` is another function now, and no tracer's wrapper of it."""
    return getattr(psycopg2.connect, "__module__", None) != "psycopg2"


def real_connection(lent: Any) -> Any:
    """Return the pool's connection inside of what was lent; ``lent`` itself if there is none."""
    record: Any = getattr(lent, "pool_record", None)
    conn = record.item() if issubclass(type(record), weakref.ref) else None
    return lent if conn is None else conn


def lent_instead(conn: Any) -> Any:
    """Return what is lent in place of a connection, for weak references: else that itself."""
    proxy: LentProxy | None = conn.pool_proxy
    lent = proxy.current() if proxy is not None and proxy.is_weak else None
    return conn if lent is None else lent


def find_record(lent: Any, records: set[Any]) -> Any:
    """Return the record of what was lent; None if it has none and is not among ``records``.

    It is looked for there if it is a mock, or a proxy that forwards no attributes.
    """
    record = getattr(lent, "pool_record", None)
    if isinstance(record, weakref.ref):
        return record
    for record in records.copy() if lent is not None else ():
        conn = record()
        if conn is not None and conn.pool_proxy is not None and conn.pool_proxy.current() is lent:
            return record
    return None
