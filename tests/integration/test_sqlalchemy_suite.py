"""SQLAlchemy's own compliance suite, where it is about connections, passes on our pools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from psycopg2_pool2.contrib.embedded import Server

_ROOT = Path(__file__).parents[2]
_MODULES = ("dialect", "insert", "results", "rowcount", "update_delete")
_CONFIG = """
[sqla_testing]
requirement_cls = tests.support.sqlalchemy_suite:Requirements
profile_file = none
"""


@pytest.mark.slow
def test_the_compliance_suite_passes(server: Server, tmp_path: Path) -> None:
    name = "sqlalchemy_suite"
    server.execute(f"CREATE DATABASE {name}")
    (tmp_path / "setup.cfg").write_text(_CONFIG)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short"),
        *("-p", "sqlalchemy.testing.plugin.pytestplugin", "-p", "tests.support.sqlalchemy_suite"),
        *("-p", "no:randomly", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."),
        *("--dburi", f"postgresql+psycopg2://postgres@{server.host}:{server.port}/{name}"),
        "--disable-asyncio",
        *("--pyargs", *(f"sqlalchemy.testing.suite.test_{module}" for module in _MODULES)),
    ]
    ended = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None
    assert int(passed[1]) > 150
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")
