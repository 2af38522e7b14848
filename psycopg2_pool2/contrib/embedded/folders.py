"""The folders of servers, and those that all servers of this process share."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from .programs import owner

_MEMORY = "/dev/shm"
_ROOM = 2 << 30
_ours: list[tuple[int, Path]] = []


def new_folder() -> Path:
    """Make a folder for the servers' user only; its path is short enough for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="pool2-", dir=_quick_place()))  # of mode 0700
    user = owner()
    if user is not None:
        os.chown(folder, *user)
    return folder


def new_process_folder() -> Path:
    """Make a folder that is removed when this process ends."""
    folder = new_folder()
    _ours.append((os.getpid(), folder))
    return folder


def process_folders() -> list[Path]:
    """Return the folders that are to be removed when this process ends."""
    return [folder for creator, folder in _ours if creator == os.getpid()]


@cache
def _quick_place() -> str | None:
    """Return the folder of files in memory, if there is room: copies are made 15 times as fast."""
    with contextlib.suppress(OSError):
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM:
            return _MEMORY
    return None


@atexit.register
def _remove_all() -> None:
    for folder in process_folders():
        shutil.rmtree(folder, ignore_errors=True)
