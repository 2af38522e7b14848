"""How the tasks of an event loop borrow: they wait by futures, and workers take the steps.

A task that waits costs neither a thread nor, when its turn has come, a way through
the loop: who hands it a connection has a worker go on.

**Who goes on after a pause** (:func:`drive`).  The pause has a call, which a
worker may begin and which may be cancelled, once:

1. The task leaves the call with its waiter, *then* the waiter looks whether it
   was woken before.  Who wakes it notes that, *then* looks for a call.
2. A waiter that has been served has a worker make the call: that one goes on.
   So it is if the loop is closed; then the worker ends the work.
3. Else the call is cancelled: the task itself goes on.
4. When the pause is over the task takes the call back, *then* it cancels it,
   *then* it looks what the waiter has.  So no wake-up is lost in between: it
   is seen there, or kept for the next pause.

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
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .connector import Connection
from .offload import Call, Offload, finished
from .steps import Pause, Step, Steps, take
from .store import Waiter

T = TypeVar("T")


class TaskWaiter(Waiter[Connection]):
    """One blocked borrower: a task.

    When it has been served a worker goes on for it, if it ``needs_worker``: if
    there is more to do for it that blocks.
    """

    __slots__ = ("_calls", "_loop", "_needs_worker", "_threads", "_woken")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[Any] | None,
        threads: Offload,
        needs_worker: bool,
        patient: bool,
    ) -> None:
        super().__init__(patient, task)
        self._loop = loop
        self._threads = threads
        self._needs_worker = needs_worker
        self._calls: list[Call[Any]] = []  # that of the pause
        self._woken = False

    def wake(self) -> None:
        """End the pause; harmless when repeated, safe from any thread."""
        self._woken = True
        self._go_on()

    def pause(self, call: Call[Any]) -> None:
        """Have this call made, or cancelled, when the waiter is woken."""
        self._calls.append(call)
        if self._woken:
            self._go_on()

    def end_pause(self) -> None:
        """Take the call back."""
        self._calls.clear()

    def _go_on(self) -> None:
        call = self._take_call()
        if call is None:
            return
        served = self.item is not None
        if (served and self._needs_worker) or self._loop.is_closed():
            self._threads.start(call)
        else:
            call.cancel()

    def _take_call(self) -> Call[Any] | None:
        """Take the call of the pause, and the note that it was woken; else leave the note."""
        while True:
            # The note first: later it would be that for the next pause.
            self._woken = False
            try:
                return self._calls.pop()
            except IndexError:
                self._woken = True
            if not self._calls:  # else one came before the note was there again
                return None


class _End(Generic[T]):
    """What came out of the work."""

    __slots__ = ("result",)

    def __init__(self, result: T) -> None:
        self.result = result


async def drive(steps: Steps[T], threads: Offload, unwanted: Callable[[T], object]) -> T:
    """Do the work whose steps these are, without blocking the loop.

    ``unwanted`` gets what came out of it after its task was cancelled.
    """
    call: Call[Step | _End[T]] | None = None
    try:
        step = _advance(steps.__next__)
        while not isinstance(step, _End):
            if isinstance(step, Pause):
                call = Call(functools.partial(_wake_up, steps, asyncio.get_running_loop()))
                woken = await _woken(step, call)
                if call.cancel():
                    call, step = None, _advance(functools.partial(steps.send, woken))
                    continue
            else:
                call = Call(functools.partial(_go_on, steps, functools.partial(take, step, steps)))
                threads.start(call)
            await finished(call)
            step, call = call.result(), None
        result: T = step.result
        return result
    finally:
        if call is None:
            steps.close()
        else:
            call.cancel()
            call.when_ended(functools.partial(_give_up, steps, unwanted))
            del call  # an error's traceback refers to this frame


async def _woken(pause: Pause, call: Call[Any]) -> bool:
    """Wait until the pause's waiter is woken or its time is over; return whether he was woken."""
    assert isinstance(pause.waiter, TaskWaiter)
    pause.waiter.pause(call)
    try:
        return await finished(call, pause.seconds)
    finally:
        pause.waiter.end_pause()


def _wake_up(steps: Steps[T], loop: asyncio.AbstractEventLoop) -> Step | _End[T]:
    """Go on after a pause, in this worker."""
    if loop.is_closed():  # for nobody
        steps.close()
        raise asyncio.CancelledError
    return _go_on(steps, functools.partial(steps.send, True))


def _go_on(steps: Steps[T], advance: Callable[[], Step]) -> Step | _End[T]:
    """Take steps in this worker, as many as there are until a pause."""
    step = _advance(advance)
    while not isinstance(step, (_End, Pause)):
        step = _advance(functools.partial(take, step, steps))
    return step


def _advance(go_on: Callable[[], Step]) -> Step | _End[Any]:
    try:
        return go_on()
    except StopIteration as end:
        return _End(end.value)


def _give_up(steps: Steps[T], unwanted: Callable[[T], object], call: Call[Step | _End[T]]) -> None:
    """End the work of a task that was cancelled, when its last call has ended."""
    if not call.was_cancelled and call.error is None:
        came = call.result()
        if isinstance(came, _End):
            unwanted(came.result)
    steps.close()
