"""How the monitor sleeps: until a time, until it is woken, or until a server hangs up."""

from __future__ import annotations

import contextlib
import os
import queue
import select
from typing import Protocol


class Sleeper(Protocol):
    """A sleep that others can end."""

    watches: bool

    def sleep(self, seconds: float | None) -> list[int]:
        """Sleep; return the descriptors whose peers have hung up."""

    def wake(self) -> None:
        """End the sleep, or the next one; from any thread, in a finalizer too."""

    def watch(self, fd: int) -> None:
        """Report this socket once when its peer closes it."""

    def unwatch(self, fd: int) -> None:
        """Forget the socket; harmless when it is closed already."""

    def close(self) -> None:
        """Free the descriptors."""


class EpollSleeper:
    """Linux: every open connection is registered once, for its end only.

    ``EPOLLRDHUP`` alone, edge-triggered: answers to queries wake nobody, and
    neither borrow nor return has to touch the registration.
    """

    watches = True

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)

    def sleep(self, seconds: float | None) -> list[int]:
        events = self._epoll.poll(-1 if seconds is None else seconds)
        hung_up = [fd for fd, _ in events if fd != self._bell]
        if len(hung_up) != len(events):
            with contextlib.suppress(BlockingIOError):  # another thread has read it
                os.eventfd_read(self._bell)
        return hung_up

    def wake(self) -> None:
        os.eventfd_write(self._bell, 1)

    def watch(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLET)

    def unwatch(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            pass  # closing a descriptor unregisters it

    def close(self) -> None:
        self._epoll.close()
        os.close(self._bell)


class QueueSleeper:
    """Elsewhere, and in processes patched by gevent: it can be woken, and watches nothing."""

    watches = False

    def __init__(self) -> None:
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()

    def sleep(self, seconds: float | None) -> list[int]:
        try:
            self._bell.get(timeout=seconds)
            while True:
                self._bell.get_nowait()
        except queue.Empty:
            return []

    def wake(self) -> None:
        self._bell.put(None)

    def watch(self, fd: int) -> None:
        pass

    def unwatch(self, fd: int) -> None:
        pass

    def close(self) -> None:
        self.wake()


def can_watch() -> bool:
    """Tell whether sockets can be watched in this process."""
    # gevent removes select.epoll; its threads must not block in a system call.
    return hasattr(select, "epoll") and hasattr(os, "eventfd")


def make_sleeper() -> Sleeper:
    """Return the best sleeper that this process has."""
    return EpollSleeper() if can_watch() else QueueSleeper()
