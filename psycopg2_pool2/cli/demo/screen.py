"""What the demo writes, and where."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator
from typing import TextIO

from psycopg2_pool2.text import in_one_line, printable


class Screen:
    """Where the demo writes: on a terminal with a line that changes, elsewhere line by line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self.interval = 0.2 if self._terminal else 1.0

    def say(self, text: str, gap: bool = False) -> None:
        """Write a line that stays, if wanted below an empty one."""
        self._write("\n" * gap + f"{printable(text)}\n")

    def show(self, text: str) -> None:
        """Write what holds now: it is replaced by the next text, where that is possible."""
        text = printable(text)
        if self._terminal:
            # A line that wraps could not be replaced.
            self._write(text[: shutil.get_terminal_size().columns - 1])
        else:
            self.say(text)

    def _write(self, text: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""
        with self._lock:
            self._stream.write(start + text)
            self._stream.flush()


class LogLines(logging.Handler):
    """Writes what the pool logs between the demo's own lines."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, in one line."""
        self._screen.say(f"  log: {in_one_line(record.getMessage())}")


@contextlib.contextmanager
def log_shown(screen: Screen) -> Iterator[None]:
    """Show what the pool logs while the block runs."""
    logger, handler = logging.getLogger("psycopg2_pool2"), LogLines(screen)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
