"""What a server sends without an end, where a short answer is expected.

libpq keeps every notice in memory until the answer is complete, and hands none
over before.  A server, or something in its place, that sends notices for as long
as a test may take would fill the memory of the process.
"""

from __future__ import annotations

from typing import Any

import psycopg2

from .failure_kinds import FailureKind
from .interruptions import suppress
from .sockets import bytes_received, socket_of

MOST_BYTES = 32 * 2**20
"""What the answer to a test or a clean-up may take."""
LOOK_EVERY = 0.1
"""Seconds: at a gigabit a second another 12 MB come until the next look."""


class FloodError(psycopg2.OperationalError):
    """The server sent too much where a short answer was expected."""

    pool_failure_kind = FailureKind.CUT

    def __init__(self) -> None:
        super().__init__(
            f"the server sent more than {MOST_BYTES >> 20} MB where a short answer was expected,"
            " and the connection was closed"
        )


class Meter:
    """Counts what a connection receives from now on; nothing on a Unix socket."""

    __slots__ = ("_conn", "_start")

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._start = self._received()

    def is_flooded(self) -> bool:
        """Tell whether it was more than :data:`MOST_BYTES`."""
        return self._received() - self._start > MOST_BYTES

    def _received(self) -> int:
        # It may be closed, or no descriptor be left, not even to read the module of sockets.
        with suppress(OSError, psycopg2.Error, ImportError), socket_of(self._conn) as sock:
            return bytes_received(sock)
        return 0
