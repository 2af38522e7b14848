"""Results as SVG drawings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench.harness import Plot, Result, Scenario, Timeline
from tests.bench.peers import ALL

# The same drawing for the same figures, and text that stays text.
matplotlib.rcParams.update({"svg.hashsalt": "psycopg2_pool2", "svg.fonttype": "none"})

_COLOURS = ("#0b6e4f", "#999999", "#4477aa", "#ccbb44", "#aa3377", "#222222")


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw all plots of all scenarios; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [path for result in results for path in _draw_one(result, folder)]
    return [*drawn, *(path for result in results for path in _over_time(result.scenario, folder))]


def _draw_one(result: Result, folder: Path) -> Iterator[Path]:
    for plot in result.scenario.plots:
        cases = list(dict.fromkeys(row.case for row in result.rows))
        peers = list(dict.fromkeys(row.peer for row in result.rows))
        figure = Figure(figsize=(8, _height(plot, cases, peers)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"{result.scenario.title}: {plot.label}", fontsize="medium")
        (_lines if plot.kind == "lines" else _bars)(axes, result, plot, cases, peers)
        yield _save(figure, folder, result.scenario, plot.key)


def _over_time(scenario: Scenario, folder: Path) -> Iterator[Path]:
    for timeline in scenario.timelines:
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"{scenario.title}: {timeline.label}", fontsize="medium")
        _curves(axes, timeline)
        yield _save(figure, folder, scenario, timeline.key)


def _save(figure: Figure, folder: Path, scenario: Scenario, key: str) -> Path:
    path = folder / f"{scenario.name}-{key.replace('_', '-')}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _curves(axes: Axes, timeline: Timeline) -> None:
    for second in timeline.marks:
        axes.axvline(second, color="#dddddd", linewidth=0.8, zorder=0)
    for peer, values in timeline.series().items():
        axes.plot(values, label=peer, color=_colour(peer), linewidth=1.2)
    if timeline.log:
        axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.8 if timeline.log else 0)
    axes.set_xlabel("seconds", fontsize="small")
    axes.legend(fontsize="small")


def _height(plot: Plot, cases: Sequence[str], peers: Sequence[str]) -> float:
    return 4 if plot.kind == "lines" else 1.2 + 0.22 * len(cases) * (len(peers) + 1)


def _colour(peer: str) -> str:
    return _COLOURS[ALL.index(peer)] if peer in ALL else "#66ccee"


def _lines(
    axes: Axes, result: Result, plot: Plot, cases: Sequence[str], peers: Sequence[str]
) -> None:
    for peer in peers:
        values = [result.rows.figure(case, plot.key, peer) for case in cases]
        axes.plot(cases, values, marker="o", label=peer, color=_colour(peer))
    if plot.log:
        axes.set_yscale("log")
    axes.set_ylim(bottom=None if plot.log else 0)
    axes.legend(fontsize="small")


def _bars(
    axes: Axes, result: Result, plot: Plot, cases: Sequence[str], peers: Sequence[str]
) -> None:
    labels, place = [], 0
    for case in cases:
        for peer in peers:
            value = result.rows.figure(case, plot.key, peer)
            bars = axes.barh(place, value, color=_colour(peer))
            axes.bar_label(bars, [f"{value:,.4g}"], padding=3, fontsize="x-small")
            labels.append((place, peer if len(cases) == 1 else f"{case}: {peer}"))
            place += 1
        place += 1
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize="x-small")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    if plot.log:
        axes.set_xscale("log")
