"""Programs whose tests freeze their clocks, or move them: the pool lives by the real time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.programs import skip_without

AS_ALWAYS = """\
minconn are opened: True
minconn comes back: True
a borrower waits for so long: True
idle ones are reaped: True
minconn comes back afterwards: True
warnings: []
"""


@pytest.mark.parametrize(
    ("tool", "how", "when"),
    [
        ("freezegun", "frozen", "1975-01-01"),
        ("freezegun", "frozen", "2400-01-01"),
        ("freezegun", "ticking", "1975-01-01"),
        ("freezegun", "stepping", "2400-01-01"),
        ("freezegun", "frozen", "import:2400-01-01"),
        ("time_machine", "frozen", "1975-01-01"),
        ("time_machine", "ticking", "2400-01-01"),
        ("time_machine", "frozen", "import:1975-01-01"),
    ],
)
def test_pool_works_while_the_clocks_of_its_program_are_moved(
    server: Server, tool: str, how: str, when: str
) -> None:
    skip_without(tool)
    program = [sys.executable, "-m", "tests.support.apps.frozen", tool, how, when, server.dsn]
    ended = subprocess.run(program, check=False, capture_output=True, text=True, timeout=100)
    assert (ended.stdout, ended.stderr) == (AS_ALWAYS, "")
