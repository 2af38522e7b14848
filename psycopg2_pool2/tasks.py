"""How the tasks of an event loop borrow: they wait by futures, and workers take the steps.

A task that waits costs neither a thread nor, when its turn has come, a way through
the loop: who hands it a connection has a worker go on.

**Who goes on after a pause** (:func:`drive`).  The pause has a call, which a
worker may begin and which may be cancelled, once:

1. The task leaves the call with its waiter, *then* the waiter looks whether it
   was woken before.  Who wakes it notes that, *then* looks for a call.  So one
   of them sees the other; if both do, the call is made or cancelled all the same
   once.
2. A waiter that has been served has a worker make the call: that one goes on.
   So it is if the loop is closed; then the worker ends the work.
3. Else the call is cancelled: the task itself goes on.
4. When the pause is over the task takes the call and the note back, *then* it
   cancels the call, *then* it looks around.  Who wakes it has written down why
   before.  So no wake-up is lost in between: the reason is seen there.

**Cancellation of a task that borrows**:

1. While no worker has begun, none will.  The work is closed at once, which
   takes the waiter out of the queue and puts back what it was handed in that
   very moment.
2. While a worker takes a step, it goes on to the end of that step: nobody else
   touches what it has in hand.  *Then* the work is closed there, or what came
   out of it is given to ``unwanted``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

from .connector import Connection
from .futures import futures_of
from .offload import Call, Offload, finished, outcome
from .steps import Pause, Step, Steps, take
from .store import Waiter

T = TypeVar("T")
R = TypeVar("R")
T_contra = TypeVar("T_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


class TaskBorrower:
    """A task that borrows, of this thread's loop; makes its waiters.

    When one has been served a worker goes on for the task, if that
    ``needs_worker``: if there is more to do for it that blocks.
    """

    __slots__ = ("loop", "needs_worker", "task", "threads")

    def __init__(self, threads: Offload, needs_worker: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task(self.loop)
        self.threads = threads
        self.needs_worker = needs_worker

    def __call__(self, patient: bool) -> TaskWaiter:
        """Return a waiter; from any thread."""
        return TaskWaiter(self, patient)


class TaskWaiter(Waiter[Connection]):
    """One blocked borrower: a task."""

    __slots__ = ("_by", "_call", "_woken")

    def __init__(self, by: TaskBorrower, patient: bool) -> None:
        super().__init__(patient, by.task)
        self._by = by
        self._call: Call[Any] | None = None  # that of the pause
        self._woken = False

    def wake(self) -> None:
        """End the pause; harmless when repeated, safe from any thread."""
        self._woken = True
        call = self._call
        if call is not None:
            self._go_on(call)

    def pause(self, call: Call[Any]) -> None:
        """Have this call made, or cancelled, when the waiter is woken."""
        self._call = call
        if self._woken:
            self._go_on(call)

    def end_pause(self) -> None:
        """Take the call back."""
        self._call = None
        self._woken = False

    def _go_on(self, call: Call[Any]) -> None:
        served = self.item is not None
        if (served and self._by.needs_worker) or self._by.loop.is_closed():
            self._by.threads.start(call)
        else:
            call.cancel()


class _End:
    """What came out of the work."""

    __slots__ = ("result",)

    def __init__(self, result: Any) -> None:
        self.result = result


class Work(Protocol[T_contra, T_co]):
    """What is done with what comes out of steps."""

    def __call__(self, item: T_contra, /) -> T_co:
        """Do it; called by a worker, at most once."""

    def give_up(self) -> None:
        """End it, or have it not begin; called by the loop's thread."""


@overload
async def drive(steps: Steps[T], threads: Offload, unwanted: Callable[[T], object]) -> T: ...


@overload
async def drive(
    steps: Steps[T], threads: Offload, unwanted: Callable[[T], object], work: Work[T, R]
) -> R: ...


async def drive(
    steps: Steps[Any],
    threads: Offload,
    unwanted: Callable[[Any], object],
    work: Work[Any, Any] | None = None,
) -> Any:
    """Take steps without blocking the loop; return what comes out of them, or of work on that.

    The worker that takes the last step does the work too.  ``unwanted`` gets what
    comes out of the steps of a task that was cancelled before the work.
    """
    loop = asyncio.get_running_loop()
    futures = futures_of(loop)
    call: Call[Step | Pause | _End] | None = None
    try:
        step = _advance(steps.__next__)
        while not isinstance(step, _End):
            if isinstance(step, Pause):
                assert isinstance(step, TaskWaiter)
                call = Call(_wake_up, steps, work, loop)
                ended = futures.of(call)
                tick = futures.ring_in(step.seconds, ended)
                step.pause(call)
                try:
                    await ended
                finally:
                    step.end_pause()
                    futures.silence(tick, ended)
                woken = call.ended
                if call.cancel():
                    call, step = None, _advance(steps.send, woken)
                    continue
            else:
                call = Call(_go_on, steps, work, take, step, steps)
                threads.start(call)
            await finished(call)
            step, call = call.result(), None
            if isinstance(step, _End):  # by a worker, who did the work too
                return step.result
        return step.result if work is None else await _do(work, step.result, threads, unwanted)
    except BaseException:
        if work is not None:
            work.give_up()
        raise
    finally:
        if call is None:
            steps.close()
        else:
            call.cancel()
            call.when_ended(_give_up, steps, work, unwanted)
            del call  # an error's traceback refers to this frame


async def _do(work: Work[T, R], item: T, threads: Offload, unwanted: Callable[[T], object]) -> R:
    """Have a worker do the work on what came out in the loop's thread."""
    call = Call(work, item)
    threads.start(call)
    try:
        return await outcome(call)
    finally:
        if call.cancel():
            unwanted(item)
        del call  # an error's traceback refers to this frame


def _wake_up(
    steps: Steps[Any], work: Work[Any, Any] | None, loop: asyncio.AbstractEventLoop
) -> Step | Pause | _End:
    """Go on after a pause, in this worker."""
    if loop.is_closed():  # for nobody
        steps.close()
        raise asyncio.CancelledError
    return _go_on(steps, work, steps.send, True)


def _go_on(
    steps: Steps[Any], work: Work[Any, Any] | None, advance: Callable[..., Step | Pause], *args: Any
) -> Step | Pause | _End:
    """Take steps in this worker, as many as there are until a pause, and do the work after them."""
    step = _advance(advance, *args)
    while not isinstance(step, (_End, Pause)):
        step = _advance(take, step, steps)
    if work is not None and isinstance(step, _End):
        step.result = work(step.result)
    return step


def _advance(go_on: Callable[..., Step | Pause], *args: Any) -> Step | Pause | _End:
    try:
        return go_on(*args)
    except StopIteration as end:
        return _End(end.value)


def _give_up(
    steps: Steps[T],
    work: Work[T, Any] | None,
    unwanted: Callable[[T], object],
    call: Call[Step | Pause | _End],
) -> None:
    """End the work of a task that was cancelled, when its last call has ended."""
    if work is None and not call.was_cancelled and call.error is None:
        came = call.result()
        if isinstance(came, _End):
            unwanted(came.result)
    steps.close()
