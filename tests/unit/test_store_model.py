"""The store against a model that is a list of names: whatever one thread does, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from psycopg2_pool2.errors import PoolClosed, PoolExhausted, TooManyRequests
from psycopg2_pool2.store import Permit, Store, ThreadWaiter
from tests.support.fakes import FakeClock
from tests.support.store_world import Item, Sockets

pick = st.integers(0, 100)


class StoreModel(RuleBasedStateMachine):
    """What should be where is kept in plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store: Store[Item] = Store(1, 4, self.clock)
        self.sockets = Sockets()
        self.numbers = iter(range(10**6))
        self.idle: list[int] = []
        self.lent: list[Item] = []
        self.permits: list[Permit] = []
        self.waiters: list[ThreadWaiter[Item]] = []
        self.loans = 0
        self.allowed: float = 4

    # -- what a pool does --------------------------------------------------

    def served(self) -> None:
        """Those who wait take what is idle, in order."""
        while self.waiters and self.idle:
            waiter = self.waiters.pop(0)
            assert waiter.item is not None, "the first waiter has to be served"
            assert waiter.item.number == self.idle.pop(0)
            self.got(waiter.item)
            waiter.item = None

    def got(self, item: Item) -> None:
        assert item.number in self.sockets
        assert item.number not in [other.number for other in self.lent]
        self.lent.append(item)
        self.loans += 1

    def close_surplus(self, items: Sequence[Item]) -> None:
        for item in items:
            assert item.number == self.idle.pop(0)
            self.close(item)

    def close(self, item: Item) -> None:
        item.close()
        self.store.forget(item.pool_record)

    @rule()
    def take_permit(self) -> None:
        permit = self.store.take_permit(math.inf, spare=True)
        size = len(self.sockets) + len(self.permits)
        assert (permit is not None) == (size < self.store.maxconn and not self.store.closed)
        if permit is not None:
            self.permits.append(permit)

    @rule(limit=st.integers(0, 3))
    def take_permit_if_wanted(self, limit: int) -> None:
        size = len(self.sockets) + len(self.permits)
        out = len(self.permits)
        wanted = max(len(self.waiters), self.store.minconn - len(self.sockets))
        due = out < limit and out < wanted and size < self.store.maxconn
        permit = self.store.take_permit(limit)
        assert (permit is not None) == (due and not self.store.closed)
        if permit is not None:
            self.permits.append(permit)

    @precondition(lambda self: self.permits)
    @rule(forget=st.booleans())
    def open_in_vain(self, forget: bool) -> None:
        permit = self.permits.pop()
        if not forget:
            self.store.drop_permit(permit)

    @precondition(lambda self: self.permits)
    @rule()
    def open(self) -> None:
        item = Item(next(self.numbers), self.sockets)
        self.store.admit(self.permits.pop(), item)
        self.idle.append(item.number)
        self.close_surplus(self.store.keep(item))
        self.served()

    @rule()
    def borrow(self) -> None:
        item = self.store.borrow()
        if not self.waiters and self.idle and not self.store.closed:
            assert item is not None
            assert item.number == self.idle.pop(0), "the one that has been idle longest"
            self.got(item)
        else:
            assert item is None

    @rule(patient=st.booleans(), max_waiting=st.sampled_from([None, 0, 2]))
    def request(self, patient: bool, max_waiting: int | None) -> None:
        waiter: ThreadWaiter[Item] = ThreadWaiter(patient)
        ahead = len(self.waiters)
        full = not patient and ahead >= self.store.maxconn - len(self.lent)
        crowded = max_waiting is not None and ahead >= max_waiting and (not self.idle or ahead)
        try:
            self.store.request(waiter, max_waiting)
        except PoolClosed:
            assert self.store.closed
        except PoolExhausted:
            assert full
        except TooManyRequests:
            assert crowded
        else:
            assert not self.store.closed
            assert not full
            assert not crowded
            self.waiters.append(waiter)
            self.served()

    @precondition(lambda self: self.waiters)
    @rule(which=pick)
    def leave(self, which: int) -> None:
        waiter = self.waiters.pop(which % len(self.waiters))
        assert self.store.leave(waiter) is None

    @rule(patient=st.booleans())
    def fail_waiters(self, patient: bool) -> None:
        failed = [w for w in self.waiters if patient or not w.patient]
        assert self.store.fail_waiters(ValueError, patient=patient) == len(failed)
        assert all(isinstance(w.error, ValueError) and w.wait(0) for w in failed)
        self.waiters = [w for w in self.waiters if w not in failed]

    @precondition(lambda self: self.lent)
    @rule(which=pick, seconds=st.integers(0, 100))
    def give_back(self, which: int, seconds: int) -> None:
        item = self.lent.pop(which % len(self.lent))
        self.clock.advance(seconds)
        self.store.claim(item.pool_record)
        with pytest.raises(KeyError):
            self.store.claim(item.pool_record)
        self.idle.append(item.number)
        self.close_surplus(self.store.give_back(item, item.pool_record))
        assert item.pool_record.idle_since == self.clock()
        self.served()

    @precondition(lambda self: self.lent)
    @rule(which=pick)
    def discard(self, which: int) -> None:
        item = self.lent.pop(which % len(self.lent))
        self.store.claim(item.pool_record)
        item.pool_record.uses += 1
        self.store.condemn(item.pool_record)
        self.close(item)

    @precondition(lambda self: self.lent)
    @rule(which=pick)
    def drop(self, which: int) -> None:
        number = self.lent.pop(which % len(self.lent)).number
        lost = self.store.collect_lost()
        assert [was_lent for _, was_lent in lost] == [True]
        assert number not in self.sockets

    @precondition(lambda self: self.idle)
    @rule(which=pick)
    def check(self, which: int) -> None:
        item = self.store.idle[which % len(self.idle)]
        assert self.store.withdraw(item)
        assert not self.store.withdraw(item)
        self.idle.remove(item.number)
        self.idle.insert(0, item.number)
        self.close_surplus(self.store.keep(item, oldest=True))

    @precondition(lambda self: self.idle)
    @rule(which=pick)
    def reap(self, which: int) -> None:
        item = self.store.idle[which % len(self.idle)]
        above = len(self.sockets) > self.store.minconn
        assert self.store.withdraw_surplus(item) == above
        if above:
            self.idle.remove(item.number)
            self.close(item)

    @rule()
    def clear(self) -> None:
        self.close_surplus(self.store.withdraw_all())
        assert not self.idle

    @rule(minconn=st.integers(0, 2), more=st.integers(0, 4))
    def resize(self, minconn: int, more: int) -> None:
        maxconn = max(1, minconn + more)
        self.close_surplus(self.store.resize(minconn, maxconn))
        self.allowed = max(maxconn, len(self.sockets) + len(self.permits))

    @precondition(lambda self: len(self.lent) > 2)
    @rule()
    def close_store(self) -> None:
        waiting = list(self.waiters)
        self.waiters.clear()
        self.close_surplus(self.store.close())
        assert all(isinstance(w.error, PoolClosed) for w in waiting)

    # -- what holds after each step ----------------------------------------

    @invariant()
    def the_books_are_right(self) -> None:
        store = self.store
        assert [item.number for item in store.idle] == self.idle
        assert store.lent == {item.pool_record for item in self.lent}
        assert sorted(self.sockets) == sorted(self.idle + [item.number for item in self.lent])
        assert len(store.records) == len(self.sockets)
        assert store.opening == len(self.permits)
        assert store.size == len(self.sockets) + len(self.permits) <= self.allowed
        assert store.has_room() == (store.size < store.maxconn)
        assert store.missing == max(0, store.minconn - len(self.sockets))
        assert list(store.waiters) == self.waiters
        assert not (self.waiters and self.idle), "one is idle while somebody waits"
        assert store.requests() == self.loans
        assert not (store.closed and self.idle)
        assert not (len(self.sockets) > store.maxconn and self.idle)
        self.allowed = max(store.maxconn, store.size) if self.allowed > store.size else self.allowed

    @invariant()
    def attention_is_set_if_there_is_a_reason(self) -> None:
        store = self.store
        reason = bool(self.waiters) or store.closed or len(self.sockets) > store.maxconn
        assert store.attention == reason


def test_one_that_is_gone_is_not_closed_once_more() -> None:
    """1. A thread closes it. 2. Another, which knows it too, is about to."""
    store: Store[Item] = Store(1, 4, FakeClock())
    permit = store.take_permit(1)
    assert permit is not None
    record = store.admit(permit, Item(0, Sockets()))
    for _ in range(2):
        store.condemn(record)
        store.forget(record)
    store.condemn(record)
    assert store.missing == 1
    assert store.take_permit(1) is not None


def test_an_error_for_one_waiter_does_not_go_to_one_that_is_served() -> None:
    """1. The first is handed a connection. 2. Before it leaves the queue an error comes."""
    store: Store[Item] = Store(0, 4, FakeClock())
    waiters: list[ThreadWaiter[Item]] = [ThreadWaiter(False) for _ in range(2)]
    for waiter in waiters:
        store.request(waiter, None)
    waiters[0].item = Item(0, Sockets())
    assert store.fail_waiters(lambda: ValueError("told to one"), patient=False, most=1) == 1
    assert waiters[0].error is None
    assert isinstance(waiters[1].error, ValueError)


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    # Without the phase that explains: it takes minutes.
    phases=[Phase.generate, Phase.shrink],
)
