"""Pages that name what is in the code: all of it, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg2_pool2
from psycopg2_pool2 import ConnectionPool, testing

_DOCS = Path(__file__).parents[2] / "docs"
_PACKAGE = Path(psycopg2_pool2.__file__).parent


def test_the_reference_has_every_public_name_once() -> None:
    text = (_DOCS / "api.rst").read_text()
    told = re.findall(
        r"^\.\. (?:auto|py:)(?:class|exception|function):: (\S+)$", text, re.MULTILINE
    )
    names = {name.removeprefix("psycopg2_pool2.") for name in told}
    assert len(told) == len(names)
    assert set(psycopg2_pool2.__all__) <= names
    assert {f"testing.{name}" for name in testing.__all__} <= names


def test_the_figures_to_alert_on_exist() -> None:
    text = (_DOCS / "operations.rst").read_text()
    _, table = text.split("\nWhat to alert on\n")
    named = set(re.findall(r"``((?:connections|pool|requests|returns)_\w+)``", table))
    with ConnectionPool(0, num_workers=0) as pool:
        assert named <= pool.get_stats().keys()
    assert len(named) > 8


def test_the_module_map_is_complete() -> None:
    table, _ = (_DOCS / "architecture.rst").read_text().split("\nThe life of a connection\n")
    modules = {path.stem for path in _PACKAGE.glob("*.py")}
    folders = {path.parent.name for path in _PACKAGE.glob("*/__init__.py")}
    named = set(re.findall(r"``(\w+)``", table))
    assert named == (modules | folders) - {"__main__"}
