"""When connections are opened: the ramp, the pauses, and what is told to those who wait.

Time is a fake clock, connecting a fake driver, and what a worker would do waits in a queue: how
many jobs are queued is how many connects would be under way at once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import random
import re
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import (
    CircuitBreaker,
    ConnectionPool,
    PoolUnavailable,
    breaker,
    desk,
    dialer,
    login_backoff,
)
from psycopg2_pool2 import endpoints as endpoints_module
from psycopg2_pool2 import supply as supply_module
from psycopg2_pool2.endpoints import Endpoints
from psycopg2_pool2.monitor import Timer
from psycopg2_pool2.resolver import Resolver
from psycopg2_pool2.stats import Counters
from psycopg2_pool2.store import Store, ThreadWaiter
from psycopg2_pool2.supply import Supply
from tests.support.fakes import FakeClock, FakeDriver, fake_pool
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of

LOGGER = "psycopg2_pool2"
REFUSED = 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
SILENT = 'connection to server at "127.0.0.1", port 1 failed: timeout expired'
WRONG_PASSWORD = 'FATAL:  password authentication failed for user "careful"'
TOO_MANY = "FATAL:  sorry, too many clients already"
REFUSED_LOGIN = [
    WRONG_PASSWORD,
    'FATAL:  database "atlantis" does not exist',
    'FATAL:  role "nemo" does not exist',
    'FATAL:  role "nemo" is not permitted to log in',
    'FATAL:  permission denied for database "secret"',
    'FATAL:  no pg_hba.conf entry for host "127.0.0.1", user "nemo", database "x", no encryption',
]
FULL = [
    TOO_MANY,
    "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
    "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
    'FATAL:  too many connections for role "careful"',
    'FATAL:  too many connections for database "postgres"',
]


class Item:
    """A connection, as far as the store is concerned."""

    pool_record: Any
    pool_token: object
    closed = 1  # so that no socket of it is looked for


class FakeConnector:
    """Connects as `error` says: None succeeds."""

    tell = staticmethod(str)
    parameters: dict[str, str] = {}  # noqa: RUF012
    user_timeout = 0  # so that no socket is looked for

    def __init__(self, clock: FakeClock) -> None:
        self.error: str | None = None
        self.attempts: list[float] = []
        self.during: Callable[[], object] = lambda: None  # called in every attempt
        self._clock = clock

    def open(self, keywords: object, seconds: float | None = None) -> Item:
        self.attempts.append(self._clock())
        self.during()
        if self.error is not None:
            raise psycopg2.OperationalError(self.error)
        return Item()

    def is_busy(self, item: Item) -> bool:
        return False

    def close(self, item: Item) -> None:
        pass


class FakeCare:
    """Finds that every new connection needs nothing."""

    def prepare(self, item: Item) -> None:
        pass


class FakeMonitor:
    """Keeps jobs and timers until they are asked for."""

    watches = False
    is_running = True

    def __init__(self, clock: FakeClock) -> None:
        self.jobs: deque[Callable[[], object]] = deque()
        self.timers: list[Timer] = []
        self._clock = clock

    def offer(self, job: Callable[[], object]) -> bool:
        self.jobs.append(job)
        return True

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self._clock() + seconds, method))
        return self.timers[-1]

    def next_due(self) -> float:
        return min((timer.when for timer in self.timers), default=float("inf"))

    def fire_due(self) -> None:
        due = [timer for timer in self.timers if timer.when <= self._clock()]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.fire()


class World:
    """A supply with its store, and borrowers who wait."""

    def __init__(
        self,
        minconn: int = 0,
        maxconn: int = 500,
        num_workers: int = 3,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.monitor = FakeMonitor(self.clock)
        self.connector = FakeConnector(self.clock)
        self.care = FakeCare()
        self.store: Store[Any] = Store(minconn, maxconn, self.clock)
        self.counters = Counters()
        self._borrowers: list[ThreadWaiter[Any]] = []  # who have what was handed to them
        endpoints = Endpoints(
            {"host": "127.0.0.1", "port": "1"},
            Resolver(None),
            60.0,
            breaker or CircuitBreaker(),
            num_workers,
            True,
            self.clock,
        )
        self.supply = Supply(
            name="pool",
            store=self.store,
            connector=self.connector,  # type: ignore[arg-type]
            care=self.care,  # type: ignore[arg-type]
            endpoints=endpoints,
            monitor=self.monitor,  # type: ignore[arg-type]
            num_workers=num_workers,
            test_timeout=5.0,
            counters=self.counters,
            clock=self.clock,
        )

    @property
    def in_flight(self) -> int:
        return self.store.opening

    @property
    def attempts(self) -> list[float]:
        return self.connector.attempts

    @property
    def state(self) -> str:
        [endpoint] = self.supply.endpoints()
        return endpoint.state

    def wait(self, number: int = 1, *, patient: bool = True) -> list[ThreadWaiter[Any]]:
        """Have so many borrowers queue up, as the desk does it."""
        waiters: list[ThreadWaiter[Any]] = [ThreadWaiter(patient) for _ in range(number)]
        self._borrowers += waiters
        for waiter in waiters:
            self.store.request(waiter, None)
            self.supply.grow()
        return waiters

    def close_all_in_use(self) -> None:
        """Have all that is in use come back and be closed."""
        for record in self.store.lent.copy():
            item = record()
            self.store.claim(record)
            self.supply.discard(item, at_once=True)

    def finish_one(self) -> None:
        """End the connect that began first."""
        self.monitor.jobs.popleft()()

    def finish(self) -> None:
        """End all connects that are under way, and those that they cause at once."""
        while self.monitor.jobs:
            self.finish_one()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; every connect takes none of it."""
        self.pass_time_with(seconds, self.finish)

    def pass_time_with(self, seconds: float, act: Callable[[], object]) -> None:
        """Let time pass; `act` after each timer."""
        end = self.clock() + seconds
        act()
        while self.monitor.next_due() <= end:
            self.clock.now = max(self.clock.now, self.monitor.next_due())
            self.monitor.fire_due()
            act()
        self.clock.now = end

    def fail_until_open(self, error: str = REFUSED) -> None:
        """Have somebody wait in vain until the breaker is open."""
        self.connector.error = error
        self.wait()
        self.finish()
        assert self.state == "open"


@pytest.fixture(autouse=True)
def in_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a worker: what one would do is done by the test's thread."""
    for module in (dialer, supply_module):
        monkeypatch.setattr(module, "is_own_thread", lambda: True)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (breaker, endpoints_module):
        monkeypatch.setattr(module, "jitter", lambda value, share: value)
    monkeypatch.setattr(login_backoff, "chance", lambda: 0.0)


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 6) for earlier, later in pairwise(times)]


class TestRefusingServer:
    @pytest.mark.usefixtures("no_jitter")
    @pytest.mark.parametrize("crowd", [1, 200])
    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_is_asked_as_often_by_a_crowd_as_by_one(self, crowd: int, num_workers: int) -> None:
        world = World(num_workers=num_workers)
        world.connector.error = REFUSED
        world.wait(crowd)
        world.pass_time(10)
        # The threshold at once, then every quarter of a second; after 2.5 s a tenth of the outage.
        away = [at - world.attempts[0] for at in world.attempts[2:-1]]
        expected = [max(0.25, seconds / 10) for seconds in away]
        assert gaps(world.attempts[2:]) == pytest.approx(expected, abs=1e-5)
        assert len(world.attempts) == 27

    def test_is_asked_at_most_five_times_a_second_whatever_the_jitter(self, world: World) -> None:
        world.connector.error = REFUSED
        world.wait(200)
        world.pass_time(10)
        assert all(0.2 - 1e-6 <= gap <= 1.2 + 1e-6 for gap in gaps(world.attempts[2:]))

    def test_never_has_two_attempts_in_flight_once_one_has_failed(self, world: World) -> None:
        world.connector.error = REFUSED
        world.wait(200)
        assert world.in_flight == 3
        world.finish_one()
        assert world.in_flight == 2, "those that were under way"
        world.finish()
        most = 0

        def look_and_finish_one() -> None:
            nonlocal most
            world.wait(5)
            most = max(most, world.in_flight)
            world.finish()

        world.pass_time_with(5, look_and_finish_one)
        assert most == 1
        assert len(world.attempts) > 15

    def test_is_not_asked_when_nobody_wants_anything(self, world: World) -> None:
        world.fail_until_open()
        for waiter in list(world.store.waiters):
            world.store.leave(waiter)
        before = len(world.attempts)
        world.pass_time(60)
        assert len(world.attempts) == before

    def test_that_is_back_has_minconn_opened_within_the_pause_though_nobody_waits(self) -> None:
        world = World(minconn=3)
        world.connector.error = REFUSED
        world.supply.grow()
        world.pass_time(60)
        assert not world.store.idle
        world.connector.error = None
        world.pass_time(5 * 1.2)
        assert len(world.store.idle) == 3

    def test_that_is_back_serves_all_who_wait(self, world: World) -> None:
        world.connector.error = REFUSED
        waiters = world.wait(50)
        world.pass_time(60)
        assert all(waiter.item is None and waiter.error is None for waiter in waiters)
        world.connector.error = None
        world.pass_time(5 * 1.2)
        assert all(waiter.item is not None for waiter in waiters)


class TestSilentServer:
    @pytest.mark.usefixtures("no_jitter")
    def test_is_asked_less_and_less_down_to_every_max_backoff(self) -> None:
        world = World(breaker=CircuitBreaker(backoff=0.1, max_backoff=2.0))
        world.connector.error = SILENT
        world.wait(200)
        world.pass_time(15)
        assert gaps(world.attempts[2:])[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

    def test_that_is_back_serves_all_within_max_backoff(self) -> None:
        world = World(minconn=3, breaker=CircuitBreaker(max_backoff=5.0))
        world.connector.error = SILENT
        waiters = world.wait(10)
        world.pass_time(120)
        world.connector.error = None
        world.pass_time(5 * 1.2)
        assert all(waiter.item is not None for waiter in waiters)


class TestRamp:
    @pytest.mark.parametrize("num_workers", [1, 3, 8])
    def test_after_an_outage_begins_with_one_and_doubles(self, num_workers: int) -> None:
        world = World(num_workers=num_workers)
        world.fail_until_open()
        world.wait(100)
        world.connector.error = None
        world.pass_time_with(0.3, lambda: None)
        assert world.in_flight == 1
        successes = 0
        while world.monitor.jobs:
            world.finish_one()
            successes += 1
            assert world.in_flight <= min(num_workers, 2**successes)
            if world.monitor.jobs and successes == 1:
                assert world.in_flight == min(num_workers, 2)
        assert successes == 101

    def test_begins_anew_when_one_fails(self) -> None:
        world = World(num_workers=8)
        world.wait(100)
        assert world.in_flight == 8
        world.connector.error = REFUSED
        world.finish_one()
        world.connector.error = None
        for _ in range(7):
            world.finish_one()
            assert world.in_flight <= 8
        assert world.in_flight <= 8
        world.connector.error = REFUSED
        world.finish()
        world.connector.error = None
        world.pass_time_with(0.3, lambda: None)
        assert world.in_flight == 1

    def test_in_health_is_at_most_num_workers(self) -> None:
        world = World(num_workers=4)
        world.wait(100)
        most = 0
        while world.monitor.jobs:
            most = max(most, world.in_flight)
            world.finish_one()
        assert most == 4


class TestRefusedLogin:
    @pytest.mark.parametrize("text", REFUSED_LOGIN)
    def test_reaches_every_waiter_at_once(self, world: World, text: str) -> None:
        world.connector.error = text
        waiters = world.wait(20)
        world.finish()
        assert {str(waiter.error) for waiter in waiters} == {text}
        assert len({id(waiter.error) for waiter in waiters}) == 20
        assert len(world.attempts) == 1, "the others were spared"
        assert world.state == "open"

    def test_is_told_to_newcomers_until_the_next_attempt_is_due(self, world: World) -> None:
        world.connector.error = WRONG_PASSWORD
        world.wait()
        world.finish()
        world.clock.advance(0.99)
        for patient in (False, True):
            refusal = world.supply.refusal(patient)
            assert type(refusal) is psycopg2.OperationalError
            assert str(refusal) == WRONG_PASSWORD
        assert len(world.attempts) == 1
        world.clock.advance(0.22)
        assert world.supply.refusal(patient=True) is None
        world.wait(20)
        assert world.in_flight == 1, "one attempt for the whole crowd"

    @pytest.mark.usefixtures("no_jitter")
    def test_is_tried_again_less_and_less_often_while_nobody_waits(self) -> None:
        world = World(minconn=3, num_workers=1)
        world.connector.error = WRONG_PASSWORD
        world.supply.grow()
        world.pass_time(400)
        assert gaps(world.attempts)[:9] == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    def test_is_tried_at_most_eight_times_in_the_first_minute_and_once_a_minute_after(
        self, world: World
    ) -> None:
        world.connector.error = WRONG_PASSWORD
        for _ in range(1200):
            if world.supply.refusal(patient=True) is None:
                world.wait()
            world.pass_time(0.1)
        assert sum(at < world.attempts[0] + 60 for at in world.attempts) <= 8
        assert sum(at >= world.attempts[0] + 60 for at in world.attempts) <= 1

    def test_that_is_accepted_again_is_forgotten(self) -> None:
        world = World(minconn=3)
        world.connector.error = WRONG_PASSWORD
        world.supply.grow()
        world.pass_time(200)
        world.connector.error = None
        world.pass_time(73)
        assert len(world.store.idle) == 3
        assert world.supply.last_error is None
        assert world.state == "closed"

    def test_does_not_reach_a_waiter_while_a_connection_is_in_use(self, world: World) -> None:
        [holder] = world.wait()
        world.finish()
        world.connector.error = WRONG_PASSWORD
        [waiter] = world.wait()
        world.finish()
        assert waiter.error is None
        assert world.supply.refusal(patient=True) is None
        item = holder.item
        assert item is not None
        world.store.claim(item.pool_record)
        world.store.give_back(item, item.pool_record)
        assert waiter.item is item

    def test_reaches_the_waiters_when_the_last_connection_is_lost(self, world: World) -> None:
        world.wait()
        world.finish()
        world.connector.error = WRONG_PASSWORD
        waiters = world.wait(2)
        world.finish()
        world.close_all_in_use()
        assert {str(waiter.error) for waiter in waiters} == {WRONG_PASSWORD}

    def test_of_a_server_that_was_away_ends_its_outage(self, world: World) -> None:
        world.fail_until_open()
        world.connector.error = WRONG_PASSWORD
        world.pass_time(0.3)
        assert world.supply.endpoints()[0].failures == 1
        assert str(world.supply.last_error) == WRONG_PASSWORD

    def test_is_tried_at_once_after_drain(self, world: World) -> None:
        world.connector.error = WRONG_PASSWORD
        world.wait()
        world.pass_time(30)
        world.connector.error = None
        world.supply.drain()
        [waiter] = world.wait()
        world.finish()
        assert waiter.item is not None


class TestMistake:
    TEXT = 'invalid sslmode value: "maybe"'

    def test_reaches_every_waiter_even_while_a_connection_is_in_use(self, world: World) -> None:
        world.wait()
        world.finish()
        world.connector.error = self.TEXT
        waiters = world.wait(20)
        world.finish_one()
        assert {str(waiter.error) for waiter in waiters} == {self.TEXT}

    def test_is_told_to_newcomers_for_a_moment_instead_of_being_tried_again(
        self, world: World
    ) -> None:
        world.connector.error = self.TEXT
        world.wait()
        world.finish()
        world.clock.advance(0.24)
        assert str(world.supply.refusal(patient=True)) == self.TEXT
        world.clock.advance(0.02)
        assert world.supply.refusal(patient=True) is None

    @pytest.mark.usefixtures("no_jitter")
    def test_is_tried_again_less_and_less_often_while_nobody_waits(self) -> None:
        world = World(minconn=3, num_workers=1)
        world.connector.error = self.TEXT
        world.supply.grow()
        world.pass_time(400)
        assert gaps(world.attempts)[:10] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]


class TestCallback:
    """What a callback of the program raised: one call, one error."""

    @pytest.fixture
    def world(self) -> World:
        world = World()

        def fail(item: Item) -> None:
            raise RuntimeError("configure")

        world.care.prepare = fail  # type: ignore[method-assign]
        return world

    def test_reaches_no_waiter_that_has_time_left(self, world: World) -> None:
        waiters = world.wait(3)
        world.finish_one()
        assert all(waiter.error is None for waiter in waiters)
        world.care.prepare = lambda item: None  # type: ignore[method-assign]
        world.pass_time(1)
        assert all(waiter.item is not None for waiter in waiters)

    def test_reaches_one_waiter_that_cannot_wait_for_each_call(self, world: World) -> None:
        waiters = world.wait(3, patient=False)
        world.finish_one()
        assert [str(waiter.error) for waiter in waiters] == ["configure", "None", "None"]
        world.finish_one()
        assert [str(waiter.error) for waiter in waiters] == ["configure", "configure", "None"]

    def test_is_not_told_to_newcomers(self, world: World) -> None:
        world.wait()
        world.finish_one()
        assert world.supply.refusal(patient=True) is None


class TestStalledOpening:
    """An opening that hangs is no help: whoever has room gets its own."""

    def test_is_overtaken_by_one_for_the_next_waiter(self, world: World) -> None:
        world.wait()
        hangs = world.monitor.jobs.popleft()
        [second] = world.wait()
        world.finish()
        world.clock.advance(0.3)
        world.supply.grow()
        world.finish()
        assert second.item is not None
        assert world.store.size == 3
        hangs()
        assert world.store.opening == 0
        assert len(world.store.idle) == 1, "what was opened too late is kept"

    def test_is_replaced_without_anybody_looking(self, world: World) -> None:
        world.wait()
        hangs = world.monitor.jobs.popleft()
        [second] = world.wait()
        world.finish()
        was_overtaken = second.item is None  # the first waiter got what was opened
        world.pass_time(0.3)
        assert was_overtaken
        assert second.item is not None
        assert callable(hangs)

    def test_still_counts_for_maxconn(self) -> None:
        world = World(maxconn=2)
        world.wait(3)
        world.finish_one()
        hangs = world.monitor.jobs.popleft()
        world.pass_time(10)
        assert world.store.size == 2
        assert not world.monitor.jobs
        assert callable(hangs)

    def test_adds_to_the_patience_with_the_others(self, world: World) -> None:
        world.wait()
        world.finish()  # from now on it is known how long a connect takes
        world.wait(20)
        world.pass_time_with(5, lambda: None)  # each hangs
        assert 3 < world.in_flight <= 15


class TestFullServer:
    @pytest.fixture(params=FULL)
    def text(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def busy(self, world: World) -> World:
        """Have two in use, and the server full from then on."""
        world.wait(2)
        world.finish()
        assert len(world.store.lent) == 2
        return world

    def test_pauses_growth_and_leaves_those_who_wait_in_the_queue(
        self, busy: World, text: str
    ) -> None:
        busy.connector.error = text
        waiters = busy.wait(20)
        busy.finish()
        assert all(waiter.error is None for waiter in waiters)
        before = len(busy.attempts)
        busy.wait(20)
        assert not busy.in_flight
        busy.pass_time(0.75)
        assert len(busy.attempts) == before
        busy.pass_time(10)
        assert 8 <= len(busy.attempts) - before <= 13
        assert busy.state == "closed"

    def test_is_told_to_borrowers_without_a_timeout(self, busy: World, text: str) -> None:
        busy.connector.error = text
        [waiter] = busy.wait(patient=False)
        busy.finish()
        assert str(waiter.error) == text
        refusal = busy.supply.refusal(patient=False)
        assert type(refusal) is psycopg2.OperationalError
        assert str(refusal) == text
        assert busy.supply.refusal(patient=True) is None

    def test_has_waiters_served_from_returns(self, busy: World) -> None:
        busy.connector.error = TOO_MANY
        first, second = busy.wait(2)
        busy.finish()
        record = next(iter(busy.store.lent))
        busy.store.claim(record)
        busy.store.give_back(record(), record)
        assert first.item is record()
        assert second.item is None

    def test_that_has_room_again_has_the_pool_grow_again(self, busy: World) -> None:
        busy.connector.error = TOO_MANY
        waiters = busy.wait(5)
        busy.pass_time(10)
        busy.connector.error = None
        busy.pass_time(1.2)
        assert all(waiter.item is not None for waiter in waiters)

    def test_of_which_the_pool_has_nothing_is_an_outage(self, world: World) -> None:
        world.connector.error = TOO_MANY
        world.wait(5)
        world.pass_time(5)
        assert world.state == "open"
        refusal = world.supply.refusal(patient=False)
        assert isinstance(refusal, PoolUnavailable)
        assert TOO_MANY in str(refusal)


class TestRefusal:
    def test_tells_the_last_error_and_when_the_next_attempt_is_due(self, world: World) -> None:
        world.fail_until_open(SILENT)
        world.wait()
        world.pass_time(60)
        _, pause = world.supply.allowance()
        refusal = world.supply.refusal(patient=False)
        assert isinstance(refusal, PoolUnavailable)
        assert f"in {pause:.2f} s" in str(refusal)
        assert SILENT in str(refusal)
        assert str(refusal.__cause__) == SILENT

    def test_is_for_borrowers_without_a_timeout_only(self, world: World) -> None:
        world.fail_until_open()
        assert world.supply.refusal(patient=True) is None

    def test_ends_with_the_pause_and_goes_on_while_a_probe_is_under_way(self, world: World) -> None:
        world.fail_until_open()
        world.clock.advance(0.3)
        assert world.supply.refusal(patient=False) is None, "his attempt is the probe"
        world.wait()
        world.connector.error = None
        seen: list[BaseException | None] = []
        world.connector.during = lambda: seen.append(world.supply.refusal(patient=False))
        world.finish_one()
        assert isinstance(seen[0], PoolUnavailable)
        assert world.supply.refusal(patient=False) is None

    def test_is_no_refusal_of_the_breaker_while_something_is_in_use(self, world: World) -> None:
        """It comes back, and can serve; what failed is only growth."""
        world.wait()
        world.finish()
        world.fail_until_open()
        assert not isinstance(world.supply.refusal(patient=False), PoolUnavailable)


class TestFirstTest:
    def test_that_fails_each_time_opens_the_breaker(self, world: World) -> None:
        """As through a proxy that lets anybody in, to a server that is down."""
        for _ in range(20):
            if world.state == "open":
                break
            [waiter] = world.wait()
            world.finish()
            conn, waiter.item = waiter.item, None
            assert conn is not None
            error = psycopg2.OperationalError("server login has been failing")
            world.supply.first_test_failed(error, conn.pool_record)
            world.store.claim(conn.pool_record)
            world.supply.discard(conn, at_once=True)
        assert world.state == "open"
        assert len(world.attempts) == 3


class TestLog:
    @pytest.fixture(autouse=True)
    def all_levels(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, logger=LOGGER)

    def test_of_an_outage_is_one_warning_and_of_its_end_one_info(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        world.connector.error = REFUSED
        world.wait(20)
        world.pass_time(600)
        attempts = len(world.attempts)
        world.connector.error = None
        world.pass_time(7)
        loud = [record for record in caplog.records if record.levelno >= logging.INFO]
        assert [record.levelno for record in loud] == [logging.WARNING, logging.INFO]
        assert REFUSED in loud[0].getMessage()
        after = re.search(r"after ([\d.]+) s", loud[1].getMessage())
        assert after is not None
        assert 600 <= float(after[1]) <= 607
        assert f"{attempts} failed attempts" in loud[1].getMessage()
        assert all("'pool'" in record.getMessage() for record in caplog.records)

    def test_of_a_server_that_comes_and_goes_is_limited(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(200):
            world.connector.error = REFUSED if number % 2 else None
            world.wait(patient=False)
            world.finish()
            world.clock.advance(0.05)
        loud = [record for record in caplog.records if record.levelno >= logging.INFO]
        assert len(loud) <= 4
        assert loud, "it is told at all"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    driver.install(monkeypatch)
    return driver


class TestRotation:
    def test_of_what_another_thread_has_just_replaced_opens_nothing(self) -> None:
        world = World(minconn=1)
        world.supply.grow()
        world.finish()
        [record] = world.store.all_records()
        conn = record()  # closed, and not yet collected: its thread has it in hand
        assert world.supply.replace(record)
        assert world.supply.replace(record)
        assert conn is not None
        assert len(world.attempts) == 2

    def test_asks_the_breaker_before_it_opens_a_replacement(self, driver: FakeDriver) -> None:
        clock = FakeClock()
        pool = fake_pool(clock, 10, 20, lifetime_timeout=100, background_prewarm=False)
        clock.advance(200)
        driver.error = psycopg2.OperationalError(REFUSED)
        pool.reap_idle_connections()
        assert driver.connects - 10 <= 3
        pool.shutdown()

    def test_that_finds_no_server_keeps_what_there_is_and_tries_again(
        self, driver: FakeDriver
    ) -> None:
        clock = FakeClock()
        with fake_pool(clock, 0, 3, lifetime_timeout=100, reap_idle_interval=0) as pool:
            conn: Any = pool.getconn()
            pool.putconn(conn)
            driver.error = psycopg2.OperationalError(REFUSED)
            for _ in range(20):  # the pool looks every second
                clock.now = max(clock.now, conn.pool_record.expires_at - 0.5)
                pool.reap_idle_connections()
                assert pool.getconn(timeout=0) is conn, "it was thrown away, and there is no other"
                pool.putconn(conn)
            driver.error = None
            clock.advance(60)  # the breaker's pauses are over
            pool.reap_idle_connections()
            assert pool.getconn() is not conn

    def test_does_not_end_a_connection_while_its_replacement_is_being_opened(
        self, driver: FakeDriver
    ) -> None:
        clock = FakeClock()
        lent: list[Any] = []
        takes_long = False

        def take_long() -> dict[str, Any]:
            nonlocal takes_long
            if takes_long:
                takes_long = False
                clock.advance(1000)
                lent.append(pool.getconn(timeout=0))
                pool.putconn(lent[-1])
            return {}

        with fake_pool(
            clock, 0, 3, lifetime_timeout=100, test_on_borrow=False, connect_params=take_long
        ) as pool:
            conn: Any = pool.getconn()
            pool.putconn(conn)
            lent.append(conn)
            clock.now = conn.pool_record.expires_at - 1
            driver.error = psycopg2.OperationalError(REFUSED)
            takes_long = True
            pool._upkeep.rotate()
            assert len(lent) > 1
            assert set(lent) == {conn}
            assert conn.pool_record.expires_at > clock.now, "there still is no other"

    @pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, RuntimeError])
    def test_goes_on_after_a_callback_that_raises(
        self, driver: FakeDriver, raised: type[BaseException]
    ) -> None:
        clock = FakeClock()
        calls = 0

        def connect_params() -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if calls == 3:  # the first replacement
                raise raised("a plug-in of the program's")
            return {}

        with fake_pool(clock, 0, 4, lifetime_timeout=100, connect_params=connect_params) as pool:
            old = [pool.getconn(), pool.getconn()]
            for conn in old:
                pool.putconn(conn)
            upkeep = pool._upkeep
            upkeep.start()
            for _ in range(300):
                clock.advance(0.5)
                with contextlib.suppress(raised):  # a worker logs it
                    upkeep.run()
            assert [conn.closed for conn in old] == [1, 1]
            assert calls > 3


class TestInterruptions:
    """An exception at any moment of an attempt does not keep the next one from being made."""

    @pytest.fixture
    def runner(self) -> Iterator[Interleaver]:
        if not HAS_BYTECODES:
            pytest.skip("this Python cannot trace bytecodes")
        with Interleaver(code_of(Supply, Endpoints, CircuitBreaker, desk.Desk), threads=1) as made:
            made.by_bytecode = True
            gc.collect()
            gc.freeze()
            yield made
            gc.unfreeze()

    @pytest.mark.parametrize("error", [REFUSED, WRONG_PASSWORD, None])
    def test_of_a_borrower_leave_a_pool_that_recovers(
        self, runner: Interleaver, driver: FakeDriver, error: str | None
    ) -> None:
        moment = 1
        while self._recovers_after(runner, driver, moment, error):
            moment += 1
        assert moment > 30, "the program has had moments"

    def _recovers_after(
        self, runner: Interleaver, driver: FakeDriver, moment: int, error: str | None
    ) -> bool:
        clock = FakeClock()
        pool = fake_pool(clock, 0, 2, breaker=CircuitBreaker(threshold=1))
        driver.error = psycopg2.OperationalError(error) if error else None
        run = runner.run([functools.partial(_attempt, pool)], Plan(fault=(0, moment)))
        pool.discard_all_idle()
        # The outage goes on for a while, then the server is back.
        driver.error = psycopg2.OperationalError(REFUSED)
        clock.advance(60)
        _attempt(pool)
        driver.error = None
        clock.advance(60)
        for _ in range(2):
            pool.putconn(pool.getconn(), close=True)
        pool.shutdown()
        return run.faulted


def _attempt(pool: ConnectionPool) -> None:
    try:
        pool.putconn(pool.getconn())
    except psycopg2.Error:
        pass


def test_many_outages_in_a_row_leave_no_trace() -> None:
    """Whatever happened before, the next recovery serves everybody and fills minconn."""
    world = World(minconn=2)
    chance = random.Random(1)
    errors = [None, REFUSED, SILENT, TOO_MANY, WRONG_PASSWORD]
    for _ in range(100):
        world.connector.error = chance.choice(errors)
        world.wait(chance.randrange(3), patient=chance.random() < 0.5)
        world.pass_time(chance.random() * 5)
        world.close_all_in_use()
    world.connector.error = None
    world.pass_time(60)
    waiters = world.wait(5)
    world.pass_time(1)
    assert all(waiter.item is not None for waiter in waiters)
    assert world.store.missing == 0
    assert world.state == "closed"
