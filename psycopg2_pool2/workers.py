"""The threads that do what may block: opening, testing, closing, the user's callbacks."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

from .log import Seldom, logger
from .threads import OwnThread, is_at_the_end

Job = Callable[[], object]

BASE = 4
"""Threads that may run without a reason; a pool's ``num_workers`` can raise it."""
LINGER = 2.0
"""Seconds that a thread waits for another job before it ends."""
CANNOT_START = (RuntimeError, MemoryError)
"""What starting a thread raises where the system gives no more of them."""

_shortage = Seldom(20.0)


def warn_of_shortage(error: BaseException) -> None:
    """Log that no thread can be started; a few times a minute at most, for the whole process.

    Not at the end of the interpreter, which is no news.
    """
    if not is_at_the_end(error) and _shortage.is_due():
        logger.warning(
            "cannot start a thread: %s; until one can be started, borrowers open"
            " their connections themselves",
            error,
        )


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
        self._finished = 0
        self._finished_before = 0

    def submit(self, job: Job) -> bool:
        """Have ``job`` run soon; from any thread, in a finalizer too.

        Returns False if there is no thread, and none could be started: then it
        waits for the next :meth:`submit` or :meth:`relieve`.
        """
        self._jobs.put(job)
        return self._add_thread(self.base) or bool(self._threads)

    def offer(self, job: Job) -> bool:
        """Have ``job`` run soon, unless that takes another thread and none can be started.

        Returns False then, and the job will not be run.
        """
        self._jobs.put(job)
        return self._add_thread(self.base) or not self._withdraw(job)

    def _withdraw(self, job: Job) -> bool:
        """Take a job out of the queue; False if a thread has taken it already."""
        for _ in range(self._jobs.qsize()):
            try:
                other = self._jobs.get_nowait()
            except queue.Empty:
                break
            if other is job:
                return True
            self._jobs.put(other)  # at once: whoever is interrupted later loses nothing
        return False

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
        """Start a thread if one is needed; False if that is not possible."""
        thread: threading.Thread | None = None
        try:
            with self._lock:
                if self._jobs.qsize() <= len(self._free) or len(self._threads) >= most:
                    return True
                thread = self._new_thread()
                self._threads.add(thread)
            thread.start()
        except BaseException as error:
            # One that is counted and never began would be taken for busy for ever.
            if thread is not None:
                with self._lock:
                    self._threads.discard(thread)
            if not isinstance(error, CANNOT_START):
                if isinstance(error, KeyError) and error.__context__ is not None:
                    # threading's own, after what has interrupted it at the wrong moment.
                    raise error.__context__ from None
                raise
            warn_of_shortage(error)
            return False
        return True

    def _new_thread(self) -> threading.Thread:
        return OwnThread(self._run, "worker")

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
        me = threading.current_thread()
        try:
            self._free.add(me)
            job = self._jobs.get(timeout=LINGER)
        except queue.Empty:
            return False
        finally:
            self._free.discard(me)
        if self.crowded:  # by a job that was submitted before this thread was seen to be taken
            self._add_thread(self.base)
        if job is None:
            return False
        try:
            job()
        except BaseException:  # a SystemExit of a user's callback too: the thread goes on
            logger.exception("a background job failed")
        del job  # an exception that it keeps refers to this frame
        self._finished += 1
        return True
