"""What all scenarios share: cases, rounds in which the peers take turns, rows and aims."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from psycopg2_pool2.contrib.embedded import Server
from tests.bench.peers import OURS, Lender, Plan, lending
from tests.bench.progress import Progress

Sample = dict[str, float]
"""What one turn of one peer gave: figures by their keys."""
Trial = Callable[[], Sample]
"""One turn of one peer."""


@dataclass(frozen=True)
class Bench:
    """The run: where the server is, and how long to measure."""

    server: Server
    quick: bool = False
    rounds: int = 7

    @property
    def short_turns(self) -> int:
        """How many turns replace a round where one is very short."""
        return self.rounds * (5 if self.quick else 20)

    @property
    def seconds(self) -> float:
        """How long each measured stretch of a turn lasts."""
        return 0.06 if self.quick else 0.25


@dataclass(frozen=True)
class Case:
    """One line of comparison: `open` gives each peer's trial, and closes its pool at the end."""

    label: str
    open: Callable[[ExitStack], dict[str, Trial]]
    rounds: int | None = None


@dataclass(frozen=True)
class Column:
    """A figure as it is shown.

    Where the figure called ``gave_up`` is not zero, the time was longer than is told: nobody
    waited for the end.
    """

    key: str
    heading: str
    form: str = ",.2f"
    gave_up: str | None = None


@dataclass(frozen=True)
class Plot:
    """A figure as it is drawn: bars for each case and peer, or lines from case to case."""

    key: str
    label: str
    kind: Literal["bars", "lines"] = "bars"
    log: bool = False


@dataclass(frozen=True)
class Timeline:
    """A figure of each peer over the seconds of a simulation, as it is drawn.

    ``marks`` are the seconds at which something happens.
    """

    key: str
    label: str
    series: Callable[[], dict[str, list[float]]]
    marks: Sequence[float] = ()
    log: bool = False


@dataclass(frozen=True)
class Row:
    """What came of one peer in one case: of each figure the median, of the longest the longest."""

    case: str
    peer: str
    samples: list[Sample]
    figures: Sample = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.samples[0]:
            values = [sample[key] for sample in self.samples]
            self.figures[key] = max(values) if key == "longest" else statistics.median(values)


class Rows(list[Row]):
    """All rows of a scenario."""

    def figure(self, case: str, key: str, peer: str = OURS) -> float:
        """Return one figure; NaN where it was not measured."""
        found = (row for row in self if (row.case, row.peer) == (case, peer))
        return next((row.figures.get(key, float("nan")) for row in found), float("nan"))

    def ratio(self, case: str, key: str, peer: str) -> float:
        """Return our figure divided by a peer's."""
        return self.figure(case, key) / self.figure(case, key, peer)


@dataclass(frozen=True)
class Aim:
    """What we want to reach, and what we did."""

    text: str
    measured: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the limit is kept."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "MISSED"
        return f"{self.text}: {self.measured:.2f} (aim {sign} {self.limit:g}): {verdict}"


@dataclass(frozen=True)
class Scenario:
    """One question, in a module of its own."""

    name: str
    title: str
    note: str
    columns: Sequence[Column]
    plots: Sequence[Plot]
    cases: Callable[[Bench], list[Case]]
    aims: Callable[[Rows], list[Aim]]
    timelines: Sequence[Timeline] = ()


@dataclass(frozen=True)
class Result:
    """A scenario with its rows."""

    scenario: Scenario
    rows: Rows

    @property
    def aims(self) -> list[Aim]:
        """Return the aims that this run could measure."""
        return [aim for aim in self.scenario.aims(self.rows) if aim.measured == aim.measured]


def run(scenario: Scenario, bench: Bench, progress: Progress) -> Result:
    """Measure a scenario: case by case, the peers taking turns in every round."""
    cases = scenario.cases(bench)
    rows = Rows()
    for number, case in enumerate(cases):
        progress.begin(scenario.name, case.label, number, len(cases))
        rows += _run_case(case, case.rounds or bench.rounds, progress)
    progress.finish()
    return Result(scenario, rows)


def _run_case(case: Case, rounds: int, progress: Progress) -> list[Row]:
    with ExitStack() as stack:
        trials = case.open(stack)
        gc.collect()
        peers = list(trials)
        samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
        for turn in range(rounds):
            first = turn % len(peers)  # nobody always comes after the same one
            for place, peer in enumerate(peers[first:] + peers[:first]):
                progress.step((turn + place / len(peers)) / rounds)
                samples[peer].append(_without_gc(trials[peer]))
    return [Row(case.label, peer, samples[peer]) for peer in peers]


def _without_gc(trial: Trial) -> Sample:
    gc.disable()
    try:
        return trial()
    finally:
        gc.enable()


def pool_case(
    label: str,
    plan: Plan,
    peers: Sequence[str],
    measure: Callable[[Lender], Sample],
    rounds: int | None = None,
    place: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Case:
    """Return a case in which each peer opens a pool once and is measured in every round.

    All in the context that `place` returns.
    """

    def open_pools(stack: ExitStack) -> dict[str, Trial]:
        stack.enter_context(place())
        return {peer: partial(measure, stack.enter_context(lending(peer, plan))) for peer in peers}

    return Case(label, open_pools, rounds)


WAIT_COLUMNS = (
    Column("p50", "p50 µs"),
    Column("p99", "p99 µs"),
    Column("p999", "p99.9 µs"),
    Column("longest", "longest µs", ",.0f"),
)


def percentiles(waits: list[float]) -> Sample:
    """Summarise waits, given in seconds, in microseconds."""
    ordered = sorted(waits)
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "longest": 1.0}
    return {key: ordered[round(share * last)] * 1e6 for key, share in shares.items()}
