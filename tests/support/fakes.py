"""Stand-ins for what tests must control."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until it is told to go on: `FakeClock()` is callable."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds
