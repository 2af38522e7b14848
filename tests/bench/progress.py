"""How far the run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TextIO

_WIDTH = 24


class Progress:
    """Tell on `stream` what is being measured."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar = stream.isatty()
        self._began = time.monotonic()
        self._label = ""
        self._done = 0
        self._cases = 1

    def begin(self, scenario: str, case: str, done: int, cases: int) -> None:
        """Begin a case, after so many of so many."""
        self._label, self._done, self._cases = f"{scenario}: {case}", done, cases
        if not self._bar:
            seconds = time.monotonic() - self._began
            print(f"[{seconds:5.0f} s] {self._label}", file=self._stream, flush=True)

    def step(self, share: float) -> None:
        """Show that this share of the case is done."""
        if not self._bar:
            return
        filled = int((self._done + share) / self._cases * _WIDTH)
        bar = "█" * filled + "░" * (_WIDTH - filled)
        print(f"\r\x1b[K{bar} {self._label}", end="", file=self._stream, flush=True)

    def finish(self) -> None:
        """Remove the bar."""
        if self._bar:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
