"""How long psycopg2 may wait where it waits in Python.

psycopg2 has one *wait callback* for the whole process; gevent, eventlet and their
like set it, so that a wait does not stop everything else.  Two things get lost
with it.  libpq does not keep its ``connect_timeout``.  And a callback that raises
(``gevent.Timeout``, a killed greenlet) has the connection closed, while the server
goes on with the statement and keeps the session.  So the pool puts a callback of
its own before the program's, which keeps limits, and has the server stop.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2 import extensions as ext

from .connection import Tracked
from .floods import FloodError, Meter
from .interruptions import suppress
from .sockets import wait_ready
from .timing import monotonic

_STOP_TIMEOUT = 1.0
"""Seconds that an exception is held up until a server has been asked to stop."""

_LOOK_AGAIN = 0.005

_POLLS_PER_LOOK = 100
"""Each takes in some kilobytes, of what comes without an end."""

_limits: dict[int, weakref.ref[Limit]] = {}
"""Those in force, by thread: by greenlet, that is, where threads are greenlets."""


class Limit:
    """Until when this thread may wait for a connection, by the monotonic clock; None: for ever.

    In force until its :meth:`end`.  ``conn`` None stands for one that is being
    opened.  It is held weakly, so that one that a thread was interrupted over
    ends with its frame.
    """

    __slots__ = ("__weakref__", "_conn", "_deadline", "_outer", "_thread")

    def __init__(self, deadline: float | None, conn: Any = None) -> None:
        self._deadline = deadline
        self._conn = conn
        self._thread = threading.get_ident()
        self._outer = _limits.get(self._thread)
        _limits[self._thread] = weakref.ref(self)

    def end(self) -> None:
        """Put the limit in force again that was before."""
        if self._outer is None:
            _limits.pop(self._thread, None)
        else:
            _limits[self._thread] = self._outer

    def covers(self, conn: Any) -> bool:
        """Tell whether it is for this connection."""
        return self._conn is None or self._conn is conn

    def wait(self, conn: Any) -> None:
        """Wait for the answer, or raise; psycopg2 closes the connection then."""
        if not wait_for_answer(conn, self._deadline):
            raise psycopg2.OperationalError(f"{_place(conn)}: timeout expired")


class WaitCallback:
    """Psycopg2's wait callback, before the program's if it has one."""

    def __init__(self, programs: Callable[[Any], object] | None) -> None:
        self._programs = programs

    def __call__(self, conn: Any) -> None:
        """Wait until psycopg2 has what it waits for."""
        ref = _limits.get(threading.get_ident())
        limit = None if ref is None else ref()
        if limit is not None and limit.covers(conn):
            limit.wait(conn)
        elif self._programs is not None:
            self._wait_as_programs(conn, self._programs)
        else:
            if limit is None:  # its thread was interrupted over it
                ext.set_wait_callback(None)
            wait_for_answer(conn, None)

    def _wait_as_programs(self, conn: Any, wait: Callable[[Any], object]) -> None:
        try:
            wait(conn)
        except BaseException:
            if isinstance(conn, Tracked):
                ask_to_stop(conn, _STOP_TIMEOUT)
            raise


def keeps_limits() -> bool:
    """Tell whether psycopg2 waits in Python; if so, see that limits are kept."""
    callback = ext.get_wait_callback()
    if callback is None:
        return False
    if not isinstance(callback, WaitCallback):
        ext.set_wait_callback(WaitCallback(callback))
    return True


def wait_for_answer(conn: Any, deadline: float | None) -> bool:
    """Wait as psycopg2 does, but in Python; False if it is ``deadline`` by the monotonic clock.

    To be called by psycopg2's wait callback.
    """
    meter = None
    for polls in itertools.count(1):
        state = conn.poll()
        if state == ext.POLL_OK:
            break
        if deadline is not None and polls % _POLLS_PER_LOOK == 0:
            meter = meter or Meter(conn)
            if meter.is_flooded():
                raise FloodError
        seconds = None if deadline is None else deadline - monotonic()
        if seconds is not None and seconds <= 0:
            return False
        fds = [conn.fileno()]
        read, write = (fds, ()) if state == ext.POLL_READ else ((), fds)
        wait_ready(read, write, seconds)
    return True


def ask_to_stop(conn: Any, seconds: float) -> None:
    """Ask the server to stop a statement; it notices a closed socket only at the statement's end.

    Blocks for at most ``seconds``, and no other thread or greenlet; raises no
    ordinary error.  Does nothing for a connection that executes nothing, or that
    belongs to the parent of a forked process.
    """
    with suppress(psycopg2.Error, OSError):
        request = getattr(conn, "pool_cancel_request", None)
        if request is None or conn.is_inherited():
            return
        if _is_active(conn):
            request.send(seconds)


def may_close(conn: Any, seconds: float) -> bool:
    """Wait at most ``seconds`` until no greenlet executes on a connection; return whether so.

    A greenlet that waits for an answer holds psycopg2's lock of the connection.
    ``close()`` in another greenlet would wait for that lock in the one thread
    that both have, and so for ever.
    """
    if not keeps_limits():
        return True
    deadline = monotonic() + seconds
    while _is_active(conn):
        if monotonic() >= deadline:
            return False
        wait_ready((), (), _LOOK_AGAIN)
    return True


def _is_active(conn: Any) -> bool:
    try:
        return bool(conn.get_transaction_status() == ext.TRANSACTION_STATUS_ACTIVE)
    except psycopg2.Error:
        return False  # it is closed


def _place(conn: Any) -> str:
    """Name the server as libpq's errors do."""
    try:
        info = conn.info
        given = info.dsn_parameters
        address = f" ({given['hostaddr']})" if "hostaddr" in given and "host" in given else ""
        return f'connection to server at "{info.host}"{address}, port {info.port} failed'
    except psycopg2.Error:
        return "connection failed"
