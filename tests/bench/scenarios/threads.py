"""Threads on as many connections: nobody has to wait, but for the pool itself."""

from __future__ import annotations

from functools import partial

from tests.bench.crowd import run_crowd
from tests.bench.harness import (
    WAIT_COLUMNS,
    Aim,
    Bench,
    Case,
    Column,
    Plot,
    Rows,
    Scenario,
    pool_case,
)
from tests.bench.peers import ALL, PSYCOPG2, Plan


def _label(threads: int) -> str:
    return f"{threads} on {threads}"


def _cases(bench: Bench) -> list[Case]:
    sizes = (1, 8) if bench.quick else (1, 2, 4, 8, 16, 32, 64)
    return [
        pool_case(
            _label(size),
            Plan(bench.server.dsn, idle=size, size=size),
            ALL,
            partial(run_crowd, threads=size, seconds=bench.seconds, batch=20),
        )
        for size in sizes
    ]


def _aims(rows: Rows) -> list[Aim]:
    case = _label(8)
    return [Aim(f"{case}: time of {PSYCOPG2}", rows.ratio(case, "us", PSYCOPG2), 0.20)]


SCENARIO = Scenario(
    name="threads",
    title="Threads on as many connections",
    note="No test and no statement: what the pool itself costs when nobody has to wait. Busy is the"
    " processor time of the process. Fairness"
    " (fewest borrows of a thread divided by the most) and the longest waits show here how Python"
    " shares out its time among threads, more than the pool.",
    columns=(
        Column("us", "µs a cycle", ",.3f"),
        Column("cpu_us", "busy µs", ",.3f"),
        Column("ratio:us", "ours/its"),
        Column("per_second", "cycles/s", ",.0f"),
        Column("fairness", "fewest/most"),
        *WAIT_COLUMNS,
    ),
    plots=(Plot("us", "µs for one borrow and return, all threads together", "lines", log=True),),
    cases=_cases,
    aims=_aims,
)
