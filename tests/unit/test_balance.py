"""How connections are moved when endpoints come, go, fail and recover.

Store, supply, endpoints and balance are the real ones; connecting is a fake that knows which
places are up, time is a fake clock, and nothing runs in the background.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psycopg2_pool2 import CircuitBreaker, balance, dialer, endpoints
from psycopg2_pool2.addresses import Answer, Place
from psycopg2_pool2.balance import Balance
from psycopg2_pool2.endpoints import Endpoint, Endpoints
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.stats import Counters
from psycopg2_pool2.store import Store
from psycopg2_pool2.supply import Supply
from tests.support.fakes import FakeClock

SECONDS = 20
"""Within which shares are even again, at a step a second."""


class Item:
    """A connection, as far as the store is concerned."""

    pool_record: Any
    pool_token: object
    closed = 1  # so that no socket of it is looked for


class City:
    """A pool of the store, the supply, the endpoints and the balance, without threads.

    `up` are the addresses that can be connected to.
    """

    parameters: dict[str, str] = {}  # noqa: RUF012
    user_timeout = 0  # so that no socket is looked for

    def __init__(self, minconn: int, maxconn: float, *places: str | Place) -> None:
        self.clock = FakeClock()
        self.places: tuple[Place, ...]
        self.name(*places)
        self.up = {found.address for found in self.places}
        self.opened: list[str] = []
        self.asked: list[int] = []  # how many were being opened when somebody was asked to answer
        self.most = 0
        self.fewest = 0
        self.borrowed: list[Item] = []
        self.store: Store[Any] = Store(minconn, maxconn, self.clock)
        self.endpoints = Endpoints(
            {"host": "db.test", "port": "1"},
            self,  # type: ignore[arg-type]
            1.0,
            CircuitBreaker(),
            3,
            True,
            self.clock,
        )
        counters = Counters()
        self.supply = Supply(
            name="pool",
            store=self.store,
            connector=self,  # type: ignore[arg-type]
            care=self,  # type: ignore[arg-type]
            endpoints=self.endpoints,
            monitor=None,
            num_workers=0,
            test_timeout=5.0,
            counters=counters,
            clock=self.clock,
        )
        self.balance = Balance(
            name="pool",
            store=self.store,
            supply=self.supply,
            endpoints=self.endpoints,
            care=self,  # type: ignore[arg-type]
            counters=counters,
        )
        self.fill(minconn)
        self.fewest = minconn

    # What stands in for the resolver, the driver and the network

    def name(self, *places: str | Place) -> None:
        """Have the name stand for these from now on."""
        self.places = tuple(place if isinstance(place, Place) else Place(place) for place in places)

    def lookup(self, name: str, seconds: float) -> Answer:
        return Answer(self.places, 1.0)

    def open(self, keywords: dict[str, Any], seconds: float | None = None) -> Item:
        address = keywords["hostaddr"]
        self._count()
        if address not in self.up:
            raise psycopg2.OperationalError("Connection refused")
        self.opened.append(address)
        return Item()

    def _count(self) -> None:
        self.most = max(self.most, self.store.size)
        self.fewest = min(self.fewest, self.store.size)

    def prepare(self, item: Item) -> None:
        pass

    def fault(self, item: Item, **how: Any) -> None:
        pass

    def is_busy(self, item: Item) -> bool:
        return False

    def close(self, item: Item) -> None:
        pass

    def tell(self, error: BaseException) -> str:
        return str(error)

    def answers(self, *where: Any) -> bool:
        self.asked.append(self.store.opening)
        return not self.up.isdisjoint(map(str, where))

    # What a test does

    def fill(self, number: int) -> None:
        """Have so many opened."""
        while self.store.size < number:
            permit = self.store.take_permit(float("inf"), spare=True)
            assert permit is not None
            self.supply.keep(self.supply.open(permit))

    def borrow(self, number: int) -> None:
        """Have so many in use."""
        while len(self.borrowed) < number:
            self.borrowed.append(self.store.borrow() or pytest.fail("none is idle"))

    def give_back(self) -> None:
        """Have all come back that are in use; close those whose time is over."""
        while self.borrowed:
            item = self.borrowed.pop()
            self.store.claim(item.pool_record)
            if item.pool_record.retired:
                self.supply.discard(item, at_once=True)
            else:
                self.supply.close_all(self.store.give_back(item, item.pool_record))

    def step(self, number: int = 1) -> None:
        """Let so many seconds pass, in which the balance does its duty."""
        for _ in range(number):
            self.clock.advance(1)
            self.balance.step()
            self._count()
            self.fill(self.store.minconn)

    def shares(self) -> dict[str, int]:
        """Return how many connections lead to each address, those that are to go included."""
        return dict(Counter(str(r.endpoint.address) for r in self.store.all_records()))

    @property
    def spread(self) -> list[int]:
        return sorted(self.shares().values())

    def fail(self, address: str) -> None:
        """Have an address go down, and all that leads there be lost."""
        self.up.discard(address)
        for item in list(self.store.idle):
            if item.pool_record.endpoint.address == address:
                assert self.store.withdraw(item, leaving=True)
                self.supply.discard(item, at_once=True)
        self.endpoints.failed(
            self.endpoints.begin_at(self.at(address)),
            psycopg2.OperationalError("refused"),
            FailureKind.CUT,
        )
        self.fill(self.store.minconn)

    def at(self, address: str) -> Endpoint:
        [found] = [e for e in self.endpoints.current() if e.address == address]
        return found


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> list[City]:
    """Have the last city asked whether somebody answers."""
    cities: list[City] = []
    original = City.__init__

    def remember(self: City, *args: Any) -> None:
        cities.append(self)
        original(self, *args)

    monkeypatch.setattr(City, "__init__", remember)

    def answers(*where: Any) -> bool:
        return cities[-1].answers(*where)

    monkeypatch.setattr(balance, "answers", answers)
    monkeypatch.setattr(dialer, "answers", lambda *where: True)  # connecting tells
    return cities


ROOM = pytest.mark.parametrize("room", [0, 4], ids=["full", "with room"])


@ROOM
@pytest.mark.parametrize("number", [1, 4, 9, 20, 37])
def test_a_fourth_place_gets_its_share_within_20_seconds(number: int, room: int) -> None:
    city = City(number, number + room, "a", "b", "c")
    city.up.add("d")
    city.name("a", "b", "c", "d")
    city.step(SECONDS)
    assert sum(city.spread) == number
    assert max(city.spread) - min(city.spread) <= 1
    assert len(city.spread) == min(4, number)
    assert city.most <= number + room
    assert city.fewest >= number


@ROOM
def test_it_takes_a_tenth_of_the_connections_a_second(room: int) -> None:
    city = City(40, 40 + room, "a", "b")
    city.up.add("c")
    city.name("a", "b", "c")
    pace = []
    for _ in range(6):
        before = len(city.opened)
        city.step()
        pace.append(len(city.opened) - before)
    assert pace[:3] == [4, 4, 4]
    assert sum(pace) in (13, 14)


def test_what_is_even_is_left_alone() -> None:
    city = City(10, 20, "a", "b", "c")
    city.step(3)
    before = len(city.opened)
    city.step(100)
    assert len(city.opened) == before


@ROOM
def test_who_left_is_drained_and_in_use_it_ends_on_return(room: int) -> None:
    city = City(9, 9 + room, "a", "b", "c")
    city.borrow(3)  # one of each, as they were opened
    city.name("a", "b")
    city.step(5)
    assert city.shares()["c"] == len([i for i in city.borrowed if at_c(i)]) == 1
    city.give_back()
    city.fill(9)
    city.step(2)
    assert "c" not in city.shares()
    assert sum(city.spread) >= 9
    assert city.most <= 9 + room
    if room:  # else each has to go before its replacement can be opened
        assert city.fewest >= 9


def at_c(item: Item) -> bool:
    return bool(item.pool_record.endpoint.address == "c")


def test_all_in_use_are_moved_one_by_one_as_they_come_back_and_the_pool_does_not_grow() -> None:
    city = City(6, 100, "a")
    city.borrow(6)
    city.up |= {"b", "c"}
    city.name("a", "b", "c")
    for _ in range(SECONDS):
        city.step()
        city.give_back()
        city.fill(6)
        assert city.store.size <= 7
        city.borrow(6)
    assert city.spread[-3:] in ([2, 2, 2], [2, 2, 3])


@ROOM
def test_a_place_that_fails_has_none_and_when_it_is_back_its_share(room: int) -> None:
    city = City(9, 9 + room, "a", "b", "c")
    city.fail("c")
    assert city.shares() in ({"a": 5, "b": 4}, {"a": 4, "b": 5})
    before = len(city.opened)
    city.step(60)
    assert len(city.opened) == before  # it cost no connection to look
    assert 5 <= len(city.asked) <= 25
    assert set(city.asked) == {0}, "a slot was taken although nobody answered"
    city.up.add("c")
    city.step(SECONDS)
    assert max(city.spread) - min(city.spread) <= 1
    assert city.shares()["c"] >= 3
    assert city.store.size <= 10
    assert city.most <= 9 + room


@pytest.mark.parametrize("number", [4, 8, 12, 40])
def test_shares_are_by_weight(number: int) -> None:
    city = City(number, number, Place("a", weight=30), Place("b", weight=10))
    city.step(SECONDS)
    assert city.shares() == {"a": number * 3 // 4, "b": number // 4}
    before = len(city.opened)
    city.step(SECONDS)
    assert len(city.opened) == before


def test_small_pools_together_are_by_weight_and_left_alone() -> None:
    found: Counter[str] = Counter()
    for _ in range(400):
        city = City(1, 1, Place("a", weight=90), Place("b", weight=10))
        city.step(5)
        found.update(city.shares())
        assert len(city.opened) <= 2
    # 40 of 400 are due, give or take 6.
    assert 10 <= found["b"] <= 90


def test_those_of_a_better_priority_take_all_over_when_they_are_back() -> None:
    city = City(6, 6, Place("a", priority=1), Place("b", priority=2))
    assert city.shares() == {"a": 6}
    city.fail("a")
    assert city.shares() == {"b": 6}
    city.step(5)
    city.up.add("a")
    city.step(2 * SECONDS)
    assert city.shares() == {"a": 6}


@settings(max_examples=60)
@given(data=st.data(), lots=st.randoms(use_true_random=False))
def test_whatever_the_start_it_ends_even_and_at_rest(
    data: st.DataObject, lots: random.Random
) -> None:
    """Any places, any connections anywhere, some in use and given back from time to time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoints, "chance", lots.random)
        places = list("abcde"[: data.draw(st.integers(1, 5), label="places")])
        number = data.draw(st.integers(1, 25), label="connections")
        room = data.draw(st.sampled_from([0, 1, 5]), label="room")
        city = City(number, number + room, data.draw(st.sampled_from(places)))
        city.up |= set(places)
        city.name(*places)
        for _ in range(data.draw(st.integers(1, 4), label="turns")):
            city.borrow(data.draw(st.integers(0, len(city.store.idle)), label="in use"))
            city.step(data.draw(st.integers(1, 3), label="seconds"))
            city.give_back()
            city.fill(number)
        city.step(2 * SECONDS)
        shares = [city.shares().get(place, 0) for place in places]
        assert max(shares) - min(shares) <= 1
        before = len(city.opened)
        city.step(5)
        assert len(city.opened) == before
        assert city.most <= number + room
