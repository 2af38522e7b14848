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
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .descriptors import Identity, identity
from .guards import Guards
from .log import Seldom, logger
from .processes import process_lock
from .threads import OwnThread, has_stopped_others
from .timing import Clock, SteadyClock, bounded, monotonic
from .watch import QueueSleeper, Sleeper, can_watch, make_sleeper
from .workers import BASE, CANNOT_START, Workers, rest_if_copied, warn_of_shortage

_RELIEF_INTERVAL = 0.05
LONGEST_PAUSE = 3600.0
"""Seconds after which a timer fires, and the monitor wakes up, at the latest."""


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

    def __init__(self, clock: Clock = monotonic) -> None:
        self.pid = os.getpid()
        self._abandoned = False
        self.workers = Workers()
        self._sleeper: Sleeper = make_sleeper()
        self._lock = threading.RLock()  # guards starting and stopping, the heap and the clock
        self._clock = SteadyClock(clock)
        self._thread: threading.Thread | None = None
        self._clients: dict[weakref.ref[Any], int] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._wakes_at = 0.0
        self._relief_due = 0.0
        self._watched: dict[int, tuple[Identity | None, Callable[[], object]]] = {}
        self.has_lost_descriptors = False  # the program has closed what it did not open
        self._doubts: deque[Callable[[], object]] = deque()  # to be called, as after a hang-up
        self._failure = Seldom(20.0)
        self.guards = Guards(self._look)

    # -- clients -----------------------------------------------------------

    def serve(self, client: Any, num_workers: int) -> bool:
        """Run as long as ``client`` lives, or until it is dismissed; with so many workers.

        Returns False if the thread cannot be started now.  Any later call that
        needs it tries again.
        """
        with self._lock:
            self._clients[weakref.ref(client, self._forget)] = num_workers
            self._set_base_locked()
        return self._ensure_running()

    def dismiss(self, client: Any) -> None:
        """Stop running for this client; harmless when repeated."""
        with self._lock:
            self._clients.pop(weakref.ref(client), None)
            self._set_base_locked()
        self._wake()

    def _forget(self, ref: weakref.ref[Any]) -> None:
        if has_stopped_others():
            return
        with self._lock:
            self._clients.pop(ref, None)
            self._set_base_locked()
        self._wake()

    def _set_base_locked(self) -> None:
        self.workers.base = max([BASE, *self._clients.values()])

    # -- services ----------------------------------------------------------

    def submit(self, job: Callable[[], object]) -> None:
        """Have ``job`` run by a worker, as soon as there is one."""
        if self._abandoned:
            return
        self._ensure_running()
        self.workers.submit(job)
        self._notice_crowd()

    def offer(self, job: Callable[[], object]) -> bool:
        """Have ``job`` run by a worker; False if no thread can be had, and it will not be run."""
        if self._abandoned:
            return True  # nobody else runs it either
        self._ensure_running()
        taken = self.workers.offer(job)
        self._notice_crowd()
        return taken

    def _notice_crowd(self) -> None:
        if self.workers.crowded:
            self._wake()  # to look whether the workers are stuck

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        """Have a bound method called by a worker in ``seconds``, an hour at most."""
        with self._lock:
            timer = Timer(self._clock() + bounded(seconds, LONGEST_PAUSE), method)
            heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
            early = timer.when < self._wakes_at
            needed = bool(self._clients)
        if needed:
            self._ensure_running()
        if early:
            self._wake()
        return timer

    @property
    def watches(self) -> bool:
        """Whether :meth:`watch` works on this system, while the monitor :attr:`is_running`."""
        return self._sleeper.watches

    @property
    def is_running(self) -> bool:
        """Whether its thread is there."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def watch(self, fd: int, on_hangup: Callable[[], object]) -> None:
        """Call ``on_hangup``, mostly in the monitor's thread, when the socket may be closed.

        By its peer, or by a program that closes what it did not open.  It must
        neither block nor hold what it is about strongly.
        """
        self._watched[fd] = identity(fd), on_hangup
        self._own_sleeper().watch(fd)

    @property
    def is_outdated(self) -> bool:
        """Whether gevent has patched the process before anything began here."""
        return self._thread is None and self.watches and not can_watch()

    def unwatch(self, fd: int) -> None:
        """Forget the socket; call before it is closed."""
        self._watched.pop(fd, None)
        sleeper = self._sleeper
        if sleeper.is_whole():
            sleeper.unwatch(fd)

    def _look(self) -> bool:
        runs = self._ensure_running()
        self._wake()
        return runs

    # -- descriptors that the program closed ---------------------------------

    def _wake(self) -> None:
        sleeper = self._sleeper
        if not sleeper.wake():
            self._renew(sleeper).wake()

    def _own_sleeper(self) -> Sleeper:
        """Return the sleeper, or a new one if its descriptors are not its own any more."""
        sleeper = self._sleeper
        return sleeper if sleeper.is_whole() else self._renew(sleeper)

    def _renew(self, lost: Sleeper) -> Sleeper:
        """Go on with new descriptors, and doubt every socket, since somebody closes them."""
        if self.pid != os.getpid():
            return QueueSleeper()  # the child of a fork that has not been noticed yet
        with self._lock:
            if self._sleeper is not lost:
                return self._sleeper
            self.has_lost_descriptors = True  # before anybody is told to doubt
            sleeper = make_sleeper()
            try:
                self._watch_again_locked(sleeper)
            except BaseException:
                sleeper.close()
                raise
            self._sleeper = sleeper
            if self._thread is not threading.current_thread():
                self._thread = None  # nothing is sure to end its sleep in the lost one
            served = bool(self._clients)
        lost.close()
        if served:
            self._ensure_running()
        self._tell_doubts()
        return sleeper

    def _watch_again_locked(self, sleeper: Sleeper) -> None:
        for fd, (own, on_hangup) in list(self._watched.items()):
            self._doubts.append(on_hangup)
            if own is not None and identity(fd) == own:
                sleeper.watch(fd)
            else:
                del self._watched[fd]

    def _tell_doubts(self) -> None:
        while self._doubts:
            try:
                on_hangup = self._doubts.popleft()
            except IndexError:
                break  # another thread tells the last one
            on_hangup()

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

    def _ensure_running(self) -> bool:
        """See that the thread is there; False if it cannot be started."""
        if self._abandoned:
            return False
        with self._lock:
            error = None if self.is_running else self._start_locked()
        if error is not None:
            warn_of_shortage(error)
        return error is None

    def _start_locked(self) -> BaseException | None:
        before, thread = self._thread, OwnThread(self._run, "monitor")
        self._thread = thread
        try:
            thread.start()
        except CANNOT_START as error:
            if self._thread is thread:  # else re-entered, and another was started
                self._thread = before
            return error
        return None

    def _run(self) -> None:
        while self._is_on_duty() and not self._run_safely():
            pass
        rest_if_copied(self.pid)
        if self._thread is None or self._abandoned:
            self.workers.stop()
        else:
            self._wake()  # it may have been the other that was to wake up

    def _is_on_duty(self) -> bool:
        """Tell whether this thread is the one that serves.

        Another is if whoever started this one was interrupted before it was seen to run.
        """
        return self._thread is threading.current_thread() and not self._abandoned

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
            level = logging.ERROR if self._failure.is_due() else logging.DEBUG
            logger.log(level, "the monitor failed; it goes on", exc_info=True)
            time.sleep(_RELIEF_INTERVAL)
        return False

    def _run_once(self) -> None:
        sleeper = self._own_sleeper()
        hung_up = sleeper.sleep(self._pause())
        if sleeper is not self._sleeper:
            self._ensure_running()  # another thread has replaced it, and this one too
            return
        self._tell_doubts()  # of which a thread was interrupted
        for fd in hung_up:
            # Not taken out: a descriptor shared with a forked child can report
            # for its predecessor, so that the pool may find it alive.
            _, on_hangup = self._watched.get(fd, (None, None))
            if on_hangup is not None:
                on_hangup()
        with self._lock:
            now = self._clock()
        while (timer := self._first_due(now)) is not None:
            self.workers.submit(timer.fire)
            timer.submitted = True  # only now: an interruption loses none
        self.guards.enforce(monotonic())
        if now >= self._relief_due:
            self._relief_due = now + _RELIEF_INTERVAL
            self.workers.relieve()

    def _pause(self) -> float | None:
        with self._lock:
            now = self._clock()
            pauses = [self._timers[0][0] - now] if self._timers else []
            if self.guards.tick is not None:
                pauses.append(self.guards.tick)
            if self.workers.busy:
                pauses.append(_RELIEF_INTERVAL)
            pause = bounded(min(pauses), LONGEST_PAUSE) if pauses else None
            self._wakes_at = math.inf if pause is None else now + pause
            return pause

    def _first_due(self, now: float) -> Timer | None:
        with self._lock:
            while self._timers and (self._timers[0][2].cancelled or self._timers[0][2].submitted):
                heapq.heappop(self._timers)
            return self._timers[0][2] if self._timers and self._timers[0][0] <= now else None


_monitor: Monitor | None = None


def get_monitor() -> Monitor:
    """Return the monitor of this process; it has no thread before it has a client."""
    monitor = _monitor
    if monitor is None or monitor.pid != os.getpid() or monitor.is_outdated:
        with process_lock():
            monitor = _replaced_monitor()
    return monitor


def _replaced_monitor() -> Monitor:
    global _monitor
    if _monitor is not None and _monitor.pid != os.getpid():
        _after_fork_in_child()  # a fork that Python was not told of
    if _monitor is not None and _monitor.is_outdated:
        _monitor.abandon()
        _monitor = None
    if _monitor is None:
        _monitor = Monitor()
    return _monitor


def _after_fork_in_child() -> None:
    global _monitor
    # The parent's thread does not exist here, and its locks may be held for ever.
    # Only this process's copies of the descriptors are closed.
    inherited, _monitor = _monitor, None
    if inherited is not None:
        inherited.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
