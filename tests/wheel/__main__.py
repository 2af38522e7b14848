"""Install the wheel into a clean environment of every Python here, and use it there.

python -m tests.wheel dist/psycopg2_pool2-*.whl
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from psycopg2_pool2.contrib.embedded import Server

OLDEST, NEWEST = 10, 14
SMOKE = Path(__file__).with_name("smoke.py")


def pythons() -> dict[str, str]:
    """Return the interpreters that are found here, by their versions."""
    found: dict[str, str] = {}
    for candidate in _candidates():
        ask = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(ask, check=False, capture_output=True, text=True)
        if answer.returncode == 0:  # pyenv has names for some that are not there
            found.setdefault(answer.stdout.strip(), candidate)
    return found


def _candidates() -> Iterator[str]:
    yield sys.executable
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for minor in range(OLDEST, NEWEST + 1):
        named = shutil.which(f"python3.{minor}")
        if named:
            yield named
        yield from glob.glob(f"{pyenv}/versions/3.{minor}.*/bin/python")


def try_out(python: str, wheel: Path, dsn: str) -> None:
    """Use the wheel in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        fresh = f"{folder}/bin/python"
        pip = [fresh, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, str(wheel)], check=True)
        # Not beside the project, which would be imported instead.
        env = {**os.environ, "DATABASE_URL": dsn, "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        subprocess.run([fresh, "-I", "-W", "error", SMOKE], check=True, cwd=folder, env=env)


def main(wheel: Path) -> None:
    """Try the wheel out with every Python."""
    with Server.create() as server:
        for version, python in pythons().items():
            try_out(python, wheel, server.dsn)
            print(f"Python {version}: {wheel.name} works", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
