"""Timers that need not be exact."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from psycopg2_pool2 import alarms
from psycopg2_pool2.alarms import Alarm, resolve


def timers(loop: asyncio.AbstractEventLoop) -> int:
    scheduled: list[Any] = loop._scheduled  # type: ignore[attr-defined]
    return len(scheduled)


def test_a_future_is_resolved_when_its_time_is_over_and_not_before() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for seconds in (0.0, 0.001, 0.05):
            future = loop.create_future()
            began = time.monotonic()
            Alarm(loop, future, seconds)
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
            Alarm(loop, future, 0.2)
        assert timers(loop) - before <= 2 + (loop.time() - began) / alarms._TICK
        await asyncio.wait(futures)

    asyncio.run(main())


def test_one_that_was_cancelled_is_left_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cancelled, future = loop.create_future(), loop.create_future()
        Alarm(loop, cancelled, 0.001).cancel()
        Alarm(loop, future, 0.001)
        await future
        assert not cancelled.done()

    asyncio.run(main())


def test_one_that_is_done_stays_as_it_is() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done, future = loop.create_future(), loop.create_future()
        done.set_exception(KeyError("x"))
        Alarm(loop, done, 0)
        Alarm(loop, future, 0)
        await future
        assert isinstance(done.exception(), KeyError)
        resolve(future)

    asyncio.run(main())


def test_a_loop_is_forgotten_with_its_alarms() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        Alarm(loop, loop.create_future(), 60)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    assert loop in alarms._due
    loop.close()
    ref = weakref.ref(loop)
    del loop
    asyncio.set_event_loop(None)
    gc.collect()
    assert ref() is None
    assert ref not in alarms._due


def test_of_one_who_is_kept_does_not_keep_the_others_of_a_closed_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "time", lambda: 5.0)
    kept, other = loop.create_future(), loop.create_future()
    alarms = [Alarm(loop, future, 60) for future in (kept, other)]
    assert len(alarms[0]._futures() or ()) == 2, "they share a timer"
    loop.close()
    ref = weakref.ref(other)
    del alarms[1], other
    gc.collect()
    assert ref() is None
    alarms[0].cancel()
