"""The processes of one server, and the watcher that ends them when this process is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from .binaries import binary
from .credentials import passfile
from .folders import process_folders
from .programs import spawn


class Processes:
    """The server's first process and those that it starts: none while the server is stopped."""

    def __init__(self) -> None:
        self._first: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._frozen: set[int] = set()

    @property
    def pid(self) -> int | None:
        """The process id of the first one, until `ended` has taken note of its end."""
        return self._first.pid if self._first else None

    @property
    def running(self) -> bool:
        """Whether the first one is there."""
        return self._first is not None and self._first.poll() is None

    def start(self, data: Path, log: Path, folder: Path) -> None:
        """Start the server on this data; its folder is removed when this process is killed."""
        with log.open("ab") as file:
            self._first = spawn(binary("postgres"), "-D", str(data), stdout=file, stderr=file)
        self._lifeline = _lifeline(self._first.pid, folder)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the first one."""
        if self._first is not None:
            self._first.send_signal(number)

    def ended(self, timeout: float) -> bool:
        """Wait so long for the end of the first one, and take note of it; tell whether it came."""
        if self._first is None:
            return True
        try:
            self._first.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._first = None
        self._frozen.clear()
        _cut(self._lifeline)
        return True

    def tree(self) -> list[Any]:
        """Return the server's processes, the first one first, so that it starts no further ones."""
        import psutil

        if not self.running:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    def kill(self) -> list[Any]:
        """Kill all; return them, as their ends are yet to come."""
        processes = self.tree()
        for process in processes:
            _send_signal(process.pid, signal.SIGKILL)
        return processes

    def freeze(self, pid: int) -> None:
        """Stop one of them, so that it does nothing until it is thawed."""
        self._frozen.add(pid)
        _send_signal(pid, signal.SIGSTOP)

    def thaw(self, pid: int) -> None:
        """Let one that is frozen go on."""
        self._frozen.discard(pid)
        _send_signal(pid, signal.SIGCONT)

    def thaw_all(self) -> None:
        """Let all that are frozen go on."""
        for pid in list(self._frozen):
            self.thaw(pid)


def is_gone(process: Any) -> bool:
    """Ask whether a process has ended, though nobody may have taken note of it yet."""
    import psutil

    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _lifeline(pid: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a watcher that ends the server when this process is killed: its pipe ends then."""
    passfile()  # make it now: its folder has to be among those to remove
    script = 'read _; kill -QUIT "$0"; sleep 1; rm -rf "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, str(pid), *map(str, (folder, *process_folders()))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _cut(lifeline: subprocess.Popen[bytes] | None) -> None:
    if lifeline is None:
        return
    # Killed before its pipe is closed, so that it does nothing any more.
    lifeline.kill()
    lifeline.wait()
    if lifeline.stdin is not None:
        lifeline.stdin.close()
