"""Tasks that run transactions as fast as they can, and how the loop fares meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine

from tests.bench.harness import Sample
from tests.support.aio import Ticker

Transaction = Callable[[], Awaitable[object]]
"""Borrows a connection, does the work, commits and returns it; waits if it has to."""

_TICK = 0.005


class Crowd:
    """Tasks that repeat a transaction until they are stopped."""

    def __init__(self, transaction: Transaction, tasks: int) -> None:
        self.counts = [0] * tasks
        self.turns: list[float] = []
        self._transaction = transaction
        self.all_had_a_turn = asyncio.Event()
        self._beginners = tasks
        self._stopped = False
        self._tasks = [asyncio.create_task(self._work(number)) for number in range(tasks)]

    async def stop(self) -> None:
        """Let each end its transaction."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _work(self, number: int) -> None:
        while not self._stopped:
            began = time.perf_counter()
            await self._transaction()
            self.turns.append(time.perf_counter() - began)
            self.counts[number] += 1
            if self.counts[number] == 1:
                self._beginners -= 1
                if not self._beginners:
                    self.all_had_a_turn.set()


async def run_crowd(transaction: Transaction, tasks: int, seconds: float) -> Sample:
    """Tell the throughput of so many tasks, how long they waited, and how long the loop stalled."""
    crowd = Crowd(transaction, tasks)
    await crowd.all_had_a_turn.wait()
    began, before, turns = time.perf_counter(), sum(crowd.counts), len(crowd.turns)
    async with Ticker() as ticker:
        await asyncio.sleep(seconds)
    elapsed, done = time.perf_counter() - began, sum(crowd.counts) - before
    waits = sorted(crowd.turns[turns:]) or [elapsed]
    await crowd.stop()
    return {
        "per_second": done / elapsed,
        "stall_ms": ticker.longest * 1e3,
        "median_ms": waits[len(waits) // 2] * 1e3,
        "longest": waits[-1] * 1e3,
        "fewest": min(crowd.counts),
        "most": max(crowd.counts),
    }


async def begin_to_wait(
    hold_all: Callable[[], Coroutine[object, object, Callable[[], Awaitable[object]]]],
    transaction: Transaction,
    waiting: Callable[[], int],
    tasks: int,
) -> Sample:
    """Tell what it costs that so many tasks wait while all connections are in use."""
    give_back = await hold_all()
    threads = threading.active_count()
    async with Ticker() as ticker:
        began = time.perf_counter()
        crowd = [asyncio.ensure_future(transaction()) for _ in range(tasks)]
        for _ in range(1000):
            if waiting() == tasks:
                break
            await asyncio.sleep(0)
        elapsed = time.perf_counter() - began
        await asyncio.sleep(2 * _TICK)
    added = threading.active_count() - threads
    await give_back()
    await asyncio.gather(*crowd)
    return {"threads": added, "us": elapsed / tasks * 1e6, "stall_ms": ticker.longest * 1e3}
