"""What is done on sockets themselves: libpq's, and those that ask whether anybody answers."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import select
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import connection

from .descriptors import SHORTAGE, identity
from .interruptions import let_through

if TYPE_CHECKING:
    import socket

# A message that every server answers at once, by a letter: may TLS be used here?
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)

# In the kernel's struct tcp_info: how many bytes have been received.
_RECEIVED = struct.Struct("Q")
_RECEIVED_AT = 128


def owns_socket(conn: Any) -> bool:
    """Tell whether the number of a connection's socket has not become another file's.

    True for one that is closed, and where its identity is not known.  Costs a
    system call, about a microsecond.
    """
    own = getattr(conn, "pool_socket", None)
    if type(own) is not tuple or conn.closed:  # a mock's is anything
        return True
    fd = -1
    try:
        # psycopg2's own: in a test's sandbox `fileno` is that of another connection.
        is_real = issubclass(type(conn), connection)  # which a proxy says of itself to isinstance
        fd = connection.fileno(conn) if is_real else conn.fileno()
        return bool(os.fstat(fd)[1:3] == own)  # as `identity` does, whose call would be a tenth
    except (OSError, psycopg2.Error) as error:
        let_through(error)
        return fd < 0  # libpq has closed it, and knows that


def shut_down(conn: Any) -> None:
    """Shut a connection's socket down under whoever is blocked on it, which then fails at once.

    Raises OSError, or what ``conn.fileno()`` raises, if there is no such socket.
    """
    with socket_of(conn) as sock:
        sock.shutdown(2)  # both ways


def cut_off(conn: Any) -> None:
    """Put a dead socket in the place of this process's copy of one that it inherited.

    Does nothing if the number is another file's by now.
    """
    if not owns_socket(conn) or (fd := conn.fileno()) < 0:
        return
    try:
        _put_dead_socket(fd)
    except (OSError, ImportError):  # no descriptor is left, not even to read a module
        # Closing says nothing to the server, and what has been closed leaves room for one.
        os.close(fd)
        _put_dead_file(fd)


def _put_dead_socket(fd: int) -> None:
    import socket  # heavy, and rarely needed

    here, there = socket.socketpair()
    with here:
        there.close()
        os.dup2(here.fileno(), fd, inheritable=False)


def _put_dead_file(fd: int) -> None:
    """Occupy a number that was closed just now; libpq fails at what is no socket."""
    dead = os.open(os.devnull, os.O_RDONLY)
    if dead != fd:
        try:
            os.dup2(dead, fd, inheritable=False)
        finally:
            os.close(dead)


@contextlib.contextmanager
def socket_of(conn: Any) -> Iterator[socket.socket]:
    """Lend a socket object for a connection's socket; OSError if there is none.

    It is a copy, which nobody can close meanwhile; or, while no descriptor is
    left for one, libpq's own.
    """
    try:
        sock = twin_of(conn)
    except OSError as error:
        if error.errno not in SHORTAGE or not owns_socket(conn):
            raise
    else:
        with sock:
            yield sock
        return
    import socket  # heavy, and rarely needed

    sock = socket.socket(fileno=conn.fileno())
    try:
        yield sock
    finally:
        sock.detach()


def twin_of(conn: Any) -> socket.socket:
    """Return a socket object for a copy of a connection's socket; OSError if there is none."""
    twin = twin_socket(conn.fileno())
    own = getattr(conn, "pool_socket", None)
    if own is not None and identity(twin.fileno()) != own:  # of the copy: that stays what it is
        twin.close()
        raise OSError(errno.EBADF, "the descriptor belongs to another socket")
    return twin


def twin_socket(fd: int) -> socket.socket:
    """Return a socket object for a descriptor that libpq owns; OSError if it is none."""
    import socket  # dear, and rarely needed

    # To close a copy of a file would give up the locks that the program has on it (fcntl).
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(errno.ENOTSOCK, "Socket operation on non-socket")
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except Exception as error:
        let_through(error)  # the object may have been made, and closes the copy itself
        os.close(copy)
        raise


def tcp_info(sock: socket.socket) -> bytes:
    """Return the beginning of the kernel's ``struct tcp_info``; OSError for another socket.

    Empty where there is none, as outside Linux.
    """
    import socket  # heavy, and rarely needed

    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return b""
    return sock.getsockopt(socket.IPPROTO_TCP, option, _RECEIVED_AT + _RECEIVED.size)


def bytes_received(sock: socket.socket) -> int:
    """Return how many bytes a TCP socket has received; 0 if that is not known."""
    info = tcp_info(sock)
    if len(info) < _RECEIVED_AT + _RECEIVED.size:
        return 0  # before Linux 4.1
    return int(_RECEIVED.unpack_from(info, _RECEIVED_AT)[0])


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


def place_of(conn: Any, host: str, port: int) -> tuple[int, Any]:
    """Return the family and the address that a new connection needs to get where this one leads.

    ``host`` and ``port`` are libpq's: a server may know its Unix socket by
    another path.
    """
    import socket  # expensive, and rarely needed

    with socket_of(conn) as sock:
        if sock.family == socket.AF_UNIX:
            return sock.family, _socket_path(host, port)
        return sock.family, sock.getpeername()


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
