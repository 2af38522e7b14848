"""Warm targets against fixed sizes, under recorded loads: what they open, and who has to wait."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from tests.bench.harness import Aim, Bench, Case, Column, Plot, Rows, Sample, Scenario, Trial
from tests.bench.loads import (
    ADAPTIVE,
    BURSTS,
    DAY,
    FIXED_LARGE,
    LARGE,
    PEAK_ALONE,
    PLAIN,
    POLICIES,
    SLOW,
    SMALL,
    STEADY,
    history,
    loads,
)


def _figures(load: str, policy: str, quick: bool) -> Sample:
    return history(load, policy, quick).figures()


def _cases(bench: Bench) -> list[Case]:
    def open_all(load: str, stack: ExitStack) -> dict[str, Trial]:
        return {policy: partial(_figures, load, policy, bench.quick) for policy in POLICIES}

    return [Case(load, partial(open_all, load), rounds=1) for load in loads(bench.quick)]


def _ratio(rows: Rows, case: str, key: str, to: str, of: str = ADAPTIVE) -> float:
    return rows.figure(case, key, of) / rows.figure(case, key, to)


def _aims(rows: Rows) -> list[Aim]:
    return [
        Aim(
            f"{SLOW}: highest warm target while it is slow, or later / the highest before",
            rows.figure(SLOW, "target_late", ADAPTIVE)
            / rows.figure(SLOW, "target_early", ADAPTIVE),
            1.15,
        ),
        Aim(
            f"{BURSTS}: borrows that waited / those of plain",
            _ratio(rows, BURSTS, "waited", PLAIN),
            0.5,
        ),
        Aim(
            f"{DAY}: borrows that waited / those of plain", _ratio(rows, DAY, "waited", PLAIN), 0.5
        ),
        Aim(f"{DAY}: mean size / {FIXED_LARGE}", _ratio(rows, DAY, "mean", FIXED_LARGE), 0.5),
        Aim(f"{STEADY}: connects an hour / plain", _ratio(rows, STEADY, "connects", PLAIN), 1.5),
    ]


SCENARIO = Scenario(
    name="adaptive",
    title="Warm targets and fixed sizes",
    note="Simulated with the pool's own books, reaping and target; a connect takes 50 ms, three at"
    " once; a loan lasts 100 ms on average, log-normally distributed, and arrivals are independent."
    f" *{STEADY}*: 20 borrows a second for 3 hours. *{DAY}*: 24 hours from 0.5 to 20.5 a second and"
    f" back. *{BURSTS}*: 5 a second, and 25 more at one moment every 4 minutes, for 3 hours."
    f" *{SLOW}*: 20 a second for an hour and a half, where each loan lasts ten times as long from"
    " minute 40 to 50. Arrivals and durations are drawn once, and are the same for every pool."
    f" *adaptive* and *plain* have ``minconn=1``, ``maxconn={LARGE}``, ``idle_timeout=300``;"
    f" *{PEAK_ALONE}* is what adaptive would be if it did not look how long loans last. *fixed*"
    f" pools have as many as they may, {SMALL} or {LARGE}.",
    columns=(
        Column("connects", "connects/h", ",.1f"),
        Column("waited", "waited %", ",.3f"),
        Column("mean", "mean size", ",.1f"),
        Column("most", "largest size", ",.0f"),
        Column("target", "highest target", ",.0f"),
    ),
    plots=(
        Plot("connects", "connects an hour"),
        Plot("waited", "share of borrows that had to wait, %"),
    ),
    cases=_cases,
    aims=_aims,
)
