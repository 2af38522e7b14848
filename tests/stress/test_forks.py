"""A thousand children in the 120 s of `make stress`, forked while threads hold every lock."""

from __future__ import annotations

import os

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps import run_app
from tests.support.pools import wait_for_backends

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

SECONDS = float(os.environ.get("STRESS_SECONDS", "10"))
FORKS = max(10, round(1000 * SECONDS / 120 / 2))
CONNECTING = 6
SECONDS_A_FORK = 1


@pytest.mark.parametrize("workers", ["3", "0"])
def test_no_child_touches_its_parents_sessions_or_hangs(
    server: Server, app: str, workers: str
) -> None:
    # GSSAPI's lock is one of those that a child must not copy (psycopg2_pool2.forks).
    dsn = f"{server.dsn} application_name={app} gssencmode=prefer"
    told = run_app(
        "fork_storm",
        dsn,
        workers,
        str(FORKS),
        str(CONNECTING),
        timeout=60 + FORKS * SECONDS_A_FORK,
    )
    assert told == {"forks": FORKS, "children": [], "threads": [], "touched": []}
    wait_for_backends(server, app, 0)
