"""The figures as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..blocks import GAP, Block, Table, Text
from ..words import milliseconds
from .figures import Figures
from .measure import CONNECTIONS, ROUNDS, THREADS

_NOTES = (
    f"cycle: one thread borrows an idle connection and returns it. Then {THREADS} threads share",
    f"{CONNECTIONS} connections and send SELECT 1. The pools took turns in {ROUNDS} rounds; ratios"
    " are of turns in",
    "the same round, absolute figures are this machine's at this moment. A pool in which those",
    "who run overtake those who wait looks fast: see its fewest borrows of a thread, and its",
    "longest wait. By default ours tests what it lends (tested); the others test nothing here.",
    "psycopg2.pool lets nobody wait; psycopg_pool lends connections of another driver.",
)


def report(figures: Sequence[Figures]) -> Iterator[Block]:
    """Yield the table, and what one should know to read it."""
    yield Table(
        [_row(each) for each in figures],
        headings=(
            *("pool", "version", "cycle", "ours/its"),
            *("borrows/s", "ours/its", "fewest", "most", "longest wait"),
        ),
        right=range(2, 9),
    )
    yield GAP
    for note in _NOTES:
        yield Text(note, "faint")


def _row(each: Figures) -> list[str]:
    row = [each.pool, each.version, f"{each.cycle_seconds * 1e6:,.2f} us", _ratio(each.ours_to_its)]
    crowded = each.crowded
    if crowded is None:
        return [*row, "does not wait", "", "", "", ""]
    return [
        *row,
        f"{crowded.per_second:,.0f}",
        _ratio(crowded.ours_to_its),
        f"{crowded.fewest:,}",
        f"{crowded.most:,}",
        milliseconds(crowded.longest_wait_seconds),
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
