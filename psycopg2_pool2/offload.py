"""Calls that block, made in worker threads for the sake of an event loop.

**The protocol between the loop and a worker**, when the task that awaits a call
is cancelled:

1. The task stops awaiting; the call does not notice.
2. The task calls ``call.cancel()``.  If no worker has begun, none will, and it
   is as if the call had never been made.
3. Else the worker goes on to the end.  What the call has in hand stays there
   until then; so whoever made it adds a callback that takes the outcome over.

Of 2 and 3 exactly one happens, since the future decides it under its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .workers import Workers

T = TypeVar("T")


class Call(Future[T]):
    """A call to be made by a worker, and its outcome."""

    def __init__(self, act: Callable[[], T]) -> None:
        super().__init__()
        self._act = act

    def make(self) -> None:
        """Make it, once, in this thread; not if it was cancelled."""
        if not self.set_running_or_notify_cancel():
            return
        try:
            result = self._act()
        except BaseException as error:
            self.set_exception(error)
            del self  # the error's traceback refers to this frame
        else:
            self.set_result(result)


class _Worker(threading.local):
    """What each worker thread keeps for itself."""

    is_ending = False
    following: Call[Any] | None = None


class Offload:
    """Worker threads, at most so many, started when needed and ended when idle; fork-safe."""

    def __init__(self, most: Callable[[], float]) -> None:
        self._most = most
        self._pid = 0
        self._workers: Workers
        self._worker = _Worker()

    def start(self, call: Call[Any]) -> None:
        """Have a call made soon; from any thread, never blocks."""
        worker = self._worker
        if worker.is_ending and worker.following is None:
            worker.following = call
            return
        if self._pid != os.getpid():  # the threads of a parent are not here
            self._workers, self._pid = Workers(), os.getpid()
        self._workers.base = self._most()
        self._workers.submit(functools.partial(self._work, call))

    def submit(self, act: Callable[[], T]) -> Call[T]:
        """Have ``act`` called soon; from any thread, never blocks."""
        call = Call(act)
        self.start(call)
        return call

    async def finish(self, act: Callable[[], T]) -> T:
        """Call ``act``, to the end also if the caller is cancelled; return what it does."""
        return await outcome(self.submit(act))

    def about_to_end(self) -> None:
        """Tell, in a worker, that its call is about to end.

        The next call that it starts it makes itself afterwards: to wake another
        thread would cost more than a short statement.
        """
        self._worker.is_ending = True

    def _work(self, call: Call[Any] | None) -> None:
        worker = self._worker
        while call is not None:
            call.make()
            call, worker.following, worker.is_ending = worker.following, None, False


async def outcome(call: Call[T]) -> T:
    """Return or raise what a call does; who is cancelled meanwhile leaves the call alone."""
    await finished(call)
    try:
        return call.result()
    finally:
        del call  # the error's traceback refers to this frame


async def finished(call: Call[T], seconds: float | None = None) -> bool:
    """Wait until a call has ended, at most so many seconds; return whether it has."""
    if call.done():
        return True
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def tell(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
            loop.call_soon_threadsafe(_wake, ended)

    call.add_done_callback(tell)
    alarm = None if seconds is None else loop.call_later(seconds, _wake, ended)
    try:
        await ended
    finally:
        if alarm is not None:
            alarm.cancel()
    return call.done()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
