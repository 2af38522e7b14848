"""Whether anybody answers an attempt to connect that takes long.

psycopg2 connects in one call, which tells nothing before its end: a black hole
and a server with a slow login look the same, and libpq's ``connect_timeout``
cannot tell them apart either.  On Linux the socket of the attempt can be looked
at meanwhile by another thread.  It is known by a mark: a ``tcp_user_timeout`` of
its own, longer by some milliseconds than the one that is wanted, which libpq
sets before it connects.
"""

from __future__ import annotations

import itertools
import os
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .sockets import answers, bytes_received, tcp_info, twin_socket

if TYPE_CHECKING:
    import socket

CAN_LOOK = sys.platform == "linux"
"""Whether an attempt can be told from the others of the process."""
_MARKS = 1000
_marks = itertools.count()
_SIDE_QUESTION_TIMEOUT = 1.0
_ESTABLISHED = 1
_STATE = struct.Struct("B")  # the first field of the kernel's struct tcp_info


class SilenceWatch:
    """Looks whether a server has answered an attempt to connect.

    ``call_later`` has :meth:`look` called from another thread, after
    ``patience`` seconds, unless the attempt is over by then.  If nobody has
    answered, ``on_silence`` is called there; it may call :meth:`end_attempt`.
    """

    __slots__ = ("__weakref__", "_on_silence", "_place", "ended", "is_over", "mark")

    def __init__(
        self,
        place: tuple[str | None, str | None, int],
        user_timeout: int,
        on_silence: Callable[[SilenceWatch], object],
    ) -> None:
        self._place = place
        self._on_silence = on_silence
        #: The attempt's ``tcp_user_timeout``, in milliseconds.
        self.mark = user_timeout + next(_marks) % _MARKS
        self.is_over = False
        self.ended = False  # the attempt, by us

    def look(self) -> None:
        """Call ``on_silence`` if nobody has answered yet, or been asked."""
        if not self.is_over and self._is_silent():
            self._on_silence(self)

    def end_attempt(self) -> None:
        """Shut the attempt's socket down: it fails at once."""
        found = _find(self.mark)
        if found is None:
            return
        with found:
            if not bytes_received(found):  # else it has answered at the last moment
                self.ended = True
                found.shutdown(2)  # both ways

    def _is_silent(self) -> bool:
        found = _find(self.mark)
        if found is None:
            # A callback of the program has not said yet where to connect; or it has just ended.
            return not self.is_over
        with found:
            if bytes_received(found):
                return False
            if not _is_established(found):
                return True
        # Without TLS it is for the server to speak only after it has read who wants to log in.
        return not answers(*self._place, _SIDE_QUESTION_TIMEOUT)


def _find(mark: int) -> socket.socket | None:
    """Return a copy of the socket with this mark.

    The mark is read from a copy: the number may become another file's at any time.
    """
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return None  # no descriptor is left
    for name in names:
        try:
            copy = twin_socket(int(name))
        except OSError:
            continue  # no socket, or closed meanwhile
        if _user_timeout(copy) == mark:
            return copy
        copy.close()
    return None


def _user_timeout(sock: socket.socket) -> int:
    import socket  # heavy, and rarely needed

    option: Any = getattr(socket, "TCP_USER_TIMEOUT", 18)
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, option)
    except OSError:
        return -1  # no TCP socket


def _is_established(sock: socket.socket) -> bool:
    return bool(_STATE.unpack_from(tcp_info(sock))[0] == _ESTABLISHED)
