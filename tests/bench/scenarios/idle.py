"""One thread borrows an idle connection and gives it back; no test, no statement."""

from __future__ import annotations

import time
from collections.abc import Callable
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


def cycle(lender: Lender, cycles: int) -> Sample:
    """Time so many borrows and returns, and in a second loop each borrow by itself."""
    elapsed = _loop(lender.borrow, lender.give_back, cycles)
    waits = _waits(lender.borrow, lender.give_back, cycles)
    return {
        "us": elapsed / cycles * 1e6,
        "per_second": cycles / elapsed,
        **percentiles(waits),
    }


def _loop(borrow: Callable[[], Any], give_back: Callable[[Any], object], cycles: int) -> float:
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
    cycles = 20_000 if bench.quick else 50_000
    plan = Plan(bench.server.dsn, idle=4, size=4)
    return [pool_case(CASE, plan, ALL, lambda lender: cycle(lender, cycles))]


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
