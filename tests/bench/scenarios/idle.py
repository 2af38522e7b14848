"""One thread borrows an idle connection and gives it back; no test, no statement."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

from tests.bench.harness import (
    WAIT_COLUMNS,
    Aim,
    Bench,
    Case,
    Column,
    Plot,
    Rows,
    Sample,
    Scenario,
    percentiles,
    pool_case,
)
from tests.bench.peers import ALL, PSYCOPG2, PSYCOPG_POOL, Lender, Plan

CASE = "idle connection"


def cycle(lender: Lender, chunks: int, length: int) -> Sample:
    """Time borrows and returns by the chunk, then each borrow by itself.

    The median of short chunks is what a cycle takes while nobody else uses the processor.
    """
    times = [_chunk(lender.borrow, lender.give_back, length) for _ in range(chunks)]
    seconds = statistics.median(times) / length
    return {
        "us": seconds * 1e6,
        "per_second": 1 / seconds,
        **percentiles(_waits(lender.borrow, lender.give_back, chunks * length)),
    }


def _chunk(borrow: Callable[[], Any], give_back: Callable[[Any], object], cycles: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, cycles):
        give_back(borrow())
    return time.perf_counter() - began


def _waits(
    borrow: Callable[[], Any], give_back: Callable[[Any], object], cycles: int
) -> list[float]:
    clock, waits = time.perf_counter, []
    for _ in repeat(None, cycles):
        began = clock()
        conn = borrow()
        waits.append(clock() - began)
        give_back(conn)
    return waits


def _cases(bench: Bench) -> list[Case]:
    plan = Plan(bench.server.dsn, idle=4, size=4)
    # Many short turns: a processor that slows down for a second slows all peers down.
    measure = partial(cycle, chunks=20, length=100)
    return [pool_case(CASE, plan, ALL, measure, rounds=bench.short_turns)]


def _aims(rows: Rows) -> list[Aim]:
    return [
        Aim(f"time of {PSYCOPG2}", rows.ratio(CASE, "us", PSYCOPG2), 0.60),
        Aim(f"time of {PSYCOPG_POOL}", rows.ratio(CASE, "us", PSYCOPG_POOL), 0.25),
    ]


SCENARIO = Scenario(
    name="idle",
    title="Borrow and return an idle connection",
    note="One thread, four idle connections, no test and no statement. Beside the pools a bare"
    " queue.SimpleQueue of connections, which looks after nothing.",
    columns=(
        Column("us", "µs a cycle", ",.3f"),
        Column("ratio:us", "ours/its"),
        Column("per_second", "cycles/s", ",.0f"),
        *WAIT_COLUMNS,
    ),
    plots=(Plot("us", "µs for one borrow and return"),),
    cases=_cases,
    aims=_aims,
)
