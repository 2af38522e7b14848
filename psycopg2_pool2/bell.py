"""Waiting for something to become true, told by whoever makes it true."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Bell:
    """Wakes all who wait when something may have come true.

    :class:`threading.Event` takes its lock in Python code: a thread that is
    interrupted there keeps it for ever.  Here are only operations that cannot be
    interrupted half done; one who is not woken because the ringing thread was
    interrupted between two of them looks again when his time is over.
    """

    __slots__ = ("_gates",)

    def __init__(self) -> None:
        self._gates: deque[threading.Lock] = deque()

    def ring(self) -> None:
        """Wake all who wait; from any thread."""
        while True:
            try:
                gate = self._gates.popleft()
            except IndexError:
                return
            gate.release()

    def wait(self, seconds: float, until: Callable[[], bool]) -> bool:
        """Wait until the bell rings, for at most ``seconds``; return whether it is true then.

        Registers first and looks afterwards, so that a ring in between is not missed.
        """
        gate = threading.Lock()
        gate.acquire()
        self._gates.append(gate)
        try:
            if not until():
                gate.acquire(timeout=seconds)
        finally:
            try:
                self._gates.remove(gate)
            except ValueError:
                pass  # rung
        return until()
