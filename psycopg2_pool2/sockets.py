"""What is done on sockets themselves: libpq's, and those that ask whether anybody answers."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

# A message that every server answers at once, by a letter: may TLS be used here?
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def shut_down(fd: int) -> None:
    """Shut a socket down under whoever is blocked on it, which then fails at once."""
    with twin_socket(fd) as twin:
        twin.shutdown(2)  # both ways


def cut_off(fd: int) -> None:
    """Put a dead socket in the place of this process's copy of one that it inherited."""
    import socket  # dear, and rarely needed

    here, there = socket.socketpair()
    with here:
        there.close()
        os.dup2(here.fileno(), fd, inheritable=False)


def twin_socket(fd: int) -> socket.socket:
    """Return a socket object for a descriptor that libpq owns; OSError if it is none."""
    import socket  # dear, and rarely needed

    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except Exception:
        # After an interruption the object may have been made: it closes the copy itself.
        os.close(copy)
        raise


def answers(host: str | None, address: str | None, port: int, seconds: float) -> bool:
    """Tell whether a server answers a new connection there: at an address or a Unix socket."""
    import socket  # dear, and rarely needed

    try:
        if address is None and host is None:
            return True  # libpq's own place, which it alone knows
        if address is None:
            path = f"{host}/.s.PGSQL.{port}"
            return _answers_at(socket.AF_UNIX, re.sub("^@", "\0", path), seconds)
        [[family, _, _, _, peer], *_] = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return _answers_at(family, peer, seconds)
    except OSError:
        return False


def peer_answers(fd: int, seconds: float) -> bool:
    """Tell whether a server answers a new connection where this one leads to; OSError if not."""
    with twin_socket(fd) as twin:
        return _answers_at(twin.family, twin.getpeername(), seconds)


def _answers_at(family: int, peer: Any, seconds: float) -> bool:
    import socket  # dear, and rarely needed

    with socket.socket(family, socket.SOCK_STREAM) as other:
        other.settimeout(seconds / 2)  # to connect, and to hear
        other.connect(peer)
        other.sendall(_SSL_REQUEST)
        return other.recv(1) != b""
