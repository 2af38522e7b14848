"""Work that may block, cut into steps, so that a thread and an event loop can both do it.

It is written as a generator that yields each step that may block and gets its
result, or its exception, back.  Between the steps nothing blocks.  A thread runs
the steps itself; an event loop has worker threads run them and awaits a
:class:`Pause`, so that waiting costs it no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

T = TypeVar("T")

Step = Callable[[], Any]


class Pause:
    """The step of waiting to be woken, for at most ``seconds``; tells whether one was.

    Who waits is his own pause, again and again: thousands of tasks may.  That of a
    thread is a step that it can take.
    """

    __slots__ = ("seconds",)

    seconds: float


Steps = Generator[Step | Pause, Any, T]


def run_blocking(steps: Steps[T]) -> T:
    """Do the work in this thread."""
    try:
        step = next(steps)
        while True:
            assert callable(step)
            step = take(step, steps)
    except StopIteration as end:
        return cast("T", end.value)
    finally:
        # What interrupted this frame keeps it alive, and with it the generator
        # and what that has in hand.
        steps.close()


def take(step: Step, steps: Steps[Any]) -> Step | Pause:
    """Take one step; return the next."""
    try:
        result = step()
    except BaseException as error:
        return steps.throw(error)
    try:
        return steps.send(result)
    finally:
        del result  # it may be an error that is raised now, and refers to this frame
