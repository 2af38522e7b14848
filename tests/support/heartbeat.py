"""Whether a process, or a hub of greenlets, stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERVAL = 0.005


class Heartbeat:
    """Beats in a thread that does nothing else, for as long as others let it."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.beats = 0
        self._last = time.monotonic()
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat until told to stop."""
        while not self._stopped.wait(_INTERVAL):
            now = time.monotonic()
            self.longest = max(self.longest, now - self._last)
            self._last = now
            self.beats += 1

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def heartbeat() -> Iterator[Heartbeat]:
    """Look for standstills; `longest` is the longest in seconds."""
    made = Heartbeat()
    thread = threading.Thread(target=made.run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.stop()
        thread.join()
