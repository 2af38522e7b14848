"""Other processes: forked children and programs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass


def in_child(call: Callable[[], object], timeout: float = 30) -> str:
    """Fork, make a call there and return what it returned as text; fail as it fails or hangs.

    The child ends by `os._exit`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status, text = 1, "?"
        try:
            status, text = 0, str(call())
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(writer, text.encode()[-60000:])
            os._exit(status)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], timeout)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = _read_all(reader)
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    assert ready, f"the child hung for {timeout} s"
    assert status == 0, text
    return text


def _read_all(reader: int) -> str:
    chunks = []
    while chunk := os.read(reader, 65536):
        chunks.append(chunk)
    return b"".join(chunks).decode()


@dataclass
class Ended:
    """A program that has ended; `exit_seconds` is from its last line of output to its end."""

    status: int
    output: str
    errors: str
    exit_seconds: float


def run_program(code: str, *args: str, timeout: float = 60) -> Ended:
    """Run a Python program that prints at least one line, to its end."""
    # Python 3.12 and newer warn of every fork of a process that has threads.
    quiet = ["-W", "ignore:This process:DeprecationWarning"]
    with subprocess.Popen(
        [sys.executable, *quiet, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        killer = _kill_after(process, timeout)
        output, told = "", time.monotonic()
        for line in process.stdout:
            output, told = output + line, time.monotonic()
        errors = process.stderr.read()
        status = process.wait()
        seconds = time.monotonic() - told
        killer()
    assert status != -signal.SIGKILL, f"the program hung: {output}\n{errors}"
    return Ended(status, output, errors, seconds)


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Callable[[], None]:
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer.cancel
