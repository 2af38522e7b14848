"""A server that speaks just enough of PostgreSQL's protocol to say what it likes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_SSL, _GSS = 80877103, 80877104


class RudeServer:
    """Answers on a port of its own with one text: as an error, a notice, a parameter.

    Without `greets` it refuses every client with that text; else it accepts every client, reports
    the text as its version, and answers each statement with a notice and an error; with `floods`,
    with notices only, for as long as the client takes them. One thread for each client.
    """

    def __init__(self, text: str, greets: bool, floods: bool = False) -> None:
        self._text = text.encode()
        self._greets = greets
        self._floods = floods
        #: How many bytes of notices it has sent to each of the clients that hung up on it.
        self.floods_sent: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def dsn(self) -> str:
        """Where it is, for an imaginary user."""
        port = self._listener.getsockname()[1]
        return f"host=127.0.0.1 port={port} user=u dbname=d connect_timeout=5"

    def close(self) -> None:
        """End all connections, and the threads that serve them."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._clients.append(client)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), client.makefile("rb") as stream:
            while True:
                head = stream.read(8)
                if len(head) < 8:
                    return
                length, code = struct.unpack("!ii", head)
                stream.read(length - 8)
                if code not in (_SSL, _GSS):
                    break
                client.sendall(b"N")
            if not self._greets:
                client.sendall(self._report(b"E", b"FATAL", b"XX000"))
                return
            client.sendall(self._greeting())
            while (kind := stream.read(1)) not in (b"", b"X"):
                (length,) = struct.unpack("!i", stream.read(4))
                stream.read(length - 4)
                if kind == b"Q":
                    notice = self._report(b"N", b"NOTICE", b"00000")
                    if self._floods:
                        self._flood(client, notice * 50)
                    error = self._report(b"E", b"ERROR", b"XX000")
                    client.sendall(notice + error + _message(b"Z", b"I"))

    def _flood(self, client: socket.socket, notices: bytes) -> None:
        sent = 0
        try:
            while True:
                client.sendall(notices)
                sent += len(notices)
        finally:
            self.floods_sent.append(sent)

    def _greeting(self) -> bytes:
        parameters = {
            b"server_version": self._text,
            b"client_encoding": b"UTF8",
            b"DateStyle": b"ISO, MDY",
            b"standard_conforming_strings": b"on",
        }
        told = [_message(b"S", name + b"\0" + is_ + b"\0") for name, is_ in parameters.items()]
        ready = _message(b"K", struct.pack("!ii", 1, 1)) + _message(b"Z", b"I")
        return _message(b"R", struct.pack("!i", 0)) + b"".join(told) + ready

    def _report(self, kind: bytes, severity: bytes, state: bytes) -> bytes:
        fields = {b"S": severity, b"V": severity, b"C": state, b"M": self._text, b"D": self._text}
        return _message(kind, b"".join(k + v + b"\0" for k, v in fields.items()) + b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@contextlib.contextmanager
def rude_server(text: str, *, greets: bool, floods: bool = False) -> Iterator[RudeServer]:
    """Make one, and close it at the end of the block."""
    server = RudeServer(text, greets, floods)
    try:
        yield server
    finally:
        server.close()
