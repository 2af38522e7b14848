"""The threads that do what may block: opening, testing, closing, the user's callbacks."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

from .ending import start, starts_no_threads

logger = logging.getLogger("psycopg2_pool2")

Job = Callable[[], object]

BASE = 4
"""Threads that may run without a reason; a pool's ``num_workers`` can raise it."""
LINGER = 2.0
"""Seconds that a thread waits for another job before it ends."""


def rest_if_copied(pid: int) -> None:
    """Keep a thread from ending in another process than that in which it began.

    Threads end with a fork, but greenlets live on in the child, unknown to the
    threading module there, which would complain of their end.
    """
    if os.getpid() != pid:
        threading.Event().wait()


class Workers:
    """Run jobs in daemon threads, as many as are needed and no more.

    Up to ``base`` threads start as soon as jobs queue up.  Beyond that one is
    added only when nothing has been finished for a while (:meth:`relieve`): so a
    thousand healthy pools share a handful of threads, and a dozen whose servers
    are black holes cannot keep the others waiting.
    """

    def __init__(self) -> None:
        self.base = BASE
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # Re-entered when the garbage collector runs a __del__ that returns a
        # connection; guards the set of threads.
        self._lock = threading.RLock()
        self._threads: set[threading.Thread] = set()
        self._free: set[threading.Thread] = set()  # not a count: that could be left wrong
        self._helpers: set[int] = set()
        self._finished = 0
        self._finished_before = 0

    def submit(self, job: Job) -> bool:
        """Have ``job`` run soon; from any thread, in a finalizer too.

        Returns False if there is no thread, and none could be started: then it
        waits for the next :meth:`submit` or :meth:`relieve`.
        """
        self._jobs.put(job)
        return self._add_thread(self.base) or bool(self._threads)

    def help(self) -> None:
        """Do in this thread what has none and will get none: see :mod:`.ending`."""
        me = threading.get_ident()
        if me in self._helpers:
            return  # by a job; who does that goes on with what it submits
        self._helpers.add(me)
        try:
            while self.crowded:
                self._do(self._jobs.get_nowait())
        except queue.Empty:
            pass
        finally:
            self._helpers.discard(me)

    def relieve(self) -> bool:
        """Add a thread if jobs wait and none was finished since the last call; call regularly.

        Returns whether jobs wait.
        """
        if not self._jobs.qsize():
            return False
        if self._finished == self._finished_before:
            self._add_thread(float("inf"))
        self._finished_before = self._finished
        return True

    @property
    def crowded(self) -> bool:
        """Whether more jobs wait than threads are free to take them."""
        return self._jobs.qsize() > len(self._free)

    def stop(self) -> None:
        """Let the threads end when they have done what is queued."""
        with self._lock:
            for _ in self._threads:
                self._jobs.put(None)

    @property
    def busy(self) -> bool:
        """Whether anything is queued or being done."""
        return bool(self._jobs.qsize()) or len(self._free) < len(self._threads)

    def _add_thread(self, most: float) -> bool:
        """Start a thread if one is needed; False if that was not possible."""
        thread = None
        try:
            with self._lock:
                if self._jobs.qsize() <= len(self._free) or len(self._threads) >= most:
                    return True
                thread = self._new_thread()
                self._threads.add(thread)
            if start(thread):
                return True
            with self._lock:
                self._threads.discard(thread)
        except BaseException as error:
            # One that is counted and never began would be taken for busy for ever.
            if thread is not None:
                with self._lock:
                    self._threads.discard(thread)
            if not isinstance(error, RuntimeError):
                raise
            # No more threads or memory now: the job is queued, see relieve.
            logger.warning("cannot start a thread: %s", error)
        return False

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run, name="psycopg2_pool2-worker", daemon=True)

    def _run(self) -> None:
        try:
            while self._run_next():
                pass
            rest_if_copied(self._pid)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
            # A job that arrived while this thread was leaving.
            if self._jobs.qsize():
                self._add_thread(self.base)

    def _run_next(self) -> bool:
        try:
            return self._do(self._take())
        except queue.Empty:
            return starts_no_threads()  # then there will be no other one

    def _take(self) -> Job | None:
        me = threading.current_thread()
        try:
            self._free.add(me)
            job = self._jobs.get(timeout=LINGER)
        finally:
            self._free.discard(me)
        if self.crowded:  # by a job that was submitted before this thread was seen to be taken
            self._add_thread(self.base)
        return job

    def _do(self, job: Job | None) -> bool:
        """Do a job; False if it was to end."""
        if job is None:
            return False
        try:
            job()
        except BaseException:  # a SystemExit of a user's callback too: the thread goes on
            logger.exception("a background job failed")
        del job  # an exception that it keeps refers to this frame
        self._finished += 1
        return True
