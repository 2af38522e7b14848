"""Two thousand tasks on ten connections, and the same work by ten threads."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool
from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.peers import OURS

TASKS = 2000
CONNECTIONS = 10
THREADS = "10 threads"
WORK = {"SELECT 1": "SELECT 1", "2 ms": "SELECT pg_sleep(0.002)"}
_TICK = 0.005


def _execute(conn: Any, sql: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        cursor.fetchall()


def _by_threads(dsn: str, sql: str) -> Sample:
    def work() -> None:
        for _ in range(TASKS // CONNECTIONS):
            with pool.transaction() as conn:
                _execute(conn, sql)

    with ConnectionPool(CONNECTIONS, CONNECTIONS, dsn=dsn, timeout=60) as pool:
        pool.wait()
        threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    return {"per_second": TASKS / seconds, "stall_ms": 0.0, "threads": float(CONNECTIONS)}


def _by_tasks(dsn: str, sql: str) -> Sample:
    return asyncio.run(_run_tasks(dsn, sql))


async def _run_tasks(dsn: str, sql: str) -> Sample:
    stalls = [0.0]

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(_TICK)
            stalls.append(time.perf_counter() - began - _TICK)

    async with AsyncConnectionPool(CONNECTIONS, CONNECTIONS, dsn=dsn, timeout=60) as pool:
        await pool.wait()
        ticking = asyncio.create_task(tick())
        before = threading.active_count()
        began = time.perf_counter()
        tasks = [asyncio.create_task(pool.run(_execute, sql)) for _ in range(TASKS)]
        most = before
        while not all(task.done() for task in tasks[-CONNECTIONS:]):
            await asyncio.sleep(_TICK)
            most = max(most, threading.active_count())
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - began
        ticking.cancel()
    return {
        "per_second": TASKS / seconds,
        "stall_ms": max(stalls) * 1000,
        "threads": float(most - before),
    }


def _cases(bench: Bench) -> list[Case]:
    def open_all(sql: str, _: ExitStack) -> dict[str, Trial]:
        dsn = bench.server.dsn
        return {OURS: partial(_by_tasks, dsn, sql), THREADS: partial(_by_threads, dsn, sql)}

    return [Case(label, partial(open_all, sql)) for label, sql in WORK.items()]


def _aims(rows: Rows) -> list[Aim]:
    return [
        *(
            Aim(f"{case}: work of {THREADS}", rows.ratio(case, "per_second", THREADS), 0.8, True)
            for case in WORK
        ),
        *(Aim(f"{case}: longest stall, ms", rows.figure(case, "stall_ms"), 100) for case in WORK),
        *(
            Aim(f"{case}: threads added", rows.figure(case, "threads"), CONNECTIONS)
            for case in WORK
        ),
    ]


SCENARIO = Scenario(
    name="tasks",
    title="Two thousand tasks on ten connections",
    note="Each runs one statement in a transaction on a tested connection, by the pool's run();"
    " beside it the same work by ten threads on the pool for threads.",
    columns=(
        Column("per_second", "transactions/s", ",.0f"),
        Column("ratio:per_second", "ours/its"),
        Column("stall_ms", "longest stall of the loop, ms", ",.0f"),
        Column("threads", "threads added", ",.0f"),
    ),
    plots=(Plot("per_second", "transactions a second"),),
    cases=_cases,
    aims=_aims,
)
