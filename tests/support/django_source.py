"""Django's own tests, which are in its source and not in what pip installs."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django
import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.site import database, environment

_FETCH_SECONDS = 100
_ROOT = Path(__file__).parents[2]
_SUITE = "tests.support.apps.django_suite"
_numbers = itertools.count(1)


def run_django_tests(server: Server, *labels: str, seconds: float) -> int:
    """Have Django test these apps with pools on a server; return the number of tests."""
    number = next(_numbers)
    databases = {
        alias: database(server, f"suite_{alias}_{number}", pool={"timeout": 20}, ENGINE=_SUITE)
        for alias in ("default", "other")
    }
    done = subprocess.run(
        [
            *(sys.executable, "runtests.py", f"--settings={_SUITE}.settings", "--noinput"),
            *("--parallel=1", *labels),
        ],
        cwd=django_tests(),
        env={**os.environ, **environment(**databases), "PYTHONPATH": str(_ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    ran = re.search(r"^Ran (\d+) tests", done.stdout, re.MULTILINE)
    assert ran is not None, done.stdout
    return int(ran[1])


def django_tests() -> Path:
    """Return the folder of the tests of the Django that is installed.

    It is fetched once, into the virtual environment; where pip cannot do that, the test is skipped.
    """
    kept = Path(sys.prefix, "django-source", django.__version__)
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            _fetch(Path(folder))
            [source] = Path(folder).glob("*/tests")
            try:
                os.rename(source.parent, kept)
            except OSError:
                assert kept.exists()  # another process was faster
    return kept / "tests"


def _fetch(folder: Path) -> None:
    """Have pip fetch the source, and unpack it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--no-binary", "django", f"django=={django.__version__}"]
    try:
        done = subprocess.run(
            [*pip, *what, "--dest", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not fetch Django's source within {_FETCH_SECONDS} s")
    if done.returncode:
        pytest.skip("pip cannot fetch Django's source")
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
