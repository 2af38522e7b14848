"""How the monitor sleeps: until a time, until it is woken, or until a server hangs up."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import select
from typing import Protocol

from .descriptors import SHORTAGE, identity, leak
from .interruptions import let_through
from .timing import monotonic

RETRY_INTERVAL = 1.0
"""Seconds after which descriptors are asked for again, where there were none."""

# As this module found it: gevent's would wait for the loop of another thread.
_new_poll = getattr(select, "poll", None)


class Sleeper(Protocol):
    """A sleep that others can end."""

    watches: bool

    def is_whole(self) -> bool:
        """Tell whether it is still fit for use; to be asked before it is used, but for `wake`.

        The program may have closed its descriptors, and their numbers may be
        those of files of the program's.
        """

    def sleep(self, seconds: float | None) -> list[int]:
        """Sleep; return the descriptors whose peers have hung up.

        Returns at once when its own descriptors are closed.
        """

    def wake(self) -> bool:
        """End the sleep, or the next one; from any thread, in a finalizer too.

        Returns False if it cannot, since it is not whole.
        """

    def watch(self, fd: int) -> None:
        """Report this socket once when its peer closes it."""

    def unwatch(self, fd: int) -> None:
        """Forget the socket; harmless when it is closed already."""

    def close(self) -> None:
        """Free the descriptors, and end the sleep."""


class EpollSleeper:
    """Linux: every open connection is registered once, for its end only.

    ``EPOLLRDHUP`` alone, edge-triggered: answers to queries wake nobody, and
    neither borrow nor return has to touch the registration.

    **Whose descriptors?**  A pipe wakes the sleeper.  A pipe has an identity; an
    epoll has none, but only ours knows our pipe: to change the registration of
    what is not registered fails, and to change it to what it is does nothing.
    The sleep is a ``poll`` of both, which keeps them in existence for its
    duration, whoever closes them.  The pipe's other end is not kept: when that is
    closed too, the ``poll`` ends.
    """

    watches = True

    def __init__(self) -> None:
        self._hear, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = identity(self._hear)
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._hear, select.EPOLLIN)
        except BaseException:
            self._close_pipe()
            raise

    def is_whole(self) -> bool:
        """See :meth:`Sleeper.is_whole`."""
        if not self._has_pipe():
            return False
        try:
            self._epoll.modify(self._hear, select.EPOLLIN)
        except (OSError, ValueError) as error:
            let_through(error)
            return False
        return True

    def sleep(self, seconds: float | None) -> list[int]:
        """See :meth:`Sleeper.sleep`."""
        assert _new_poll is not None
        poller = _new_poll()  # a new one, since two threads cannot wait for the same
        for fd in (self._hear, self._epoll.fileno()):
            poller.register(fd, select.POLLIN)
        poller.poll(None if seconds is None else math.ceil(max(0.0, seconds) * 1000))
        if not self.is_whole():
            return []
        events = self._epoll.poll(0)
        hung_up = [fd for fd, _ in events if fd != self._hear]
        if len(hung_up) != len(events):
            with contextlib.suppress(BlockingIOError):  # another thread has read it
                os.read(self._hear, 4096)
        return hung_up

    def wake(self) -> bool:
        """See :meth:`Sleeper.wake`."""
        if not self._has_pipe():
            return False
        with contextlib.suppress(BlockingIOError):  # it is full: the sleep will end
            os.write(self._ring, b"\0")
        return True

    def watch(self, fd: int) -> None:
        """See :meth:`Sleeper.watch`."""
        with contextlib.suppress(FileExistsError):  # watched by whoever made this one
            self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)

    def unwatch(self, fd: int) -> None:
        """See :meth:`Sleeper.unwatch`."""
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError) as error:
            let_through(error)  # else it is closed already, which unregisters it

    def close(self) -> None:
        """See :meth:`Sleeper.close`; closes nothing that is another's by now."""
        if self.is_whole():
            self._epoll.close()
        else:
            leak(self._epoll)  # which would close its number when it is collected
        self._close_pipe()

    def _has_pipe(self) -> bool:
        # Both ends: to write to a pipe that nobody reads kills the process, if it is so minded.
        return identity(self._hear) == self._pipe == identity(self._ring)

    def _close_pipe(self) -> None:
        for fd in (self._hear, self._ring):
            if identity(fd) == self._pipe:
                os.close(fd)


class QueueSleeper:
    """Elsewhere, and in processes patched by gevent: it can be woken, and watches nothing."""

    watches = False

    def __init__(self) -> None:
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def is_whole(self) -> bool:
        """See :meth:`Sleeper.is_whole`."""
        return True

    def sleep(self, seconds: float | None) -> list[int]:
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            return []

    def wake(self) -> bool:
        self._bell.put(None)
        return True

    def watch(self, fd: int) -> None:
        pass

    def unwatch(self, fd: int) -> None:
        pass

    def close(self) -> None:
        self.wake()


class MakeshiftSleeper(QueueSleeper):
    """Where no descriptor is to be had: unfit for use after a while, so that another is made.

    What would be watched is looked at whenever another is made.
    """

    watches = True

    def __init__(self) -> None:
        super().__init__()
        self._until = monotonic() + RETRY_INTERVAL

    def is_whole(self) -> bool:
        """See :meth:`Sleeper.is_whole`."""
        return monotonic() < self._until

    def sleep(self, seconds: float | None) -> list[int]:
        """See :meth:`Sleeper.sleep`."""
        return super().sleep(RETRY_INTERVAL if seconds is None else min(seconds, RETRY_INTERVAL))


def can_watch() -> bool:
    """Tell whether sockets can be watched in this process."""
    # gevent removes select.epoll; its threads must not block in a system call.
    return hasattr(select, "epoll") and hasattr(os, "pipe2")


def make_sleeper() -> Sleeper:
    """Return the best sleeper that this process can have now."""
    if not can_watch():
        return QueueSleeper()
    try:
        made = EpollSleeper()
    except OSError as error:
        let_through(error)
        if error.errno not in SHORTAGE:
            raise
        return MakeshiftSleeper()
    if made.is_whole():
        return made
    # Somebody closes descriptors at this moment, or the system cannot tell whose they are.  To be
    # replaced at once, and at once again, would cost a thread each time.
    made.close()
    return MakeshiftSleeper()
