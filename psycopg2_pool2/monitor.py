"""The one background thread of the process, for all its pools.

It decides nothing about pools and does nothing that blocks: it waits for times
and for sockets, and passes what is due to the :mod:`workers`.  It starts with
the first pool that needs it and ends with the last; a forked child starts its
own.  Pools are held weakly.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .connector import shut_down
from .watch import Sleeper, make_sleeper
from .workers import Workers

logger = logging.getLogger("psycopg2_pool2")

_RELIEF_INTERVAL = 0.05


class Timer:
    """A method to call once, in a worker, at a time; its object is held weakly."""

    __slots__ = ("_method", "cancelled", "when")

    def __init__(self, when: float, method: Callable[[], object]) -> None:
        self.when = when
        self.cancelled = False
        self._method = weakref.WeakMethod(method)

    def cancel(self) -> None:
        """Do not call; harmless when it has been called."""
        self.cancelled = True

    def fire(self) -> None:
        """Call the method if its object still exists."""
        method = None if self.cancelled else self._method()
        if method is not None:
            method()


class Guard:
    """A ``with`` block on a socket that is shut down if the block lasts too long.

    The steps between the guarded thread and the monitor:

    1. The thread enters the guard into ``guarded``.
    2. Afterwards it takes it out again; the monitor takes it out when its time
       is over.  ``dict.pop`` lets one of them have it.
    3. If it was the monitor, it shuts the socket down and then releases
       ``shut``; the thread waits for that.  So the descriptor cannot be closed,
       and its number used by another connection, in between.

    A guard is held weakly, so that one that a thread was interrupted over is
    gone with its frame, and shuts nothing down.
    """

    __slots__ = ("__weakref__", "_guarded", "deadline", "fd", "shut")

    def __init__(self, guarded: dict[int, weakref.ref[Guard]], fd: int, seconds: float) -> None:
        self._guarded = guarded
        self.fd = fd
        self.deadline = time.monotonic() + seconds
        self.shut = threading.Lock()
        self.shut.acquire()

    def __enter__(self) -> None:
        """Enter it where it was made: the monitor knows of it already."""

    def __exit__(self, *exc_info: object) -> None:
        if self._guarded.pop(id(self), None) is None:
            self.shut.acquire()


class Monitor:
    """Timers, watched sockets and guards, on one daemon thread.

    All methods may be called from any thread, and from finalizers: they use
    queues and a lock that may be re-entered.
    """

    def __init__(self) -> None:
        self.workers = Workers()
        self._sleeper: Sleeper = make_sleeper()
        self._lock = threading.RLock()  # guards starting and stopping, and the heap
        self._thread: threading.Thread | None = None
        self._clients: set[weakref.ref[Any]] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._wakes_at = 0.0
        self._watched: dict[int, Callable[[], object]] = {}
        self._guarded: dict[int, weakref.ref[Guard]] = {}
        self._guard_tick: float | None = None

    # -- clients -----------------------------------------------------------

    def serve(self, client: Any, num_workers: int) -> None:
        """Run as long as ``client`` lives, or until it is dismissed; with so many workers."""
        with self._lock:
            self.workers.base = max(self.workers.base, num_workers)
            self._clients.add(weakref.ref(client, self._forget))
            self._start_locked()

    def dismiss(self, client: Any) -> None:
        """Stop running for this client; harmless when repeated."""
        with self._lock:
            self._clients.discard(weakref.ref(client))
        self._sleeper.wake()

    def _forget(self, ref: weakref.ref[Any]) -> None:
        self._clients.discard(ref)
        self._sleeper.wake()

    # -- services ----------------------------------------------------------

    def submit(self, job: Callable[[], object]) -> None:
        """Have ``job`` run by a worker."""
        with self._lock:
            self._start_locked()
        self.workers.submit(job)
        if self.workers.crowded:
            self._sleeper.wake()  # to look whether the workers are stuck

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        """Have a bound method called by a worker in ``seconds``."""
        timer = Timer(time.monotonic() + seconds, method)
        with self._lock:
            heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
            early = timer.when < self._wakes_at
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

    def unwatch(self, fd: int) -> None:
        """Forget the socket; call before it is closed."""
        self._watched.pop(fd, None)
        self._sleeper.unwatch(fd)

    def guard(self, fd: int, seconds: float) -> Guard:
        """Return a block, to be entered at once, at whose end in time the socket still is open."""
        guard = Guard(self._guarded, fd, seconds)
        self._guarded[id(guard)] = weakref.ref(guard)
        tick = seconds / 20
        if self._guard_tick is None or tick < self._guard_tick:
            # The monitor looks regularly while anything is guarded, and once
            # after: a wake-up for each test would cost more than the test.
            self._guard_tick = tick
            with self._lock:
                self._start_locked()
            self._sleeper.wake()
        return guard

    def abandon(self) -> None:
        """Give the descriptors up, in a forked child."""
        self._sleeper.close()

    # -- the thread --------------------------------------------------------

    def _start_locked(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="psycopg2_pool2-monitor", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        while not self._finished():
            self._run_safely()
        self.workers.stop()

    def _finished(self) -> bool:
        with self._lock:
            served = any(ref() is not None for ref in list(self._clients))
            if served or self.workers.busy or self._guarded:
                return False
            self._guard_tick = None
            if self._guarded:  # one began meanwhile, and saw the tick
                return False
            self._timers.clear()
            self._thread = None
            return True

    def _run_safely(self) -> None:
        try:
            self._run_once()
        except Exception:
            logger.exception("the monitor failed; it goes on")
            time.sleep(_RELIEF_INTERVAL)

    def _run_once(self) -> None:
        for fd in self._sleeper.sleep(self._pause()):
            # Not taken out: a descriptor shared with a forked child can report
            # for its predecessor, so that the pool may find it alive.
            on_hangup = self._watched.get(fd)
            if on_hangup is not None:
                on_hangup()
        now = time.monotonic()
        for timer in self._due(now):
            self.workers.submit(timer.fire)
        self._enforce_guards(now)
        self.workers.relieve()

    def _pause(self) -> float | None:
        with self._lock:
            now = time.monotonic()
            pauses = [self._timers[0][0] - now] if self._timers else []
            if self._guard_tick is not None:
                pauses.append(self._guard_tick)
            if self.workers.busy:
                pauses.append(_RELIEF_INTERVAL)
            pause = max(0.0, min(pauses)) if pauses else None
            self._wakes_at = float("inf") if pause is None else now + pause
            return pause

    def _due(self, now: float) -> list[Timer]:
        due = []
        with self._lock:
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    due.append(timer)
        return due

    def _enforce_guards(self, now: float) -> None:
        if not self._guarded:
            self._guard_tick = None
            if not self._guarded:  # else one began meanwhile, and saw the tick
                return
        if self._guard_tick is None:
            self._guard_tick = _RELIEF_INTERVAL
        for token, ref in list(self._guarded.items()):
            guard = ref()
            if guard is None:
                self._drop_guard(token, ref)
            elif guard.deadline <= now and self._guarded.pop(token, None) is not None:
                with contextlib.suppress(OSError):
                    shut_down(guard.fd)
                guard.shut.release()

    def _drop_guard(self, token: int, ref: weakref.ref[Guard]) -> None:
        if self._guarded.get(token) is ref:  # else its number is another guard's by now
            self._guarded.pop(token, None)


_monitor: Monitor | None = None
_making = threading.Lock()


def get_monitor() -> Monitor:
    """Return the monitor of this process; it has no thread before it has a client."""
    global _monitor
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
