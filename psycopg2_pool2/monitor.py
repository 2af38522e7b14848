"""The one background thread of the process, for all its pools.

It decides nothing about pools and does nothing that blocks: it waits for times
and for sockets, and passes what is due to the :mod:`workers`.  It starts with
the first pool that needs it and ends with the last; a forked child starts its
own.  Pools are held weakly.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .ending import has_stopped_others, start, starts_no_threads
from .guards import Guards
from .watch import QueueSleeper, Sleeper, can_watch, make_sleeper
from .workers import BASE, Workers, rest_if_copied

logger = logging.getLogger("psycopg2_pool2")

_RELIEF_INTERVAL = 0.05


class Timer:
    """A method to call once, in a worker, at a time; its object is held weakly."""

    __slots__ = ("_method", "cancelled", "submitted", "when")

    def __init__(self, when: float, method: Callable[[], object]) -> None:
        self.when = when
        self.cancelled = self.submitted = False
        self._method = weakref.WeakMethod(method)

    def cancel(self) -> None:
        """Do not call; harmless when it has been called."""
        self.cancelled = True

    def fire(self) -> None:
        """Call the method if its object still exists."""
        method = None if self.cancelled else self._method()
        if method is not None:
            method()


class Monitor:
    """Timers, watched sockets and guards, on one daemon thread.

    All methods may be called from any thread, and from finalizers: they use
    queues and a lock that may be re-entered.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._abandoned = False
        self.workers = Workers()
        self._sleeper: Sleeper = make_sleeper()
        self._lock = threading.RLock()  # guards starting and stopping, and the heap
        self._thread: threading.Thread | None = None
        self._clients: dict[weakref.ref[Any], int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._wakes_at = 0.0
        self._relief_due = 0.0
        self._watched: dict[int, Callable[[], object]] = {}
        self.guards = Guards(self._look)

    # -- clients -----------------------------------------------------------

    def serve(self, client: Any, num_workers: int) -> bool:
        """Run as long as ``client`` lives, or until it is dismissed; with so many workers.

        Returns False if there will be no thread, because the interpreter ends.
        """
        with self._lock:
            self._clients[weakref.ref(client, self._forget)] = num_workers
            self._set_base_locked()
            return self._start_locked()

    def dismiss(self, client: Any) -> None:
        """Stop running for this client; harmless when repeated."""
        with self._lock:
            self._clients.pop(weakref.ref(client), None)
            self._set_base_locked()
        self._sleeper.wake()

    def _forget(self, ref: weakref.ref[Any]) -> None:
        if has_stopped_others():
            return
        with self._lock:
            self._clients.pop(ref, None)
            self._set_base_locked()
        self._sleeper.wake()

    def _set_base_locked(self) -> None:
        self.workers.base = max([BASE, *self._clients.values()])

    # -- services ----------------------------------------------------------

    def submit(self, job: Callable[[], object]) -> None:
        """Have ``job`` run by a worker; here if the interpreter ends and none is free."""
        if self._abandoned:
            return
        with self._lock:
            self._start_locked()
        self.workers.submit(job)
        if starts_no_threads() and threading.current_thread() is not self._thread:
            self.workers.help()
        elif self.workers.crowded:
            self._sleeper.wake()  # to look whether the workers are stuck

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        """Have a bound method called by a worker in ``seconds``."""
        timer = Timer(time.monotonic() + seconds, method)
        with self._lock:
            heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
            early = timer.when < self._wakes_at
            if self._thread is not None:
                self._start_locked()  # if it has died
        if early:
            self._sleeper.wake()
        return timer

    @property
    def watches(self) -> bool:
        """Whether :meth:`watch` works on this system."""
        return self._sleeper.watches

    def watch(self, fd: int, on_hangup: Callable[[], object]) -> None:
        """Call ``on_hangup`` in the monitor's thread when the peer may have closed the socket.

        It must neither block nor hold what it is about strongly.
        """
        self._watched[fd] = on_hangup
        self._sleeper.watch(fd)

    @property
    def is_outdated(self) -> bool:
        """Whether gevent has patched the process before anything began here."""
        return self._thread is None and self.watches and not can_watch()

    def unwatch(self, fd: int) -> None:
        """Forget the socket; call before it is closed."""
        self._watched.pop(fd, None)
        self._sleeper.unwatch(fd)

    def _look(self) -> None:
        with self._lock:
            self._start_locked()
        self._sleeper.wake()

    def abandon(self) -> None:
        """Do nothing any more and give the descriptors up.

        For a forked child, which may have been forked in the middle of what a
        pool does, and goes on with that.
        """
        self._abandoned = True
        self._lock = threading.RLock()  # a thread that is not here may have had it
        inherited, self._sleeper = self._sleeper, QueueSleeper()
        inherited.close()

    # -- the thread --------------------------------------------------------

    def _start_locked(self) -> bool:
        """Have the thread run; False if the interpreter ends."""
        if self._abandoned or (self._thread is not None and self._thread.is_alive()):
            return True
        self._thread = threading.Thread(
            target=self._run, name="psycopg2_pool2-monitor", daemon=True
        )
        return start(self._thread)

    def _run(self) -> None:
        while not self._abandoned and not self._run_safely():
            pass
        rest_if_copied(self.pid)
        self.workers.stop()

    def _finished(self) -> bool:
        with self._lock:
            served = any(ref() is not None for ref in list(self._clients))
            if served or self.workers.busy or not self.guards.rest():
                return False
            self._timers.clear()
            self._thread = None
            return True

    def _run_safely(self) -> bool:
        """Do what is due; return whether that was all."""
        try:
            if self._finished():
                return True
            self._run_once()
        except BaseException:  # an asynchronous one too: pools rely on this thread
            logger.exception("the monitor failed; it goes on")
            time.sleep(_RELIEF_INTERVAL)
        return False

    def _run_once(self) -> None:
        for fd in self._sleeper.sleep(self._pause()):
            # Not taken out: a descriptor shared with a forked child can report
            # for its predecessor, so that the pool may find it alive.
            on_hangup = self._watched.get(fd)
            if on_hangup is not None:
                on_hangup()
        now = time.monotonic()
        while (timer := self._first_due(now)) is not None:
            self.workers.submit(timer.fire)
            timer.submitted = True  # only now: an interruption loses none
        self.guards.enforce(now)
        if now >= self._relief_due:
            self._relief_due = now + _RELIEF_INTERVAL
            self.workers.relieve()

    def _pause(self) -> float | None:
        with self._lock:
            now = time.monotonic()
            pauses = [self._timers[0][0] - now] if self._timers else []
            if self.guards.tick is not None:
                pauses.append(self.guards.tick)
            if self.workers.busy:
                pauses.append(_RELIEF_INTERVAL)
            pause = max(0.0, min(pauses)) if pauses else None
            self._wakes_at = float("inf") if pause is None else now + pause
            return pause

    def _first_due(self, now: float) -> Timer | None:
        with self._lock:
            while self._timers and (self._timers[0][2].cancelled or self._timers[0][2].submitted):
                heapq.heappop(self._timers)
            return self._timers[0][2] if self._timers and self._timers[0][0] <= now else None


_monitor: Monitor | None = None
_making = threading.Lock()


def get_monitor() -> Monitor:
    """Return the monitor of this process; it has no thread before it has a client."""
    global _monitor
    if _monitor is not None and _monitor.pid != os.getpid():
        _after_fork_in_child()  # a fork that Python was not told of
    if _monitor is not None and _monitor.is_outdated:
        _monitor.abandon()
        _monitor = None
    if _monitor is None:
        with _making:
            if _monitor is None:
                _monitor = Monitor()
    return _monitor


def _after_fork_in_child() -> None:
    global _monitor, _making
    # The parent's thread does not exist here, and its locks may be held for ever.
    # Only this process's copies of the descriptors are closed.
    inherited, _monitor, _making = _monitor, None, threading.Lock()
    if inherited is not None:
        inherited.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
