"""Transfers through everything that can happen, traced, for a part of STRESS_SECONDS each."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.support.apps.tracers import TRACERS
from tests.support.chaos import seed_of_the_run
from tests.support.programs import skip_without

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", TRACERS)
def test_no_transfer_is_lost_with_a_tracer(name: str) -> None:
    skip_without(name)
    program = [sys.executable, "-W", "ignore", "-m", "tests.support.apps.traced_chaos"]
    seconds = SECONDS * 0.5 / len(TRACERS)
    seed = seed_of_the_run(time.time_ns() % 10**6)
    ended = subprocess.run(
        [*program, name, str(seed), str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        check=False,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
