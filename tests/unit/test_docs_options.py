"""docs/options.rst: the table has every option, and its defaults are the code's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.connector import DEFAULTS

_TEXT = (Path(__file__).parents[2] / "docs" / "options.rst").read_text()
_OPTIONS, _CONNECT = _TEXT.split("\nTo connect\n")


def rows(text: str) -> list[list[str]]:
    """Return the cells of a list-table, the titles left out."""
    table = re.split(r"^   \* - ", text, flags=re.MULTILINE)[2:]
    return [[" ".join(cell.split()) for cell in re.split(r"\n     - ", row)] for row in table]


def literal(cell: str) -> str:
    found = re.fullmatch(r"``(.+)``", cell)
    assert found, cell
    return found[1]


def options() -> dict[str, Any]:
    parameters = inspect.signature(ConnectionPool).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}


def test_the_table_has_the_options_in_their_order_and_with_their_defaults() -> None:
    told = [(literal(name), literal(default)) for name, default, *_ in rows(_OPTIONS)]
    assert told == [(name, repr(default)) for name, default in options().items()]


@pytest.mark.parametrize("row", rows(_OPTIONS), ids=lambda row: literal(row[0]))
def test_a_row_tells_all(row: list[str]) -> None:
    assert len(row) == 6
    assert all(row)


def test_what_libpq_is_told_where_the_program_is_silent() -> None:
    told = {literal(name): literal(value) for name, value, _ in rows(_CONNECT)}
    assert told == {name: str(value) for name, value in DEFAULTS.items()}
