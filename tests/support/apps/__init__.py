"""Programs that tests start: each is a process of its own, with children of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any


def start_app(name: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start a program of tests/support/apps."""
    # Python 3.12 and newer warn of every fork of a process that has threads.
    quiet = ["-W", "ignore:This process:DeprecationWarning"]
    return subprocess.Popen(
        [sys.executable, *quiet, "-m", f"tests.support.apps.{name}", *args],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def run_app(name: str, *args: str, timeout: float = 60) -> dict[str, Any]:
    """Run a program of tests/support/apps to its end; return what it printed."""
    with start_app(name, *args, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its children too
            raise
    assert process.returncode == 0, errors
    told: dict[str, Any] = json.loads(output)
    return told
