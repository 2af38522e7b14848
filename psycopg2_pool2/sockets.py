"""What is done on sockets themselves: libpq's, and those that ask whether anybody answers."""

from __future__ import annotations

import math
import os
import re
import select
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .interruptions import let_through

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
    import socket  # expensive, and rarely needed

    try:
        if address is None and host is None:
            return True  # libpq's own place, which it alone knows
        if address is None:
            return bool(ask_at(socket.AF_UNIX, _socket_path(host, port), _SSL_REQUEST, seconds))
        [[family, _, _, _, peer], *_] = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        return bool(ask_at(family, peer, _SSL_REQUEST, seconds))
    except OSError as error:
        let_through(error)
        return False


def place_of(fd: int, host: str, port: int) -> tuple[int, Any]:
    """Return the family and the address that a new connection needs to get where this one leads.

    ``host`` and ``port`` are libpq's: a server may know its Unix socket by
    another path.
    """
    import socket  # expensive, and rarely needed

    with twin_socket(fd) as twin:
        if twin.family == socket.AF_UNIX:
            return twin.family, _socket_path(host, port)
        return twin.family, twin.getpeername()


def ask_at(family: int, peer: Any, message: bytes, seconds: float) -> bytes:
    """Send a message over a new connection; return the first byte of the answer, if any.

    Blocks for at most ``seconds``; raises OSError.
    """
    import socket  # expensive, and rarely needed

    with socket.socket(family, socket.SOCK_STREAM) as other:
        other.settimeout(seconds / 2)  # to connect, and to hear
        other.connect(peer)
        other.sendall(message)
        return other.recv(1)


def wait_ready(read: Sequence[int], write: Sequence[int], seconds: float | None) -> None:
    """Wait until a descriptor can be read or written, at most ``seconds``; cooperatively.

    The functions are looked up at every call: gevent and eventlet replace or
    remove them.
    """
    if not hasattr(select, "poll"):
        select.select(read, write, (), seconds)
        return
    poller = select.poll()  # select fails for descriptors above 1023
    for fd in read:
        poller.register(fd, select.POLLIN)
    for fd in write:
        poller.register(fd, select.POLLOUT)
    # More milliseconds than fit into 32 bits are refused.
    poller.poll(None if seconds is None else math.ceil(min(seconds, 86_400.0) * 1000))


def _socket_path(host: str | None, port: int) -> str:
    """Return the address of a Unix socket; an abstract one begins with ``@`` for libpq."""
    return re.sub("^@", "\0", f"{host}/.s.PGSQL.{port}")
