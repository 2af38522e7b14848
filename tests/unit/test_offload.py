"""Calls in worker threads: made once, to the end or not at all, and awaited."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import pytest

from psycopg2_pool2 import offload
from psycopg2_pool2 import workers as workers_module
from psycopg2_pool2.log import Seldom
from psycopg2_pool2.offload import Call, Offload, finished, outcome
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of, plans
from tests.support.processes import in_child
from tests.support.waiting import wait_until

T = TypeVar("T")

MOST = 2


class Interrupt(BaseException):
    """As KeyboardInterrupt is no Exception."""


class Held:
    """Something to do that takes as long as the test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(30)
        self.ended.set()
        return "done"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offload]:
    monkeypatch.setattr(workers_module, "LINGER", 0.05)
    made = Offload(lambda: MOST)
    yield made
    wait_until(lambda: not running(made))


@pytest.fixture
def held(threads: Offload) -> Iterator[Held]:
    made = Held()
    yield made
    made.go.set()


def running(threads: Offload) -> set[threading.Thread]:
    return threads._workers._threads if threads._pid else set()


def fail(error: BaseException) -> None:
    raise error


def result(call: Call[T]) -> T:
    """Wait for a call's end, in this thread."""
    wait_until(lambda: call.ended)
    return call.result()


async def turn() -> None:
    """Let the loop do all that it has to do now."""
    for _ in range(5):
        await asyncio.sleep(0)


class TestOffload:
    def test_has_no_thread_before_there_is_a_call(self, threads: Offload) -> None:
        assert not running(threads)

    def test_makes_a_call_in_a_daemon_thread_which_ends_by_itself(self, threads: Offload) -> None:
        thread = asyncio.run(threads.finish(threading.current_thread))
        assert thread.daemon
        assert thread is not threading.current_thread()
        wait_until(lambda: not thread.is_alive())

    def test_has_as_many_threads_as_it_is_told_at_each_call(self, held: Held) -> None:
        most = 1
        threads = Offload(lambda: most)
        calls = [threads.submit(held) for _ in range(3)]
        assert held.begun.wait(10)
        assert len(running(threads)) == 1
        most = 2
        calls.append(threads.submit(held))
        wait_until(lambda: len(running(threads)) == 2)
        held.go.set()
        assert [result(call) for call in calls] == ["done"] * 4
        wait_until(lambda: not running(threads))

    def test_makes_a_call_itself_while_no_thread_can_be_started(
        self, threads: Offload, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        me = threading.current_thread()
        monkeypatch.setattr(workers_module, "_shortage", Seldom(20))
        with monkeypatch.context() as patch:
            full = RuntimeError("can't start new thread")
            patch.setattr(threading.Thread, "start", lambda thread: fail(full))
            assert asyncio.run(threads.finish(threading.current_thread)) is me
        assert "cannot start a thread: can't start new thread" in caplog.text
        assert asyncio.run(threads.finish(threading.current_thread)) is not me

    @pytest.mark.parametrize("error", [KeyError("x"), Interrupt(), SystemExit(3)])
    def test_raises_what_the_call_raises_and_goes_on(
        self, threads: Offload, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> int:
            with pytest.raises(type(error)) as caught:
                await threads.finish(partial(fail, error))
            assert caught.value is error
            return await threads.finish(lambda: 1)

        assert asyncio.run(main()) == 1
        assert not caplog.records

    def test_of_a_child_process_has_threads_of_its_own(self, threads: Offload, held: Held) -> None:
        call = threads.submit(held)
        assert held.begun.wait(10)

        def in_the_child() -> str:
            return asyncio.run(threads.finish(lambda: f"{len(running(threads))} thread"))

        assert in_child(in_the_child) == "1 thread"
        held.go.set()
        assert result(call) == "done"


class TestCancellation:
    def test_before_a_worker_has_begun_has_none_begin(self, threads: Offload, held: Held) -> None:
        """1. All workers have something to do. 2. A call is cancelled. 3. They have time."""
        busy = [threads.submit(held) for _ in range(MOST)]
        never: list[int] = []
        call = threads.submit(lambda: never.append(1))
        assert call.cancel()
        held.go.set()
        assert [result(other) for other in busy] == ["done"] * MOST
        assert result(threads.submit(lambda: "next")) == "next"
        assert not never

    def test_while_it_runs_is_refused(self, threads: Offload, held: Held) -> None:
        call = threads.submit(held)
        assert held.begun.wait(10)
        assert not call.cancel()
        held.go.set()
        assert result(call) == "done"

    def test_of_the_task_leaves_the_call_alone(self, threads: Offload, held: Held) -> None:
        async def main() -> None:
            task = asyncio.create_task(threads.finish(held))
            await turn()
            assert held.begun.wait(10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        assert not held.ended.is_set()
        held.go.set()
        assert held.ended.wait(10)

    def test_after_the_call_has_ended_and_before_the_task_wakes_is_raised(self) -> None:
        async def main() -> Call[int]:
            call = Call(lambda: 1)
            task = asyncio.create_task(outcome(call))
            await turn()
            call.make()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return call

        assert asyncio.run(main()).result() == 1


class TestCall:
    def test_has_a_result_or_an_error(self) -> None:
        call = Call(lambda: 1)
        call.make()
        assert call.ended
        assert call.result() == 1
        error = Interrupt()
        failing = Call(partial(fail, error))
        failing.make()
        with pytest.raises(Interrupt) as caught:
            failing.result()
        assert caught.value is error

    def test_is_made_once(self) -> None:
        made: list[int] = []
        call = Call(lambda: made.append(1))
        call.make()
        call.make()
        assert made == [1]
        assert not call.cancel()
        assert not call.was_cancelled

    def test_that_was_cancelled_is_not_made(self) -> None:
        made: list[int] = []
        call = Call(lambda: made.append(1))
        assert call.cancel()
        assert call.cancel(), "harmless when repeated"
        call.make()
        assert not made
        assert call.ended

    @pytest.mark.parametrize("by_bytecode", [False, True])
    def test_is_made_or_cancelled_and_every_listener_told_once_whatever_the_order(
        self, by_bytecode: bool
    ) -> None:
        if by_bytecode and not HAS_BYTECODES:
            pytest.skip("this Python cannot trace bytecodes")
        made: list[int] = []
        told: list[str] = []
        outcomes: set[tuple[int, bool]] = set()
        todo = [Plan(first=first) for first in range(4)]
        with Interleaver(code_of(Call), threads=4) as interleaver:
            interleaver.by_bytecode = by_bytecode
            while todo:
                plan = todo.pop()
                made.clear()
                told.clear()
                call = Call(lambda: made.append(1))
                run = interleaver.run(
                    [
                        call.make,
                        call.cancel,
                        partial(call.when_ended, lambda call: told.append("one")),
                        partial(call.when_ended, lambda call: told.append("another")),
                    ],
                    plan,
                )
                assert not run.stuck, plan
                assert not any(run.errors), plan
                assert call.ended, plan
                assert len(made) + call.was_cancelled == 1, plan
                assert sorted(told) == ["another", "one"], plan
                outcomes.add((len(made), call.was_cancelled))
                todo += plans(run, bound=1 if by_bytecode else 2)
        assert outcomes == {(1, False), (0, True)}


class TestFinished:
    def test_needs_no_loop_s_turn_for_what_has_ended(self) -> None:
        call = Call(lambda: 1)
        call.make()
        with pytest.raises(StopIteration) as end:
            outcome(call).send(None)
        assert end.value.value == 1

    def test_does_not_mind_a_loop_that_was_closed_meanwhile(
        self, threads: Offload, held: Held, caplog: pytest.LogCaptureFixture
    ) -> None:
        loop = asyncio.new_event_loop()
        call = threads.submit(held)
        waiting = finished(call)
        loop.call_soon(waiting.send, None)
        loop.run_until_complete(turn())
        loop.close()
        held.go.set()
        assert result(call) == "done"
        waiting.close()
        wait_until(lambda: not threads._workers.busy)
        assert not caplog.records

    def test_an_error_leaves_no_reference_cycle(self, threads: Offload) -> None:
        """Its traceback has frames that may have a connection."""

        class Told(Exception):
            pass

        def tell() -> None:
            raise Told

        async def main() -> weakref.ref[Exception]:
            try:
                await threads.finish(tell)
            except Told as error:
                return weakref.ref(error)
            raise AssertionError

        gc.disable()
        try:
            ref = asyncio.run(main())
            wait_until(lambda: not threads._workers.busy)
            wait_until(lambda: ref() is None, 5)
        finally:
            gc.enable()


class TestAboutToEnd:
    """What a worker starts at the end of its call, it does itself afterwards."""

    def test_one_call_is_left_to_the_same_thread_until_after_the_first(
        self, threads: Offload
    ) -> None:
        story: list[str] = []
        started: list[Call[threading.Thread]] = []

        def first() -> threading.Thread:
            threads.about_to_end()
            started.append(threads.submit(second))
            started.append(threads.submit(threading.current_thread))
            result(started[1])  # by another one, since this one has not ended
            story.append("first")
            return threading.current_thread()

        def second() -> threading.Thread:
            story.append("second")
            return threading.current_thread()

        me = result(threads.submit(first))
        assert result(started[0]) is me
        assert result(started[1]) is not me
        assert story == ["first", "second"]

    def test_is_over_when_the_call_has_ended(self, threads: Offload, held: Held) -> None:
        """The thread's next call may be a long one."""
        result(threads.submit(threads.about_to_end))
        inner: list[Call[str]] = []

        def start_and_stay() -> str:
            inner.append(threads.submit(lambda: "by another"))
            return held()

        calls = [threads.submit(start_and_stay)]
        assert held.begun.wait(10)
        assert result(inner[0]) == "by another"
        held.go.set()
        assert result(calls[0]) == "done"

    def test_a_call_that_fails_leaves_its_follower(self, threads: Offload) -> None:
        started: list[Call[str]] = []

        def fail_at_last() -> None:
            threads.about_to_end()
            started.append(threads.submit(lambda: "followed"))
            raise Interrupt

        with pytest.raises(Interrupt):
            result(threads.submit(fail_at_last))
        assert result(started[0]) == "followed"

    def test_many_follow_each_other(self, threads: Offload) -> None:
        left = 3000  # more than frames may be nested
        ended = threading.Event()

        def follow() -> None:
            nonlocal left
            threads.about_to_end()
            left -= 1
            if left:
                threads.submit(follow)
            else:
                ended.set()

        threads.submit(follow)
        assert ended.wait(30)


def test_a_thread_that_cannot_start_now_is_started_by_a_later_call(
    threads: Offload, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: fail(RuntimeError("no thread")))
        first = threads.submit(lambda: 1)
    second = threads.submit(lambda: 2)
    assert (result(first), result(second)) == (1, 2)


def test_the_module_needs_no_thread_of_the_loop_s_executor(threads: Offload) -> None:
    async def main() -> object:
        await threads.finish(lambda: time.sleep(0))
        return getattr(asyncio.get_running_loop(), "_default_executor", None)

    assert asyncio.run(main()) is None
    assert not hasattr(offload, "ThreadPoolExecutor")
