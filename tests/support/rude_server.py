"""A small server that speaks PostgreSQL's protocol, and is as rude as a test wants it to be.

    def decide(login: Login) -> Reply:
        if login.number == 1:
            return Refuse("57P03", "the database system is starting up")
        return Accept()

    with RudeServer(decide) as rude:
        psycopg2.connect(**rude.params)

It is for what a real server cannot be brought to say. It knows the simple query protocol only, and
of a statement only its first word. `decide` and `on_statement` may be replaced while it runs; what
they return counts from the next login or statement on.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psycopg2_pool2.contrib.embedded.endpoint import Endpoint

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_LONGEST_PACKET = 1_000_000
_TLS_HANDSHAKE = b"\x16"
_INTEGER, _TEXT = 23, 25
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_PARAMETERS: Mapping[str, str] = {
    "server_version": "17.0",
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "in_hot_standby": "off",
    "default_transaction_read_only": "off",
}


@dataclass(frozen=True)
class Login:
    """A startup packet; `number` counts them from 1, `parameters` are all that it holds.

    `alpn` is the protocol that TLS was told, None without.
    """

    number: int
    user: str
    database: str
    parameters: Mapping[str, str]
    in_tls: bool
    alpn: str | None


@dataclass(frozen=True)
class Refuse:
    """Send an ErrorResponse, and end the session unless a statement gets the severity ERROR."""

    sqlstate: str
    message: str
    severity: str = "FATAL"
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Accept:
    """Log in and serve; `parameters` are reported beside the usual ones, or instead of them."""

    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds, then something else."""

    seconds: float
    then: Reply


@dataclass(frozen=True)
class AskPassword:
    """Ask for a password in clear text, take any, then do something else."""

    then: Reply


@dataclass(frozen=True)
class Send:
    """Send bytes, one each `pause` seconds unless that is zero; then do something else."""

    data: bytes
    then: Reply
    pause: float = 0.0


@dataclass(frozen=True)
class Hang:
    """Say nothing until the client leaves, or the server cuts it."""


@dataclass(frozen=True)
class Close:
    """Close the connection without a word: by a FIN, or by a RST."""

    reset: bool = False


Reply = Refuse | Accept | Wait | AskPassword | Send | Hang | Close
Decide = Callable[[Login], Reply]
OnStatement = Callable[[str], Reply | str | None]
"""What a statement gets: a text is a row of one column; None and Accept are the usual answer."""


class RudeServer(Endpoint):
    """Listens on a loopback address, or on a Unix socket if `host` is a folder or begins with "@".

    With `tls` an SSLRequest is answered by S and TLS, and TLS may also begin at once; else by N.
    `accepted` counts connections, `logins` startup packets, `ssl_requests` and `cancels` what they
    say; `statements` are those that came, in order; `server_names` those that clients named to TLS.
    """

    def __init__(
        self,
        decide: Decide = lambda login: Accept(),
        *,
        on_statement: OnStatement = lambda statement: None,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.decide = decide
        self.on_statement = on_statement
        self.host = host
        self.tls = tls
        self.closing = threading.Event()
        self.accepted = self.logins = self.ssl_requests = self.cancels = 0
        self.statements: list[str] = []
        self.server_names: list[str | None] = []
        if tls is not None:
            tls.sni_callback = lambda _, name, __: self.server_names.append(name)
        self._lock = threading.Lock()
        self._sessions: set[_Session] = set()
        self._path: Path | None = None
        self._listener, self.port = self._listen(port)
        self._thread = threading.Thread(target=self._run, name=f"rude-{self.port}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<RudeServer {self.host}:{self.port}>"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        with self._lock:
            return len(self._sessions)

    def cut(self) -> int:
        """Cut the connections there are; new ones are accepted. Return how many."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.cut()
        return len(sessions)

    def send(self, data: bytes) -> None:
        """Send bytes that nobody asked for on each connection."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.send(data)

    def close(self) -> None:
        """Cut everything and wait for the threads to end. Harmless when repeated."""
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._thread.join(10)
        assert not self._thread.is_alive(), self._thread
        self._listener.close()
        self._end_sessions()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def count(self, name: str) -> int:
        """Add one to a counter and return it."""
        with self._lock:
            number = int(getattr(self, name)) + 1
            setattr(self, name, number)
            return number

    def forget(self, session: _Session) -> None:
        """Take note that a session has ended."""
        with self._lock:
            self._sessions.discard(session)

    # Below

    def _listen(self, port: int) -> tuple[socket.socket, int]:
        if not self.host.startswith(("/", "@")):
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            listener = socket.create_server((self.host, port), family=family, backlog=256)
            return listener, listener.getsockname()[1]
        port = port or 5432
        path = f"{self.host}/.s.PGSQL.{port}"
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(re.sub("^@", "\0", path))
            listener.listen(256)
        except BaseException:
            listener.close()
            raise
        if self.host.startswith("/"):
            self._path = Path(path)
        return listener, port

    def _run(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.count("accepted")
            session = _Session(self, client)
            with self._lock:
                self._sessions.add(session)
            session.thread.start()

    def _end_sessions(self) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.cut()
            session.thread.join(10)
            assert not session.thread.is_alive(), session.thread


class _Ended(Exception):
    """The session is over."""


class _Session:
    """One connection and its thread."""

    def __init__(self, server: RudeServer, client: socket.socket) -> None:
        self.thread = threading.Thread(
            target=self._run, name=f"rude-{server.port}-session", daemon=True
        )
        self._server = server
        self._client = client
        self._parameters = dict(_PARAMETERS)
        self._state = b"I"
        self._logged_in = False

    def cut(self) -> None:
        """Shut the connection down under the thread, which then ends."""
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send bytes, whatever the thread does."""
        self._client.sendall(data)

    def _run(self) -> None:
        try:
            self._begin()
        except (OSError, EOFError, _Ended):
            pass
        finally:
            self._server.forget(self)
            self._client.close()

    # The login

    def _begin(self) -> None:
        if self._client.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE and self._server.tls:
            self._start_tls(self._server.tls)
        while (packet := self._startup_packet()) is None:
            pass
        words = [word.decode(errors="replace") for word in packet.split(b"\0")]
        parameters = dict(zip(words[::2], words[1::2], strict=False))
        parameters.pop("", None)
        user = parameters.get("user", "")
        encrypted = self._client if isinstance(self._client, ssl.SSLSocket) else None
        login = Login(
            self._server.count("logins"),
            user,
            parameters.get("database", user),
            parameters,
            encrypted is not None,
            encrypted.selected_alpn_protocol() if encrypted else None,
        )
        self._give(self._server.decide(login))

    def _startup_packet(self) -> bytes | None:
        """Return the packet behind its version; None if it was a request, which is answered."""
        size, code = struct.unpack("!iI", self._read(8))
        if not 8 <= size <= _LONGEST_PACKET:
            raise _Ended
        rest = self._read(size - 8)
        if code == _CANCEL_REQUEST:
            self._server.count("cancels")
            raise _Ended
        if code == _SSL_REQUEST:
            self._server.count("ssl_requests")
            self._client.sendall(b"S" if self._server.tls else b"N")
            if self._server.tls:
                self._start_tls(self._server.tls)
        elif code == _GSS_REQUEST:
            self._client.sendall(b"N")
        else:
            return rest
        return None

    def _start_tls(self, context: ssl.SSLContext) -> None:
        # Not in the constructor: `cut` has to find the socket during the handshake too.
        self._client = client = context.wrap_socket(
            self._client, server_side=True, do_handshake_on_connect=False
        )
        client.do_handshake()

    def _accept(self, parameters: Mapping[str, str]) -> None:
        self._logged_in = True
        self._parameters.update(parameters)
        reports = (
            message(b"S", _text(name) + _text(value)) for name, value in self._parameters.items()
        )
        key = message(b"K", struct.pack("!ii", 1, 1))
        self._client.sendall(
            message(b"R", struct.pack("!i", 0)) + b"".join(reports) + key + self._ready()
        )
        while True:
            kind, body = self._read_message()
            if kind == b"X":
                raise _Ended
            if kind == b"Q":
                self._answer(body[:-1].decode(errors="replace"))

    # Statements

    def _answer(self, statement: str) -> None:
        self._server.statements.append(statement)
        answer = self._server.on_statement(statement)
        if isinstance(answer, str):
            self._client.sendall(_row(_TEXT, answer) + self._ready())
        elif answer is None:
            self._answer_as_usual(statement)
        else:
            self._give(answer, statement)

    def _answer_as_usual(self, statement: str) -> None:
        first, _, rest = statement.strip().rstrip(";").partition(" ")
        word = first.upper()
        if word in ("BEGIN", "START"):
            self._state = b"T"
        elif word in ("COMMIT", "ROLLBACK", "ABORT", "END"):
            self._state = b"I"
        if word == "SELECT":
            answer = _row(_INTEGER, "1")
        elif word == "SHOW":
            answer = _row(_TEXT, self._parameters.get(rest.strip(), "off"))
        else:
            answer = message(b"C", _text(word)) if word else message(b"I", b"")
        self._client.sendall(answer + self._ready())

    def _ready(self) -> bytes:
        return message(b"Z", self._state)

    # Replies

    def _give(self, reply: Reply, statement: str | None = None) -> None:
        """Do what was decided; `statement` is what it answers, None for a login."""
        while isinstance(reply, Wait | AskPassword | Send):
            self._prelude(reply)
            reply = reply.then
        match reply:
            case Accept(parameters) if statement is None:
                self._accept(parameters)
            case Accept():
                self._answer_as_usual(statement or "")
            case Refuse():
                self._refuse(reply)
            case Hang() | Close():
                self._leave(reply)

    def _leave(self, reply: Hang | Close) -> None:
        if isinstance(reply, Hang):
            while self._client.recv(4096):
                pass
        elif reply.reset:
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        raise _Ended

    def _prelude(self, reply: Wait | AskPassword | Send) -> None:
        match reply:
            case Wait(seconds):
                self._pause(seconds)
            case AskPassword():
                self._client.sendall(message(b"R", struct.pack("!i", 3)))
                self._read_message()
            case Send(data, pause=0.0):
                self._client.sendall(data)
            case Send(data, pause=pause):
                for number in data:
                    self._client.sendall(bytes([number]))
                    self._pause(pause)

    def _refuse(self, refusal: Refuse) -> None:
        self._client.sendall(error_response(refusal))
        if refusal.severity != "ERROR" or not self._logged_in:
            raise _Ended
        if self._state == b"T":
            self._state = b"E"
        self._client.sendall(self._ready())

    def _pause(self, seconds: float) -> None:
        if self._server.closing.wait(seconds):
            raise _Ended

    # Bytes

    def _read_message(self) -> tuple[bytes, bytes]:
        kind, size = struct.unpack("!ci", self._read(5))
        return kind, self._read(size - 4)

    def _read(self, size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            chunk = self._client.recv(size - len(read))
            if not chunk:
                raise EOFError
            read += chunk
        return bytes(read)


def message(kind: bytes, body: bytes) -> bytes:
    """Return a message as it goes over the wire."""
    return kind + struct.pack("!i", len(body) + 4) + body


def error_response(refusal: Refuse) -> bytes:
    """Return the ErrorResponse for a refusal."""
    fields = {
        "S": refusal.severity,
        "V": "ERROR" if refusal.severity == "ERROR" else "FATAL",
        "C": refusal.sqlstate,
        "M": refusal.message,
    }
    body = b"".join(
        letter.encode() + value.encode(refusal.encoding) + b"\0" for letter, value in fields.items()
    )
    return message(b"E", body + b"\0")


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _row(kind: int, value: str) -> bytes:
    """Return a result of one row and one column."""
    raw = value.encode()
    column = b"value\0" + struct.pack("!ihihih", 0, 0, kind, -1, -1, 0)
    return (
        message(b"T", struct.pack("!h", 1) + column)
        + message(b"D", struct.pack("!hi", 1, len(raw)) + raw)
        + message(b"C", b"SELECT 1\0")
    )
