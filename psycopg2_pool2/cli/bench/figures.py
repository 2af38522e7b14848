"""What the samples come to: pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .measure import Samples


@dataclass(frozen=True)
class Crowded:
    """How a pool serves more threads than it has connections.

    `fewest` and `most` are the borrows of a single thread in a round; ours_to_its is our
    throughput, divided by its.
    """

    per_second: float
    ours_to_its: float | None
    fewest: int
    most: int
    longest_wait_seconds: float


@dataclass(frozen=True)
class Figures:
    """One pool beside ours. `crowded` is None for a pool in which nobody can wait.

    `cycle_seconds` is what borrowing and returning an idle connection takes; ours_to_its is our
    time for that, divided by its.
    """

    pool: str
    version: str
    cycle_seconds: float
    ours_to_its: float | None
    crowded: Crowded | None


def figures(samples: Sequence[Samples]) -> list[Figures]:
    """Return the figures of all pools, of which the first is ours.

    Ratios are of the turns in the same round, since a machine is not equally fast all the time.
    """
    ours = samples[0]
    return [
        Figures(
            its.peer.name,
            its.peer.version,
            statistics.median(its.cycles),
            _ratio(ours.cycles, its.cycles),
            _crowded(ours, its) if its.crowds else None,
        )
        for its in samples
    ]


def _crowded(ours: Samples, its: Samples) -> Crowded:
    speeds = [[crowd.per_second for crowd in samples.crowds] for samples in (ours, its)]
    return Crowded(
        statistics.median(speeds[1]),
        _ratio(*speeds),
        min(min(crowd.borrows) for crowd in its.crowds),
        max(max(crowd.borrows) for crowd in its.crowds),
        max(crowd.longest_wait for crowd in its.crowds),
    )


def _ratio(ours: Sequence[float], its: Sequence[float]) -> float | None:
    """Return the median of the rounds; None if it did nothing in one of them."""
    if not all(its):
        return None
    return statistics.median(a / b for a, b in zip(ours, its, strict=True))
