"""README.md and docs: every code block runs on a real server, and what is named exists.

How a page is run is told in tests/support/doc_blocks.py.
"""

from __future__ import annotations

import ast
import doctest
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.doc_blocks import KINDS, PAGES, ROOT, Block, Program, read_blocks, read_programs
from tests.support.waiting import wait_until

PROGRAMS = [program for page in PAGES for program in read_programs(page)]

_READER = Path(__file__).parents[1] / "support" / "apps" / "doc_reader.py"
_LIMIT = 90
_numbers = itertools.count(1)
_same = doctest.OutputChecker().check_output
_ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture
def database(server: Server) -> Iterator[dict[str, str]]:
    """Make a database; return the variables that lead there.

    At the end no session may be left in it.
    """
    name = f"docs_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    yield {
        "DATABASE_URL": f"postgresql://postgres@{server.host}:{server.port}/{name}",
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": "postgres",
        "PGDATABASE": name,
        "PGPASSFILE": os.environ["PGPASSFILE"],
    }
    wait_until(
        lambda: not server.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", [name])
    )
    server.execute(f"DROP DATABASE {name}")


def run(program: list[Block], setup: str, folder: Path, variables: dict[str, str]) -> list[str]:
    """Do what the blocks say; return what each of them printed."""
    steps = [
        {**vars(block), "page": str(block.page)} for block in program if block.language != "text"
    ]
    if setup:
        steps.insert(0, {**steps[0], "language": "sql", "code": setup, "file": None})
    done = subprocess.run(
        [sys.executable, "-W", "error", str(_READER)],
        input=json.dumps(steps),
        cwd=folder,
        env=_environment(variables),
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: list[str] = json.loads(done.stdout)
    return printed[1:] if setup else printed


def _environment(variables: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**own, "PATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_blocks_run_and_print_what_they_say(
    program: Program, database: dict[str, str], tmp_path: Path
) -> None:
    outputs = iter(run(program.blocks, program.setup, tmp_path, database))
    printed = ""
    for block in program.blocks:
        if block.language != "text":
            printed = next(outputs)
        else:
            assert _same(block.code, printed, _ANY), f"{block}: it printed\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in read_blocks(page):
        if block.not_run is None:
            assert block.language in KINDS or block.file, f"{block} cannot be run"
        else:
            assert len(block.not_run.split()) >= 3, f"{block}: give a reason"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_blocks_are_found(page: Path) -> None:
    text = page.read_text()
    assert len(re.findall(r"^ *(?:\.\. code-block::|```\S)", text, re.M)) == len(read_blocks(page))
    assert re.findall(r"^(?! *\.\. ).*::$", text, re.M) == [], "say which language it is"
    assert not re.search(r"^ *>>> ", text, re.M), "doctests are not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_exists(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"``((?:tests|docs|psycopg2_pool2)/[^`*]*)``", text):
        path, *inside = name.split("::")
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), name
        assert not inside or tuple(inside) in functions_in(ROOT / path), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_are_included_have_tests_of_their_own(page: Path) -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"^ *\.\. literalinclude:: (\S+)", page.read_text(), re.M):
        assert Path(name).stem in tests, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    code = [block.code for block in read_blocks(page) if block.language in ("sh", "console")]
    inline = re.findall(r"`make (\w+)", page.read_text())
    assert {*inline, *re.findall(r"^(?:\$ )?make (\w+)", "".join(code), re.M)} <= set(targets)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def functions_in(path: Path) -> set[tuple[str, ...]]:
    """Return the functions of a module, those in classes after the class, and the classes."""
    found = set[tuple[str, ...]]()
    for node in ast.parse(path.read_text()).body:
        inner: list[Any] = node.body if isinstance(node, ast.ClassDef) else []
        if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
            found.add((node.name,))
            found.update((node.name, x.name) for x in inner if isinstance(x, _FUNCTIONS))
    return found
