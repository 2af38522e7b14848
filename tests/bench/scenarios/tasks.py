"""Two thousand tasks on ten connections, and the same work by ten threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool
from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.peers import OURS, PSYCOPG_POOL
from tests.bench.placement import on_one_processor
from tests.bench.tasks import Transaction, begin_to_wait, run_crowd

TASKS = 2000
CONNECTIONS = 10
THREADS = "10 threads"
TO_THREAD = "asyncio.to_thread"
BLOCKS = "in blocks"
STATEMENT, SLOW_STATEMENT = "SELECT 1", "SELECT pg_sleep(0.002)"
TOGETHER = "SELECT 1, one processor"
WORK = {TOGETHER: STATEMENT, "SELECT 1": STATEMENT, "2 ms": SLOW_STATEMENT}
WAITING = "waiting"


def _execute(conn: Any, sql: str) -> None:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        cursor.fetchall()


class Peers:
    """The pools of a case, and their loop."""

    def __init__(self, stack: ExitStack, dsn: str, seconds: float) -> None:
        self.loop = asyncio.new_event_loop()
        stack.callback(self.loop.close)
        sizes: dict[str, Any] = {"minconn": CONNECTIONS, "maxconn": CONNECTIONS}
        self.pool = AsyncConnectionPool(**sizes, dsn=dsn, timeout=60)
        stack.callback(self.pool.pool.shutdown)
        self.pool.pool.wait()
        self._workers = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        self._theirs = self.loop.run_until_complete(self._open_theirs(dsn))
        stack.callback(lambda: self.loop.run_until_complete(self._theirs.close()))
        self._seconds = seconds

    async def _open_theirs(self, dsn: str) -> Any:
        import psycopg_pool

        pool: Any = psycopg_pool.AsyncConnectionPool(
            dsn,
            min_size=CONNECTIONS,
            max_size=CONNECTIONS,
            timeout=60,
            check=psycopg_pool.AsyncConnectionPool.check_connection,
            open=False,
        )
        await pool.open(wait=True)
        return pool

    # -- one transaction ---------------------------------------------------

    async def by_run(self, sql: str) -> None:
        await self.pool.run(_execute, sql)

    async def in_block(self, sql: str) -> None:
        async with self.pool.transaction() as conn:
            await self.pool.run_on(conn, _execute, sql)

    async def by_theirs(self, sql: str) -> None:
        async with self._theirs.connection() as conn, conn.cursor() as cursor:
            await cursor.execute(sql)
            await cursor.fetchall()

    async def to_thread(self, sql: str) -> None:
        await self.loop.run_in_executor(self._workers, self.by_thread, self.pool.pool, sql)

    @staticmethod
    def by_thread(pool: ConnectionPool, sql: str) -> None:
        with pool.transaction() as conn:
            _execute(conn, sql)

    # -- trials ------------------------------------------------------------

    def crowd(self, transaction: Transaction) -> Sample:
        """Have the tasks at work for a while."""
        return self.loop.run_until_complete(run_crowd(transaction, TASKS, self._seconds))

    def threads(self, sql: str) -> Sample:
        """Have ten threads do the same."""
        counts, stopped = [0] * CONNECTIONS, threading.Event()

        def work(number: int) -> None:
            while not stopped.is_set():
                self.by_thread(self.pool.pool, sql)
                counts[number] += 1

        crowd = [threading.Thread(target=work, args=(n,)) for n in range(CONNECTIONS)]
        for thread in crowd:
            thread.start()
        began, before = time.perf_counter(), sum(counts)
        time.sleep(self._seconds)
        done, elapsed = sum(counts) - before, time.perf_counter() - began
        stopped.set()
        for thread in crowd:
            thread.join()
        return {"per_second": done / elapsed, "fewest": min(counts), "most": max(counts)}

    def our_waiting(self) -> Sample:
        """Have our tasks wait."""

        async def hold_all() -> Callable[[], Awaitable[object]]:
            held = [await self.pool.getconn() for _ in range(CONNECTIONS)]
            return lambda: asyncio.gather(*map(self.pool.putconn, held))

        def waiting() -> int:
            return len(self.pool.pool._store.waiters)

        return self._wait(begin_to_wait(hold_all, partial(self.by_run, "SELECT 1"), waiting, TASKS))

    def their_waiting(self) -> Sample:
        """Have psycopg_pool's tasks wait."""

        async def hold_all() -> Callable[[], Awaitable[object]]:
            held = [await self._theirs.getconn() for _ in range(CONNECTIONS)]
            return lambda: asyncio.gather(*map(self._theirs.putconn, held))

        def waiting() -> int:
            return len(self._theirs._waiting)

        work = partial(self.by_theirs, "SELECT 1")
        return self._wait(begin_to_wait(hold_all, work, waiting, TASKS))

    def _wait(self, begin: Any) -> Sample:
        sample: Sample = self.loop.run_until_complete(begin)
        return sample


def _cases(bench: Bench) -> list[Case]:
    def open_peers(stack: ExitStack) -> Peers:
        return Peers(stack, bench.server.dsn, 4 * bench.seconds)

    def working(case: str, stack: ExitStack) -> dict[str, Trial]:
        if case == TOGETHER:
            stack.enter_context(on_one_processor(bench.server))
        sql, peers = WORK[case], open_peers(stack)
        transactions: dict[str, Callable[[str], Awaitable[None]]] = {
            OURS: peers.by_run,
            BLOCKS: peers.in_block,
            TO_THREAD: peers.to_thread,
            PSYCOPG_POOL: peers.by_theirs,
        }
        trials: dict[str, Trial] = {
            peer: partial(peers.crowd, partial(transaction, sql))
            for peer, transaction in transactions.items()
        }
        return {**trials, THREADS: partial(peers.threads, sql)}

    def waiting(stack: ExitStack) -> dict[str, Trial]:
        peers = open_peers(stack)
        return {OURS: peers.our_waiting, PSYCOPG_POOL: peers.their_waiting}

    cases = [Case(label, partial(working, label)) for label in WORK]
    return [*cases, Case(WAITING, waiting)]


def _aims(rows: Rows) -> list[Aim]:
    return [
        *(
            Aim(
                f"{case}: throughput of {peer}",
                rows.ratio(case, "per_second", peer),
                0.8,
                at_least=True,
            )
            for case in WORK
            for peer in (THREADS, TO_THREAD)
        ),
        *(
            Aim(f"{case}: longest stall of the loop, ms", rows.figure(case, "stall_ms"), 100)
            for case in (*WORK, WAITING)
        ),
        Aim(f"threads added by {TASKS:,} waiting tasks", rows.figure(WAITING, "threads"), 0),
    ]


SCENARIO = Scenario(
    name="tasks",
    title="Two thousand tasks on ten connections",
    note=f"Each of {TASKS:,} tasks runs one statement in a transaction again and again: by the"
    f" pool's run(); in a block, with run_on() ({BLOCKS}); by {TO_THREAD} on the pool for threads,"
    " with ten workers; by psycopg_pool's pool of psycopg 3, whose driver needs no threads. Beside"
    f" them {THREADS} do the same on the pool for threads. All test what they borrow. Where one"
    " processor is named client and server share it. A transaction lasts, waiting included, as the"
    " median and the longest of all say. *waiting*: all connections are in use and"
    f" {TASKS:,} tasks begin to wait at one moment; the stall is that of this beginning.",
    columns=(
        Column("per_second", "transactions/s", ",.0f"),
        Column("ratio:per_second", "ours/its"),
        Column("fewest", "fewest", ",.0f"),
        Column("most", "most", ",.0f"),
        Column("median_ms", "median ms", ",.0f"),
        Column("longest", "longest ms", ",.0f"),
        Column("us", "µs to wait", ",.0f"),
        Column("stall_ms", "stall ms", ",.0f"),
        Column("threads", "threads added", ",.0f"),
    ),
    plots=(Plot("per_second", "transactions a second"),),
    cases=_cases,
    aims=_aims,
)
