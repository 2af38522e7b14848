"""How often a fleet of processes probes a server that is away, and how soon it is served again."""

from __future__ import annotations

import functools
import statistics
from contextlib import ExitStack
from functools import partial

from tests.bench.fleet import FIXED, PACES, History, Story, simulate
from tests.bench.harness import (
    Aim,
    Bench,
    Case,
    Column,
    Rows,
    Sample,
    Scenario,
    Timeline,
    Trial,
)

OUTAGES = {"2 s": 2, "10 s": 10, "30 s": 30, "2 min": 120, "10 min": 600}
RESTART, DRAWN, LONGEST = "2 s", "2 min", "10 min"
FLEETS = {1: 25, 10: 9, 100: 3, 1000: 1}
"""How many fleets are simulated for each size, each with a seed of its own."""
LARGE = 1000
AFTERWARDS = 30
"""Seconds after the server's return that are drawn."""


@functools.cache
def history(outage: int, pace: str, processes: int, seed: int = 1) -> History:
    """Return what came of an outage; the simulation runs once."""
    return simulate(Story(processes, outage), pace, seed)


def _sample(outage: int, pace: str) -> Sample:
    sample: Sample = {}
    for processes, fleets in FLEETS.items():
        seen = [history(outage, pace, processes, seed) for seed in range(1, fleets + 1)]
        sample[f"rate_{processes}"] = statistics.mean(
            rate for fleet in seen for rate in fleet.rates
        )
        sample[f"last_{processes}"] = statistics.median(fleet.last_served for fleet in seen)
    large = history(outage, pace, LARGE)
    sample["busiest"] = max(large.rates)
    sample["refused"] = large.refused
    return sample


def _cases(bench: Bench) -> list[Case]:
    def open_all(outage: int, stack: ExitStack) -> dict[str, Trial]:
        return {pace: partial(_sample, outage, pace) for pace in PACES}

    return [
        Case(label, partial(open_all, outage), rounds=1)
        for label, outage in OUTAGES.items()
        if not (bench.quick and label == LONGEST)
    ]


def bound(outage: int) -> float:
    """Return the seconds within which the last process should be back: a tenth of the outage."""
    return max(0.3, 0.1 * outage)


def _aims(rows: Rows) -> list[Aim]:
    own_time = Story(LARGE, 0).own_time
    return [
        Aim(f"{DRAWN}: attempts a second of {LARGE:,}", rows.figure(DRAWN, f"rate_{LARGE}"), 500),
        *(
            Aim(
                f"{label}: seconds until the last of {LARGE:,} is served, less the server's own",
                rows.figure(label, f"last_{LARGE}") - own_time,
                bound(outage),
            )
            for label, outage in OUTAGES.items()
        ),
        *(
            Aim(
                f"{RESTART}: seconds until the last of {processes:,} is served / {FIXED}",
                rows.ratio(RESTART, f"last_{processes}", FIXED),
                1.1,
            )
            for processes in (100, LARGE)
        ),
    ]


def _drawn() -> dict[str, list[float]]:
    outage = OUTAGES[DRAWN]
    return {
        pace: [history(outage, pace, LARGE).attempts[s] for s in range(outage + AFTERWARDS)]
        for pace in PACES
    }


SCENARIO = Scenario(
    name="fleet",
    title="A fleet whose server is away",
    note="Simulated: a fleet of 1 to 1,000 processes, in each of which a borrower waits while the"
    " server is away and refuses at once. After its return it answers 500 logins a second, first"
    " come, first served. *attempts/s* is the rate of the whole fleet during the outage, without"
    " its first minute if it is longer; *busiest* is the busiest second of that time, and *refused*"
    " counts the whole outage, both for 1,000 processes. A server that is starting forks a process"
    " for each attempt. *last served* is the time from its return until the last process is logged"
    f" in; 1,000 logins alone take 2 s. *{FIXED}* (±20 %) is a pace that never changes. The pace of"
    " *psycopg_pool* is its own class, for one connection; it gives up after 300 s and starts over,"
    " by coincidence just when the outage of 10 min ends. For small fleets the rates are means and"
    " the times medians of several.",
    columns=(
        Column("rate_1", "attempts/s: 1 process", ",.2f"),
        Column("rate_10", "10", ",.1f"),
        Column("rate_100", "100", ",.0f"),
        Column("rate_1000", "1,000", ",.0f"),
        Column("ratio:rate_1000", "ours/its"),
        Column("busiest", "busiest", ",.0f"),
        Column("refused", "refused", ",.0f"),
        Column("last_1", "last served s: 1", ",.2f"),
        Column("last_10", "10", ",.2f"),
        Column("last_100", "100", ",.2f"),
        Column("last_1000", "1,000", ",.2f"),
        Column("ratio:last_1000", "ours/its"),
    ),
    plots=(),
    cases=_cases,
    aims=_aims,
    timelines=(
        Timeline(
            "attempts",
            f"attempts a second by {LARGE:,} processes, {DRAWN}",
            _drawn,
            marks=(OUTAGES[DRAWN],),
            log=True,
        ),
    ),
)
