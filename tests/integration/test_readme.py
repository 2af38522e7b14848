"""The README: its examples run, its links and its make targets exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()
_DATABASE = "readme"


@pytest.fixture
def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a database of the README's own, where DATABASE_URL leads."""
    server.execute(f"CREATE DATABASE {_DATABASE}")
    url = f"postgresql://postgres@{server.host}:{server.port}/{_DATABASE}"
    monkeypatch.setenv("DATABASE_URL", url)
    yield
    server.execute(f"DROP DATABASE {_DATABASE} WITH (FORCE)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _README, re.MULTILINE | re.DOTALL)


def line_of(text: str) -> int:
    """Return the number of the README's line before which the text starts."""
    return _README[: _README.index(text)].count("\n")


@pytest.mark.usefixtures("database")
def test_the_examples_run_one_after_the_other() -> None:
    namespace: dict[str, object] = {}
    try:
        for block in blocks("python"):
            # Empty lines before it, so that a traceback names the README's line.
            source = "\n" * line_of(block) + block
            exec(compile(source, str(_ROOT / "README.md"), "exec"), namespace)
    finally:
        pools = [value for value in namespace.values() if isinstance(value, ConnectionPool)]
        left_open = [pool for pool in pools if not pool.closed]
        for pool in pools:
            pool.shutdown()
    assert len(pools) == 2
    assert left_open == []


def test_the_make_targets_exist() -> None:
    makefile = (_ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)|`make (\w+)`", _README, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def test_the_links_lead_somewhere() -> None:
    targets = re.findall(r"^\[[^]]+\]: (\S+)$|\]\(([^)]+)\)", _README, re.MULTILINE)
    paths = ["".join(target) for target in targets if "://" not in "".join(target)]
    assert len(paths) > 10
    assert [path for path in paths if not (_ROOT / path).is_file()] == []


def test_the_links_in_brackets_are_defined() -> None:
    used = set(re.findall(r"\]\[([^]]+)\]", _README))
    assert used == set(re.findall(r"^\[([^]]+)\]: ", _README, re.MULTILINE))
