"""More threads than connections: most of them wait most of the time."""

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
from tests.bench.peers import FAIR, QUEUE, WAITING, Plan

THREADS = 64


def _label(connections: int, query: bool) -> str:
    return f"{THREADS} on {connections}, {'query' if query else 'no hold'}"


def _case(bench: Bench, connections: int, query: bool) -> Case:
    return pool_case(
        _label(connections, query),
        Plan(bench.server.dsn, idle=connections, size=connections),
        WAITING,
        partial(run_crowd, threads=THREADS, seconds=4 * bench.seconds, query=query),
    )


def _cases(bench: Bench) -> list[Case]:
    if bench.quick:
        return [_case(bench, 8, query=True)]
    querying = [_case(bench, size, query=True) for size in (32, 16, 8, 4)]
    return [*querying, _case(bench, 8, query=False)]


def _aims(rows: Rows) -> list[Aim]:
    case = _label(8, query=True)
    spread = rows.figure(case, "p99") / rows.figure(case, "p50")
    return [
        Aim(
            f"{case}: throughput of a bare {QUEUE}",
            rows.ratio(case, "per_second", QUEUE),
            0.70,
            at_least=True,
        ),
        Aim(
            f"{case}: throughput of a bare {FAIR}",
            rows.ratio(case, "per_second", FAIR),
            0.70,
            at_least=True,
        ),
        Aim(f"{case}: fewest/most", rows.figure(case, "fairness"), 0.95, at_least=True),
        Aim(f"{case}: p99 of the waits / p50", spread, 2),
    ]


SCENARIO = Scenario(
    name="oversubscribed",
    title=f"{THREADS} threads on fewer connections",
    note="Each borrower sends one SELECT 1 (query) or gives the connection back at once (no hold)."
    " A pool that lets whoever runs overtake those who wait looks fast: see its fewest/most and"
    " its longest wait. psycopg2's own pool does not wait.",
    columns=(
        Column("per_second", "borrows/s", ",.0f"),
        Column("ratio:per_second", "ours/its"),
        Column("fewest", "fewest", ",.0f"),
        Column("most", "most", ",.0f"),
        Column("fairness", "fewest/most"),
        *WAIT_COLUMNS,
    ),
    plots=(
        Plot("per_second", "borrows per second", log=True),
        Plot("fairness", "fewest borrows of a thread / most"),
        Plot("longest", "longest wait, µs", log=True),
    ),
    cases=_cases,
    aims=_aims,
)
