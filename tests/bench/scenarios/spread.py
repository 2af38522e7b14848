"""How evenly many processes spread over replicas of which the name server tells one at a time."""

from __future__ import annotations

import functools
import math
from contextlib import ExitStack
from functools import partial

from tests.bench.harness import Aim, Bench, Case, Column, Rows, Sample, Scenario, Trial
from tests.bench.peers import OURS
from tests.bench.simulation import (
    METHODS,
    PATIENT,
    History,
    NameServer,
    RandomNameServer,
    Story,
    simulate,
)

STORIES: dict[str, Story] = {
    "in turn, in 60 s": Story(names=NameServer, deployment=60.0),
    "in turn, at once": Story(names=NameServer, deployment=1.0),
    "at random, in 60 s": Story(names=RandomNameServer, deployment=60.0),
}
SETTLED = 60
"""Seconds after a change from which on nothing should have to be moved any more."""


def story(case: str, quick: bool = False) -> Story:
    """Return a case's story; with fewer processes for a quick look."""
    told = STORIES[case]
    return told._replace(processes=50) if quick else told


def methods(case: str) -> list[str]:
    """Return what is compared: a longer memory only where it makes a difference."""
    return [name for name in METHODS if name != PATIENT or case.startswith("at random")]


@functools.cache
def history(case: str, method: str, quick: bool = False) -> History:
    """Return what came of a case with a method; the simulation runs once."""
    return simulate(story(case, quick), METHODS[method])


def figures(seen: History) -> Sample:
    """Summarise what was seen."""
    told = seen.story
    times = {
        "arrival_90": seen.arrival(0.9),
        "restored_90": seen.restoration(0.9),
    }
    spans = {
        "arrival_90": told.one_dies - told.fourth_comes,
        "restored_90": told.end - told.it_returns,
    }
    sample: Sample = {
        "before": seen.spread(told.fourth_comes - 1),
        "after": seen.spread(told.one_dies - 1),
        "late": seen.spread(min(told.it_returns + 600, told.end - 1)),
        "end": seen.spread(told.end - 1),
        "peak_arrival": seen.busiest_second(told.fourth_comes, told.one_dies),
        "peak_death": seen.busiest_second(told.one_dies, told.it_returns),
        "steady": seen.attempts_in(told.fourth_comes + SETTLED, told.one_dies)
        / (told.one_dies - told.fourth_comes - SETTLED),
    }
    for key, seconds in times.items():
        sample[key] = min(seconds, spans[key])
        sample[f"{key}_gave_up"] = float(seconds == math.inf)
    return sample


def _trial(case: str, method: str, quick: bool) -> Sample:
    return figures(history(case, method, quick))


def _cases(bench: Bench) -> list[Case]:
    def open_all(case: str, stack: ExitStack) -> dict[str, Trial]:
        return {method: partial(_trial, case, method, bench.quick) for method in methods(case)}

    return [Case(case, partial(open_all, case), rounds=1) for case in STORIES]


def _aims(rows: Rows) -> list[Aim]:
    return [
        aim
        for case in STORIES
        for aim in (
            Aim(
                f"{case}: seconds until the fourth has nine tenths of its share",
                rows.figure(case, "arrival_90", OURS),
                60,
            ),
            Aim(
                f"{case}: seconds until the one that died has nine tenths of its share",
                rows.figure(case, "restored_90", OURS),
                60,
            ),
        )
    ]


SCENARIO = Scenario(
    name="spread",
    title="Spread over replicas",
    note="Simulated: 500 processes with ten connections each (50 with ``--quick``), over three"
    " replicas behind one name. A fourth comes after 10 minutes; after 20 the first dies, and is"
    " back after 22. An answer of the name server names one replica and is valid for 5 s: *in"
    " turn*, the same for everybody in these 5 s, or *at random* for each question. The processes"
    " start *in 60 s* or *at once*. *most - fewest* are connections of the busiest replica less"
    " those of the least busy that serves; *90 %* is of an even share. *libpq*"
    " connects to the address in a new answer; *random* to any, and is told all at once: the best"
    " that can be had without moving. Both replace a connection when it is lost, or 24 hours or"
    " 1 hour old (±10 %).",
    columns=(
        Column("before", "most - fewest: 10 min", ",.0f"),
        Column("after", "20 min", ",.0f"),
        Column("late", "32 min", ",.0f"),
        Column("end", "75 min", ",.0f"),
        Column("arrival_90", "s until 4th has 90 %", ",.0f", gave_up="arrival_90_gave_up"),
        Column("restored_90", "s until 1st has 90 % again", ",.0f", gave_up="restored_90_gave_up"),
        Column("peak_arrival", "most connects/s: 4th comes", ",.0f"),
        Column("peak_death", "1st dies", ",.0f"),
        Column("steady", "connects/s at rest", ",.1f"),
    ),
    plots=(),  # over time: see tests.bench.timeline
    cases=_cases,
    aims=_aims,
)
