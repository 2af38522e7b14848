"""Who has what: the idle queue, those in use, permits to open, and the waiters.

The store decides and never acts: it opens, tests, closes and logs nothing, and
knows nothing of databases.  What it keeps is any object that can be weakly
referenced and carries its :class:`Record` in an attribute ``pool_record``, and
that record's token in ``pool_token``.

**Ownership is the reference itself.**  A connection is in exactly one place
because exactly one place holds it: the idle queue, one borrower, or the thread
of the pool that opens, tests or closes it.  The store's records hold it weakly.
So whatever interrupts a thread, and wherever, a connection that drops out of
its hands is collected, its record arrives in ``lost``, and its slot is free
again: no accounting step has to survive for that.

**The protocol between a return and a waiter** (neither takes a lock when the
other is not there):

1. A waiter enters ``waiters``, *then* sets ``attention``, *then* looks at the
   idle queue, all under the lock.
2. A return appends to the idle queue, *then* looks at ``attention``.
3. Whichever comes second sees the other: if the return does, it takes the lock
   and hands over in the order of ``waiters``; if the waiter does, it takes the
   connection itself.  Both may; handing over is idempotent.
4. A borrow looks at ``attention`` *before* it takes an idle connection, and
   queues up if it is set.  So nobody overtakes a waiter: a borrow that took a
   connection without queueing had looked before the waiter came.

**The protocol of a permit** (records + permits never exceed ``maxconn``):

1. The permit is counted, *then* the sum is looked at; too many, and it is taken
   back.  It stays counted while the connection is opened.
2. The new record is counted, *then* the permit is not any more.
3. A waiter for whom one is being opened wants no second one, from the permit on
   until it is served: what is admitted *arrives* until it is queued, and it is
   queued and handed over in one section.  A permit whose opening has *stalled*
   is help for nobody any more: it still counts for ``maxconn``, and not for what
   is wanted.
4. A connection that is to be closed stays on the books (``condemn`` says only
   that it no longer counts for ``minconn``) until its socket is closed; *then*
   ``forget`` strikes it out, and whoever did that looks for waiters.  A waiter
   is in the queue *before* he looks for room.  So one of them sees the other.

**The protocol of retirement and of the monitor**, which never touch a
connection that somebody has:

1. A reason is written on the record (``retired``, ``hung_up``, ``suspect``),
   *then* its ``attention`` is set.
2. Who holds the connection clears ``attention``, *then* reads the reasons.  So
   a reason is acted on now or at the next look, never lost.
3. To act at once, the monitor takes the connection out of the idle queue
   (:meth:`Store.withdraw`); of it and a borrower only one gets it.

**The protocol of garbage.**  A weak reference that has died does not mean that
its object has gone, if the object is part of, or hangs on, a reference cycle:

1. The collector clears the weak references to all that is unreachable, so that
   the records of such connections arrive in ``lost``; *then* it runs finalizers.
   One of them may return its connection, keep it, or detach it.
2. A connection and its record share a token that nobody else holds.  The
   connection lets go of it when it is taken apart: after step 1, when no
   finalizer has saved it, and before the collection ends.
3. :meth:`Store.collect_lost` strikes a record out if its token is shared no more.
   Else the record stays in the books and in ``lost``, to be looked at again:
   its connection exists, or another thread is about to take it apart.
4. A connection that comes back under such a record is queued, lent and closed
   like every other, since it carries the record itself.  Only the way from the
   record to the connection is longer (:meth:`Store.item_of`).
5. When it is dropped a second time nothing is called, but its record still is in
   ``lost``: the next look finds the token shared no more.

By reference counting, and mostly it is that, the callback comes when the socket
is closed.  By the collector the token is free just before that.

**What is atomic**, and has to be: ``deque.append``, ``appendleft``, ``popleft``
and ``remove``, ``set.add``, ``remove`` and ``copy``, reading or writing one
attribute.  In CPython with the global interpreter lock each is one call into C
that runs no Python code in between (items are compared by identity, records
hash by their connections).  A free-threaded build guards each list, deque and
set with a lock of its own, which makes the same calls atomic, and orders them;
but importing psycopg2 switches the global lock on again there, and the
protocol has not been tested without it.

**The lock** guards every field marked so below.  Sections under it are O(1) or
take out what they return, call nothing foreign, and may be left by an
asynchronous exception after any bytecode: they first give, then forget (a
waiter holds its connection before it leaves the queue; a lost record leaves the
books before it leaves ``lost``), so that repeating them finishes the work.  For
the same reason the lock may be re-entered, and it has to: the garbage
collector can run a borrower's ``__del__``, which returns a connection, inside
any section of the same thread.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from .errors import PoolClosed, PoolExhausted, TooManyRequests
from .processes import ThisProcess
from .steps import Pause
from .timing import Clock
from .weak_list import WeakList


class Record(weakref.ref[Any]):
    """What the store knows of one connection; it refers to it weakly.

    Whoever holds the connection may write here.  ``attention`` is the one
    field that others set, after they have set the reason; the holder clears it
    before he reads the reasons, so that none is overlooked.
    """

    __slots__ = (
        "attention",  # look at the reasons below before it is lent or kept; see cursors.py
        "born",
        "cursors",  # references to those of its loan
        "endpoint",  # where it leads to
        "expires_at",
        "held",  # the names of cursors that outlive their transactions
        "hung_up",  # its socket was closed, by the server or by the program
        "idle_since",
        "key",  # the borrower's, in psycopg2's manner
        "last_loan",  # the one before, in debug mode
        "lent_at",  # when it was, while that is observed
        "loan",  # who borrowed it and where, when that is recorded
        "retired",  # close it rather than lend it again
        "suspect",  # test it before it is lent again
        "token",  # shared with the connection for as long as that exists
        "touched",  # the program may have changed its settings
        "uses",
        "verified_until",  # by the monotonic clock: its socket's number was its own just before
    )

    attention: int
    born: float
    cursors: WeakList
    endpoint: Any
    expires_at: float
    held: set[str]
    hung_up: bool
    idle_since: float
    key: Any
    last_loan: Any
    lent_at: float | None
    loan: Any
    retired: bool
    suspect: bool
    token: object
    touched: bool
    uses: int
    verified_until: float

    def __new__(  # noqa: D102
        cls, item: Any, callback: Callable[[Record], None], now: float
    ) -> Record:
        return super().__new__(cls, item, callback)

    def __init__(self, item: Any, callback: Callable[[Record], None], now: float) -> None:
        super().__init__(item, callback)  # type: ignore[call-arg]
        self.attention = self.hung_up = self.retired = self.suspect = self.touched = False
        self.born = self.idle_since = now
        self.endpoint = self.key = self.loan = self.last_loan = self.lent_at = None
        self.expires_at = math.inf
        self.token = object()  # which the collector does not know of, and nobody refers to weakly
        self.verified_until = -math.inf
        self.uses = 0
        self.cursors = WeakList()
        self.held = set()
        hash(self)  # kept from now on: a dead referent could not be hashed

    def is_shared(self) -> bool:
        """Tell whether the connection exists, although the reference to it may have died."""
        return _count_references(self) > _REFERENCES_TO_UNSHARED

    def item(self) -> Any:
        """Return the connection; None if it has gone.

        Looks at all objects that there are if the reference to it has died
        although it exists.
        """
        item = self()
        if item is None and self.is_shared():
            holders = gc.get_referrers(self.token)
            item = next((x for x in holders if getattr(x, "pool_record", None) is self), None)
        return item


class _HasToken(Protocol):
    @property
    def token(self) -> object: ...


def _count_references(record: _HasToken) -> int:
    return sys.getrefcount(record.token)


class _Unshared:
    """Holds a token as a record does whose connection has gone."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token = object()


_REFERENCES_TO_UNSHARED = _count_references(_Unshared())


class Storable(Protocol):
    """What a store can keep."""

    pool_record: Any
    pool_token: object


T = TypeVar("T", bound=Storable)


class Permit:
    """The right to open one connection.

    The store counts it for as long as it exists, so that one forgotten by an
    interrupted thread comes back by itself.
    """

    __slots__ = ("__weakref__", "since")

    def __init__(self, now: float) -> None:
        self.since = now


class Waiter(Pause, ABC, Generic[T]):
    """One blocked borrower.

    ``item`` or ``error`` is set before :meth:`wake` is called; with neither he
    looks around and waits again.  ``patient`` waiters have a timeout; the others
    want the first error at once.
    """

    __slots__ = ("borrower", "error", "item", "opens", "patient")

    def __init__(self, patient: bool, borrower: object = None) -> None:
        self.patient = patient
        self.borrower = borrower
        self.item: T | None = None
        self.error: BaseException | None = None
        self.opens = False  # one for itself, without workers

    @abstractmethod
    def wake(self) -> None:
        """End his wait; harmless when repeated, safe from any thread."""


class ThreadWaiter(Waiter[T]):
    """A borrower who blocks his thread."""

    __slots__ = ("_gate",)

    def __init__(self, patient: bool, borrower: object = None) -> None:
        super().__init__(patient, borrower)
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> None:
        """Let :meth:`wait` return; harmless when repeated, safe from any thread."""
        try:
            self._gate.release()
        except RuntimeError:
            pass  # woken already

    def __call__(self) -> bool:
        """Wait in this thread."""
        return self.wait(self.seconds)

    def wait(self, seconds: float) -> bool:
        """Block until woken, for at most ``seconds``; return whether he was woken."""
        return self._gate.acquire(True, seconds)  # by name takes longer


class Store(Generic[T]):
    """The books of one pool.

    Lock-free: :meth:`borrow`, :meth:`claim` and :meth:`give_back`, as long as
    ``attention`` is not set.  Everything else takes the lock for a moment.
    """

    __slots__ = (
        "_append",
        "_arriving",
        "_clock",
        "_leaving",
        "_lend",
        "_lock",
        "_permits",
        "_popleft",
        "_process",
        "_settling",
        "_stalled",
        "attention",
        "claim",
        "closed",
        "floor",
        "gone_uses",
        "idle",
        "lent",
        "lost",
        "low",
        "maxconn",
        "minconn",
        "records",
        "told_requests",
        "waiters",
    )

    def __init__(self, minconn: int, maxconn: float, clock: Clock) -> None:
        self._clock = clock
        self._process = ThisProcess()
        self._lock = threading.RLock()
        self.minconn = minconn
        self.maxconn = maxconn
        self.floor = minconn  # how many to keep open; an adaptive pool raises it
        # Written without the lock, by operations that are atomic by themselves.
        self.idle: deque[T] = deque()
        self.lent: set[Record] = set()
        self.lost: deque[Record] = deque()
        self.low = 0  # fewest idle, of those that exist now, since it was last set to their number
        # Written under the lock, read without.
        self.attention = False  # waiters, closed, or more than maxconn
        self.closed = False
        self.waiters: OrderedDict[Waiter[T], None] = OrderedDict()
        # Under the lock.
        self.records: set[Record] = set()  # all that exist, until their sockets are closed
        self._arriving: set[Record] = set()  # those of them that have never been queued
        self._leaving: set[Record] = set()  # those of them that will not come back
        self._permits: weakref.WeakSet[Permit] = weakref.WeakSet()
        self._stalled: weakref.WeakSet[Permit] = weakref.WeakSet()  # those of them of no help
        self._settling = False
        self.gone_uses = 0
        self.told_requests = 0
        # Bound once: each saves a tenth of the idle cycle.
        self._append = self.idle.append
        self._popleft = self.idle.popleft
        self._lend = self.lent.add
        #: Take a record back from its borrower: of two who try, one gets a KeyError.
        self.claim = self.lent.remove

    # -- borrowing and returning -------------------------------------------

    def borrow(self) -> T | None:
        """Take the connection that has been idle longest; None if there is none or others wait."""
        if self.attention:
            return None
        try:
            item = self._popleft()
        except IndexError:
            return None
        self._lend(item.pool_record)
        if len(self.idle) < self.low:
            self.low = len(self.idle)
        return item

    def give_back(self, item: T, record: Record) -> Sequence[T]:
        """Queue a connection that :meth:`claim` took back; return what to close instead."""
        record.idle_since = self._clock()
        record.uses += 1
        self._append(item)
        return self.settle() if self.attention else ()

    def keep(self, item: T, *, oldest: bool = False) -> Sequence[T]:
        """Queue a connection that the pool itself had in hand; return what to close instead."""
        if not oldest:
            return self.settle(arrived=item)
        self.idle.appendleft(item)
        return self.settle() if self.attention else ()

    def settle(self, *, arrived: T | None = None) -> list[T]:
        """Hand idle connections to those who wait; return those that have to be closed.

        Does nothing in a forked child, which any return may reach that was not
        told of the fork: a thread of the parent may have had the lock.
        """
        if not (self._process.mark[0] or self._process.is_current()):
            return []
        served: list[Waiter[T]] = []
        surplus: list[T] = []
        with self._lock:
            # Invariant: whoever waits, waits because nothing is idle.
            if arrived is not None:
                self._arriving.discard(arrived.pool_record)
                self.low += 1  # a new one: nobody has needed it yet
                self._append(arrived)
            while not self._settling:  # else re-entered: the outer call goes on
                self._settling = True
                try:
                    self._shed_locked(surplus)
                    self._serve_locked(served)
                    self._set_attention_locked()
                finally:
                    self._settling = False
                if not (self.idle and (self.attention or self.waiters)):
                    break
        for waiter in served:
            waiter.wake()
        return surplus

    # -- waiting -----------------------------------------------------------

    def request(self, waiter: Waiter[T], max_waiting: int | None) -> None:
        """Enter the queue; what is idle and not promised to others is handed over at once.

        Raises :class:`PoolClosed`, :class:`TooManyRequests`, or for a borrower
        who does not want to wait :class:`PoolExhausted`.
        """
        with self._lock:
            # Invariant: a waiter in the queue is served, failed or leaves by itself.
            if self.closed:
                raise PoolClosed("connection pool is closed")
            ahead = len(self.waiters)
            if not waiter.patient and ahead >= self.maxconn - len(self.lent):
                raise PoolExhausted("connection pool exhausted")
            if not self.idle or ahead:
                if max_waiting is not None and ahead >= max_waiting:
                    raise TooManyRequests("too many borrowers wait already")
            self.waiters[waiter] = None
            self.attention = True
        if self.idle:
            self.settle()

    def leave(self, waiter: Waiter[T]) -> T | None:
        """Leave the queue; return the connection if it was handed over in the meantime."""
        with self._lock:
            # Invariant: a waiter outside the queue is given nothing any more.
            self.waiters.pop(waiter, None)
            self._set_attention_locked()
            item, waiter.item = waiter.item, None
        return item

    def fail_waiters(
        self,
        make_error: Callable[[], BaseException],
        *,
        patient: bool = True,
        most: int | None = None,
    ) -> int:
        """Make waiters raise, all or only the impatient, the first ``most``; return how many."""
        with self._lock:
            # Invariant: each waiter gets a connection or an error, not both.
            waiting = list(self.waiters)  # which a re-entered section may change
            failed = [w for w in waiting if w.item is None and (patient or not w.patient)][:most]
            for waiter in failed:
                if waiter.item is None:  # else re-entered, and served
                    waiter.error = make_error()
                self.waiters.pop(waiter, None)
            self._set_attention_locked()
        for waiter in failed:
            waiter.wake()
        return len(failed)

    def nudge(self) -> None:
        """Wake the first waiter empty-handed that opens none: there is room, and it can.

        A waiter notes that it opens one, *then* it looks for more room; whoever makes
        room does that, *then* looks for those notes.  So one of them sees the other.
        """
        with self._lock:
            # Invariant: none to keep; a waiter woken for nothing waits again.
            waiter = next(iter(self.waiters), None)
            if waiter is not None and waiter.opens:
                queue = list(self.waiters)  # which a re-entered section may change
                waiter = next((w for w in queue if not w.opens), None)
        if waiter is not None:
            waiter.wake()

    # -- permits -----------------------------------------------------------

    def take_permit(self, limit: float, *, spare: bool = False) -> Permit | None:
        """Take the right to open one more, if one is wanted and there is room.

        At most ``limit`` permits are out at a time, beside those that have
        stalled.  One is wanted for every waiter, and for what is missing of
        ``floor``; ``spare`` wants one in any case (for a replacement).
        """
        with self._lock:
            # Invariant: records + permits <= maxconn.  A permit is counted before
            # it is granted, so that a re-entered section cannot take the same room.
            if self.closed or len(self.records) + len(self._permits) >= self.maxconn:
                return None
            permit = Permit(self._clock())
            self._permits.add(permit)
            helping = len(self._permits) - len(self._stalled)
            unserved = len(self.waiters) - len(self._arriving)
            wanted = max(unserved, self.floor - self._live_locked())
            if (
                helping > limit
                or len(self.records) + len(self._permits) > self.maxconn
                or (helping > wanted and not spare)
            ):
                self._permits.discard(permit)
                return None
            return permit

    def drop_permit(self, permit: Permit) -> None:
        """Give a permit back unused; harmless when repeated."""
        with self._lock:
            self._discard_permit_locked(permit)

    def stall(self, permit: Permit) -> None:
        """Note that what is being opened with a permit makes no progress; harmless afterwards."""
        with self._lock:
            if permit in self._permits:
                self._stalled.add(permit)

    def stall_older_than(self, seconds: float) -> float:
        """Note that what has been opening for longer has stalled; return when the next one will.

        That is in how many seconds, infinite if there is none.  Each that has
        stalled adds to the patience with the others: it may be the server.
        """
        with self._lock:
            now = self._clock()
            for permit in sorted(self._permits - self._stalled, key=lambda p: p.since):
                left = permit.since + seconds * (1 + len(self._stalled)) - now
                if left > 0:
                    return left
                self._stalled.add(permit)
        return math.inf

    def admit(self, permit: Permit, item: T) -> Record:
        """Exchange a permit for the record of what was opened with it."""
        with self._lock:
            # Invariant: the connection counts before its permit stops counting.
            record = Record(item, self.lost.append, self._clock())
            item.pool_token = record.token
            item.pool_record = record
            self.records.add(record)
            self._arriving.add(record)
            self._discard_permit_locked(permit)
            return record

    # -- taking out, and what is gone --------------------------------------

    def withdraw(self, item: T, *, leaving: bool = False) -> bool:
        """Take this connection out of the idle queue; False if it is not there."""
        with self._lock:
            # Invariant: of a borrower and the pool only one takes it out.
            try:
                self.idle.remove(item)
            except (ValueError, IndexError):  # lent, or the queue moved meanwhile
                return False
            if leaving:  # what is only tested is not needed by anybody
                self._leaving.add(item.pool_record)
                self.low = max(0, min(self.low - 1, len(self.idle)))
            return True

    def withdraw_all(self) -> list[T]:
        """Take all idle connections out, for closing."""
        taken: list[T] = []
        with self._lock:
            while self.idle:
                self._take_out_locked(taken)
        return taken

    def withdraw_surplus(self, item: T) -> bool:
        """Take this connection out for closing, unless ``floor`` would be undercut."""
        with self._lock:
            # Invariant: reaping never goes below the floor.
            return self._live_locked() > self.floor and self.withdraw(item, leaving=True)

    def has_room(self) -> bool:
        """Tell whether one more may be opened, as far as can be seen without the lock.

        Whoever makes room looks for waiters afterwards; so it is enough that a
        waiter is in the queue before he looks for room.
        """
        exist = len(self.records)
        # Most who ask find it full; to count the permits takes longer.
        return exist < self.maxconn and exist + len(self._permits) < self.maxconn

    def is_above_floor(self) -> bool:
        """Tell whether one may be closed without undercutting ``floor``."""
        with self._lock:
            return self._live_locked() > self.floor

    def condemn(self, record: Record) -> None:
        """Note that a connection will be closed: it no longer counts for ``floor``."""
        with self._lock:
            if record in self.records:
                self._leaving.add(record)
            self.low = min(self.low, len(self.idle))

    def forget(self, record: Record) -> None:
        """Free the slot of a connection whose socket is closed; harmless when repeated."""
        with self._lock:
            # Invariant: a slot is free only when its socket is closed.
            if record in self.records:
                self.gone_uses += record.uses
            self._strike_out_locked(record)
            self._set_attention_locked()

    def exchange(self, record: Record) -> Permit:
        """Strike out what is closed and return the right to open another in its room.

        So that nobody else gets it who wants one anywhere.
        """
        permit = Permit(self._clock())
        with self._lock:
            # Invariant: the room is never free in between.
            self._permits.add(permit)
            if record in self.records:
                self.gone_uses += record.uses
            self._strike_out_locked(record)
            self._set_attention_locked()
        return permit

    def forget_item(self, item: T) -> None:
        """Like :meth:`forget`, for what may not have been admitted."""
        record = getattr(item, "pool_record", None)
        if record is not None:
            self.forget(record)

    def collect_lost(self) -> list[tuple[Record, bool]]:
        """Free the slots of collected connections; return each with whether it was lent."""
        found: list[tuple[Record, bool]] = []
        if not self.lost:
            return found
        with self._lock:
            # Invariant: it leaves the books before it leaves the queue of the lost,
            # and not before its connection has gone.
            for record in list(self.lost):
                known, was_lent = record in self.records, record in self.lent
                if known and record.is_shared():
                    continue  # a finalizer has it, or has returned it
                self._strike_out_locked(record)
                if known:
                    self.gone_uses += record.uses + was_lent
                    found.append((record, was_lent))
                with contextlib.suppress(ValueError):  # re-entered
                    self.lost.remove(record)
            self._set_attention_locked()
        return found

    def item_of(self, record: Record) -> T | None:
        """Return the connection of a record; None if it has gone.

        Cheap, but for one that a finalizer returned after the reference to it had died.
        """
        item: T | None = record()
        if item is None and record in self.records and record.is_shared():
            mine = (idle for idle in list(self.idle) if idle.pool_record is record)
            item = next(mine, None)
            if item is None:
                item = record.item()
        return item

    # -- the whole pool ----------------------------------------------------

    def resize(self, minconn: int, maxconn: float) -> list[T]:
        """Set the limits; return the idle connections that are too many now."""
        with self._lock:
            self.minconn, self.maxconn, self.floor = minconn, maxconn, minconn
            self._set_attention_locked()
        return self.settle()

    def close(self) -> list[T]:
        """Refuse all requests from now on; return the idle connections for closing."""
        with self._lock:
            self.closed = self.attention = True
        self.fail_waiters(lambda: PoolClosed("connection pool is closed"))
        return self.settle()

    def all_records(self) -> set[Record]:
        """Return the records of all connections that exist."""
        with self._lock:
            return self.records.copy()

    @property
    def opening(self) -> int:
        """How many permits are out."""
        with self._lock:
            return len(self._permits)

    @property
    def helping(self) -> int:
        """How many permits are out whose openings have not stalled."""
        with self._lock:
            return len(self._permits) - len(self._stalled)

    def can_serve(self) -> bool:
        """Tell whether anything is idle, in use or being opened."""
        with self._lock:
            return self._live_locked() > 0 or len(self._permits) > 0

    @property
    def size(self) -> int:
        """How many connections exist or are being opened: what ``maxconn`` limits."""
        with self._lock:
            return len(self.records) + len(self._permits)

    @property
    def missing(self) -> int:
        """How many connections have to be opened to have ``floor``."""
        with self._lock:
            return max(0, self.floor - self._live_locked())

    def requests(self) -> int:
        """Return how many borrows there have been, and never less than before.

        Exact when nobody is borrowing; what is just coming back may be missing.
        """
        with self._lock:
            now = self.gone_uses + sum(r.uses for r in self.records) + len(self.lent)
            self.told_requests = max(self.told_requests, now)
            return self.told_requests

    # -- under the lock ----------------------------------------------------

    def _discard_permit_locked(self, permit: Permit) -> None:
        self._permits.discard(permit)
        self._stalled.discard(permit)

    def _shed_locked(self, surplus: list[T]) -> None:
        while self.idle and (self.closed or self._live_locked() > self.maxconn):
            self._take_out_locked(surplus)

    def _serve_locked(self, served: list[Waiter[T]]) -> None:
        while self.waiters:
            waiter = next(iter(self.waiters))
            if waiter.item is None:  # else interrupted here before
                if not self.idle:
                    return  # mostly, and cheaper than the exception
                try:
                    item = self._popleft()
                except IndexError:
                    return
                self._lend(item.pool_record)
                waiter.item = item
                self.low = 0
            served.append(waiter)
            self.waiters.pop(waiter, None)

    def _take_out_locked(self, taken: list[T]) -> None:
        try:
            item = self._popleft()
        except IndexError:
            return  # a borrower was faster
        self._leaving.add(item.pool_record)
        taken.append(item)
        self.low = min(self.low, len(self.idle))

    def _strike_out_locked(self, record: Record) -> None:
        self.lent.discard(record)
        self._arriving.discard(record)
        self._leaving.discard(record)
        self.records.discard(record)

    def _live_locked(self) -> int:
        return len(self.records) - len(self._leaving)

    def _set_attention_locked(self) -> None:
        self.attention = bool(self.waiters) or self.closed or self._live_locked() > self.maxconn
