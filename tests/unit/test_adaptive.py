"""The warm target: a policy with a clock of its own, and a pool that lives by it."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from psycopg2_pool2 import AdaptiveConnectionPool
from psycopg2_pool2.adaptive import LoanTimes, SlidingPeak, WarmTarget
from psycopg2_pool2.store import Store
from tests.bench.loads import Load, PeakAlone, Policy, SimulatedPool, record, simulate
from tests.support.fakes import FakeClock, FakeDriver

CALM = (5, 2, 20)  # at most in use, in use now, borrows since the last look
CROWD = (30, 30, 50)
SLOW = (25, 20, 20)  # as many borrows as in the calm, each ten times as long
BUSY = (25, 20, 200)  # ten times as many borrows, each as long
HUNG = (35, 30, 0)


class Looks:
    """A target that is shown one look after the other."""

    def __init__(
        self,
        minconn: int = 1,
        maxconn: float = 40,
        utilization: float = 0.7,
        kind: type[WarmTarget] = WarmTarget,
    ) -> None:
        self.now = 1000.0
        self.borrows = 0
        self.news: list[str] = []
        self.target = kind(minconn, maxconn, utilization, 300.0, self.now)

    def look(self, peak: int, in_use: int, borrows: int, *, seconds: int = 1) -> None:
        """Look once in each of so many seconds."""
        for _ in range(seconds):
            self.now += 1
            self.borrows += borrows
            if self.target.observe(self.now, peak, in_use, self.borrows):
                self.news.append(self.target.reason)

    def settled(self) -> Looks:
        """Have seen so much calm that it is known what is usual."""
        self.look(*CALM, seconds=600)
        assert self.target.value == 8  # 5 / 0.7
        self.news.clear()
        return self


class TestGrowth:
    def test_is_to_what_makes_the_peak_the_wanted_part(self) -> None:
        looks = Looks()
        looks.look(7, 0, 20)
        looks.look(0, 0, 0)
        assert looks.target.value == 10
        assert looks.news == ["rose from 1 to 10: up to 7 in use"]

    @pytest.mark.parametrize("number", range(1, 60))
    def test_is_to_no_more_than_that(self, number: int) -> None:
        """What a division adds to a whole number is not a connection."""
        looks = Looks(maxconn=1000, utilization=0.1)
        looks.look(number, 0, 1)
        looks.look(0, 0, 0)
        assert looks.target.value == number * 10

    @pytest.mark.parametrize(("maxconn", "expected"), [(12, 12), (math.inf, 143)])
    def test_ends_at_maxconn(self, maxconn: float, expected: int) -> None:
        looks = Looks(maxconn=maxconn)
        looks.look(100, 0, 100)
        looks.look(0, 0, 0)
        assert looks.target.value == expected

    def test_follows_demand_at_once(self) -> None:
        looks = Looks().settled()
        looks.look(*BUSY, seconds=2)
        assert looks.target.value == 36

    def test_follows_a_crowd_even_if_it_was_there_at_a_look(self) -> None:
        looks = Looks(maxconn=100).settled()
        looks.look(*CROWD)
        looks.look(*CALM)
        assert looks.target.value == 43


class TestSlowDatabase:
    @pytest.mark.parametrize("slow", [SLOW, HUNG, (12, 10, 20), (9, 6, 20)])
    def test_does_not_raise_the_target(self, slow: tuple[int, int, int]) -> None:
        looks = Looks().settled()
        looks.look(*slow, seconds=600)
        looks.look(*CALM, seconds=30)
        assert looks.target.value <= 8

    def test_would_raise_it_if_the_peak_alone_counted(self) -> None:
        looks = Looks(kind=PeakAlone).settled()
        looks.look(*SLOW, seconds=2)
        assert looks.target.value == 36

    def test_is_told_once(self) -> None:
        looks = Looks().settled()
        looks.look(*SLOW, seconds=30)
        assert looks.news == [
            "stays at 8: up to 25 in use; loans last 10.0 times as long as usual,"
            " each counts as much less"
        ]
        looks.look(*CALM, seconds=30)
        looks.look(*HUNG, seconds=30)
        assert len(looks.news) == 2

    def test_does_not_hide_that_more_is_asked_for(self) -> None:
        looks = Looks().settled()
        looks.look(*SLOW, seconds=20)
        looks.look(90, 80, 80, seconds=30)  # four times as many, each ten times as long
        assert looks.target.value == 13
        assert [told.partition(":")[0] for told in looks.news] == [
            "stays at 8",
            "rose from 8 to 13",
            "stays at 13",
        ]

    def test_cannot_be_told_from_anything_before_there_is_a_usual(self) -> None:
        looks = Looks()
        looks.look(*SLOW, seconds=30)
        assert looks.target.value == 36


class TestShrinking:
    def test_begins_when_the_peak_is_as_old_as_the_span(self) -> None:
        looks = Looks()
        looks.look(21, 0, 20)
        looks.look(1, 0, 20, seconds=300)
        assert looks.target.value == 30
        looks.look(1, 0, 20, seconds=2)
        assert looks.target.value == 27
        assert looks.target.reason == "fell from 30 to 27: no more than 1 in use for 300 s"

    def test_goes_on_by_a_tenth_at_a_time(self) -> None:
        looks = Looks()
        looks.look(21, 0, 20)
        looks.look(1, 0, 20, seconds=302)
        values = []
        for _ in range(20):
            values.append(looks.target.value)
            looks.look(1, 0, 20, seconds=30)
        assert values[:10] == [27, 25, 23, 21, 19, 18, 17, 16, 15, 14]
        assert values[10:] == [13, 12, 11, 10, 9, 8, 7, 6, 5, 4]

    def test_does_not_follow_a_small_difference(self) -> None:
        looks = Looks()
        looks.look(21, 0, 20)
        looks.look(20, 0, 20, seconds=900)
        assert looks.target.value == 30  # 29 would do

    @pytest.mark.parametrize("minconn", [0, 4])
    def test_ends_at_minconn(self, minconn: int) -> None:
        looks = Looks(minconn)
        looks.look(10, 0, 20)
        looks.look(0, 0, 0, seconds=900)
        assert looks.target.value == minconn

    def test_is_interrupted_by_growth(self) -> None:
        looks = Looks()
        looks.look(21, 0, 20)
        looks.look(1, 0, 20, seconds=330)
        looks.look(21, 0, 20)
        looks.look(1, 0, 20, seconds=200)
        assert looks.target.value == 30


class TestLimits:
    def test_that_change_move_the_target(self) -> None:
        looks = Looks()
        looks.look(14, 0, 20)
        looks.look(1, 0, 20)
        looks.target.resize(1, 10)
        assert (looks.target.value, looks.target.reason) == (
            10,
            "fell from 20 to 10: the limits were changed",
        )
        looks.target.resize(15, 30)
        assert looks.target.value == 15

    def test_that_it_keeps_to_leave_it_alone(self) -> None:
        looks = Looks().settled()
        reason = looks.target.reason
        looks.target.resize(0, 20)
        assert looks.target.reason == reason


class TestLoanTimes:
    def test_are_what_is_in_use_divided_by_the_borrows(self) -> None:
        times = LoanTimes()
        for _ in range(60):
            times.add(1.0, 2, 20)
        assert times.usual == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("look", "looks"),
        [((1.0, 2, 20), 59), ((1.0, 0, 20), 1000), ((1.0, 5, 0), 1000), ((0.1, 2, 20), 500)],
    )
    def test_are_unknown_until_enough_was_seen(
        self, look: tuple[float, int, int], looks: int
    ) -> None:
        times = LoanTimes()
        for _ in range(looks):
            times.add(*look)
        assert times.usual is None
        assert times.excess() == 1.0

    def test_are_slow_to_take_slow_for_usual(self) -> None:
        times = LoanTimes()
        for minute in range(60):
            for _ in range(60):
                times.add(1.0, 2 if minute < 20 else 20, 20)
        assert times.excess() == pytest.approx(10)
        for _ in range(30 * 60):
            times.add(1.0, 20, 20)
        assert times.excess() == 1.0

    def test_do_not_trust_one_look(self) -> None:
        times = LoanTimes()
        for _ in range(60):
            times.add(1.0, 2, 20)
        times.add(1.0, 50, 50)
        assert times.excess() == 1.0
        times.add(1.0, 2, 20)
        assert times.excess() == 1.0

    def test_notice_at_the_second_look(self) -> None:
        times = LoanTimes()
        for _ in range(60):
            times.add(1.0, 2, 20)
        times.add(1.0, 20, 20)
        times.add(1.0, 20, 20)
        assert times.excess() == pytest.approx(10)


def test_a_sliding_peak_is_the_largest_of_the_span() -> None:
    dice = random.Random(1)
    seen: list[tuple[float, float]] = []
    peak, now = SlidingPeak(30.0), 0.0
    for _ in range(2000):
        now += dice.choice([0.0, 1.0, 5.0, 5.0, 10.0])
        seen.append((now, dice.random()))
        assert peak.add(*seen[-1]) == max(v for when, v in seen if when >= now - 30.0)


class TestSimulated:
    """With arrivals and loans at random, the real store and the real reaping."""

    @pytest.mark.parametrize("slowness", [2.0, 10.0])
    @pytest.mark.parametrize("seed", [1, 2])
    def test_a_slow_database_does_not_raise_the_target(self, slowness: float, seed: int) -> None:
        load = Load(0.75, lambda now: 20.0, slow=(1500, 2100), slowness=slowness)
        seen = simulate(Policy(1, 400, WarmTarget), record(load, seed)).sizes
        before = max(target for _, _, target in seen[30:150])
        after = max(target for _, _, target in seen[150:])
        assert after <= before + 2  # the peaks of a random load differ by that
        assert slowness < 5 or max(size for _, size, _ in seen[150:]) > before

    def test_more_borrowers_do_within_seconds(self) -> None:
        load = Load(0.3, lambda now: 20.0 if now < 600 else 200.0)
        pool = SimulatedPool(Policy(1, 400, WarmTarget), record(load))
        pool.start()
        pool.events.run_until(600)
        assert pool.store.floor < 20
        pool.events.run_until(605)
        assert pool.store.floor >= 27  # 20 are in use on average
        pool.events.run_until(610)
        assert pool.store.size >= pool.store.floor

    def test_a_pool_that_nobody_uses_any_more_shrinks_to_minconn(self) -> None:
        load = Load(0.7, lambda now: 50.0 if now < 300 else 1e-9)
        pool = SimulatedPool(Policy(2, 400, WarmTarget), record(load))
        pool.start()
        pool.events.run_until(300)
        assert pool.store.floor > 10
        pool.events.run_until(load.end)
        assert (pool.store.floor, pool.store.size) == (2, 2)

    def test_a_steady_load_opens_next_to_nothing(self) -> None:
        load = Load(1.0, lambda now: 20.0)
        seen = simulate(Policy(1, 400, WarmTarget), record(load))
        assert seen.connects < 40
        assert seen.waits < 40


class Item:
    """Something to keep in a store."""

    pool_record: Any
    pool_token: object


class TestStore:
    """What its books tell of the peak in use: all less the fewest idle."""

    @staticmethod
    def open_one(store: Store[Item]) -> None:
        permit = store.take_permit(10, spare=True)
        assert permit is not None
        item = Item()
        store.admit(permit, item)
        store.keep(item)

    @pytest.fixture
    def store(self) -> Store[Item]:
        made: Store[Item] = Store(0, 20, FakeClock())
        for _ in range(10):
            self.open_one(made)
        lent = [made.borrow() for _ in range(3)]
        for item in lent:
            assert item is not None
            made.claim(item.pool_record)
            made.give_back(item, item.pool_record)
        assert self.peak(made) == 3
        return made

    @staticmethod
    def peak(store: Store[Item]) -> int:
        return len(store.idle) - store.low

    def test_is_not_changed_by_a_new_one(self, store: Store[Item]) -> None:
        self.open_one(store)
        assert self.peak(store) == 3

    def test_is_not_changed_by_one_that_leaves(self, store: Store[Item]) -> None:
        assert store.withdraw(store.idle[0], leaving=True)
        assert self.peak(store) == 3

    def test_is_not_changed_by_tests_of_the_idle(self, store: Store[Item]) -> None:
        for item in list(store.idle):
            assert store.withdraw(item)
            store.keep(item, oldest=True)
        assert self.peak(store) == 3

    def test_knows_none_idle_that_were_lost(self, store: Store[Item]) -> None:
        for item in list(store.idle):
            assert store.withdraw(item)
            store.condemn(item.pool_record)
        assert self.peak(store) == 0

    def test_floor_is_minconn_unless_told_otherwise(self, store: Store[Item]) -> None:
        store.resize(5, 10)
        assert store.floor == 5
        store.resize(1, 10)
        assert store.floor == 1
        store.floor = 12
        assert store.missing == 2
        assert not store.withdraw_surplus(store.idle[0])


# -- in a pool -------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver()
    made.install(monkeypatch)
    return made


class TimedPool:
    """A pool without threads that lives by a clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.clock = FakeClock()
        timed = type("Timed", (AdaptiveConnectionPool,), {"_clock": staticmethod(self.clock)})
        self.pool: AdaptiveConnectionPool = timed(
            *args, **{"num_workers": 0, "reap_idle_interval": 0, "name": "timed", **kwargs}
        )

    def use(self, number: int, *, seconds: float = 1.0) -> None:
        """Have so many in use at once, and time pass after that."""
        conns = [self.pool.getconn() for _ in range(number)]
        for conn in conns:
            self.pool.putconn(conn)
        self.clock.advance(seconds)

    @property
    def target(self) -> int:
        """The warm target as the pool tells it."""
        value: int = self.pool.get_stats()["pool_target"]
        return value

    @property
    def size(self) -> int:
        """How many are open."""
        value: int = self.pool.get_stats()["pool_size"]
        return value


@pytest.fixture
def timed(driver: FakeDriver) -> Iterator[partial[TimedPool]]:
    pools: list[TimedPool] = []

    def make(*args: Any, **kwargs: Any) -> TimedPool:
        pools.append(TimedPool(*args, **kwargs))
        return pools[-1]

    yield partial(make)
    for made in pools:
        made.pool.shutdown()


class TestPool:
    def test_tells_its_target_and_why(self, timed: Any) -> None:
        made = timed(2, 20)
        stats = made.pool.get_stats()
        assert (stats["pool_target"], stats["pool_target_reason"]) == (2, "is 2: minconn")
        for _ in range(3):
            made.use(7)
        stats = made.pool.pop_stats()
        assert (stats["pool_target"], stats["pool_min"], made.pool.minconn) == (10, 2, 2)
        assert stats["pool_target_reason"] == "rose from 2 to 10: up to 7 in use"
        assert made.pool.pop_stats()["requests_num"] == 0

    def test_without_workers_opens_in_advance_only_when_reaped(self, timed: Any) -> None:
        made = timed(1, 20)
        for _ in range(3):
            made.use(7)
        assert (made.target, made.size) == (10, 7)
        assert made.pool.reap_idle_connections() == 0
        assert made.size == 10

    def test_does_not_take_what_it_opened_in_advance_for_used(self, timed: Any) -> None:
        made = timed(1, 100)
        for _ in range(30):
            made.use(7)
            made.pool.reap_idle_connections()
        assert (made.target, made.size) == (10, 10)

    @pytest.mark.parametrize("what", ["check", "drain", "discard_all_idle"])
    def test_does_not_take_its_own_work_for_use(self, timed: Any, what: str) -> None:
        made = timed(5, 100)
        for _ in range(5):
            made.pool.reap_idle_connections()
            made.use(1)
            getattr(made.pool, what)()
            made.use(1)
        made.pool.reap_idle_connections()
        assert (made.target, made.size) == (5, 5)

    def test_reaps_down_to_the_target_then_to_minconn(self, timed: Any) -> None:
        made = timed(1, 40, idle_timeout=300)
        made.use(20)
        for _ in range(3):
            made.use(7)
        assert (made.target, made.size) == (29, 20)
        for _ in range(310):
            made.use(7)
        made.pool.reap_idle_connections()
        assert made.size == made.target == 27
        for _ in range(1500):
            made.use(1)
            if made.clock.now % 100 < 1:
                made.pool.reap_idle_connections()
        assert made.size == made.target == 2

    def test_keeps_within_limits_that_change(self, timed: Any) -> None:
        made = timed(1, 40)
        for _ in range(3):
            made.use(14)
        assert made.target == 20
        made.pool.resize(1, 10)
        assert (made.target, made.size) == (10, 10)
        made.pool.resize(15, 40)
        made.pool.reap_idle_connections()
        assert (made.target, made.size) == (15, 15)

    def test_does_not_grow_for_a_slow_database(self, timed: Any) -> None:
        made = timed(1, 40)
        borrowed: list[Any] = []

        def second(in_use: int) -> None:
            """Lend and take back two a second, of which so many are in use all the time."""
            for _ in range(2):
                borrowed.append(made.pool.getconn())
                if len(borrowed) > in_use:
                    made.pool.putconn(borrowed.pop(0))
            made.clock.advance(1.01)

        for _ in range(200):
            second(2)
        usual = made.target
        for _ in range(300):
            second(20)
        assert made.target == usual
        assert "times as long as usual" in made.pool.get_stats()["pool_target_reason"]
        for conn in borrowed:
            made.pool.putconn(conn)
        for _ in range(30):
            made.use(1)
        assert made.pool.reap_idle_connections() == 0  # they were needed of late

    def test_does_not_hide_from_the_reaping_what_was_needed(self, timed: Any) -> None:
        made = timed(1, 20, idle_timeout=300)
        made.use(10)
        upkeep = made.pool._upkeep
        upkeep.mark_low_water()
        made.use(10)
        made.use(1, seconds=300)  # a look
        assert upkeep.mark_low_water() == 0
        made.use(1, seconds=301)
        assert upkeep.mark_low_water() == 9

    def test_logs_each_move(self, timed: Any, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "psycopg2_pool2")
        made = timed(1, 20)
        for _ in range(5):
            made.use(7)
        told = [record.getMessage() for record in caplog.records if "target" in record.msg]
        assert told == ["pool 'timed': the warm target rose from 1 to 10: up to 7 in use"]

    def test_looks_once_at_a_time(self, timed: Any) -> None:
        made = timed(1, 20)
        with made.pool._keeper._lock:  # as in a finalizer that runs in the middle of a look
            made.use(7, seconds=2)
            made.use(7, seconds=2)
        assert made.target == 1
        for _ in range(3):
            made.use(7)
        assert made.target == 10

    def test_has_a_span_of_its_own_where_idle_timeout_is_none(self, timed: Any) -> None:
        made = timed(1, 20, idle_timeout=None)
        for _ in range(3):
            made.use(7)
        assert made.target == 10
        for _ in range(900):
            made.use(1)
        assert made.target == 2


class TestArguments:
    @pytest.mark.parametrize("value", [0, -0.1, 1.01, math.nan, math.inf])
    def test_a_utilization_out_of_range_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="target_utilization must be above 0 and at most 1"):
            AdaptiveConnectionPool(target_utilization=value)

    @pytest.mark.parametrize("value", [None, "0.7", True])
    def test_a_utilization_that_is_no_number_is_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match="target_utilization must be a number, not a"):
            AdaptiveConnectionPool(target_utilization=value)

    def test_all_others_are_those_of_every_pool(self, timed: Any) -> None:
        made = timed(3, 30, 60, target_utilization=1, test_on_borrow=False)
        pool = made.pool
        assert (pool.minconn, pool.maxconn, pool.idle_timeout) == (3, 30, 60)
        assert pool.target_utilization == 1
        with pytest.raises(ValueError, match="minconn must not exceed maxconn"):
            AdaptiveConnectionPool(5, 4)
