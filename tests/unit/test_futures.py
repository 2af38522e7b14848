"""Timers that need not be exact, and news from threads."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest

from psycopg2_pool2 import futures as futures_module
from psycopg2_pool2.futures import Futures, futures_of, resolve
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of, plans
from tests.support.waiting import in_thread


def fail(error: BaseException, *_: Any) -> None:
    raise error


async def turn() -> None:
    """Let the loop do what is due."""
    for _ in range(3):
        await asyncio.sleep(0)


def timers(loop: asyncio.AbstractEventLoop) -> int:
    scheduled: list[Any] = loop._scheduled  # type: ignore[attr-defined]
    return len(scheduled)


def test_a_future_is_resolved_when_its_time_is_over_and_not_before() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for seconds in (0.0, 0.001, 0.05):
            future = loop.create_future()
            began = time.monotonic()
            futures_of(loop).ring_in(seconds, future)
            await future
            assert time.monotonic() - began >= seconds

    asyncio.run(main())


def test_thousands_share_a_few_timers() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(2000)]
        before = timers(loop)
        began = loop.time()
        for future in futures:
            futures_of(loop).ring_in(0.2, future)
        assert timers(loop) - before <= 2 + (loop.time() - began) / futures_module._TICK
        await asyncio.wait(futures)

    asyncio.run(main())


def test_one_that_was_cancelled_is_left_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cancelled, future = loop.create_future(), loop.create_future()
        futures = futures_of(loop)
        futures.silence(futures.ring_in(0.001, cancelled), cancelled)
        futures_of(loop).ring_in(0.001, future)
        await future
        assert not cancelled.done()

    asyncio.run(main())


def test_one_that_is_done_stays_as_it_is() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done, future = loop.create_future(), loop.create_future()
        done.set_exception(KeyError("x"))
        futures_of(loop).ring_in(0, done)
        futures_of(loop).ring_in(0, future)
        await future
        assert isinstance(done.exception(), KeyError)
        resolve(future)

    asyncio.run(main())


def test_a_loop_is_forgotten_with_its_alarms() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        futures_of(loop).ring_in(60, loop.create_future())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    assert loop in futures_module._of_loops
    loop.close()
    ref = weakref.ref(loop)
    del loop
    asyncio.set_event_loop(None)
    gc.collect()
    assert ref() is None
    assert ref not in futures_module._of_loops


def test_of_one_who_is_kept_does_not_keep_the_others_of_a_closed_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "time", lambda: 5.0)
    futures = futures_of(loop)
    kept, other = loop.create_future(), loop.create_future()
    ticks = {futures.ring_in(60, future) for future in (kept, other)}
    assert len(ticks) == 1, "they share a timer"
    loop.close()
    ref = weakref.ref(other)
    del other
    gc.collect()
    assert ref() is None
    futures.silence(ticks.pop(), kept)


# -- news from threads --------------------------------------------------------


class Ending:
    """What ends when it is told to."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Any, ...]] = []

    def when_ended(self, listener: Any, *args: Any) -> None:
        self._listeners.append((listener, *args))

    def end(self) -> None:
        for listener, *args in self._listeners:
            listener(*args, self)


def end_all(endings: list[Ending]) -> None:
    for ending in endings:
        ending.end()


def test_what_ends_before_the_loop_has_looked_is_told_by_one_knock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        knocks: list[Any] = []
        knock = loop.call_soon_threadsafe

        def note(callback: Any, *args: Any, **kwargs: Any) -> Any:
            knocks.append(callback)
            return knock(callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", note)
        for _ in range(2):
            endings = [Ending() for _ in range(1000)]
            futures = [futures_of(loop).of(ending) for ending in endings]
            in_thread(partial(end_all, endings)).result()
            assert len(knocks) == 1
            await asyncio.wait(futures, timeout=10)
            assert all(future.done() for future in futures)
            knocks.clear()

    asyncio.run(main())


def test_one_that_is_cancelled_meanwhile_stays_so() -> None:
    async def main() -> None:
        ending = Ending()
        future = futures_of(asyncio.get_running_loop()).of(ending)
        ending.end()
        future.cancel()
        await turn()
        assert future.cancelled()

    asyncio.run(main())


def test_a_knock_that_was_interrupted_is_repeated_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        endings = [Ending(), Ending()]
        futures = [futures_of(loop).of(ending) for ending in endings]
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", partial(fail, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                endings[0].end()
        endings[1].end()
        await asyncio.wait(futures, timeout=10)
        assert all(future.done() for future in futures)

    asyncio.run(main())


def test_news_that_were_interrupted_go_on_at_the_loop_s_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    endings = [Ending() for _ in range(3)]

    async def begin() -> list[asyncio.Future[None]]:
        return [futures_of(loop).of(ending) for ending in endings]

    futures = loop.run_until_complete(begin())
    end_all(endings)
    with monkeypatch.context() as patch:
        patch.setattr(futures_module, "resolve", partial(fail, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(turn())
    loop.run_until_complete(turn())
    loop.run_until_complete(turn())
    assert [future.done() for future in futures] == [False, True, True]
    loop.close()


@pytest.mark.parametrize("closed_after_the_knock", [False, True])
def test_news_for_a_closed_loop_keep_nothing(closed_after_the_knock: bool) -> None:
    def live() -> list[weakref.ref[Any]]:
        loop = asyncio.new_event_loop()
        endings = [Ending(), Ending()]

        async def begin() -> list[Any]:
            return [futures_of(loop).of(ending) for ending in endings]

        futures = loop.run_until_complete(begin())
        if closed_after_the_knock:
            endings[0].end()
        loop.close()
        end_all(endings)
        return [weakref.ref(loop), *map(weakref.ref, futures)]

    refs = live()
    asyncio.set_event_loop(None)
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]


class Loop:
    """A loop that opens when it is told to."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.callbacks.append(callback)


class FakeFuture:
    """What is resolved, at most once."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.resolved = False

    def get_loop(self) -> Loop:
        return self._loop

    def done(self) -> bool:
        return self.resolved

    def set_result(self, _: None) -> None:
        assert not self.resolved
        self.resolved = True


@pytest.mark.parametrize(("by_bytecode", "switches"), [(False, 3), (True, 1)])
def test_no_news_are_lost_whatever_the_order(by_bytecode: bool, switches: int) -> None:
    if by_bytecode and not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    runs = 0
    with Interleaver(code_of(Futures), threads=3) as interleaver:
        interleaver.by_bytecode = by_bytecode
        todo = [Plan(first=first) for first in range(3)]
        while todo:
            plan = todo.pop()
            loop, futures = Loop(), Futures()
            waiting = [FakeFuture(loop), FakeFuture(loop)]

            def open_until_all_have_come(loop: Any = loop, waiting: Any = waiting) -> None:
                while not all(future.resolved for future in waiting):
                    interleaver.wait_for(lambda: bool(loop.callbacks))
                    loop.callbacks.pop(0)()

            tellers = [partial(futures._tell, cast("Any", future), None) for future in waiting]
            run = interleaver.run([open_until_all_have_come, *tellers], plan)
            assert not run.stuck, plan
            assert not any(run.errors), plan
            todo += plans(run, bound=switches)
            runs += 1
    assert runs > 50
