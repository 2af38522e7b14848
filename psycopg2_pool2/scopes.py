"""Which block a statement is part of: the connection that this thread or task is in.

A block is found by a context variable, so that threads and tasks have their own.
Tasks and threads that are started inside a block with a copy of its context (as
``asyncio`` does) are part of it while it lasts.  A connection does one thing
after the other, so their statements queue up at the block's lock; what comes too
late finds the block ended, and never the connection's next borrower.

The variable holds the innermost block, and that the one around it.  A block that
ends is skipped from then on wherever it was found; the variable is never set back
to what it was, since that may be another context's, and the blocks that began
later may still be open.

A block inside a generator is found by the generator's frame too, so that it is
the generator's wherever that is resumed, and not the block of the code that
iterates over it (:mod:`.callers`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

import psycopg2

from .callers import Origin, Place, Stack, outside, stack
from .connector import IDLE, Connection
from .log import logger
from .transactions import Savepoint, Transaction

T = TypeVar("T")

_MOST_TOLD = 1000


class Outside:
    """What a database has executed outside any block: how many statements, and where the last."""

    __slots__ = ("count", "place")

    def __init__(self) -> None:
        self.count = 0
        self.place = Place(None)

    def note(self) -> None:
        """Count a statement of the present caller; about right if several threads do."""
        self.place = Place(outside())
        self.count += 1


class Scope:
    """A block that has a connection; entering it makes it the current one of its database."""

    __slots__ = (
        "__weakref__",
        "_in_transaction",
        "_is_open",
        "_lock",
        "_origin",
        "_outer",
        "_outside",
        "_parent",
        "_seen",
        "conn",
        "database",
    )

    def __init__(
        self,
        database: object,
        conn: Connection,
        *,
        in_transaction: bool = False,
        parent: Scope | None = None,
    ) -> None:
        self.database = database
        self.conn = conn
        self._parent = parent
        self._in_transaction = in_transaction
        self._is_open = True
        # One statement, or the end of the block, at a time.
        self._lock: Any = threading.RLock() if parent is None else parent._lock
        self._outside: Outside | None = getattr(database, "_outside", None)
        self._seen = 0

    def __enter__(self) -> Scope:
        self._origin = Origin()
        if self._outside is not None:
            self._seen = self._outside.count
        self._outer = _without_ended(_current.get())
        _current.set(self)
        if self._origin.generator is not None:
            _note_generator(self, self._origin.generator)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()
        self.end()

    def leave(self) -> None:
        """Be the current one no longer, in the context that it began in or another."""
        generator = self._origin.generator
        if generator is not None:
            _generators.pop((generator, id(self.database)), None)
        found = _current.get()
        while found is not None and found is not self:
            found = found._outer
        self._is_open = False
        if found is not None:
            _current.set(_without_ended(_current.get()))
        elif self._parent is None:
            self._tell_of_end_elsewhere()

    def _tell_of_end_elsewhere(self) -> None:
        """Warn of statements that may have been meant for this block of another context."""
        if self._origin.is_iterated or self._outside is None or self._outside.count <= self._seen:
            return
        _tell_once(
            "the statement at %s was executed outside the block that began at %s: that ended in"
            " another context than it began in, and was not the active one in between. Use the"
            " connection that it yields, or begin and end it in one context.",
            self._outside.place,
            self._origin,
        )

    def end(self, *, wait: bool = True) -> bool:
        """Let the statement that is running come to its end, and no other begin.

        Without ``wait``, return False if there is one that is running.
        """
        self._is_open = False
        if not self._lock.acquire(blocking=wait):
            return False
        self._lock.release()
        return True

    def do(self, act: Callable[[Connection], T]) -> T:
        """Return ``act(conn)``; raise psycopg2's InterfaceError if the block has ended."""
        with self._lock:
            if not self.is_whole():
                raise psycopg2.InterfaceError("the block of this connection has ended")
            if self._outside is not None:
                self._seen = self._outside.count
            return act(self.conn)

    def is_whole(self) -> bool:
        """Tell whether the block is open, and the one whose connection it uses."""
        scope: Scope | None = self
        while scope is not None:
            if not scope._is_open:
                return False
            scope = scope._parent
        return True

    def nested(self) -> Scope:
        """Return a block in this one, on the same connection.

        If this one ends first, as that of a generator may, what is executed in
        the inner one raises InterfaceError: outside it would be committed alone.
        """
        return Scope(self.database, self.conn, parent=self)

    def is_in(self, other: Scope) -> bool:
        """Tell whether this is that block, or nested in it."""
        scope: Scope | None = self
        while scope is not None and scope is not other:
            scope = scope._parent
        return scope is not None

    def transaction(self, **characteristics: Any) -> Guarded:
        """Return the transaction of a block in this one: a savepoint if there is one already."""
        root = self
        while root._parent is not None:
            root = root._parent
        if not root._in_transaction and self.conn.get_transaction_status() == IDLE:
            return Guarded(self, root._outermost(Transaction(self.conn, **characteristics)))
        if characteristics:
            raise ValueError(
                f"{', '.join(characteristics)}: can be set for the outermost transaction only"
            )
        return Guarded(self, Savepoint(self.conn))

    @contextmanager
    def _outermost(self, transaction: Transaction) -> Iterator[Connection]:
        with transaction as conn:
            self._in_transaction = True
            try:
                yield conn
            finally:
                self._in_transaction = False

    def is_suspended_by(self, frames: Stack) -> bool:
        """Tell whether it is a generator's that is suspended; warn once of what comes meanwhile."""
        if not self._origin.is_iterated or not self._origin.is_suspended_by(frames):
            return False
        undone = (
            ""
            if self._parent is None
            else " It is on the same connection, and undone with that block."
        )
        _tell_once(
            "the statement at %s is not part of the block that began at %s: that is of a generator,"
            " which is suspended."
            + undone
            + " To have it in the block make the generator a context manager, with"
            " contextlib.contextmanager; else read the rows before.",
            Place(outside()),
            self._origin,
        )
        return True


class Guarded:
    """A transaction or savepoint; leaves the connection alone once the block around has ended."""

    __slots__ = ("_block", "_scope")

    def __init__(self, scope: Scope, block: AbstractContextManager[Connection]) -> None:
        self._scope = scope
        self._block = block

    @property
    def commits(self) -> bool:
        """Whether its end is a COMMIT."""
        return not isinstance(self._block, Savepoint)

    def __enter__(self) -> Connection:
        return self._scope.do(lambda _: self._block.__enter__())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None and not self._scope.is_whole():
            return
        self._scope.do(lambda _: self._block.__exit__(exc_type, exc, traceback))


_current: ContextVar[Scope | None] = ContextVar("psycopg2_pool2_scope", default=None)
_generators: dict[tuple[int, int], weakref.ref[Scope]] = {}  # by frame and database
_told: set[tuple[int, ...]] = set()


def current_scope(database: object) -> Scope | None:
    """Return the innermost block of this database that this thread or task is in."""
    scope = _next(_current.get(), database)
    if scope is None:
        return _by_frames(database, None) if _generators else None
    origin = scope._origin
    # To walk through the frames costs some microseconds.
    if len(_generators) > (origin.generator is not None) or origin.is_iterated:
        return _by_frames(database, scope)
    return scope


def _by_frames(database: object, scope: Scope | None) -> Scope | None:
    """Return the innermost block, where there are some in generators."""
    frames = stack()
    while scope is not None and scope.is_suspended_by(frames):
        scope = _next(scope._outer, database)
    for address, frame in frames.items():
        ref = _generators.get((address, id(database)))
        held = None if ref is None else ref()
        if held is not None and held._is_open and held._origin.code is frame.f_code:
            return scope if scope is not None and scope.is_in(held) else held
    return scope


def _next(scope: Scope | None, database: object) -> Scope | None:
    while scope is not None and not (scope.database is database and scope._is_open):
        scope = scope._outer
    return scope


def _without_ended(innermost: Scope | None) -> Scope | None:
    """Return the innermost open block, and take ended ones out of those around it."""
    while innermost is not None and not innermost._is_open:
        innermost = innermost._outer
    scope = innermost
    while scope is not None:
        outer = scope._outer
        while outer is not None and not outer._is_open:
            outer = outer._outer
        scope._outer = outer
        scope = outer
    return innermost


def _note_generator(scope: Scope, generator: int) -> None:
    key = generator, id(scope.database)

    def forget(ref: weakref.ref[Scope]) -> None:
        if _generators.get(key) is ref:
            del _generators[key]

    _generators[key] = weakref.ref(scope, forget)


def _tell_once(message: str, statement: Place, block: Place) -> None:
    """Warn, once for each pair of places, and of some number of pairs only."""
    pair = *statement.key(), *block.key()
    if pair not in _told and len(_told) < _MOST_TOLD:
        _told.add(pair)
        logger.warning(message, statement, block)
