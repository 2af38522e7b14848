"""Asking a server to stop a statement, in bounded time and without stopping the process.

psycopg2's ``cancel()`` waits for the server without a limit and keeps the
interpreter's lock meanwhile: one server, or PgBouncer, that accepts a
CancelRequest and does not answer stops every thread of the process.  Here the
request is sent by libpq's functions that do not block (version 17), encrypted as
the connection is; or, by an older libpq's key, over a socket of our own and
unencrypted, as that libpq does it.  All waiting is done in Python, so it is
cooperative under gevent and eventlet.  Where neither is possible no request is
sent.

**Who may call libpq when.**  libpq lets any thread cancel, but the structures of
the connection must not be freed while they are copied, and any thread may close
a connection at any time.  So the copy is made once, right after the connection
was opened, when nobody else has it.  It costs about 20 microseconds and the
memory of a second connection in libpq, about 11 kB.
"""

from __future__ import annotations

import os
import struct
from typing import Any, Protocol

from . import libpq
from .forks import gate
from .interruptions import suppress
from .sockets import ask_at, place_of, wait_ready
from .timing import monotonic

_CODE = 80877102
"""The protocol's number for a CancelRequest."""


class CancelRequest(Protocol):
    """A request to stop what a connection's session is doing."""

    def send(self, seconds: float) -> bool:
        """Send it; return whether the server, or what is in its place, has taken it.

        Blocks for at most ``seconds``, and no other thread.  From any thread,
        repeatedly; not sent while another thread is sending it, nor in a forked
        child.  Raises OSError.
        """


def cancel_request(conn: Any) -> CancelRequest | None:
    """Return the request for a connection, to be sent later; None if there is no way.

    To be called before any other thread has the connection.
    """
    with suppress(Exception):
        functions = libpq.cancel_functions()
        if functions is not None:
            return _LibpqRequest(functions, conn.pgconn_ptr)
        keys = libpq.key_functions()
        pid = conn.info.backend_pid
        key = None if keys is None else keys.key(conn.pgconn_ptr, pid)
        if key is not None:
            return _PlainRequest(conn, struct.pack("!iiii", 16, _CODE, pid, key))
    return None


class _LibpqRequest:
    """A request that libpq makes, encrypted as the connection is."""

    __slots__ = ("_functions", "_handles", "_pid")

    def __init__(self, functions: libpq.CancelFunctions, pgconn: int) -> None:
        self._functions = functions
        # One, or none while it is in use: whoever pops it has it alone.
        self._handles = [functions.create(pgconn)]
        self._pid = os.getpid()

    def send(self, seconds: float) -> bool:
        """See :meth:`CancelRequest.send`."""
        deadline = monotonic() + seconds
        try:
            handle = self._handles.pop()
        except IndexError:
            return False
        try:
            return self._drive(handle, deadline)
        finally:
            self._functions.reset(handle)
            self._handles.append(handle)

    def _drive(self, handle: Any, deadline: float) -> bool:
        """Do what libpq says it waits for, until the server has closed the connection."""
        if not _gated(self._functions.start, handle):
            return False
        state = libpq.WRITING
        while state in (libpq.READING, libpq.WRITING):
            left = deadline - monotonic()
            # A greenlet goes on in a forked child, whose parent uses the same socket.
            if left <= 0 or os.getpid() != self._pid:
                return False
            fds = [self._functions.fileno(handle)]
            read, write = (fds, ()) if state == libpq.READING else ((), fds)
            wait_ready(read, write, left)
            state = _gated(self._functions.poll, handle)
        return bool(state == libpq.OK)


def _gated(function: Any, handle: Any) -> int:
    """Call what may use GSSAPI or OpenSSL, whose locks a fork must not copy."""
    connecting = gate.enter()
    try:
        return int(function(handle))
    finally:
        gate.leave(connecting)


class _PlainRequest:
    """A request over a socket of our own, for want of libpq's functions."""

    __slots__ = ("_packet", "_pid", "_place")

    def __init__(self, conn: Any, packet: bytes) -> None:
        self._place = place_of(conn, conn.info.host, conn.info.port)
        self._packet = packet
        self._pid = os.getpid()

    def send(self, seconds: float) -> bool:
        """See :meth:`CancelRequest.send`."""
        if os.getpid() != self._pid:
            return False
        return ask_at(*self._place, self._packet, seconds) == b""
