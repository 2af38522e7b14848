"""Exceptions of the program's own that arrive while the pool does something for it.

A signal handler may raise anything at any bytecode of the main thread: Celery's
``SoftTimeLimitExceeded``, the ``TimeoutError`` of a timeout helper.  None of them
says anything of a connection, so none may be taken for a failed test or a failed
connect: it reaches the borrower.
"""

from __future__ import annotations

import sys
import threading
from types import CodeType, TracebackType
from typing import Any


def raised_by_handler(error: BaseException) -> bool:
    """Tell whether a signal handler of the program raised an error.

    By its traceback, which has the handler's frame.  Handlers that are not
    written in Python are not noticed.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # handlers run in the main thread
    frames = error.__traceback__
    if frames is None:
        return False
    codes = _handlers()
    return any(code in codes for code in _codes(frames))


def _handlers() -> set[CodeType]:
    # Who installed a handler has imported it; to do so here would need a descriptor, and fail in
    # just those errors that tell that none is left.
    signal = sys.modules.get("signal")
    if signal is None:
        return set()
    found = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # of a functools.partial
        for function in (handler, type(handler).__call__) if callable(handler) else ():
            code = getattr(function, "__code__", None)  # a method has its function's
            if isinstance(code, CodeType):
                found.add(code)
    return found


def _codes(frames: TracebackType) -> list[CodeType]:
    codes = []
    at: TracebackType | None = frames
    while at is not None:
        codes.append(at.tb_frame.f_code)
        at = at.tb_next
    return codes


def let_through(error: BaseException) -> None:
    """Raise an error again if a signal handler of the program raised it."""
    if raised_by_handler(error):
        raise error


class suppress:  # noqa: N801
    """Like :class:`contextlib.suppress`, but never for what a signal handler raised."""

    __slots__ = ("_classes",)

    def __init__(self, *classes: type[BaseException]) -> None:
        self._classes = classes

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return isinstance(exc, self._classes) and not raised_by_handler(exc)
