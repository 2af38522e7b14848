"""What the system's resolver finds, the pool finds too, and as quickly.

psycopg2.connect leaves a name to libpq, and that to getaddrinfo. Each case is a name and a
configuration of the system, in a network of its own; `tests/support/name_cases.py` has them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.apps.name_lookups import Lookup, Outcome
from tests.support.name_cases import CASES

ROOT = Path(__file__).parents[2]
TIMES = 1.5
"""How often as long as the system a lookup of the pool's may take."""
ON_TOP = 1.0
"""Seconds on top of that: a machine may be busy."""


def run(*arguments: str) -> Mapping[str, Any]:
    """Run these cases, or all, and return what came of each."""
    command = [sys.executable, "-m", "tests.support.apps.name_lookups", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes: Mapping[str, Any] = json.loads(done.stdout)
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> Mapping[str, Any]:
    """Run all cases, some at a time."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    [trial] = run("ipv4").values()
    if isinstance(trial, str):
        pytest.skip(f"no network of a process's own: {trial.strip().splitlines()[-1]}")
    return run()


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    """Name a case."""
    return str(request.param)


@pytest.fixture
def outcome(outcomes: Mapping[str, Any], case: str) -> Outcome:
    """Return what came of the case."""
    told = outcomes[case]
    assert not isinstance(told, str), told
    return Outcome(*(Lookup(*each) for each in told))


def test_pool_finds_the_addresses_that_the_system_finds(case: str, outcome: Outcome) -> None:
    system, workers, no_workers = outcome
    if CASES[case].resolves:
        assert system.addresses, system.error
    if system.addresses:
        assert workers.addresses == system.addresses, workers.error
        if not CASES[case].needs_system:
            assert no_workers.addresses == system.addresses, no_workers.error


def test_pool_takes_as_long_as_the_system_at_most(case: str, outcome: Outcome) -> None:
    system, workers, no_workers = outcome
    if system.addresses:
        assert workers.seconds <= TIMES * system.seconds + ON_TOP
        assert no_workers.seconds <= TIMES * system.seconds + ON_TOP


def test_lookup_without_workers_ends_within_its_time(case: str, outcome: Outcome) -> None:
    assert outcome.no_workers.seconds <= CASES[case].seconds + ON_TOP


def test_lookup_in_vain_says_why(case: str, outcome: Outcome) -> None:
    for lookup in (outcome.workers, outcome.no_workers):
        if not lookup.addresses:
            assert lookup.error.startswith(("NoSuchHost: ", "NameServerSilent: "))
            assert f'host "{CASES[case].name}" could not be resolved' in lookup.error
