"""Ask a server by the wire protocol whether it takes logins.

libpq tells a failed connect by a text only.  Where that text is not understood,
the server is asked again without libpq: its answer has a SQLSTATE, which is the
same in every language.  The source is PostgreSQL's documentation, "Frontend/Backend
Protocol".  Nothing here has state, and everything is thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .failure_kinds import FailureKind, of_sqlstate, recognise
from .interruptions import let_through, suppress
from .targets import effective, is_socket, numeric
from .timing import monotonic

if TYPE_CHECKING:
    import socket
    import ssl

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_VERSION_3 = struct.pack("!i", 196608)
_MOST_BYTES = 1 << 16
"""No server's first answer is so long; what sends more is no PostgreSQL."""
_LONGEST_ERROR = 30_000
"""A longer one is of the protocol before version 3, which has no length: so libpq tells them."""
# Where builds of libpq look for a Unix socket, if no host is given.
_SOCKET_FOLDERS = ("/var/run/postgresql", "/tmp")

_Way = Literal["plain", "tls", "direct"]
# What libpq tries, in its order.  It goes on to the second after any error.
_WAYS: Mapping[str, tuple[_Way, ...]] = {
    "disable": ("plain",),
    "allow": ("plain", "tls"),
    "prefer": ("tls", "plain"),
}


class Answer(NamedTuple):
    """What a server said to the first packet of a login.

    ``takes_logins`` is True if it wants to know more, such as a password, or
    nothing more: it is up.  Otherwise it refused: ``sqlstate`` and ``text`` are
    what it said, or None where it did not say them; the text is data, of any
    content.
    """

    takes_logins: bool
    sqlstate: str | None = None
    text: str | None = None

    @property
    def kind(self) -> FailureKind | None:
        """What a refusal means, None if the server takes logins.

        Known words go before the SQLSTATE, which many poolers do not choose.
        """
        if self.takes_logins:
            return None
        return recognise(f"FATAL:  {self.text}") or of_sqlstate(self.sqlstate or "")


def ask(
    parameters: Mapping[str, str],
    host: str | None,
    address: str | None,
    port: int,
    seconds: float,
    environ: Mapping[str, str] = os.environ,
) -> Answer:
    """Return what a server answers to a login with these parameters of libpq's.

    ``address`` is its IP address, and ``host`` its name if it has one; without an
    address, ``host`` is the folder of a Unix socket or an abstract one (``@...``),
    and None is libpq's own place.  The connection is made as libpq would make it:
    with TLS or without by ``sslmode`` and ``sslnegotiation``.  No password,
    certificate or ticket is sent.  The server's name is verified if ``sslmode``
    wants that, so that nobody else learns the user's; else nothing is.

    Blocks for at most ``seconds``, whatever the server does, and keeps no more
    than 64 KiB of what it sends.  The connection is closed without a word: a
    server with ``log_connections`` on logs one that never logged in.

    Raises :class:`TimeoutError` if the answer does not come in time, and another
    :class:`OSError`, such as a :class:`ConnectionError`, if nobody listens, if
    the connection breaks or if what comes is no answer of PostgreSQL;
    :class:`psycopg2.ProgrammingError` if the service file cannot be read.
    """
    deadline = monotonic() + seconds
    settings = _Settings(parameters, environ)
    target = _Target(host, address, port)
    said: list[Answer] = []
    failed: list[OSError] = []
    for way in settings.ways(encrypted=target.is_remote):
        try:
            said.append(_ask_by(way, settings, target, deadline))
        except OSError as error:
            let_through(error)
            failed.append(error)
        else:
            if not _depends_on_tls(said[-1]):
                break
    if not said:
        raise failed[0]
    return said[-1] if said[-1].takes_logins else said[0]


def _depends_on_tls(answer: Answer) -> bool:
    """Tell whether the other of TLS and plain text may be answered otherwise: by pg_hba.conf."""
    return not answer.takes_logins and (answer.sqlstate or "28").startswith("28")


class _Settings:
    """What libpq would use, of what matters here."""

    def __init__(self, parameters: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._parameters = parameters
        self._environ = environ
        system = self.get("sslrootcert") == "system"
        self.sslmode = self.get("sslmode") or ("verify-full" if system else "prefer")

    def get(self, name: str) -> str:
        """Return a parameter's value, "" for libpq's default."""
        return effective(self._parameters, name, self._environ) or ""

    def ways(self, *, encrypted: bool) -> tuple[_Way, ...]:
        """Return how to connect, in order; a Unix socket is never ``encrypted``."""
        if not encrypted:
            return ("plain",)
        if self.get("sslnegotiation") == "direct":
            return ("direct",)
        return _WAYS.get(self.sslmode, ("tls",))

    @property
    def needs_tls(self) -> bool:
        return self.sslmode not in _WAYS

    def startup_packet(self) -> bytes:
        """Return the packet that begins a login: the user, the database, and no secret."""
        user = self.get("user") or _system_user(self._environ)
        words = {
            "user": user,
            "database": self.get("dbname") or user,
            "options": self.get("options"),
            "application_name": self.get("application_name")
            or self.get("fallback_application_name"),
        }
        body = b"".join(
            _encoded(name) + b"\0" + _encoded(value) + b"\0"
            for name, value in words.items()
            if value
        )
        return struct.pack("!i", len(body) + 9) + _VERSION_3 + body + b"\0"

    def tls_context(self) -> ssl.SSLContext:
        """Return how to speak TLS; OSError if the root certificates cannot be read."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.set_alpn_protocols(["postgresql"])
        if not self.sslmode.startswith("verify-"):
            context.verify_mode = ssl.CERT_NONE
            return context
        context.check_hostname = self.sslmode == "verify-full" and self.names_server
        roots = self.get("sslrootcert")
        if roots == "system":
            context.load_default_certs()
        else:
            context.load_verify_locations(roots or _default_roots())
        return context

    @property
    def names_server(self) -> bool:
        """Whether TLS tells the name; Python cannot verify one without."""
        return self.get("sslsni") != "0"


def _encoded(text: str) -> bytes:
    # As psycopg2 does; a NUL would begin another parameter.
    return text.replace("\0", "").encode("utf-8", "surrogateescape")


def _system_user(environ: Mapping[str, str]) -> str:
    """Return the name of the process's user, as libpq finds it."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):  # Windows, and a user without an entry
        return environ.get("USERNAME", "")


def _default_roots() -> str:
    if sys.platform == "win32":
        return os.path.join(os.environ.get("APPDATA", ""), "postgresql", "root.crt")
    return os.path.expanduser("~/.postgresql/root.crt")


class _Target:
    """Where a server is; OSError if that cannot be told."""

    def __init__(self, host: str | None, address: str | None, port: int) -> None:
        import socket

        if address is None and host is not None and not is_socket(host):
            address = numeric(host)
            if address is None:
                raise OSError("a host name has to come with its address")
        if address is None and host is None and sys.platform == "win32":
            address = "127.0.0.1"
        self.name = host or address
        self.is_remote = address is not None
        self.peer: Any
        if address is None:
            path = f"{_socket_folder(port) if host is None else host}/.s.PGSQL.{port}"
            self.family, self.peer = socket.AF_UNIX, re.sub("^@", "\0", path)
        else:
            [[self.family, _, _, _, self.peer], *_] = socket.getaddrinfo(
                address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )


def _socket_folder(port: int) -> str:
    there = [f for f in _SOCKET_FOLDERS if os.path.exists(f"{f}/.s.PGSQL.{port}")]
    return (there or _SOCKET_FOLDERS)[0]


def _ask_by(way: _Way, settings: _Settings, target: _Target, deadline: float) -> Answer:
    """Ask in one way; OSError if nobody answers."""
    context = None if way == "plain" else settings.tls_context()
    with _line(target, deadline) as line:
        if way == "tls":
            line.send(_SSL_REQUEST)
            said = line.read(1)
            if said == b"E":
                return _parsed_error(line.read_error())
            if said not in (b"S", b"N"):
                raise _strange(said)
            if said == b"N":
                if settings.needs_tls:
                    return Answer(False, None, "server does not support SSL, but SSL was required")
                context = None
        if context is not None:
            refusal = line.start_tls(context, target.name if settings.names_server else None)
            if refusal is not None:
                return refusal
        line.send(settings.startup_packet())
        return _first_answer(line)


def _first_answer(line: _Line) -> Answer:
    """Read what a server says to a startup packet."""
    kind, body = line.read_message()
    while kind in b"vN":  # it negotiates the protocol's version, or warns
        kind, body = line.read_message()
    if kind == b"E":
        return _parsed_error(body)
    if kind != b"R" or len(body) < 4:
        raise _strange(kind)
    if body[:4] != b"\0\0\0\0":
        return Answer(takes_logins=True)
    # It wants no proof, and goes on by itself: perhaps there is no such database.
    with suppress(TimeoutError):  # as PgBouncer, which waits for its own server
        kind, body = line.read_message()
        if kind == b"E":
            return _parsed_error(body)
    return Answer(takes_logins=True)


def _parsed_error(body: bytes) -> Answer:
    """Return the answer that an error's fields, or its bare text, make."""
    if not body.endswith(b"\0\0"):
        return Answer(False, None, _decoded(body.rstrip(b"\0")) or None)
    fields = {field[:1]: field[1:] for field in body.split(b"\0") if field}
    sqlstate = fields.get(b"C", b"").decode("ascii", "replace")
    return Answer(
        False,
        sqlstate if re.fullmatch("[0-9A-Z]{5}", sqlstate) else None,
        _decoded(fields[b"M"]) if b"M" in fields else None,
    )


def _decoded(text: bytes) -> str:
    # Before the login a server writes in the encoding of its own locale.
    return text.decode("utf-8", "replace").strip()


def _strange(kind: bytes) -> ConnectionError:
    return ConnectionError(f"the answer is not PostgreSQL's: it begins with {kind!r}")


# -- the connection --------------------------------------------------------


class _Line:
    """A connection that is used until a deadline, and for so many bytes."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._room = _MOST_BYTES

    def close(self) -> None:
        self._connection.close()

    def connect(self, peer: Any) -> None:
        self._arm().connect(peer)

    def start_tls(self, context: ssl.SSLContext, name: str | None) -> Answer | None:
        """Go on in TLS; return why the server is not trusted, None if it is."""
        import ssl

        try:
            # The handshake by itself: its socket has to be closed whatever comes of it.
            self._connection = encrypted = context.wrap_socket(
                self._connection, server_hostname=name, do_handshake_on_connect=False
            )
            self._arm()
            encrypted.do_handshake()
        except ssl.SSLCertVerificationError as error:
            return Answer(False, None, f"certificate verify failed: {error.verify_message}")
        except ValueError as error:  # a name that no certificate can hold
            raise OSError(f"the server's name cannot be told to TLS: {error}") from None
        return None

    def send(self, data: bytes) -> None:
        self._arm().sendall(data)

    def read_message(self) -> tuple[bytes, bytes]:
        """Return the next message's kind and what it holds, whole."""
        kind = self.read(1)
        if kind == b"E":
            return kind, self.read_error()
        if kind not in b"RvNSKZ":
            raise _strange(kind)
        (size,) = struct.unpack("!i", self.read(4))
        if not 4 <= size <= _LONGEST_ERROR:
            raise _strange(kind)
        return kind, self.read(size - 4)

    def read_error(self) -> bytes:
        """Return what an error holds, of which the first byte was read."""
        head = self.read(4)
        (size,) = struct.unpack("!i", head)
        if 8 <= size <= _LONGEST_ERROR:
            return self.read(size - 4)
        text = bytearray(head)
        while b"\0" not in text:
            text += self._receive(self._room)
        return bytes(text[: text.index(0)])

    def read(self, size: int) -> bytes:
        """Return so many bytes; ConnectionError if the stream ends before."""
        read = bytearray()
        while len(read) < size:
            read += self._receive(size - len(read))
        return bytes(read)

    def _receive(self, most: int) -> bytes:
        most = min(most, self._room)
        if most <= 0:
            raise ConnectionError(f"the answer is longer than {_MOST_BYTES} bytes")
        chunk = self._arm().recv(most)
        if not chunk:
            raise ConnectionError("the server closed the connection without an answer")
        self._room -= len(chunk)
        return chunk

    def _arm(self) -> socket.socket:
        """Return the socket, whose next act ends at the deadline."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError("the server did not answer in time")
        self._connection.settimeout(left)
        return self._connection


@contextlib.contextmanager
def _line(target: _Target, deadline: float) -> Iterator[_Line]:
    import socket

    line = _Line(socket.socket(target.family, socket.SOCK_STREAM), deadline)
    try:
        line.connect(target.peer)
        yield line
    finally:
        line.close()
