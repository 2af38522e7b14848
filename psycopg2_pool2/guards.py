"""Time limits for what a thread does on a connection that may never answer.

psycopg2 blocks in libpq until the server answers or the kernel gives the socket
up, which may take a quarter of an hour, or for ever if the server's process is
stopped while its machine goes on acknowledging.  A guard ends that in time.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import psycopg2
from psycopg2 import extensions as ext

from .connector import Connection
from .descriptors import SHORTAGE
from .failures import silence
from .floods import LOOK_EVERY, FloodError, Meter
from .interruptions import suppress
from .sockets import shut_down, socket_of
from .timing import monotonic
from .waits import Limit, WaitCallback, keeps_limits

_LOOKS = 20
"""The monitor looks so many times in a guard's span: it is late by a twentieth at most."""
_LAST_LOOK = 0.05


class Guard(Protocol):
    """A limit in force until :meth:`lift`: of time, and of what the server may send."""

    def lift(self) -> Exception | None:
        """End the limit; return why the connection was lost to it, None if it was not."""


class SocketGuard:
    """A guard that is enforced by another thread, which shuts the socket down.

    The steps between the guarded thread and the enforcing one:

    1. The thread enters the guard into ``guarded``.
    2. Afterwards it takes it out again; the enforcer, when the time is over,
       gives it a closed gate and takes it out.  ``set.remove`` lets one of them
       have it.
    3. If it was the enforcer, it shuts the socket down and then opens the gate,
       for which the thread waits.  So the connection is not closed in between.
       While no descriptor is left for that it enters the guard again, and tries
       again at its next look.
       The descriptor is asked for only then: if libpq has closed it upon an
       error, its number may be another connection's by now.

    It is held weakly, so that one that a thread was interrupted over is gone
    with its frame, and shuts nothing down.
    """

    __slots__ = ("__weakref__", "conn", "deadline", "error", "gate", "guarded", "ref", "seconds")

    conn: Connection
    deadline: float
    error: Exception
    gate: threading.Lock
    guarded: set[weakref.ref[SocketGuard]]
    ref: weakref.ref[SocketGuard]
    seconds: float

    def lift(self) -> Exception | None:
        """See :meth:`Guard.lift`."""
        try:
            self.guarded.remove(self.ref)
        except KeyError:
            self.gate.acquire()
            return self.error
        return None


class Guards:
    """The guards of a process, which its monitor enforces.

    ``tick`` is how often it has to look, None while nothing is guarded;
    ``look`` is called when that becomes more often, and returns whether the
    monitor will: it may have no thread, and get none.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self.tick: float | None = None
        self._look = look
        self._guarded: set[weakref.ref[SocketGuard]] = set()
        # Of those that were in force at a look; what ends before costs nothing.
        self._meters: weakref.WeakKeyDictionary[SocketGuard, Meter] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._guarded)

    def guard(self, conn: Connection, seconds: float) -> Guard:
        """Put a limit on what is done next with a connection; to be lifted in any case.

        Without anybody to enforce it, it is one that this thread keeps itself.
        """
        guard = SocketGuard()  # without __init__: it is on the way of every test
        guard.guarded = self._guarded
        guard.conn = conn
        guard.seconds = seconds
        guard.deadline = monotonic() + seconds
        guard.ref = ref = weakref.ref(guard)
        self._guarded.add(ref)
        tick = self.tick
        if tick is None or (seconds < tick * _LOOKS):
            # The monitor looks regularly while anything is guarded, and once
            # after: a wake-up for each test would cost more than the test.
            self.tick = min(seconds / _LOOKS, LOOK_EVERY)
            if not self._look():
                self.tick = None  # so that the next guard asks again
                self._guarded.discard(ref)
                return LocalGuard(conn, seconds)
        return guard

    def rest(self) -> bool:
        """Stop looking if nothing is guarded; return whether that is so."""
        if not self._guarded:
            self.tick = None
            return not self._guarded  # else one began meanwhile, and saw the tick
        return False

    def enforce(self, now: float) -> None:
        """Shut down what is over its time, or floods."""
        if self.rest():
            return
        if self.tick is None:
            self.tick = _LAST_LOOK
        for ref in list(self._guarded):
            guard = ref()
            if guard is None:
                self._guarded.discard(ref)
            elif guard.deadline <= now:
                self._shut_down(guard, silence(guard.deadline - guard.seconds, guard.seconds))
            elif self._is_flooded(guard):
                self._shut_down(guard, FloodError())

    def _is_flooded(self, guard: SocketGuard) -> bool:
        meter = self._meters.get(guard)
        if meter is None:
            self._meters[guard] = Meter(guard.conn)
            return False
        return meter.is_flooded()

    def _shut_down(self, guard: SocketGuard, error: Exception) -> None:
        guard.error = error
        guard.gate = threading.Lock()
        guard.gate.acquire()
        with contextlib.suppress(KeyError):  # else its thread was faster
            self._guarded.remove(guard.ref)
            try:
                if not _is_shut_down(guard.conn):
                    # The thread still waits for its answer.  If it has lifted the guard
                    # meanwhile, the connection is given up, and the guard goes with its frame.
                    self._guarded.add(guard.ref)
            finally:
                guard.gate.release()


def _is_shut_down(conn: Connection) -> bool:
    """Shut a socket down; return False if that has to be tried again, for want of a descriptor."""
    try:
        shut_down(conn)
    except ImportError:  # no descriptor is left to read the module that knows sockets
        return False
    except OSError as error:
        return error.errno not in SHORTAGE
    except psycopg2.Error:
        pass  # it is closed
    return True


def _nothing() -> None:
    pass


class LocalGuard:
    """A guard that the guarded thread keeps itself, for want of a monitor or under gevent.

    What the other machine does not acknowledge the kernel gives up in time, by
    ``TCP_USER_TIMEOUT`` (Linux).  A server that acknowledges and says nothing is
    given up only where psycopg2 waits in Python, as it does under gevent, or
    where this is the process's one thread: then it can be made to.  Its wait
    callback is one for the whole process, and COPY in another thread would fail
    because of it.
    """

    __slots__ = ("__weakref__", "_conn", "_deadline", "_seconds", "_undo")

    def __init__(self, conn: Connection, seconds: float) -> None:
        self._conn = conn
        self._seconds = seconds
        self._deadline = monotonic() + seconds
        self._undo: Callable[[], object]
        if keeps_limits():
            self._undo = Limit(self._deadline, conn).end
        elif _is_alone():
            ext.set_wait_callback(WaitCallback(None))
            self._undo = functools.partial(_wait_in_libpq, Limit(self._deadline, conn))
        else:
            self._undo = _limit_unacknowledged(conn, seconds)

    def lift(self) -> Exception | None:
        """See :meth:`Guard.lift`."""
        self._undo()
        is_over = self._conn.closed and monotonic() >= self._deadline
        return silence(self._deadline - self._seconds, self._seconds) if is_over else None


def _is_alone() -> bool:
    """Tell whether there is no other thread, but for such as Python does not know of.

    ``sys._current_frames()`` knows of all, but up to Python 3.11 it can bring the
    whole process to a halt (CPython's issue 106883).
    """
    threading.current_thread()  # has Python know of this one, whoever started it
    return threading.active_count() == 1


def _wait_in_libpq(limit: Limit) -> None:
    ext.set_wait_callback(None)
    limit.end()


def _limit_unacknowledged(conn: Connection, seconds: float) -> Callable[[], object]:
    """Bound how long the kernel waits for acknowledgement; return how to undo that."""
    before = _exchange_user_timeout(conn, max(1, int(min(seconds, 86_400.0) * 1000)))
    return _nothing if before is None else functools.partial(_exchange_user_timeout, conn, before)


def _exchange_user_timeout(conn: Connection, milliseconds: int) -> int | None:
    """Set ``TCP_USER_TIMEOUT`` and return what it was, None where there is none."""
    import socket  # dear, and mostly not needed

    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None or conn.closed:  # not Linux
        return None
    with suppress(OSError), socket_of(conn) as sock:  # or a Unix socket
        before = sock.getsockopt(socket.IPPROTO_TCP, option)
        sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
        return before
    return None
