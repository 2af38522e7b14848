"""Work cut into steps: done by a thread, interrupted and given up at each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.steps import Pause, Steps, run_blocking, take
from psycopg2_pool2.store import ThreadWaiter
from tests.support.fakes import FakeClock, FakeDriver, fake_pool


class Interrupt(BaseException):
    """As KeyboardInterrupt is no Exception."""


def fail(error: BaseException) -> None:
    raise error


class TestRunBlocking:
    def test_takes_the_steps_in_order_and_gives_their_results_back(self) -> None:
        taken: list[str] = []

        def step(name: str) -> str:
            taken.append(name)
            return name.upper()

        def work() -> Steps[list[str]]:
            first = yield lambda: step("a")
            second = yield lambda: step("b")
            return [first, second]

        assert run_blocking(work()) == ["A", "B"]
        assert taken == ["a", "b"]

    def test_returns_what_needs_no_step(self) -> None:
        def work() -> Steps[int]:
            yield from ()
            return 1

        assert run_blocking(work()) == 1

    def test_gives_the_exception_of_a_step_to_the_work(self) -> None:
        def work() -> Steps[str]:
            try:
                yield lambda: fail(KeyError("x"))
            except KeyError as error:
                told = str(error)
            after: str = yield lambda: f"after {told}"
            return after

        assert run_blocking(work()) == "after 'x'"

    @pytest.mark.parametrize("error", [ValueError("x"), Interrupt(), SystemExit()])
    def test_raises_what_the_work_lets_pass(self, error: BaseException) -> None:
        ended: list[bool] = []

        def work() -> Steps[None]:
            try:
                yield lambda: fail(error)
            finally:
                ended.append(True)

        with pytest.raises(type(error)) as caught:
            run_blocking(work())
        assert caught.value is error
        assert ended == [True]

    def test_does_not_take_a_step_s_stop_iteration_for_the_end(self) -> None:
        def work() -> Steps[str]:
            yield lambda: fail(StopIteration("not the end"))
            return "the end"

        with pytest.raises(RuntimeError, match="StopIteration"):
            run_blocking(work())

    def test_closes_the_work_when_it_is_interrupted_between_two_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was interrupted keeps its frame, and that the work, for as long as it is caught."""
        closed: list[bool] = []

        def work() -> Steps[None]:
            try:
                yield lambda: None
            except GeneratorExit:
                closed.append(True)
                raise

        monkeypatch.setattr("psycopg2_pool2.steps.take", lambda step, steps: fail(Interrupt()))
        with pytest.raises(Interrupt) as caught:
            run_blocking(work())
        assert caught.traceback
        assert closed == [True]


def test_a_pause_waits_in_this_thread() -> None:
    waiter: ThreadWaiter[Any] = ThreadWaiter(patient=True)
    waiter.seconds = 0.001
    assert waiter() is False
    waiter.wake()
    waiter.seconds = 30
    assert waiter() is True


# -- a borrow, given up at each of its steps ---------------------------------


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    driver.install(monkeypatch)
    return driver


def _with_an_idle_one() -> ConnectionPool:
    pool = fake_pool(FakeClock(), 0, 2)
    pool.putconn(pool.getconn())
    return pool


def _with_a_dead_one() -> ConnectionPool:
    pool = _with_an_idle_one()
    conn = pool._store.idle[0]
    conn.driver.dead.add(conn.fd)
    return pool


def _empty() -> ConnectionPool:
    return fake_pool(FakeClock(), 0, 2)


def _with_an_old_one() -> ConnectionPool:
    pool = fake_pool(FakeClock(), 0, 2, lifetime_timeout=60)
    pool.putconn(pool.getconn())
    pool._store.idle[0].pool_record.retired = True
    return pool


def _lending(pool: ConnectionPool) -> Steps[Any]:
    return pool._lending(5, ThreadWaiter)


def _come_to_step(number: int, work: Steps[Any]) -> None:
    """Take all steps before this one; StopIteration if there are fewer."""
    step = next(work)
    for _ in range(number):
        assert callable(step)
        step = take(step, work)


STEPS = {_with_an_idle_one: 1, _with_a_dead_one: 4, _with_an_old_one: 4, _empty: 3}


@pytest.mark.parametrize(
    ("make", "number"), [(make, number) for make, n in STEPS.items() for number in range(n)]
)
@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_a_borrow_that_ends_before_any_of_its_steps_loses_nothing(
    driver: FakeDriver, make: Callable[[], ConnectionPool], number: int, how: str
) -> None:
    pool = make()
    work = _lending(pool)
    _come_to_step(number, work)
    if how == "closed":
        work.close()
    else:
        with pytest.raises(Interrupt):
            work.throw(Interrupt())
    assert pool.stats() == PoolStats(0, len(driver.sockets))
    assert pool.get_stats()["requests_waiting"] == 0
    for conn in [pool.getconn(timeout=5) for _ in range(2)]:
        pool.putconn(conn)
    pool.shutdown()
    assert not driver.sockets


@pytest.mark.parametrize("make", STEPS)
def test_a_borrow_has_as_many_steps_as_were_interrupted(
    driver: FakeDriver, make: Callable[[], ConnectionPool]
) -> None:
    pool = make()
    with pytest.raises(StopIteration) as end:
        _come_to_step(STEPS[make], _lending(pool))
    pool.putconn(end.value.value)


def test_a_waiter_that_is_served_in_the_moment_in_which_he_gives_up_passes_it_on(
    driver: FakeDriver,
) -> None:
    pool = fake_pool(FakeClock(), 0, 1)
    conn = pool.getconn()
    work = _lending(pool)
    assert isinstance(next(work), Pause)
    pool.putconn(conn)
    assert pool.stats() == PoolStats(1, 0)
    work.close()
    assert pool.stats() == PoolStats(0, 1)
    assert pool.getconn() is conn


def test_a_permit_is_taken_before_the_step_that_opens(driver: FakeDriver) -> None:
    """Of those who wait each would else need a worker, to find out that there is no room."""
    pool = fake_pool(FakeClock(), 0, 1)
    opening, waiting = _lending(pool), _lending(pool)
    step = next(opening)
    assert not isinstance(step, Pause)
    assert isinstance(next(waiting), Pause)
    take(step, opening)
    assert driver.connects == 1
    opening.close()
    waiting.close()
    assert pool.stats() == PoolStats(0, 1)
