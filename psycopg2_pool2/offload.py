"""Calls that block, made in worker threads for the sake of an event loop.

**The protocol between the loop and a worker**, when the task that awaits a call
is cancelled:

1. The task stops awaiting; the call does not notice.
2. The task calls ``call.cancel()``.  If no worker has begun, none will, and it
   is as if the call had never been made.
3. Else the worker goes on to the end.  What the call has in hand stays there
   until then; so whoever made it adds a listener that takes the outcome over.

Of 2 and 3 exactly one happens: that of whoever takes the act out of the call.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .futures import futures_of
from .log import logger
from .workers import Workers

T = TypeVar("T")


class Call(Generic[T]):
    """A call to be made, once, and its outcome.

    What a :class:`concurrent.futures.Future` is, without its lock: thousands of
    tasks that wait have one each, and the garbage collector walks through all of
    them.  A listener is added, *then* it is looked whether the call has ended;
    who ends it notes that, *then* looks for listeners; and of two who take a
    listener out one gets it.  So each is told once.
    """

    __slots__ = ("_acts", "_args", "_listeners", "_result", "ended", "error", "was_cancelled")

    def __init__(self, act: Callable[..., T], *args: Any) -> None:
        self._acts = [act]
        self._args = args
        self._listeners: list[tuple[Any, ...]] = []  # each with what it is called with
        self._result: T
        self.ended = self.was_cancelled = False
        self.error: BaseException | None = None

    def make(self) -> None:
        """Make it in this thread; not if somebody has, or has cancelled it."""
        try:
            act = self._acts.pop()
        except IndexError:
            return
        try:
            self._result = act(*self._args)
        except BaseException as error:
            self.error = error
        self._end()
        del self  # the error's traceback refers to this frame

    def cancel(self) -> bool:
        """Have nobody make it; False if somebody has begun."""
        try:
            self._acts.pop()
        except IndexError:
            return self.was_cancelled
        self.was_cancelled = True
        self._end()
        return True

    def when_ended(self, listener: Callable[..., object], *args: Any) -> None:
        """Have ``listener(*args, call)`` called by who ends the call; at once if it has ended."""
        self._listeners.append((listener, *args))
        if self.ended:
            self._tell()

    def result(self) -> T:
        """Return or raise what came of it; when it has ended."""
        if self.error is None:
            return self._result
        try:
            raise self.error
        finally:
            del self  # the error's traceback refers to this frame

    def _end(self) -> None:
        self._args = ()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        while self._listeners:
            try:
                listener, *args = self._listeners.pop()
            except IndexError:
                return  # another thread was faster
            listener(*args, self)


class _Worker(threading.local):
    """What each worker thread keeps for itself."""

    is_ending = False
    following: Call[Any] | None = None


class Offload:
    """Worker threads, at most so many, started when needed and ended when idle; fork-safe."""

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._pid = 0
        self._workers: Workers
        self._worker = _Worker()

    def start(self, call: Call[Any]) -> None:
        """Have a call made soon; from any thread.

        Never blocks, unless the system has no thread to give: then the call is
        made here, since nobody would know of it later.
        """
        worker = self._worker
        if worker.is_ending and worker.following is None:
            worker.following = call
            return
        if self._pid != os.getpid():  # the threads of a parent are not here
            self._workers, self._pid = Workers(), os.getpid()
        self._workers.base = self._most()
        if not self._workers.submit(functools.partial(self._work, call)):
            self._work(call)

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
            try:
                call.make()
            except BaseException:  # of a listener: those who follow are not to wait for ever
                logger.exception("a background call failed")
            call, worker.following, worker.is_ending = worker.following, None, False


async def outcome(call: Call[T]) -> T:
    """Return or raise what a call does; who is cancelled meanwhile leaves the call alone."""
    await finished(call)
    try:
        return call.result()
    finally:
        del call  # the error's traceback refers to this frame


async def finished(call: Call[Any]) -> None:
    """Wait until a call has ended."""
    if not call.ended:
        await futures_of(asyncio.get_running_loop()).of(call)
