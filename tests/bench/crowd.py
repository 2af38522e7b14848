"""Threads that borrow and give back as fast as they can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import repeat

from tests.bench.harness import Sample, percentiles
from tests.bench.peers import Lender, ask

_LEAD = 0.03

Work = Callable[[int], None]
"""What the thread of this number does again and again."""


def run_crowd(
    lender: Lender, threads: int, seconds: float, *, query: str | None = None, batch: int = 1
) -> Sample:
    """Tell the speed and fairness of a crowd, and from a stretch of its own the waits.

    Reading the clock twice for each borrow would be a good part of a short one. With `query`
    each borrower sends that. `batch` borrows are counted at once.
    """
    counts, elapsed, processor = _count(threads, seconds, _plain(lender, query, batch))
    waits: list[list[float]] = [[] for _ in range(threads)]
    _count(threads, seconds, _timed(lender, query, waits))
    cycles = sum(counts) * batch
    return {
        "us": elapsed / max(cycles, 1) * 1e6,
        "cpu_us": processor / max(cycles, 1) * 1e6,
        "per_second": cycles / elapsed,
        "fewest": min(counts) * batch,
        "most": max(counts) * batch,
        "fairness": min(counts) / max(*counts, 1),
        **percentiles([wait for each in waits for wait in each]),
    }


def _plain(lender: Lender, query: str | None, batch: int) -> Work:
    borrow, give_back = lender.borrow, lender.give_back

    def work(number: int) -> None:
        for _ in repeat(None, batch):
            conn = borrow()
            if query:
                ask(conn, query)
            give_back(conn)

    return work


def _timed(lender: Lender, query: str | None, waits: list[list[float]]) -> Work:
    borrow, give_back, clock = lender.borrow, lender.give_back, time.perf_counter

    def work(number: int) -> None:
        began = clock()
        conn = borrow()
        waits[number].append(clock() - began)
        if query:
            ask(conn, query)
        give_back(conn)

    return work


def _count(threads: int, seconds: float, work: Work) -> tuple[list[int], float, float]:
    """Count how often each thread does its work; tell in how many seconds, and how busy ones."""
    counts = [0] * threads
    running = [False] * threads
    stopped = threading.Event()
    gate = threading.Barrier(threads + 1)

    def loop(number: int) -> None:
        gate.wait()
        running[number] = True
        while not stopped.is_set():
            work(number)
            counts[number] += 1

    crowd = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for thread in crowd:
        thread.start()
    gate.wait()
    while not all(running):
        time.sleep(0.001)
    time.sleep(_LEAD)
    began, busy, before = time.perf_counter(), time.process_time(), counts.copy()
    time.sleep(seconds)
    elapsed, after = time.perf_counter() - began, counts.copy()
    busy = time.process_time() - busy
    stopped.set()
    for thread in crowd:
        thread.join()
    return [late - early for late, early in zip(after, before, strict=True)], elapsed, busy
