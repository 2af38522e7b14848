"""Calls that may block for as long as a network lets them, and a limit for who waits for them.

psycopg2 waits in libpq, where neither a limit of ours nor Ctrl-C reaches it.  So
such a call is made in a thread that the program does not wait for when it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")


class NoAnswer(RuntimeError):
    """A call took longer than anybody wants to wait for it."""


def begin(call: Callable[[], T]) -> futures.Future[T]:
    """Start a call; return what will know its result."""
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="psycopg2_pool2-cli", daemon=True).start()
    return future


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise what it raises; :class:`NoAnswer` after `seconds`."""
    return result(begin(call), seconds)


def result(future: futures.Future[T], seconds: float) -> T:
    """Wait for a call that has begun, as :func:`within` does."""
    try:
        return future.result(max(0.0, seconds))
    except futures.TimeoutError:  # not Python's own before 3.11
        raise NoAnswer("no answer in time") from None
