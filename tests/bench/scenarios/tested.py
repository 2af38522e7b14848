"""One thread borrows an idle connection, which is tested first, and gives it back."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tests.bench.harness import WAIT_COLUMNS, Aim, Bench, Case, Column, Plot, Rows, Scenario, Trial
from tests.bench.peers import TESTING, Lender, Plan, ask, lending
from tests.bench.placement import on_one_processor
from tests.bench.scenarios.idle import cycle

CASE = "tested connection"
BARE = "bare SELECT 1"


def _cases(bench: Bench) -> list[Case]:
    cycles = 100
    plan = Plan(bench.server.dsn, idle=1, size=1, test=True)

    def open_all(stack: ExitStack) -> dict[str, Trial]:
        stack.enter_context(on_one_processor(bench.server))
        conn = plan.connect()
        stack.callback(conn.close)
        lenders = {peer: stack.enter_context(lending(peer, plan)) for peer in TESTING}
        lenders[BARE] = Lender(lambda: conn, ask, conn.close)
        return {peer: partial(cycle, lender, cycles, length=1) for peer, lender in lenders.items()}

    return [Case(CASE, open_all, rounds=bench.short_turns)]


def _aims(rows: Rows) -> list[Aim]:
    return [Aim(f"time of a {BARE}", rows.ratio(CASE, "us", BARE), 1.25)]


SCENARIO = Scenario(
    name="tested",
    title="Borrow and return with a test on borrow",
    note="One thread, one idle connection, each pool's own test by a statement, beside a SELECT 1"
    " on one connection without a pool. psycopg2's pool and DBUtils have no such test. Client and"
    " server share one processor.",
    columns=(
        Column("us", "µs a cycle", ",.1f"),
        Column("ratio:us", "ours/its"),
        Column("per_second", "cycles/s", ",.0f"),
        *WAIT_COLUMNS,
    ),
    plots=(Plot("us", "µs for one tested borrow and return"),),
    cases=_cases,
    aims=_aims,
)
