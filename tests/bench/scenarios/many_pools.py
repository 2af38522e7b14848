"""A thousand pools in one process, each in an interpreter of its own for each kind of pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack
from functools import partial

from tests.bench.harness import Aim, Bench, Case, Column, Rows, Sample, Scenario, Trial
from tests.bench.peers import GROWING, OPENERS, Lender, Plan


def _label(number: int) -> str:
    return f"{number:,} pools"


def measure(peer: str, dsn: str, number: int) -> Sample:
    """Make so many pools and borrow once from each, in this process."""
    plan = Plan(dsn, idle=0, size=1)
    OPENERS[peer](plan).close()  # imports what it needs
    kib = _memory(peer, plan)
    threads = threading.active_count()
    began = time.perf_counter()
    lenders = [OPENERS[peer](plan) for _ in range(number)]
    made = time.perf_counter()
    _borrow_once(lenders)
    borrowed = time.perf_counter()
    return {
        "threads": threading.active_count() - threads,
        "kib": kib,
        "make_us": (made - began) / number * 1e6,
        "borrow_ms": (borrowed - made) / number * 1e3,
    }


def main() -> None:
    """Be the fresh interpreter: print the sample of a peer."""
    peer, dsn, number = sys.argv[1:]
    print(json.dumps(measure(peer, dsn, int(number))), flush=True)
    # Ending thousands of connections and threads is not what is measured.
    os._exit(0)


def _borrow_once(lenders: list[Lender]) -> None:
    for lender in lenders:
        conn = lender.borrow()
        lender.give_back(conn)
        del conn


def _memory(peer: str, plan: Plan, number: int = 50) -> float:
    """Return what a pool without connections takes, in KiB of Python's memory."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    lenders = [OPENERS[peer](plan) for _ in range(number)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for lender in lenders:
        lender.close()
    return (after - before) / number / 1024


def _in_fresh_interpreter(peer: str, dsn: str, number: int) -> Sample:
    done = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as m; m.main()", peer, dsn, str(number)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    sample: Sample = json.loads(done.stdout)
    return sample


def _cases(bench: Bench) -> list[Case]:
    number = 100 if bench.quick else 1000

    def open_all(stack: ExitStack) -> dict[str, Trial]:
        return {
            peer: partial(_in_fresh_interpreter, peer, bench.server.dsn, number) for peer in GROWING
        }

    return [Case(_label(number), open_all, rounds=1)]


def _aims(rows: Rows) -> list[Aim]:
    return [
        Aim(f"{case}: threads", rows.figure(case, "threads"), 8)
        for case in sorted({row.case for row in rows})
    ]


SCENARIO = Scenario(
    name="many-pools",
    title="Many pools in one process",
    note="Pools of at most one connection, each borrowed from once, the connections kept. Memory"
    " is Python's own for a pool without connections, threads' stacks not included; the connect"
    " is in the time of the borrow.",
    columns=(
        Column("threads", "threads", ",.0f"),
        Column("kib", "KiB a pool", ",.1f"),
        Column("make_us", "µs to make", ",.0f"),
        Column("borrow_ms", "ms to borrow"),
    ),
    plots=(),
    cases=_cases,
    aims=_aims,
)
