"""Wait for states, never for times; every wait has an end and says what it waited for."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LONG_ENOUGH = 20.0
"""Seconds that a busy machine may take for anything; shorter than the pool's own second looks, such
as the health check after 30 s, which would make good what should have happened at once."""
_POLL_INTERVAL = 0.002


def wait_until(predicate: Callable[[], T], timeout: float = LONG_ENOUGH, message: str = "") -> T:
    """Poll until the predicate is true and return what it returned; else fail and say what was."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            waited_for = message or _described(predicate)
            raise AssertionError(f"not within {timeout} s: {waited_for} (last: {value!r})")
        time.sleep(_POLL_INTERVAL)
    return value


def _described(predicate: Callable[[], object]) -> str:
    try:
        return " ".join(inspect.getsource(predicate).split())
    except (OSError, TypeError):
        return repr(predicate)


class Running(Generic[T]):
    """A call under way in a thread of its own."""

    def __init__(self, call: Callable[[], T], name: str) -> None:
        self._call = call
        self._value: T
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # it is raised again where result() is called
            self._error = error

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float = LONG_ENOUGH) -> T:
        """Wait for the call's end and return or raise what it did; fail if it hangs, and where."""
        self.thread.join(timeout)
        if not self.done:
            name, place = self.thread.name, place_of(self.thread)
            raise AssertionError(f"{name} not done within {timeout} s, it is at:\n{place}")
        if self._error is not None:
            raise self._error
        return self._value

    def error(self, timeout: float = LONG_ENOUGH) -> BaseException | None:
        """Wait for the call's end and return what it raised, None if nothing."""
        try:
            self.result(timeout)
        except BaseException:
            if self._error is None:  # it has not ended: that is the caller's failure
                raise
        return self._error


def frame_of(thread: threading.Thread) -> FrameType | None:
    """Return the frame in which a thread is, None if it has ended."""
    # Garbage collected in it can hang the process up to Python 3.11 (CPython's issue 106883).
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread.ident or 0)
    finally:
        if collects:
            gc.enable()


def place_of(thread: threading.Thread) -> str:
    """Tell at what a thread is."""
    frame = frame_of(thread)
    return "".join(traceback.format_stack(frame)) if frame else "(ended just now)"


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Running[T]:
    """Start a call in a thread of its own."""
    return Running(lambda: call(*args, **kwargs), name=getattr(call, "__name__", repr(call)))


def threads_named(prefix: str) -> list[threading.Thread]:
    """Return the live threads whose names begin so."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def count_threads(prefix: str) -> int:
    """Count the live threads whose names begin so."""
    return len(threads_named(prefix))
