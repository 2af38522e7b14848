"""How tasks borrow: the protocols at the head of `psycopg2_pool2.tasks`, in forced interleavings.

Workers are a shelf here, from which the test takes a call when it wants it made.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, PoolClosed, PoolStats, PoolTimeout
from psycopg2_pool2.offload import Call, Offload
from psycopg2_pool2.steps import Steps
from psycopg2_pool2.tasks import TaskBorrower, TaskWaiter, drive
from tests.support.fakes import FakeClock, FakeDriver, fake_pool
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of, plans
from tests.support.interleave import Call as Act
from tests.support.waiting import in_thread


class Interrupt(BaseException):
    """As KeyboardInterrupt is no Exception."""


class Shelf(Offload):
    """In place of worker threads: calls lie here until the test makes them."""

    def __init__(self) -> None:
        super().__init__(lambda: 1)
        self.calls: list[Call[Any]] = []

    def start(self, call: Call[Any]) -> None:
        self.calls.append(call)

    def make_next(self) -> None:
        """Do what a worker does."""
        self.calls.pop(0).make()

    def make_all(self) -> int:
        """Do what workers do until nothing is left; return how many calls that were."""
        made = 0
        while self.calls:
            self.make_next()
            made += 1
        return made


async def turn() -> None:
    """Let the loop do all that it has to do now."""
    for _ in range(8):
        await asyncio.sleep(0)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def fail_if_called(item: object) -> None:
    raise AssertionError(f"{item!r} was given back")


def here() -> int:
    return threading.get_ident()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    driver.install(monkeypatch)
    return driver


class Borrower:
    """A task that borrows from a pool whose workers are a shelf."""

    def __init__(
        self, pool: ConnectionPool, shelf: Shelf, *, by_worker: bool = True, timeout: float = 30
    ) -> None:
        self.unwanted: list[Any] = []
        self._pool = pool
        self._shelf = shelf
        self._by_worker = by_worker
        self._timeout = timeout
        self.task = asyncio.get_running_loop().create_task(drive(self._steps(), shelf, self._take))

    def _steps(self) -> Steps[Any]:
        return self._pool._lending(self._timeout, TaskBorrower(self._shelf, self._by_worker))

    def _take(self, conn: Any) -> None:
        self.unwanted.append(conn)
        self._pool.putconn(conn)

    async def cancel(self) -> None:
        """Cancel, and see that the task ends by that."""
        self.task.cancel()
        await turn()
        assert self.task.cancelled()


@pytest.fixture
def pool(driver: FakeDriver) -> Iterator[ConnectionPool]:
    """Make a pool with one idle connection, and see in the end that nothing is lost."""
    made = fake_pool(FakeClock(), 0, 1)
    made.putconn(made.getconn())
    yield made
    gc.collect()
    assert made.stats().in_use == 0
    assert made.get_stats()["requests_waiting"] == 0
    made.putconn(made.getconn(timeout=5))
    made.shutdown()
    assert not driver.sockets


class TestSteps:
    def test_that_do_not_block_are_done_by_the_loop_s_thread(self, shelf: Shelf) -> None:
        def work() -> Steps[int]:
            yield from ()
            return here()

        async def main() -> None:
            assert await drive(work(), shelf, lambda _: None) == here()
            assert not shelf.calls

        run(main)

    def test_follow_each_other_in_one_call_of_a_worker(self, shelf: Shelf) -> None:
        places: list[str] = []

        def work() -> Steps[str]:
            places.append("loop")
            for _ in range(3):
                yield lambda: places.append("worker")
            return "end"

        async def main() -> None:
            task = asyncio.create_task(drive(work(), shelf, lambda _: None))
            await turn()
            assert places == ["loop"]
            assert shelf.make_all() == 1
            assert places == ["loop", *["worker"] * 3]
            assert await task == "end"

        run(main)

    @pytest.mark.parametrize("error", [ValueError("x"), Interrupt(), asyncio.CancelledError()])
    def test_raise_in_the_task_what_they_raise(self, shelf: Shelf, error: BaseException) -> None:
        unwanted: list[object] = []

        def fail() -> None:
            raise error

        def work() -> Steps[None]:
            yield fail

        async def main() -> None:
            driving = drive(work(), shelf, unwanted.append)
            driving.send(None)
            shelf.make_next()
            await turn()
            with pytest.raises(type(error)) as caught:
                driving.send(None)
            assert caught.value is error

        run(main)
        assert not unwanted

    def test_may_be_caught_by_the_work(self, shelf: Shelf) -> None:
        def fail() -> None:
            raise KeyError

        def work() -> Steps[str]:
            try:
                yield fail
            except KeyError:
                caught: str = yield lambda: "caught"
                return caught
            raise AssertionError

        async def main() -> None:
            task = asyncio.create_task(drive(work(), shelf, lambda _: None))
            await turn()
            shelf.make_next()
            assert await task == "caught"

        run(main)


class Adding:
    """Work that adds ten; notes where it was done, and whether it was given up."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.given_up = 0

    def __call__(self, item: int) -> int:
        self.places.append(here())
        return item + 10

    def give_up(self) -> None:
        self.given_up += 1


class TestWork:
    """What is done with what comes out of the steps."""

    @staticmethod
    def one_by_the_loop() -> Steps[int]:
        yield from ()
        return 1

    @staticmethod
    def one_by_a_worker() -> Steps[int]:
        one: int = yield lambda: 1
        return one

    def test_is_done_by_the_worker_that_took_the_last_step(self, shelf: Shelf) -> None:
        async def main() -> None:
            work = Adding()
            task = asyncio.create_task(drive(self.one_by_a_worker(), shelf, fail_if_called, work))
            await turn()
            worker = in_thread(shelf.make_all)
            assert await task == 11
            assert worker.result() == 1
            assert work.places != [here()]
            assert not work.given_up

        run(main)

    def test_is_done_by_a_worker_when_the_loop_took_the_last_step(self, shelf: Shelf) -> None:
        async def main() -> None:
            work = Adding()
            task = asyncio.create_task(drive(self.one_by_the_loop(), shelf, fail_if_called, work))
            await turn()
            assert not work.places
            worker = in_thread(shelf.make_all)
            assert await task == 11
            assert worker.result() == 1
            assert work.places != [here()]

        run(main)

    def test_of_a_task_cancelled_before_a_worker_began_is_not_done(self, shelf: Shelf) -> None:
        async def main() -> None:
            work, unwanted = Adding(), list[int]()
            task = asyncio.create_task(drive(self.one_by_the_loop(), shelf, unwanted.append, work))
            await turn()
            task.cancel()
            await turn()
            assert task.cancelled()
            assert unwanted == [1]
            assert work.given_up == 1
            shelf.make_all()
            assert not work.places

        run(main)

    @pytest.mark.parametrize("steps", ["one_by_the_loop", "one_by_a_worker"])
    def test_of_a_task_cancelled_meanwhile_goes_on_and_is_told(
        self, shelf: Shelf, steps: str
    ) -> None:
        """What it got is in its hands: it is nobody's to give back."""

        async def main() -> None:
            begun, go = threading.Event(), threading.Event()

            class Slow(Adding):
                def __call__(self, item: int) -> int:
                    begun.set()
                    assert go.wait(30)
                    return super().__call__(item)

            work = Slow()
            task = asyncio.create_task(drive(getattr(self, steps)(), shelf, fail_if_called, work))
            await turn()
            worker = in_thread(shelf.make_all)
            assert begun.wait(10)
            task.cancel()
            await turn()
            assert task.cancelled()
            assert work.given_up == 1
            go.set()
            assert worker.result() == 1
            assert len(work.places) == 1

        run(main)

    @pytest.mark.parametrize("steps", ["one_by_the_loop", "one_by_a_worker"])
    def test_raises_in_the_task_what_it_raises(self, shelf: Shelf, steps: str) -> None:
        class Failing(Adding):
            def __call__(self, item: int) -> int:
                raise KeyError(item)

        async def main() -> None:
            work = Failing()
            task = asyncio.create_task(drive(getattr(self, steps)(), shelf, fail_if_called, work))
            await turn()
            shelf.make_all()
            with pytest.raises(KeyError):
                await task

        run(main)


class TestCancellation:
    def test_before_a_worker_began_has_none_begin(self, pool: ConnectionPool, shelf: Shelf) -> None:
        async def main() -> None:
            borrower = Borrower(pool, shelf)
            await turn()
            assert len(shelf.calls) == 1
            await borrower.cancel()
            assert pool.stats().in_use == 0, "without the worker's help"
            shelf.make_next()
            assert borrower.unwanted == []

        run(main)

    def test_before_one_was_opened_leaves_the_room_to_the_next_though_the_error_is_kept(
        self, driver: FakeDriver, shelf: Shelf
    ) -> None:
        async def main() -> None:
            pool = fake_pool(FakeClock(), 0, 1)
            first, second = Borrower(pool, shelf), Borrower(pool, shelf)
            await turn()
            assert len(shelf.calls) == 1
            first.task.cancel()
            errors = await asyncio.gather(first.task, return_exceptions=True)
            assert isinstance(errors[0], asyncio.CancelledError)
            for _ in range(3):
                shelf.make_all()
                await turn()
            assert second.task.done()
            pool.putconn(second.task.result())
            pool.shutdown()

        run(main)

    def test_while_a_worker_runs_leaves_it_what_it_has_in_hand(
        self, driver: FakeDriver, shelf: Shelf
    ) -> None:
        held = threading.Event()
        begun = threading.Event()

        def test(conn: Any) -> None:
            begun.set()
            assert held.wait(30)

        async def main() -> None:
            pool = fake_pool(FakeClock(), 0, 1, test_on_borrow=test)
            held.set()
            pool.putconn(pool.getconn())
            held.clear()
            begun.clear()
            borrower = Borrower(pool, shelf)
            await turn()
            worker = in_thread(shelf.make_next)
            assert begun.wait(10)
            await borrower.cancel()
            assert pool.stats().in_use == 1
            held.set()
            worker.result()
            assert [conn.closed for conn in borrower.unwanted] == [0]
            assert pool.stats() == PoolStats(0, 1)
            pool.shutdown()

        run(main)

    def test_after_the_worker_ended_and_before_the_task_wakes_gives_it_back(
        self, pool: ConnectionPool, shelf: Shelf
    ) -> None:
        async def main() -> None:
            borrower = Borrower(pool, shelf)
            await turn()
            shelf.make_next()
            assert pool.stats().in_use == 1
            await borrower.cancel()
            assert len(borrower.unwanted) == 1
            assert pool.stats() == PoolStats(0, 1)

        run(main)

    def test_of_one_who_waits_takes_him_out_of_the_queue(
        self, pool: ConnectionPool, shelf: Shelf
    ) -> None:
        async def main() -> None:
            conn = pool.getconn()
            borrower = Borrower(pool, shelf)
            await turn()
            assert pool.get_stats()["requests_waiting"] == 1
            await borrower.cancel()
            assert pool.get_stats()["requests_waiting"] == 0
            pool.putconn(conn)
            assert not shelf.calls

        run(main)

    @pytest.mark.parametrize("by_worker", [True, False])
    def test_in_the_moment_of_being_served_passes_it_on(
        self, pool: ConnectionPool, shelf: Shelf, by_worker: bool
    ) -> None:
        """1. Two wait. 2. The first is served. 3. It is cancelled before anybody goes on for it."""

        async def main() -> None:
            conn = pool.getconn()
            first, second = (Borrower(pool, shelf, by_worker=by_worker) for _ in range(2))
            await turn()
            pool.putconn(conn)
            first.task.cancel()
            await turn()
            assert first.task.cancelled()
            assert shelf.make_all() == 1 + by_worker
            pool.putconn(await second.task)
            assert first.unwanted == []

        run(main)

    def test_when_a_worker_went_on_for_one_who_waited_gives_it_back(
        self, pool: ConnectionPool, shelf: Shelf
    ) -> None:
        async def main() -> None:
            conn = pool.getconn()
            borrower = Borrower(pool, shelf)
            await turn()
            pool.putconn(conn)
            shelf.make_next()
            assert pool.stats().in_use == 1
            await borrower.cancel()
            assert borrower.unwanted == [conn]

        run(main)


class TestWaiting:
    def test_one_who_is_served_goes_on_by_a_worker(
        self, pool: ConnectionPool, shelf: Shelf
    ) -> None:
        async def main() -> None:
            conn = pool.getconn()
            borrower = Borrower(pool, shelf)
            await turn()
            pool.putconn(conn)
            assert len(shelf.calls) == 1, "without a turn of the loop"
            shelf.make_next()
            assert await borrower.task is conn
            pool.putconn(conn)

        run(main)

    def test_or_by_the_loop_where_nothing_blocks(self, driver: FakeDriver, shelf: Shelf) -> None:
        pool = fake_pool(FakeClock(), 0, 1, test_on_borrow=False)

        async def main() -> None:
            conn = pool.getconn()
            borrower = Borrower(pool, shelf, by_worker=False)
            await turn()
            pool.putconn(conn)
            assert await borrower.task is conn
            assert not shelf.calls
            pool.putconn(conn)

        run(main)
        pool.shutdown()

    def test_errors_need_no_worker(self, pool: ConnectionPool, shelf: Shelf) -> None:
        """When a pool is closed all who wait get one: each would else need a thread."""

        async def main() -> None:
            conn = pool.getconn()
            borrowers = [Borrower(pool, shelf) for _ in range(3)]
            await turn()
            pool._store.fail_waiters(lambda: PoolClosed("now"))
            for borrower in borrowers:
                with pytest.raises(PoolClosed, match="now"):
                    await borrower.task
            assert not shelf.calls
            pool.putconn(conn)

        run(main)

    def test_ends_by_itself_when_the_time_is_over(self, driver: FakeDriver, shelf: Shelf) -> None:
        async def main() -> None:
            clock = FakeClock()
            pool = fake_pool(clock, 0, 1)
            conn = pool.getconn()
            borrower = Borrower(pool, shelf, timeout=0.01)
            await turn()
            clock.advance(1)
            with pytest.raises(PoolTimeout):
                await borrower.task
            assert not shelf.calls
            pool.putconn(conn)
            assert pool.stats() == PoolStats(0, 1)
            pool.shutdown()

        run(main)

    def test_that_is_over_when_a_worker_has_just_begun_awaits_its_end(self, shelf: Shelf) -> None:
        """1. A worker begins for one who was served. 2. The pause is over. 3. The worker ends."""

        async def main() -> None:
            waiter = TaskBorrower(shelf, True)(patient=True)
            waiter.seconds = 0.001
            waited: list[bool] = []

            def work() -> Steps[str]:
                waited.append((yield waiter))
                waited.append((yield partial(begun_and_held.wait, 30)))
                return "end"

            begun_and_held = threading.Event()
            task = asyncio.create_task(drive(work(), shelf, lambda _: None))
            await turn()
            waiter.item = object()
            waiter.wake()
            worker = in_thread(shelf.make_next)
            while not waited:
                await turn()
            await asyncio.sleep(0.01)
            assert not task.done()
            begun_and_held.set()
            assert await task == "end"
            worker.result()
            assert waited == [True, True]

        run(main)


class TestLoopsThatEnd:
    @pytest.mark.parametrize("by_worker", [True, False])
    def test_closed_while_tasks_wait_keep_nothing(
        self, pool: ConnectionPool, shelf: Shelf, by_worker: bool
    ) -> None:
        conn = pool.getconn()
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            for _ in range(3):
                Borrower(pool, shelf, by_worker=by_worker)
            await turn()

        loop.run_until_complete(begin())
        _forget_pending(loop)
        pool.putconn(conn)
        assert shelf.make_all() == 3
        assert pool.stats() == PoolStats(0, 1)
        assert pool.get_stats()["requests_waiting"] == 0

    def test_closed_while_tasks_wait_leave_the_queue_when_woken(
        self, pool: ConnectionPool, shelf: Shelf
    ) -> None:
        """Else who is told that there is room, to open one himself, would be nobody."""
        conn = pool.getconn()
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            Borrower(pool, shelf)
            await turn()

        loop.run_until_complete(begin())
        _forget_pending(loop)
        pool.putconn(conn, close=True)
        assert shelf.make_all() == 1
        assert pool.get_stats()["requests_waiting"] == 0

    @pytest.mark.parametrize("made", [True, False])
    def test_closed_while_a_worker_tests_keep_nothing(
        self, pool: ConnectionPool, shelf: Shelf, made: bool
    ) -> None:
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            Borrower(pool, shelf)
            await turn()

        loop.run_until_complete(begin())
        _forget_pending(loop)
        if made:
            shelf.make_next()
        shelf.calls.clear()
        gc.collect()
        assert pool.stats().in_use == 0


def _forget_pending(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop with tasks pending, whose end nobody is to be told of."""
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()


# -- an exception at every moment ---------------------------------------------


class ByTheLoop(Offload):
    """In place of worker threads: the loop makes the calls."""

    def start(self, call: Call[Any]) -> None:
        asyncio.get_running_loop().call_soon(call.make)


def _wait_and_return(pool: ConnectionPool) -> None:
    threads = ByTheLoop(lambda: 1)

    async def borrow() -> None:
        conn = pool.getconn()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)
        steps = pool._lending(5, TaskBorrower(threads, True))
        borrowing = loop.create_task(drive(steps, threads, pool.putconn))
        await turn()
        pool.putconn(conn)
        await asyncio.wait([borrowing])
        await turn()
        pool.putconn(borrowing.result())

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(borrow())
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_exception_after_any_bytecode_of_the_task_loses_nothing(driver: FakeDriver) -> None:
    if not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    pool = fake_pool(FakeClock(), 0, 1)
    moment = 0
    with Interleaver(code_of(drive), threads=1) as interleaver:
        interleaver.by_bytecode = True
        faulted = True
        while faulted:
            moment += 1
            run = interleaver.run([partial(_wait_and_return, pool)], Plan(fault=(0, moment)))
            assert run.errors == [None]
            faulted = run.faulted
            gc.collect()  # what was dropped is found
            assert pool.stats().in_use == 0, f"after moment {moment}"
            assert pool.get_stats()["requests_waiting"] == 0
            pool.putconn(pool.getconn(timeout=5))
    assert moment > 15
    pool.shutdown()
    assert not driver.sockets


# -- who goes on after a pause, in every order --------------------------------


class World:
    """A task that waits, who serves it, who wakes it for nothing, and a worker."""

    def __init__(self, interleaver: Interleaver, pauses_in_vain: int) -> None:
        self._interleaver = interleaver
        self._pauses_in_vain = pauses_in_vain
        self.shelf = Shelf()
        loop: Any = type("OpenLoop", (), {"is_closed": staticmethod(lambda: False)})
        borrower: Any = SimpleNamespace(loop=loop, task=None, threads=self.shelf, needs_worker=True)
        self.waiter = TaskWaiter(borrower, patient=True)
        self.taken: list[object] = []
        self.over = False

    def task(self) -> None:
        """Do what `drive` does, without a loop."""
        while not self.look():
            call = Call(self.look)
            self.waiter.pause(call)
            if self._pauses_in_vain:
                self._pauses_in_vain -= 1  # its time is over
            else:
                self._interleaver.wait_for(partial(_has_ended, call))
            self.waiter.end_pause()
            if call.cancel():
                continue
            self._interleaver.wait_for(partial(_has_ended, call))
            if call.result():
                break
        self.over = True

    def look(self) -> bool:
        if self.waiter.item is None:
            return False
        self.taken.append(self.waiter.item)
        return True

    def serve(self) -> None:
        self.waiter.item = "item"
        self.waiter.wake()

    def nudge(self) -> None:
        self.waiter.wake()

    def worker(self) -> None:
        while True:
            self._interleaver.wait_for(partial(_has_something_to_do, self))
            if not self.shelf.calls:
                return
            self.shelf.make_next()


def _has_ended(call: Call[Any]) -> bool:
    return call.ended


def _has_something_to_do(world: World) -> bool:
    return bool(world.shelf.calls) or world.over


def test_a_pause_that_is_over_gives_the_workers_nothing_to_do(shelf: Shelf) -> None:
    loop = SimpleNamespace(is_closed=lambda: False)
    borrower: Any = SimpleNamespace(loop=loop, task=None, threads=shelf, needs_worker=True)
    waiter = TaskWaiter(borrower, patient=True)
    waiter.pause(Call(int))
    waiter.end_pause()
    waiter.item = object()
    waiter.wake()
    assert not shelf.calls


@pytest.mark.parametrize(("by_bytecode", "switches"), [(False, 2), (True, 1)])
@pytest.mark.parametrize("pauses_in_vain", [0, 1])
@pytest.mark.parametrize("nudged", [False, True])
def test_no_wake_up_is_lost_whatever_the_order(
    by_bytecode: bool, switches: int, pauses_in_vain: int, nudged: bool
) -> None:
    if by_bytecode and not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    traced = code_of(TaskWaiter, World.task, World.look)
    runs = 0
    with Interleaver(traced, threads=4) as interleaver:
        interleaver.by_bytecode = by_bytecode
        todo = [Plan(first=first) for first in range(3)]
        while todo:
            plan = todo.pop()
            world = World(interleaver, pauses_in_vain)
            calls: list[Act] = [world.task, world.worker, world.serve]
            run = interleaver.run([*calls, world.nudge] if nudged else calls, plan)
            assert not run.stuck, plan
            assert not any(run.errors), plan
            assert world.taken == ["item"], plan
            todo += plans(run, bound=switches)
            runs += 1
    assert runs > 100
