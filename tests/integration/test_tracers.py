"""Tracers replace psycopg2.connect; each is tried in a process of its own, which it patches."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps.tracers import TRACERS, Tracer
from tests.support.programs import skip_without

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", TRACERS)
def test_pools_work_with_a_tracer_which_traces_the_program_alone(name: str, server: Server) -> None:
    skip_without(name)
    program = [sys.executable, "-W", "ignore", "-m", "tests.support.apps.traced_loans"]
    ended = subprocess.run(
        [*program, name, server.dsn], capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    tracer = TRACERS[name]
    assert seen["is proxy"] == seen["is proxy still"] == tracer.proxies
    assert seen["same again"]
    assert seen["same by key"]
    assert seen["rows"] == [[15]]
    assert seen["after a loss"] == 16
    assert seen["after a leak"] == 17
    assert seen["left"] == [0, 1]
    assert [seen["run"], seen["run on"]] == [21, 22]
    assert queries(seen["statements"]) == traced(tracer, 11, 12, 13, 14, 15)
    assert queries(seen["more statements"]) == traced(tracer, 16, 17)
    assert not [told for told in seen["statements"] if "rollback" in told.lower()]
    if tracer.in_workers:
        assert queries(seen["statements of tasks"]) == traced(tracer, 21, 22)
    if tracer.fits_frameworks:
        assert seen["of an engine"] == 1
        assert queries(seen["statements of an engine"]) == of_frameworks(tracer, 31, 32)
        assert queries(seen["statements of Django"]) == of_frameworks(tracer, 41, 42)


def queries(statements: list[str]) -> list[str]:
    """Return them without what the program itself has asked for beside its queries."""
    ends = ("commit", "rollback", "connect")
    return [told for told in statements if not told.lower().endswith(ends)]


def traced(tracer: type[Tracer], *numbers: int) -> list[str]:
    """Return what a tracer tells of psycopg2's statements with these numbers."""
    return of_frameworks(tracer, *numbers) if tracer.of_drivers else []


def of_frameworks(tracer: type[Tracer], *numbers: int) -> list[str]:
    """Return what a tracer tells of a framework's statements with these numbers."""
    return [tracer.told.format(number) for number in numbers]
