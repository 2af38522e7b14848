"""A store with plain objects, the operations of a pool on it, and what must hold at all times.

The operations are done by the real :class:`~psycopg2_pool2.store.Store` and, where
a borrower waits, by the real :class:`~psycopg2_pool2.desk.Desk`; what would open
and close connections is played here, at once and by the same thread.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, SimpleNamespace
from typing import Any, cast

from psycopg2_pool2.desk import Desk
from psycopg2_pool2.errors import PoolError, PoolTimeout
from psycopg2_pool2.stats import Counters
from psycopg2_pool2.store import Permit, Record, Store, ThreadWaiter, Waiter
from psycopg2_pool2.upkeep import Upkeep
from tests.support.fakes import FakeClock, options
from tests.support.interleave import Call, CoopGate, CoopLock, Injected, Interleaver, Run, code_of

TRACED: list[CodeType] = list(
    code_of(Store, ThreadWaiter, Desk._wait_here, Desk._be_served, Desk._leave, Desk.put_back)
)
RETIREMENT_TRACED: list[CodeType] = [
    *code_of(Desk._fault, Desk._take_back, Desk._is_worth_keeping, Upkeep._retire_all),
    *code_of(Store.borrow, Store.give_back, Store.keep),
]
ENDPOINT = SimpleNamespace(unproven=False)
_OPTIONS = options(timeout=None, test_on_borrow=False)


class Sockets:
    """The numbers of the items whose sockets are open.

    An item has a handle.  It is closed when the item lets go of it, and what is taken
    apart does so last of all: after finalizers, and only if none has saved the item.
    """

    def __init__(self) -> None:
        self._handles: dict[int, object] = {}

    def open(self, number: int) -> object:
        """Return a handle that nobody else may keep."""
        handle = self._handles[number] = object()
        return handle

    def __contains__(self, number: int) -> bool:
        return number in self._handles and _references(self._handles, number) > _ALONE

    def __iter__(self) -> Iterator[int]:
        for number in list(self._handles):
            if number in self:
                yield number
            else:
                del self._handles[number]

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _references(handles: dict[int, object], number: int) -> int:
    return sys.getrefcount(handles[number])


_ALONE = _references({0: object()}, 0)


class Item:
    """A plain object in a store: a number and, while it is not closed, a socket."""

    __slots__ = ("__weakref__", "number", "pool_record", "pool_token", "socket")

    pool_proxy = None

    def __init__(self, number: int, sockets: Sockets) -> None:
        self.number = number
        self.socket: object = sockets.open(number)
        self.pool_record: Any = None
        self.pool_token: object = None

    def close(self) -> None:
        self.socket = None


class Cycle:
    """Has a borrowed item in a reference cycle; what becomes of it is up to a finalizer."""

    def __init__(self, item: Item, end: Callable[[Item], object]) -> None:
        self._item = item
        self._end = end
        self._me = self

    def __del__(self) -> None:
        with contextlib.suppress(Injected):  # which would be printed, and kept for that
            self._end(self._item)


class World:
    """One store and all that is known about it."""

    def __init__(self, *, idle: int, lent: int, room: int = 0, minconn: int = 0) -> None:
        self.clock = FakeClock()
        self.store: Store[Item] = Store(minconn, idle + lent + room, self.clock)
        self.lock = cast(CoopLock, self.store._lock)
        self._numbers = iter(range(1000))
        self.sockets = Sockets()
        self.hands: dict[int, Item] = {}  # borrowed, by number
        self.limit = self.store.maxconn
        self.loans = 0  # how often one was borrowed
        self.refused = 0
        self.asked = 0  # how often one was wanted that may not have been there
        self.opened = 0  # how many on behalf of those
        self.problems: list[str] = []
        self.intrude: Call = lambda: None
        self._entered: list[Waiter[Item]] = []
        self._served: set[Waiter[Item]] = set()
        self.desk = self._make_desk()
        for _ in range(idle + lent):
            item = self.new_item()
            self.store.admit(Permit(0.0), item).endpoint = ENDPOINT
            self.store.keep(item)
        del item
        for _ in range(lent):
            self.hold(self.store.borrow())
        self.on_loan = list(self.hands)  # the numbers of those that an operation may return

    def new_item(self) -> Item:
        return Item(next(self._numbers), self.sockets)

    def _make_desk(self) -> Desk:
        supply = SimpleNamespace(
            has_workers=True,
            is_stranded=False,
            watches=True,
            grow=self.grow,
            close_all=self.close_all,
            discard=lambda item, at_once=False: self.discard(item),
            refusal=lambda patient: None,
            mark_proven=lambda record: None,
            look_again=lambda record: None,
        )
        report = SimpleNamespace(
            given_up=lambda deadline: PoolTimeout("time is over"), explain=lambda: "explained"
        )
        care = SimpleNamespace(
            fault=lambda conn, test, seconds: None, tidy=lambda conn, record: None
        )
        upkeep = SimpleNamespace(collect_lost=self.collect_lost)
        parts: Any = (self.store, care, supply, upkeep, report, Counters(), self.clock)
        return Desk("world", _OPTIONS, *parts)

    # -- what a pool does with what the store gives ------------------------

    def hold(self, item: Item | None) -> None:
        """Be a borrower who has got this one."""
        if item is None:
            return
        if item.number in self.hands:
            self.problems.append(f"item {item.number} is lent twice")
        if item.number not in self.sockets:
            self.problems.append(f"item {item.number} is lent and closed")
        self.loans += 1
        self.hands[item.number] = item

    def take_back(self, number: int) -> Item | None:
        """Claim a borrowed one; None if somebody else was faster."""
        item = self.hands.get(number)
        if item is None:
            self.refused += 1
            return None
        try:
            self.store.claim(item.pool_record)
        except KeyError:
            self.refused += 1
            return None
        if self.hands.pop(number, None) is None:
            self.problems.append(f"item {number} is claimed twice")
        return item

    def close_all(self, items: Iterable[Item]) -> None:
        for item in items:
            self.discard(item)

    def discard(self, item: Item) -> None:
        self.store.condemn(item.pool_record)
        item.close()
        self.store.forget(item.pool_record)
        self.grow()

    def collect_lost(self) -> None:
        for _ in self.store.collect_lost():
            self.grow()

    def grow(self) -> None:
        """Open what is wanted."""
        while self.open(spare=False):
            pass

    def open(self, *, spare: bool = True) -> bool:
        permit = self.store.take_permit(math.inf, spare=spare)
        if permit is None:
            return False
        item = self.new_item()
        try:
            self.store.admit(permit, item).endpoint = ENDPOINT
        except BaseException:
            item.close()
            self.store.forget_item(item)
            self.store.drop_permit(permit)
            raise
        self.opened += not spare
        self.close_all(self.store.keep(item))
        return True

    # -- operations --------------------------------------------------------

    def borrow(self) -> None:
        store = self.store
        before = next(iter(store.waiters), None) if store.attention else None
        item = store.borrow()
        if item is not None and before is not None and before in store.waiters:
            self.problems.append("a borrower has overtaken a waiter")
        self.hold(item)

    def wait(self) -> None:
        self.hold(self._lend(None))

    def borrow_and_return(self) -> None:
        item = self._lend(None)
        if item is not None:
            number = item.number
            self.hold(item)
            del item
            self.give_back(number)

    def give_up(self) -> None:
        """Wait for no longer than it takes to see that nothing is there."""
        self.hold(self._lend(0.01))

    def _lend(self, timeout: float | None) -> Item | None:
        self.asked += 1
        try:
            return cast("Item | None", self.desk.lend(None, timeout))
        except PoolTimeout:
            return None
        except PoolError:
            if not self.store.closed:
                raise
            return None

    def give_back(self, number: int) -> None:
        item = self.take_back(number)
        if item is not None:
            self.close_all(self.store.give_back(item, item.pool_record))

    def give_back_broken(self, number: int) -> None:
        item = self.take_back(number)
        if item is not None:
            item.pool_record.uses += 1
            self.discard(item)

    def look_and_borrow(self) -> None:
        """Borrow what there is a reason to look at, which one has to find out."""
        for item in list(self.store.idle):
            item.pool_record.attention = True
        found = self.store.borrow()
        if found is not None:
            self.asked += 1
            self.hold(cast("Item | None", self.desk.lend(found, None)))

    def give_back_and_look(self, number: int) -> None:
        self.hands[number].pool_record.attention = True
        item = self.take_back(number)
        if item is not None:
            self.desk._take_back(item, item.pool_record, close=False)

    def retire_all(self) -> None:
        """Write on each that it is to be closed, wherever it is."""
        upkeep: Any = SimpleNamespace(_store=self.store)
        Upkeep._retire_all(upkeep, ENDPOINT)

    def drop(self, number: int) -> None:
        """Forget a borrowed one; then somebody looks for what was lost."""
        del self.hands[number]
        self.collect_lost()

    def collect(self, number: int, end: Callable[[Item], object]) -> None:
        """Collect a cycle that has a borrowed one; ``end`` is what its finalizer does with it."""
        item = self.hands.pop(number, None)
        if item is None:
            self.refused += 1
            return
        Cycle(item, end)
        del item
        gc.collect()
        self.collect_lost()

    def return_from_garbage(self, number: int) -> None:
        def end(item: Item) -> None:
            self.hands[item.number] = item
            self.give_back(item.number)

        self.collect(number, end)

    def save_from_garbage(self, number: int) -> None:
        def end(item: Item) -> None:
            self.hands[item.number] = item

        self.collect(number, end)

    def drop_in_cycle(self, number: int) -> None:
        self.collect(number, lambda item: None)

    def check(self) -> None:
        """Take what is idle out, one by one, and put it back."""
        for item in reversed(list(self.store.idle)):
            if self.store.withdraw(item):
                self.close_all(self.store.keep(item, oldest=True))

    def retire(self) -> None:
        for item in list(self.store.idle):
            if self.store.withdraw(item, leaving=True):
                self.discard(item)

    def reap(self) -> None:
        for item in list(self.store.idle):
            if self.store.withdraw_surplus(item):
                self.discard(item)

    def clear(self) -> None:
        self.close_all(self.store.withdraw_all())

    def open_one(self) -> None:
        self.open()

    def open_in_vain(self) -> None:
        permit = self.store.take_permit(math.inf, spare=True)
        if permit is not None:
            self.store.drop_permit(permit)
            self.grow()

    def shrink(self) -> None:
        self.close_all(self.store.resize(0, 1))

    def enlarge(self) -> None:
        self.limit = max(self.limit, self.store.maxconn + 1)
        self.close_all(self.store.resize(self.store.minconn, self.store.maxconn + 1))
        self.grow()

    def shut(self) -> None:
        self.close_all(self.store.close())
        self.collect_lost()

    def fail(self) -> None:
        self.store.fail_waiters(lambda: PoolTimeout("nothing can be opened"))
        self.grow()

    # -- what must hold ----------------------------------------------------

    def watch(self) -> str | None:
        """Tell what is wrong at this moment; called at every step of a run."""
        store = self.store
        counted = len(store.records) + len(store._permits)
        if len(self.sockets) > counted:
            return f"{len(self.sockets)} sockets are open and {counted} are counted"
        if self.lock.is_free and counted > self.limit:
            return f"{counted} connections at maxconn={self.limit}"
        if store.waiters or self._entered:
            self._watch_order()
        return self.problems[0] if self.problems else None

    def _watch_order(self) -> None:
        for waiter in list(self.store.waiters):
            if waiter not in self._entered:
                self._entered.append(waiter)
        for position, waiter in enumerate(self._entered):
            if waiter.item is not None and waiter not in self._served:
                self._served.add(waiter)
                for earlier in self._entered[:position]:
                    if earlier not in self._served and earlier in self.store.waiters:
                        self.problems.append("a waiter was served before an earlier one")

    def look_again(self) -> None:
        """Do what every waiter does after half a second."""
        self.collect_lost()
        self.close_all(self.store.settle())
        self.grow()

    def problem_after(self, run: Run) -> str | None:
        """Tell what is wrong when all is quiet."""
        self._entered.clear()
        self._served.clear()
        if run.problems:
            return run.problems[0]
        for error in run.errors:
            if error is not None:
                return f"an operation raised {error!r}"
        if run.stuck:
            return self._needless_wait()
        disturbed = run.faulted or run.plan.intrusion is not None
        if disturbed:
            self.look_again()
        return self._misplaced() or self._unsettled() or (None if disturbed else self._miscounted())

    def _needless_wait(self) -> str | None:
        store = self.store
        if store.idle:
            return "a wake-up was lost: one is idle while somebody waits"
        if store.closed:
            return "somebody waits although the store is closed"
        if store.size < store.maxconn:
            return "a slot was lost: somebody waits for it"
        return None

    def _misplaced(self) -> str | None:
        store = self.store
        if len(store.records) != len(store.idle) + len(self.hands):
            gc.collect()  # an exception may keep what its frames held
            self.look_again()
        idle = [item.number for item in store.idle]
        held = list(self.hands)
        found = sorted(idle + held)
        if len(set(found)) < len(found):
            return f"in two places: idle {idle}, in use {held}"
        items = [store.item_of(record) for record in store.records]
        if None in items:
            return "a slot was lost: its connection was collected"
        numbers = sorted(item.number for item in items if item is not None)
        if numbers != found:
            return f"the books have {numbers}, but idle are {idle} and in use {held}"
        if sorted(self.sockets) != found:
            return f"open are {sorted(self.sockets)}, but idle are {idle} and in use {held}"
        lent: set[Record] = {item.pool_record for item in self.hands.values()}
        if store.lent != lent:
            return f"{len(store.lent)} count as lent, {len(lent)} are"
        return None

    def _unsettled(self) -> str | None:
        store = self.store
        # What was closed first and collected then is in `lost` too, and so is what was saved.
        lost = [r for r in store.lost if r in store.records and not r.is_shared()]
        if store._leaving or store._arriving or store.opening or lost:
            return "something is still on its way"
        if store.closed and store.idle:
            return "one is idle although the store is closed"
        if any(record.retired and not record.attention for record in store.records):
            return "one was retired, and nobody will look"
        if store.waiters:
            return "somebody who has left is still in the queue"
        if store.attention and not store.closed and len(store.records) <= store.maxconn:
            return "attention is set without a reason"
        if len(store.records) > store.maxconn and store.idle:
            return "more than maxconn are open, and one is idle"
        return None

    def _miscounted(self) -> str | None:
        store = self.store
        counted = store.requests()
        if self.opened > self.asked and not store.minconn and store.maxconn == self.limit:
            return f"{self.opened} were opened for the sake of {self.asked}"
        if counted != self.loans:
            return f"{counted} borrows are counted, there were {self.loans}"
        return None


def patch_locks(interleaver: Interleaver, clock: Callable[[], FakeClock | None]) -> Any:
    """Return what stands for the module `threading` in the store during runs."""

    def make_gate() -> CoopGate:
        gate = interleaver.gate()

        def advance(seconds: float) -> None:
            now = clock()
            if now is not None:
                now.advance(max(0.0, seconds))

        gate.on_expiry = advance
        return gate

    return SimpleNamespace(Lock=make_gate, RLock=interleaver.lock)
