"""Everything at once, for a part of STRESS_SECONDS each; every run prints its seed."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from tests.support.interrupts import MAY_STRIKE_ANYWHERE
from tests.support.pools import MakePool
from tests.support.random_actions import act_at_random, seed_of_the_run

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "untested": {"test_on_borrow": False},
    "debug": {"debug": True, "leak_timeout": 1},
    "reset": {"reset": "session", "max_uses": 5, "idle_timeout": 0.1},
}


@MAY_STRIKE_ANYWHERE
@pytest.mark.parametrize("torment", [False, True], ids=["in peace", "interrupted"])
@pytest.mark.parametrize("name", OPTIONS)
def test_whatever_threads_do_the_pool_stays_whole(
    make_any_pool: MakePool, app: str, name: str, torment: bool
) -> None:
    pool = make_any_pool(
        maxconn=6,
        health_check_interval=0.2,
        lifetime_timeout=5,
        reap_idle_interval=0.1,
        **OPTIONS[name],
    )
    seconds = SECONDS * 0.7 / (4 * len(OPTIONS))
    act_at_random(pool, app, seconds, seed_of_the_run(time.time_ns() % 10**6), torment=torment)
