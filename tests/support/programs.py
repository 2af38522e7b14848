"""Programs of frameworks: servers and workers that run until they are told to end."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import wait_until

START_SECONDS = 30


def skip_without(*libraries: str) -> None:
    """Skip the test if one is not installed; to import it could change this process."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


class Program:
    """A framework's master process, whose workers are its children."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        output: Path,
        folder: Path | None,
        binary: str | None = None,
    ) -> None:
        self._output = output
        # Python 3.12 and newer warn of every fork of a process that has threads.
        python = [sys.executable, "-W", "ignore:This process:DeprecationWarning"]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [*([binary] if binary else python), *command],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """All that master and workers have written."""
        return self._output.read_text()

    def workers(self) -> set[int]:
        """Return the process ids of the workers."""
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until something is written; fail with all that was, if it is not."""

        def found() -> re.Match[str] | None:
            assert self.process.poll() is None, self.output
            return re.search(pattern, self.output)

        match = wait_until(found, START_SECONDS, f"{pattern!r} in {self._output}")
        assert match is not None
        return match

    def ask_to_end(self) -> None:
        """Send what a service manager sends."""
        self.process.send_signal(signal.SIGTERM)

    def exit_status(self) -> int:
        """Wait for the end of the master."""
        try:
            return self.process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.output}") from None

    def kill(self) -> None:
        """End the master and its workers, whatever they do."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


@contextmanager
def started(
    command: list[str],
    environment: dict[str, str],
    output: Path,
    folder: Path | None = None,
    *,
    binary: str | None = None,
) -> Iterator[Program]:
    """Start a program, perhaps in a folder, and kill what is left of it at the end.

    ``command`` is Python's, unless there is a ``binary``.
    """
    program = Program(command, environment, output, folder, binary)
    try:
        yield program
    finally:
        program.kill()
