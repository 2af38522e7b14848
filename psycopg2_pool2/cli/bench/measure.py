"""What is measured, in rounds in which the pools take turns."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

from ..patience import begin, result
from .peers import TIMEOUT, Peer

ROUNDS = 3
THREADS = 32
CONNECTIONS = 4
"""Of each pool; so most of the threads wait most of the time."""

_LONGEST_CHUNK = 100
_CHUNKS = 10
"""Of a turn, at least, where a cycle is not slower than that."""
_CROWDS_SHARE = 0.8


@dataclass(frozen=True)
class Crowd:
    """What one turn of a crowd gave: borrows of each thread, and the longest wait of any."""

    borrows: tuple[int, ...]
    seconds: float
    longest_wait: float

    @property
    def per_second(self) -> float:
        """Borrows of all threads together."""
        return sum(self.borrows) / self.seconds


@dataclass
class Samples:
    """What the turns of one pool gave."""

    peer: Peer
    cycles: list[float] = field(default_factory=list)
    crowds: list[Crowd] = field(default_factory=list)


def measure(peers: Sequence[Peer], seconds: float) -> list[Samples]:
    """Measure all pools; takes little longer than `seconds`, all in all."""
    all_samples = [Samples(peer) for peer in peers]
    waiting = [samples for samples in all_samples if samples.peer.waits]
    cycle_seconds = seconds * (1 - _CROWDS_SHARE) / (ROUNDS * len(all_samples))
    crowd_seconds = seconds * _CROWDS_SHARE / (ROUNDS * len(waiting))
    for turn in range(ROUNDS):
        for samples in _rotated(all_samples, turn):
            samples.cycles.append(cycle(samples.peer, cycle_seconds))
        for samples in _rotated(waiting, turn):
            samples.crowds.append(crowd(samples.peer, crowd_seconds))
    return all_samples


def _rotated(samples: Sequence[Samples], turn: int) -> Iterator[Samples]:
    """Yield all, so that nobody always comes after the same one."""
    first = turn % len(samples)
    yield from samples[first:]
    yield from samples[:first]


def cycle(peer: Peer, seconds: float) -> float:
    """Return the seconds that one thread takes to borrow an idle connection and return it."""
    end = time.perf_counter() + seconds
    chunks = [_chunk(peer, 1)]
    length = min(_LONGEST_CHUNK, max(1, int(seconds / _CHUNKS / chunks[0])))
    # The median of short chunks is what it takes while nobody else uses the processor.
    while time.perf_counter() < end:
        chunks.append(_chunk(peer, length) / length)
    return statistics.median(chunks)


def _chunk(peer: Peer, cycles: int) -> float:
    borrow, give_back = peer.borrow, peer.give_back
    began = time.perf_counter()
    for _ in repeat(None, cycles):
        give_back(borrow())
    return time.perf_counter() - began


def crowd(peer: Peer, seconds: float) -> Crowd:
    """Let more threads than there are connections borrow, query and return."""
    borrows, waits = [0] * THREADS, [0.0] * THREADS
    gate, stopped = threading.Barrier(THREADS + 1), threading.Event()
    work = partial(_work, peer, borrows, waits, gate, stopped)
    threads = [begin(partial(work, number)) for number in range(THREADS)]
    try:
        gate.wait()
        began = time.perf_counter()
        time.sleep(seconds)
        elapsed, counted = time.perf_counter() - began, tuple(borrows)
    finally:
        stopped.set()
    for thread in threads:
        result(thread, TIMEOUT)  # one who waits has waited too
    return Crowd(counted, elapsed, max(waits))


def _work(
    peer: Peer,
    borrows: list[int],
    waits: list[float],
    gate: threading.Barrier,
    stopped: threading.Event,
    number: int,
) -> None:
    borrow, give_back, clock = peer.borrow, peer.give_back, time.perf_counter
    gate.wait()
    while not stopped.is_set():
        began = clock()
        conn = borrow()
        waits[number] = max(waits[number], clock() - began)
        try:
            _ask(conn)
        finally:
            give_back(conn)
        borrows[number] += 1


def _ask(conn: Any) -> None:
    cursor = conn.cursor()
    cursor.execute("SELECT 1")
    cursor.fetchall()
    cursor.close()
