"""Exceptions that are raised in other threads, at whatever these do."""

from __future__ import annotations

import contextlib
import ctypes
import threading

import pytest

MAY_STRIKE_ANYWHERE = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning",
    # It costs the memory of one request to cancel.
    "ignore:.*CancelFunctions.*:pytest.PytestUnraisableExceptionWarning",
)
"""For tests that interrupt what they test: a socket whose close() is struck is closed all the same,
when it is collected, and Python warns of that; what is raised in a finalizer arrives nowhere."""

_active: dict[int | None, threading.Thread] = threading._active  # type: ignore[attr-defined]

_starting: set[int] = set()
"""Who is just starting a thread. Up to Python 3.11 that has its creator's identifier at first, so
that what is raised in the one would end the other, and its creator would wait for it for ever."""
_start = threading.Thread.start


def _start_undisturbed(thread: threading.Thread) -> None:
    try:
        _starting.add(threading.get_ident())  # what was raised before is raised here
        _start(thread)
    finally:
        _starting.discard(threading.get_ident())


threading.Thread.start = _start_undisturbed  # type: ignore[method-assign, assignment]


def interrupt(thread: threading.Thread, error: type[BaseException]) -> None:
    """Have an exception raised in a thread as soon as it runs.

    Not if it has ended, or is starting another. It is found by its identifier, which the system
    gives to the next thread at once. One that is interrupted before it has begun leaves whoever
    starts it waiting for ever. So between the look at whose the identifier is and its use there is
    no call, at which another thread might go on.
    One that was hit at its very end stays among the active: hence both looks.
    """
    identifier = thread.ident
    target, raised = ctypes.c_ulong(identifier or 0), ctypes.py_object(error)
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    with contextlib.suppress(KeyError):
        if thread.is_alive() and _active[identifier] is thread and identifier not in _starting:
            raise_in(target, raised)
