"""A burst of borrowers while connecting is slow: who waits how long, and what is opened.

After HikariCP's study "Welcome to the Jungle": 50 borrowers at once, 150 ms to connect, 2 ms of
work each.
"""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import ExitStack
from functools import partial

from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.peers import GROWING, OURS, PSYCOPG_POOL, SQLALCHEMY, Lender, Plan, ask, lending

BORROWERS = 50
CONNECT_SECONDS = 0.15
WORK = "SELECT pg_sleep(0.002)"
OPENING_AT_ONCE = 3
EMPTY = "empty pool"
FIVE_IDLE = "five idle"


def _burst(lender: Lender) -> tuple[list[float], list[float], float]:
    """Return how long each waited, how long each held, and when all were served, in seconds."""
    waits, holds, clock = [0.0] * BORROWERS, [0.0] * BORROWERS, time.perf_counter
    gate = threading.Barrier(BORROWERS + 1)

    def borrow_once(number: int) -> None:
        gate.wait()
        began = clock()
        conn = lender.borrow()
        waits[number] = clock() - began
        ask(conn, WORK)
        lender.give_back(conn)
        holds[number] = clock() - began - waits[number]

    crowd = [threading.Thread(target=borrow_once, args=(n,)) for n in range(BORROWERS)]
    for thread in crowd:
        thread.start()
    gate.wait()
    began = clock()
    for thread in crowd:
        thread.join()
    return waits, holds, clock() - began


def _measure(peer: str, dsn: str, idle: int) -> Sample:
    plan = Plan(dsn, idle=idle, size=BORROWERS, connect_seconds=CONNECT_SECONDS)
    with lending(peer, plan) as lender:
        already = len(plan.opened)
        waits, holds, served = _burst(lender)
        opened = len(plan.opened) - already
    sources = idle or OPENING_AT_ONCE
    turn = BORROWERS / sources * statistics.median(holds)
    bound = turn if idle else CONNECT_SECONDS + turn
    return {
        "longest": max(waits) * 1e3,
        "p50": statistics.median(waits) * 1e3,
        "served": served * 1e3,
        "opened": opened,
        "of_bound": max(waits) / bound,
    }


def _case(bench: Bench, label: str, idle: int) -> Case:
    # Those that connect one after the other take eight seconds.
    peers = (OURS, PSYCOPG_POOL, SQLALCHEMY) if bench.quick else GROWING

    def open_all(stack: ExitStack) -> dict[str, Trial]:
        return {peer: partial(_measure, peer, bench.server.dsn, idle) for peer in peers}

    return Case(label, open_all, rounds=1 if bench.quick else min(bench.rounds, 3))


def _cases(bench: Bench) -> list[Case]:
    cases = [_case(bench, EMPTY, 0)]
    return cases if bench.quick else [*cases, _case(bench, FIVE_IDLE, 5)]


def _aims(rows: Rows) -> list[Aim]:
    return [
        Aim(
            "empty pool: longest wait / (one connect + the turn in the queue), median",
            rows.figure(EMPTY, "of_bound"),
            1.1,
        ),
        Aim(
            "five idle: longest wait / the turn in the queue",
            rows.figure(FIVE_IDLE, "of_bound"),
            1.1,
        ),
    ]


SCENARIO = Scenario(
    name="spike",
    title=f"A burst of {BORROWERS} borrowers",
    note=f"{BORROWERS} threads borrow at once from a pool of at most {BORROWERS} connections that"
    f" has none, or five, open; a connect takes {CONNECT_SECONDS * 1000:.0f} ms, each borrower"
    " works for 2 ms. Connections opened are counted until all were served. The turn in the queue"
    " is what the borrowers' work takes on the five idle connections, or on the three that are"
    " opened at once.",
    columns=(
        Column("longest", "longest ms", ",.0f"),
        Column("ratio:longest", "ours/its"),
        Column("p50", "p50 ms", ",.0f"),
        Column("served", "all served ms", ",.0f"),
        Column("opened", "opened", ".0f"),
    ),
    plots=(Plot("longest", "longest wait, ms", log=True),),
    cases=_cases,
    aims=_aims,
)
