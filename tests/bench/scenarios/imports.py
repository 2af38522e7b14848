"""What importing a pool costs a program that starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.peers import DBUTILS, OURS, PSYCOPG_POOL, SQLALCHEMY

CASE = "import"
DRIVER = "psycopg2 alone"
MODULES = {
    DRIVER: "psycopg2",
    OURS: "psycopg2_pool2",
    PSYCOPG_POOL: "psycopg_pool",
    SQLALCHEMY: "psycopg2, sqlalchemy.pool",
    DBUTILS: "psycopg2, dbutils.pooled_db",
}
_PROGRAM = """
import time
began = time.perf_counter()
import {modules}
elapsed = time.perf_counter() - began
import json, sys, threading
loaded = sys.modules.keys() - {{"json"}}
print(json.dumps({{
    "ms": elapsed * 1e3,
    "modules": len(loaded),
    "dns": "dns" in loaded,
    "asyncio": "asyncio" in loaded,
    "threads": threading.active_count() - 1,
}}))
"""


def _import(modules: str) -> Sample:
    program = _PROGRAM.format(modules=modules)
    # An installed package is compiled, whatever this process is told about its own modules.
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, env=compiled
    )
    sample: Sample = json.loads(done.stdout)
    return sample


def _cases(bench: Bench) -> list[Case]:
    def open_all(stack: ExitStack) -> dict[str, Trial]:
        for modules in MODULES.values():
            _import(modules)  # compiled and read from the disk once
        return {peer: partial(_import, modules) for peer, modules in MODULES.items()}

    return [Case(CASE, open_all, rounds=5 if bench.quick else 15)]


def _aims(rows: Rows) -> list[Aim]:
    return [
        Aim(f"time of {DRIVER}", rows.ratio(CASE, "ms", DRIVER), 2.0),
        Aim("threads started", rows.figure(CASE, "threads"), 0),
        Aim("dnspython imported", rows.figure(CASE, "dns"), 0),
        Aim("asyncio imported", rows.figure(CASE, "asyncio"), 0),
    ]


SCENARIO = Scenario(
    name="imports",
    title="Import",
    note="In fresh interpreters, with the driver.",
    columns=(
        Column("ms", "ms", ",.1f"),
        Column("ratio:ms", "ours/its"),
        Column("modules", "modules", ".0f"),
        Column("threads", "threads", ".0f"),
    ),
    plots=(Plot("ms", "ms for the import"),),
    cases=_cases,
    aims=_aims,
)
