"""Run the benchmark: `python -m tests.bench [--quick] [scenario ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from psycopg2_pool2.contrib.embedded import Server
from tests.bench import harness, plots, report
from tests.bench.progress import Progress
from tests.bench.scenarios import SCENARIOS, chosen


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write tables, JSON and plots."""
    options = _parser().parse_args(argv)
    unknown = [name for name in options.scenarios if not chosen(name)]
    if unknown:
        sys.exit(f"no such scenario: {', '.join(sorted(unknown))}; there are {_names()}")
    names = [name for given in options.scenarios for name in chosen(given)]
    progress = Progress(sys.stderr)
    with Server.create(settings={"max_connections": 1200}) as server:
        rounds = options.rounds or (3 if options.quick else 7)
        bench = harness.Bench(server, options.quick, rounds)
        told = report.circumstances(bench)
        results = [harness.run(SCENARIOS[name], bench, progress) for name in names or SCENARIOS]
    print(told, *map(report.as_text, results), sep="\n\n")
    report.write(results, told, options.out)
    plots.draw(results, options.out)
    print(f"\nTables, plots and all figures are in {options.out}.")


def _names() -> str:
    return ", ".join(SCENARIOS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure psycopg2_pool2 beside other pools, on one server in one run.",
    )
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"some of {_names()}")
    parser.add_argument("--quick", action="store_true", help="about two minutes, and rougher")
    parser.add_argument("--rounds", type=_positive, help="turns of each peer (7; quick: 3)")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="%(default)s")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    main()
