"""A program that closes all descriptors, or has none left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.apps import run_app, start_app
from tests.support.programs import skip_without
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run_daemon(dsn: str, folder: Path, *how: str) -> Any:
    """Run a program until it has become a daemon and told what happened to its files."""
    report = folder / "report"
    with start_app("daemon_program", dsn, str(report), *how) as process:
        wait_until(report.exists, 60, f"the report of a daemon: {how}")
        process.wait(20)
    return json.loads(report.read_text())


@pytest.mark.parametrize("tests", ["tested", "untested"])
@pytest.mark.parametrize("num_workers", ["3", "0"])
@pytest.mark.parametrize("before", ["unused", "idle", "returned", "closed", "dropped"])
@pytest.mark.parametrize("how", ["closed", "detached", "by hand"])
def test_daemon_is_served_and_its_files_are_left_alone(
    dsn: str, tmp_path: Path, how: str, before: str, num_workers: str, tests: str
) -> None:
    skip_without("daemon")
    if (how, before, num_workers) == ("closed", "dropped", "0"):
        pytest.skip("without workers nobody sees that it is dropped: see docs/operations.rst")
    told = run_daemon(dsn, tmp_path, how, before, num_workers, tests)
    assert told == {
        "served": [1] * 6,
        "lent": "none" if before in ("unused", "idle") else "fine",
        "in_use": 0,
        "written": [],
        "closed": [],
    }


class TestNoDescriptorLeft:
    def test_silent_server_costs_test_timeout(self, dsn: str) -> None:
        told = run_app("no_descriptors", dsn, "3", "silent server")
        assert len(told["told"]) == 1
        assert told["in_time"]

    @pytest.mark.parametrize("num_workers", ["3", "0"])
    @pytest.mark.parametrize("scene", ["forked with a loan", "forked with an idle one"])
    def test_child_leaves_its_parents_session_alone(
        self, dsn: str, num_workers: str, scene: str
    ) -> None:
        told = run_app("no_descriptors", dsn, num_workers, scene)
        assert told["parent_keeps_its_session"]
        assert told["child"] != str(told["parents"])
        assert told["child"]

    @pytest.mark.parametrize("num_workers", ["3", "0"])
    def test_error_says_what_to_do(self, dsn: str, num_workers: str) -> None:
        told = run_app("no_descriptors", dsn, num_workers, "no connection")
        assert "no file descriptor left" in told["told"]
        assert "ulimit -n (100 now)" in told["told"]
        assert told["served"] == 1
