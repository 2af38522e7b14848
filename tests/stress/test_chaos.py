"""Transfers through everything that can happen, for a part of STRESS_SECONDS each."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from tests.support.chaos import SERVER_SETTINGS, new_world, seed_of_the_run
from tests.support.servers import MakeServer

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "untested": {"test_on_borrow": False},
    "reset": {"reset": "session", "max_uses": 5},
    "no-workers": {"num_workers": 0},
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", OPTIONS)
def test_no_transfer_is_lost_and_none_is_done_twice(make_server: MakeServer, name: str) -> None:
    server = make_server(**SERVER_SETTINGS)
    seed = seed_of_the_run(time.time_ns() % 10**6)
    with new_world(server, seed, **OPTIONS[name]) as world:
        world.run(SECONDS * 0.5 / len(OPTIONS))
