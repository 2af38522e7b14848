"""A proxy whose machine can stop to take notice of packets: a black hole, as Linux can make one."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2_pool2.contrib.embedded import Server
from tests.support.proxy import HasFileno, Link, Proxy

# A classic BPF program of one instruction: drop the packet.
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27


class Droppable(Proxy):
    """A proxy whose machine can stop to take notice of packets: they are not acknowledged."""

    def drop(self, only: HasFileno | None = None) -> set[int]:
        """Ignore what the present connections send from now on, or just one client's.

        What comes from the server is still delivered, and new connections are served. Returns
        the ports of the clients.
        """
        return self._do(lambda: self._drop(self._chosen(only)))

    def drop_connects(self) -> None:
        """Ignore whoever wants to connect."""
        assert self._listener is not None
        listener = self._listener
        self._do(lambda: _ignore_packets(listener))

    def serve_connects(self) -> None:
        """Notice again who wants to connect."""
        assert self._listener is not None
        listener = self._listener
        self._do(lambda: listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0))

    def _drop(self, links: list[Link]) -> set[int]:
        _ignore_packets(*(link.client for link in links))
        return {link.client_address[1] for link in links}


def _ignore_packets(*socks: socket.socket) -> None:
    instructions = ctypes.create_string_buffer(_DROP_ALL)
    program = struct.pack("HL", 1, ctypes.addressof(instructions))
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


@contextmanager
def droppable(server: Server) -> Iterator[Droppable]:
    """Make a proxy before a server."""
    with Droppable((server.host, server.port)) as made:
        yield made
