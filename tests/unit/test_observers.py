"""What a pool tells its observers, and that they can do it no harm."""

from __future__ import annotations

import gc
import inspect
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import (
    ConnectionPool,
    PoolExhausted,
    PoolStats,
    PoolTimeout,
    desk,
    observers,
    pool,
    stats,
    store,
    supply,
)
from tests.support.fakes import FakeClock, FakeDriver, fake_pool
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of
from tests.support.waiting import in_thread

EVENTS = ["connected", "waited", "used"]


class Notes:
    """An observer that writes down what it is told, and then does what it was asked to do."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.act: Callable[[str], object] = lambda event: None

    def waited(self, seconds: float) -> None:
        self._note("waited", seconds)

    def used(self, seconds: float) -> None:
        self._note("used", seconds)

    def connected(self, seconds: float) -> None:
        self._note("connected", seconds)

    def forked(self) -> None:
        self._note("forked", 0)

    def _note(self, event: str, seconds: float) -> None:
        self.told.append((event, seconds))
        self.act(event)

    def raise_at(self, event: str, error: BaseException) -> None:
        """Raise this when that happens, each time."""

        def act(happened: str) -> None:
            if happened == event:
                raise error

        self.act = act


class Interrupt(BaseException):
    """Not an Exception, as KeyboardInterrupt is not."""


def take_back_at_once(pool: ConnectionPool) -> None:
    """Have what is clean taken back without further ado, as a pool with workers does."""
    pool._decides_at_return = False


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    driver.install(monkeypatch)
    return driver


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def observed(driver: FakeDriver, clock: FakeClock, notes: Notes) -> ConnectionPool:
    """Return a pool with one idle connection, which has been observed from then on."""
    made = fake_pool(clock, 0, 1)
    made.putconn(made.getconn())
    made._observe(notes)
    return made


class TestWhatIsTold:
    def test_is_how_long_a_connection_was_used(
        self, observed: ConnectionPool, clock: FakeClock, notes: Notes
    ) -> None:
        conn = observed.getconn()
        clock.advance(3)
        observed.putconn(conn)
        assert notes.told == [("waited", 0), ("used", 3)]

    @pytest.mark.parametrize("how", ["block", "key", "close", "lost", "rollback"])
    def test_does_not_depend_on_how_it_comes_back(
        self, observed: ConnectionPool, clock: FakeClock, notes: Notes, driver: FakeDriver, how: str
    ) -> None:
        if how == "block":
            with observed.conn():
                clock.advance(3)
        else:
            conn: Any = observed.getconn("key" if how == "key" else None)
            clock.advance(3)
            if how == "lost":
                driver.dead.add(conn.fd)
            if how in ("lost", "rollback"):
                conn.begin()
            observed.putconn(conn, close=how == "close")
        assert notes.told == [("waited", 0), ("used", 3)]

    def test_is_how_long_opening_took_and_that_the_borrower_waited_for_it(
        self, driver: FakeDriver, clock: FakeClock, notes: Notes
    ) -> None:
        made = fake_pool(clock, 0, 1, configure=lambda conn: clock.advance(2))
        made._observe(notes)
        made.getconn()
        assert notes.told == [("connected", 2), ("waited", 2)]

    def test_is_no_attempt_and_no_borrow_that_failed(
        self, driver: FakeDriver, clock: FakeClock, notes: Notes
    ) -> None:
        made = fake_pool(clock, 0, 1)
        made._observe(notes)
        driver.error = psycopg2.OperationalError("refused")
        with pytest.raises(psycopg2.OperationalError):
            made.getconn()
        assert notes.told == []

    def test_is_not_how_long_one_was_used_that_left_the_pool(
        self, observed: ConnectionPool, notes: Notes
    ) -> None:
        observed.detach(observed.getconn())
        assert notes.told == [("waited", 0)]

    def test_begins_with_the_next_loan(
        self, driver: FakeDriver, clock: FakeClock, notes: Notes
    ) -> None:
        made = fake_pool(clock, 0, 1)
        conn = made.getconn()
        made._observe(notes)
        made.putconn(conn)
        assert notes.told == []

    def test_is_the_same_for_all_observers(self, observed: ConnectionPool, notes: Notes) -> None:
        other = Notes()
        observed._observe(other)
        observed._observe(notes)  # a second time
        observed.putconn(observed.getconn())
        assert notes.told == other.told == [("waited", 0), ("used", 0)]

    def test_is_nothing_after_the_end(self, observed: ConnectionPool, notes: Notes) -> None:
        observed._unobserve(notes)
        observed._unobserve(notes)
        observed.putconn(observed.getconn())
        assert notes.told == []

    def test_does_not_count_time_that_nobody_observed(
        self, observed: ConnectionPool, clock: FakeClock, notes: Notes
    ) -> None:
        conn = observed.getconn()
        observed._unobserve(notes)
        clock.advance(100)
        observed._observe(notes)
        observed.putconn(conn)
        assert notes.told == [("waited", 0)]

    def test_is_in_a_child_of_a_fork_told_as_well(
        self, observed: ConnectionPool, notes: Notes
    ) -> None:
        observed._after_fork_in_child()
        take_back_at_once(observed)
        observed.putconn(observed.getconn())
        assert [event for event, _ in notes.told] == ["forked", "connected", "waited", "used"]


class TestAnObserverThatFails:
    @pytest.mark.parametrize("event", EVENTS)
    def test_is_not_the_borrowers_business(
        self, driver: FakeDriver, clock: FakeClock, notes: Notes, event: str
    ) -> None:
        made = fake_pool(clock, 0, 1)
        made._observe(notes)
        notes.raise_at(event, ZeroDivisionError())
        for _ in range(2):
            made.putconn(made.getconn())
        assert made.stats() == PoolStats(0, 1)
        assert driver.connects == 1

    def test_does_not_keep_others_from_being_told(
        self, observed: ConnectionPool, notes: Notes
    ) -> None:
        other = Notes()
        observed._observe(other)
        notes.raise_at("waited", ZeroDivisionError())
        observed.putconn(observed.getconn())
        assert other.told == [("waited", 0), ("used", 0)]

    def test_is_logged_with_one_warning(
        self, observed: ConnectionPool, notes: Notes, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "psycopg2_pool2")
        notes.raise_at("used", ZeroDivisionError())
        for _ in range(3):
            observed.putconn(observed.getconn())
        levels = [record.levelname for record in caplog.records if "failed" in record.message]
        assert levels == ["WARNING", "DEBUG", "DEBUG"]
        assert observed.name in caplog.text
        assert "ZeroDivisionError" in caplog.text


class TestAnObserverThatIsInterrupted:
    @pytest.mark.parametrize("at_once", [False, True])
    @pytest.mark.parametrize("event", EVENTS)
    def test_raises_and_loses_nothing(
        self, driver: FakeDriver, clock: FakeClock, notes: Notes, event: str, at_once: bool
    ) -> None:
        made = fake_pool(clock, 0, 1)
        made._observe(notes)
        if at_once:
            take_back_at_once(made)
        notes.raise_at(event, Interrupt())
        with pytest.raises(Interrupt) as kept:  # and with it the frames
            made.putconn(made.getconn())
        assert kept.tb is not None
        assert made.stats() == PoolStats(0, len(driver.sockets))
        assert made.get_stats()["pool_size"] == len(driver.sockets)
        notes.act = lambda event: None
        made.putconn(made.getconn())
        assert made.stats() == PoolStats(0, 1)

    def test_at_any_bytecode_loses_nothing(self, runner: Interleaver, driver: FakeDriver) -> None:
        moment = 1
        while self._interrupted(runner, driver, moment):
            moment += 1
        assert moment > 30, "there were moments"

    @staticmethod
    def _interrupted(runner: Interleaver, driver: FakeDriver, moment: int) -> bool:
        made = fake_pool(FakeClock(), 0, 1)
        made._observe(Notes())
        take_back_at_once(made)
        run = runner.run([lambda: _use(made)], Plan(fault=(0, moment)))
        assert run.errors == [None]
        gc.collect()
        assert made.stats() == PoolStats(0, len(driver.sockets)), f"after moment {moment}"
        made.putconn(made.getconn(timeout=5))
        made.shutdown()
        assert not driver.sockets, f"after moment {moment}"
        return run.faulted

    @pytest.fixture(scope="class")
    @staticmethod
    def runner() -> Iterator[Interleaver]:
        if not HAS_BYTECODES:
            pytest.skip("this Python cannot trace bytecodes")
        modules: list[ModuleType] = [desk, observers, pool, stats, store, supply]
        classes = [
            cls
            for module in modules
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if cls.__module__ == module.__name__
        ]
        with Interleaver(list(code_of(*classes, Notes)), threads=1) as made:
            made.by_bytecode = True
            gc.collect()
            gc.freeze()
            yield made
            gc.unfreeze()


def _use(made: ConnectionPool) -> None:
    made.putconn(made.getconn())
    conn: Any
    with made.conn() as conn:
        conn.begin()


@pytest.mark.parametrize("event", EVENTS)
def test_no_lock_is_held_while_an_observer_is_told(
    driver: FakeDriver, clock: FakeClock, notes: Notes, event: str
) -> None:
    made = fake_pool(clock, 0, 2)
    made._observe(notes)

    def take_every_lock() -> str:
        made.resize(0, 2)
        made.check()
        made.reap_idle_connections()
        made._supply.allowance()
        return repr(made.get_stats()) + repr(made.endpoints())

    def take_them_elsewhere(happened: str) -> None:
        if happened == event:
            running = in_thread(take_every_lock)
            running.thread.join(10)
            finished_meanwhile.append(running.done)

    finished_meanwhile: list[bool] = []
    notes.act = take_them_elsewhere
    made.putconn(made.getconn())
    assert finished_meanwhile == [True]


def test_an_observer_may_return_a_connection_as_the_garbage_collector_does(
    driver: FakeDriver, clock: FakeClock, notes: Notes
) -> None:
    made = fake_pool(clock, 0, 2)
    made._observe(notes)
    others = [made.getconn()]
    notes.act = lambda event: made.putconn(others.pop()) if others else None
    made.putconn(made.getconn())
    assert [event for event, _ in notes.told].count("used") == 2
    assert made.stats() == PoolStats(0, 2)


class TestTimeouts:
    @pytest.mark.parametrize(("timeout", "error"), [(0, PoolExhausted), (0.01, PoolTimeout)])
    def test_are_counted_whether_one_waited_or_not(
        self, driver: FakeDriver, timeout: float, error: type[Exception]
    ) -> None:
        made = ConnectionPool(0, 1, num_workers=0)
        conn = made.getconn()
        with pytest.raises(error):
            made.getconn(timeout=timeout)
        told = made.get_stats()
        assert (told["requests_timeouts"], told["requests_errors"]) == (1, 1)
        made.putconn(conn)

    def test_are_not_what_the_server_refused(self, driver: FakeDriver, clock: FakeClock) -> None:
        made = fake_pool(clock, 0, 1)
        driver.error = psycopg2.OperationalError("refused")
        with pytest.raises(psycopg2.OperationalError):
            made.getconn()
        told = made.get_stats()
        assert (told["requests_timeouts"], told["requests_errors"]) == (0, 1)


def test_the_number_of_borrows_does_not_fall_while_one_comes_back() -> None:
    class Item:
        pool_record: Any
        pool_token: object

    books: store.Store[Item] = store.Store(0, 1, FakeClock())
    permit = books.take_permit(1, spare=True)
    assert permit is not None
    item = Item()
    record = books.admit(permit, item)
    books.keep(item)
    books.borrow()
    assert books.requests() == 1
    books.claim(record)  # and now, before it is counted as used, somebody asks
    assert books.requests() == 1
    books.give_back(item, record)
    assert books.requests() == 1
