"""Draw the spread over time: `python -m tests.bench.timeline [--quick] [--out docs/bench]`.

Writes the table and the figures of that scenario too; it needs no server.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench import harness, report
from tests.bench.progress import Progress
from tests.bench.scenarios import spread
from tests.bench.simulation import METHODS, History

# As in plots.
matplotlib.rcParams.update({"svg.hashsalt": "psycopg2_pool2", "svg.fonttype": "none"})

_COLOURS = ("#0b6e4f", "#66ccee", "#aa3377", "#ccbb44", "#222222", "#999999")
_STEP = 10  # seconds between two points
_REPLICAS = {"first": "#aa3377", "second": "#222222", "third": "#999999", "fourth": "#0b6e4f"}


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print, and write table, JSON and plots."""
    options = _parser().parse_args(argv)
    no_server: Any = None  # nothing is connected to
    bench = harness.Bench(no_server, options.quick, rounds=1)
    result = harness.run(spread.SCENARIO, bench, Progress(sys.stderr))
    told = f"{platform.python_implementation()} {platform.python_version()}, one run."
    print(report.as_text(result))
    report.write([result], told, options.out)
    draw(options.quick, options.out)


def draw(quick: bool, folder: Path) -> list[Path]:
    """Draw the differences in all cases, and each replica's share in one; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "difference": _differences(quick),
        "shares": _shares(next(iter(spread.STORIES)), quick),
    }
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"spread-{name}.svg")
        figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def _differences(quick: bool) -> Figure:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    colours = dict(zip(METHODS, _COLOURS, strict=True))
    for axes, case in zip(panels, spread.STORIES, strict=False):
        axes.set_title(case, fontsize="small")
        for method in spread.methods(case):
            seen = spread.history(case, method, quick)
            minutes = _minutes(seen)
            spreads = [seen.spread(second) for second in _seconds(seen)]
            axes.plot(minutes, spreads, label=method, color=colours[method], linewidth=1.2)
        _mark(axes, seen)
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    for axes in figure.axes[len(spread.STORIES) :]:
        axes.set_visible(False)
    figure.suptitle(
        "Busiest replica less the least busy that serves, in connections, over the minutes"
    )
    return figure


def _shares(case: str, quick: bool) -> Figure:
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    chosen = spread.methods(case)
    panels = figure.subplots(3, 2, sharex=True, sharey=True).flat
    for axes, method in zip(panels, chosen, strict=False):
        seen = spread.history(case, method, quick)
        axes.set_title(method, fontsize="small")
        for place, (name, colour) in enumerate(_REPLICAS.items()):
            values = [seen.counts[second][place] for second in _seconds(seen)]
            axes.plot(_minutes(seen), values, label=name, color=colour, linewidth=1.2)
        _mark(axes, seen)
    figure.axes[0].set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    for axes in figure.axes[len(chosen) :]:
        axes.set_visible(False)
    figure.suptitle(f"Connections of each replica over the minutes, answers {case}")
    return figure


def _seconds(seen: History) -> range:
    return range(0, len(seen.counts), _STEP)


def _minutes(seen: History) -> list[float]:
    return [second / 60 for second in _seconds(seen)]


def _mark(axes: Axes, seen: History) -> None:
    """Mark what happens."""
    for second in (seen.story.fourth_comes, seen.story.one_dies, seen.story.it_returns):
        axes.axvline(second / 60, color="#dddddd", linewidth=0.8, zorder=0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.timeline",
        description="Simulate how processes spread over replicas, and draw it over time.",
    )
    parser.add_argument("--quick", action="store_true", help="50 processes instead of 500")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="%(default)s")
    return parser


if __name__ == "__main__":
    main()
