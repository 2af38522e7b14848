"""A statement by :class:`PooledDatabase`, and the same steps by hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from psycopg2_pool2 import ConnectionPool, PooledDatabase
from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.peers import OURS
from tests.bench.placement import on_one_processor

CASE = "one statement"
BY_HAND = "by hand"


def _by_hand(pool: ConnectionPool) -> object:
    with pool.conn() as conn, conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchall()


def _cases(bench: Bench) -> list[Case]:
    def open_all(stack: ExitStack) -> dict[str, Trial]:
        stack.enter_context(on_one_processor(bench.server))
        pool = stack.enter_context(ConnectionPool(1, 1, dsn=bench.server.dsn))
        pool.wait()
        database = PooledDatabase(pool)
        return {
            BY_HAND: partial(_measure, partial(_by_hand, pool)),
            OURS: partial(_measure, partial(database.execute, "SELECT 1")),
        }

    return [Case(CASE, open_all, rounds=bench.short_turns)]


def _measure(execute: Callable[[], object]) -> Sample:
    times = [_timed(execute) for _ in range(200)]
    return {"us": statistics.median(times) * 1e6}


def _timed(execute: Callable[[], object]) -> float:
    began = time.perf_counter()
    execute()
    return time.perf_counter() - began


def _aims(rows: Rows) -> list[Aim]:
    return [Aim(f"time of the same steps {BY_HAND}", rows.ratio(CASE, "us", BY_HAND), 1.15)]


SCENARIO = Scenario(
    name="database",
    title="A statement by PooledDatabase, and by hand",
    note="SELECT 1 in a transaction, on a connection that is borrowed, tested and returned. Client"
    " and server share one processor.",
    columns=(Column("us", "µs a statement", ",.1f"), Column("ratio:us", "ours/its")),
    plots=(Plot("us", "µs for one statement"),),
    cases=_cases,
    aims=_aims,
)
