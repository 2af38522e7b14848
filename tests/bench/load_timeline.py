"""Draw warm targets over time: `python -m tests.bench.load_timeline [--quick] [--out docs/bench]`.

Writes the scenario's table, plots and figures too; it needs no server.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.bench import harness, plots, report
from tests.bench.loads import (
    ADAPTIVE,
    FIXED_SMALL,
    PEAK_ALONE,
    PLAIN,
    STEP,
    History,
    history,
    loads,
)
from tests.bench.progress import Progress
from tests.bench.scenarios import adaptive

_SHOWN = (PLAIN, FIXED_SMALL, ADAPTIVE, PEAK_ALONE)
_POINTS = 400
"""How many points a line has; each is the largest value of its stretch."""
_SIZE, _IN_USE, _TARGET = "#4477aa", "#999999", "#0b6e4f"


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print, and write table, JSON and plots."""
    options = _parser().parse_args(argv)
    no_server: Any = None  # nothing is connected to
    bench = harness.Bench(no_server, options.quick, rounds=1)
    result = harness.run(adaptive.SCENARIO, bench, Progress(sys.stderr))
    told = f"{platform.python_implementation()} {platform.python_version()}, one run, seed 1."
    print(report.as_text(result))
    report.write([result], told, options.out)
    plots.draw([result], options.out)
    for load in loads(options.quick):
        _draw(load, options.quick, options.out)


def _draw(load: str, quick: bool, folder: Path) -> None:
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axes, policy in zip(panels, _SHOWN, strict=True):
        axes.set_title(policy, fontsize="small")
        _lines(axes, history(load, policy, quick))
    slow_from, slow_until = (limit / 3600 for limit in loads(quick)[load].slow)
    for axes in figure.axes:
        if slow_until < float("inf"):
            axes.axvspan(slow_from, slow_until, color="#eeeeee", zorder=0)
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(fontsize="x-small")
    figure.suptitle(f"Connections: {load}", fontsize="medium")
    figure.supxlabel("hours", fontsize="small")
    figure.savefig(folder / f"adaptive-{load.replace(' ', '-')}.svg", metadata={"Date": None})


def _lines(axes: Axes, seen: History) -> None:
    width = max(1, len(seen.sizes) // _POINTS)
    stretches = [seen.sizes[at : at + width] for at in range(0, len(seen.sizes), width)]
    hours = [number * width * STEP / 3600 for number in range(1, len(stretches) + 1)]
    told = (("in use", _IN_USE), ("open", _SIZE), ("target", _TARGET))
    for place, (label, colour) in enumerate(told):
        values = [max(row[place] for row in stretch) for stretch in stretches]
        axes.plot(hours, values, label=label, color=colour, linewidth=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.load_timeline",
        description="Simulate pools under recorded loads, and draw their sizes over time.",
    )
    parser.add_argument("--quick", action="store_true", help="shorter loads")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="%(default)s")
    return parser


if __name__ == "__main__":
    main()
