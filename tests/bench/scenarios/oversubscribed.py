"""More threads than connections: most of them wait most of the time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
from tests.bench.placement import on_one_processor

THREADS = 64
STATEMENT = "SELECT 1"
SLOW_STATEMENT = "SELECT pg_sleep(0.002)"


def _label(connections: int, what: str = "query") -> str:
    return f"{THREADS} on {connections}, {what}"


TOGETHER = _label(8, "query, one processor")
SLOW = _label(8, "2 ms")


def _case(
    bench: Bench,
    connections: int,
    query: str | None,
    label: str,
    place: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Case:
    return pool_case(
        label,
        Plan(bench.server.dsn, idle=connections, size=connections),
        WAITING,
        partial(run_crowd, threads=THREADS, seconds=4 * bench.seconds, query=query),
        place=place,
    )


def _cases(bench: Bench) -> list[Case]:
    together = partial(on_one_processor, bench.server)
    cases = [
        _case(bench, 8, STATEMENT, TOGETHER, together),
        _case(bench, 8, SLOW_STATEMENT, SLOW),
        _case(bench, 8, STATEMENT, _label(8)),
    ]
    if bench.quick:
        return cases
    more = [_case(bench, size, STATEMENT, _label(size)) for size in (32, 16, 4)]
    return [*cases, *more, _case(bench, 8, None, _label(8, "no hold"))]


def _aims(rows: Rows) -> list[Aim]:
    aims = [
        Aim(
            f"{case}: throughput of a bare {peer}",
            rows.ratio(case, "per_second", peer),
            0.70,
            at_least=True,
        )
        for case, peer in ((TOGETHER, QUEUE), (SLOW, QUEUE), (_label(8), QUEUE), (_label(8), FAIR))
    ]
    for case in (TOGETHER, _label(8)):
        spread = rows.figure(case, "p99") / rows.figure(case, "p50")
        fairness = rows.figure(case, "fairness")
        aims.append(Aim(f"{case}: fewest/most", fairness, 0.95, at_least=True))
        aims.append(Aim(f"{case}: p99 of the waits / p50", spread, 2))
    return aims


SCENARIO = Scenario(
    name="oversubscribed",
    title=f"{THREADS} threads on fewer connections",
    note="Each borrower sends one SELECT 1 (query), or one that sleeps (2 ms), or gives the"
    " connection back at once (no hold). Where one processor is named client and server share it."
    " A pool that lets whoever runs overtake those who wait looks fast: see its fewest/most and its"
    " longest wait. psycopg2's own pool does not wait.",
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
