"""Results as text: tables, which are reStructuredText too, and JSON."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.bench.harness import Bench, Column, Result, Row
from tests.bench.peers import OURS

_PACKAGES = ("psycopg2-binary", "psycopg", "psycopg-pool", "SQLAlchemy", "DBUtils")


def as_text(result: Result) -> str:
    """Return a scenario's title, note, table and aims."""
    scenario = result.scenario
    heading = f"{scenario.title}\n{'=' * len(scenario.title)}"
    return "\n\n".join([heading, scenario.note, table(result), aims(result)])


def table(result: Result) -> str:
    """Return a simple table of reStructuredText, which reads well on a terminal."""
    columns = result.scenario.columns
    head = ["case", "pool", *(column.heading for column in columns)]
    body = [
        [row.case, row.peer, *(_cell(result, row, column) for column in columns)]
        for row in result.rows
    ]
    widths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [_line(cells, widths) for cells in (head, *body)]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def aims(result: Result) -> str:
    """Return the aims as a list."""
    return "\n".join(f"- {aim}" for aim in result.aims)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    names = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*names, *numbers])


def _cell(result: Result, row: Row, column: Column) -> str:
    _, wants_ratio, key = column.key.rpartition(":")
    if not wants_ratio:
        value = row.figures.get(key)
    elif row.peer == OURS:
        return "1"
    else:
        value = result.rows.ratio(row.case, key, row.peer)
    if value is None or math.isnan(value):
        return "-"
    gave_up = column.gave_up is not None and row.figures.get(column.gave_up)
    return f"{'> ' if gave_up else ''}{format(value, column.form)}"


def circumstances(bench: Bench) -> str:
    """Return a sentence about machine and versions."""
    told = ", ".join(_versions())
    return (
        f"{platform.python_implementation()} {platform.python_version()} on"
        f" {platform.system()} {platform.machine()} with {os.cpu_count()} cores, PostgreSQL"
        f" {_server_version(bench)} on the same machine over TCP; {told}; medians of"
        f" {bench.rounds} rounds{', quick' if bench.quick else ''}."
    )


def _versions() -> Iterator[str]:
    return (f"{package} {version(package)}" for package in _PACKAGES)


def _server_version(bench: Bench) -> str:
    [(told,)] = bench.server.execute("SHOW server_version")
    return str(told)


def write(results: Sequence[Result], told: str, folder: Path) -> None:
    """Write of each scenario all figures as JSON, and its table for the documentation.

    Files of their own, so that a scenario can be measured again alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for result in results:
        path = folder / result.scenario.name
        path.with_suffix(".json").write_text(json.dumps(_as_data(result, told), indent=1) + "\n")
        parts = [result.scenario.note, told, table(result), aims(result)]
        path.with_suffix(".inc").write_text("\n\n".join(parts) + "\n")


def _as_data(result: Result, told: str) -> dict[str, object]:
    return {
        "circumstances": told,
        "name": result.scenario.name,
        "aims": [
            {"aim": aim.text, "measured": aim.measured, "limit": aim.limit, "met": aim.met}
            for aim in result.aims
        ],
        "rows": [
            {"case": row.case, "pool": row.peer, "figures": row.figures, "rounds": row.samples}
            for row in result.rows
        ],
    }
