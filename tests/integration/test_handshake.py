"""What a server answers to the first packet of a login, asked without libpq."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.handshake import Answer, ask
from tests.support.pgbouncer import MakePgBouncer
from tests.support.rude_server import (
    Accept,
    AskPassword,
    Close,
    Hang,
    Login,
    Refuse,
    Reply,
    RudeServer,
    Send,
    message,
)
from tests.support.servers import MakeServer
from tests.support.tls import (
    NAMES,
    WRONG_NAMES,
    Certificates,
    TlsServer,
    new_certificates,
    server_context,
)
from tests.support.waiting import wait_until

NOBODY: Mapping[str, str] = {}
"""No environment."""
LONG = 20.0
SHORT = 0.3
STARTING = Refuse("57P03", "das Datenbanksystem startet")
PLAIN: Mapping[str, Any] = {"sslmode": "disable"}


def ask_at(server: Any, seconds: float = LONG, /, **parameters: str) -> Answer:
    """Ask a server on TCP, or on a Unix socket."""
    remote = not server.host.startswith(("/", "@"))
    address = server.host if remote else None
    return ask(parameters, server.host, address, server.port, seconds, NOBODY)


def answered(reply: Reply, seconds: float = LONG, /, **parameters: str) -> Answer:
    """Ask a rude server that decides so."""
    with RudeServer(lambda login: reply) as rude:
        return ask_at(rude, seconds, **{**PLAIN, **parameters})


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    """Make a certificate for the usual names, and one for another."""
    with new_certificates() as made:
        made.issue("server", NAMES)
        made.issue("wrong", WRONG_NAMES)
        yield made


@pytest.fixture(scope="module")
def strangers() -> Iterator[Certificates]:
    """Make an authority that signed nothing."""
    with new_certificates() as made:
        yield made


class TestAnswers:
    def test_are_refusals_with_their_sqlstate(self) -> None:
        assert answered(STARTING) == Answer(False, "57P03", "das Datenbanksystem startet")

    @pytest.mark.parametrize("reply", [AskPassword(Hang()), AskPassword(STARTING), Accept()])
    def test_are_demands_for_a_password_and_welcomes(self, reply: Reply) -> None:
        assert answered(reply) == Answer(takes_logins=True)

    def test_are_what_follows_a_login_without_a_password(self) -> None:
        """As with `trust` in pg_hba.conf: the server looks for the database afterwards."""
        welcome = message(b"R", struct.pack("!i", 0))
        refusal = Refuse("3D000", "Datenbank existiert nicht")
        assert answered(Send(welcome, refusal)).sqlstate == "3D000"
        assert answered(Send(welcome, Hang()), SHORT).takes_logins
        with pytest.raises(ConnectionError):
            answered(Send(welcome, Close()))

    def test_may_come_after_a_negotiation_of_the_version(self) -> None:
        negotiation = message(b"v", struct.pack("!ii", 0, 0))
        assert answered(Send(negotiation, AskPassword(Hang()))).takes_logins
        assert answered(Send(negotiation, STARTING)).sqlstate == "57P03"

    def test_may_be_in_any_encoding(self) -> None:
        answer = answered(Refuse("57P03", "für", encoding="latin-1"))
        assert answer == Answer(False, "57P03", "f\N{REPLACEMENT CHARACTER}r")

    @pytest.mark.parametrize(
        ("reply", "kind"),
        [
            (STARTING, FailureKind.NOT_NOW),
            (Refuse("53300", "zu viele Verbindungen"), FailureKind.FULL),
            (Refuse("28P01", "falsches Passwort"), FailureKind.LOGIN),
            (Refuse("08P01", "no more connections allowed (max_client_conn)"), FailureKind.FULL),
            (Refuse("XX000", "Tenant or user not found"), FailureKind.LOGIN),
            (Refuse("XX000", "something new"), FailureKind.LOGIN),
            (Send(b"Ecould not fork new process\n\0", Close()), FailureKind.NOT_NOW),
            (Send(message(b"E", b"\0"), Close()), FailureKind.LOGIN),
            (AskPassword(Hang()), None),
        ],
    )
    def test_are_of_a_kind(self, reply: Reply, kind: FailureKind | None) -> None:
        assert answered(reply).kind is kind

    def test_may_have_no_fields_at_all(self) -> None:
        """As PostgreSQL's when it cannot fork."""
        assert answered(Send(b"Ecould not fork: x\n\0", Close())).text == "could not fork: x"
        assert answered(Send(message(b"E", b"\0"), Close())) == Answer(False)
        assert answered(Send(message(b"E", b"SFATAL\0\0"), Close())) == Answer(False)
        assert answered(Send(message(b"E", b"C???\0\0"), Close())).sqlstate is None

    def test_may_come_in_pieces(self) -> None:
        refusal = message(b"E", b"SFATAL\0C57P03\0Mx\0\0")
        assert answered(Send(refusal, Hang(), pause=0.001)).sqlstate == "57P03"


class TestNoAnswer:
    def test_is_silence_until_the_time_is_over(self) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            answered(Hang(), SHORT)
        assert time.monotonic() - began < LONG

    @pytest.mark.parametrize("data", [b"R", b"R\0\0\0\x08\0\0", b"E\0\0\0\x40SFATAL\0C57P03"])
    def test_is_half_an_answer(self, data: bytes) -> None:
        with pytest.raises(TimeoutError):
            answered(Send(data, Hang()), SHORT)
        with pytest.raises(ConnectionError):
            answered(Send(data, Close()))

    def test_is_one_that_trickles_in_for_longer_than_there_is_time(self) -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            answered(Send(message(b"R", b"\0" * 1000), Hang(), pause=0.05), SHORT)
        assert time.monotonic() - began < LONG

    @pytest.mark.parametrize("reset", [False, True])
    def test_is_a_closed_connection(self, reset: bool) -> None:
        with pytest.raises(ConnectionError):
            answered(Close(reset))

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"R\0\0\0\0",
            b"R\x7f\0\0\0",
            message(b"R", b""),
            message(b"Z", b"I"),
            b"v\x7f\0\0\0",
        ],
    )
    def test_is_garbage(self, data: bytes) -> None:
        with pytest.raises(ConnectionError, match="not PostgreSQL"):
            answered(Send(data, Hang()))

    def test_is_one_that_does_not_end(self) -> None:
        with pytest.raises(ConnectionError, match="longer"):
            answered(Send(b"E" + b"x" * 1_000_000, Hang()))
        negotiation = message(b"v", b"\0" * 8) * 100_000
        with pytest.raises(ConnectionError, match="longer"):
            answered(Send(negotiation, Hang()))

    def test_is_a_port_that_nobody_listens_at(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            ask({}, "x", "127.0.0.1", free_port(), LONG, NOBODY)

    def test_is_a_socket_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            ask({}, str(tmp_path), None, 5432, LONG, NOBODY)

    def test_is_a_name_without_an_address(self) -> None:
        with pytest.raises(OSError, match="address"):
            ask({}, "db.test", None, 5432, LONG, NOBODY)

    def test_is_a_time_that_is_over_before(self) -> None:
        with pytest.raises(TimeoutError):
            answered(STARTING, 0)

    def test_leaves_no_connection_open(self) -> None:
        with RudeServer(lambda login: Hang()) as rude:
            with pytest.raises(TimeoutError):
                ask_at(rude, SHORT, **PLAIN)
            wait_until(lambda: rude.connections == 0)


class TestStartupPacket:
    def test_says_what_libpq_says(self) -> None:
        seen: list[Mapping[str, str]] = []

        def decide(login: Login) -> Reply:
            seen.append(login.parameters)
            return STARTING

        with RudeServer(decide) as rude:
            given: dict[str, Any] = {"user": "u", "dbname": "d", "options": "-c geqo=off", **PLAIN}
            given["application_name"] = "a"
            ask_at(rude, **given, password="secret")
            with pytest.raises(psycopg2.OperationalError):
                psycopg2.connect(host=rude.host, port=rude.port, **given)
        assert seen[0] == seen[1]

    def test_has_libpq_s_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Login] = []

        def decide(login: Login) -> Reply:
            seen.append(login)
            return STARTING

        monkeypatch.delenv("PGUSER", raising=False)
        monkeypatch.delenv("PGDATABASE", raising=False)
        with RudeServer(decide) as rude:
            ask_at(rude, **PLAIN)
            with pytest.raises(psycopg2.OperationalError):
                psycopg2.connect(host=rude.host, port=rude.port, **PLAIN)
            ask(PLAIN, None, rude.host, rude.port, LONG, {"PGUSER": "u"})
        assert seen[0].user == seen[1].user == seen[0].database
        assert (seen[2].user, seen[2].database) == ("u", "u")

    def test_holds_no_secret(self) -> None:
        seen: list[Login] = []
        with RudeServer(lambda login: seen.append(login) or STARTING) as rude:  # type: ignore[func-returns-value]
            secrets = {"password": "secret1", "sslpassword": "secret2", "passfile": "secret3"}
            ask_at(rude, **PLAIN, **secrets)
        assert "secret" not in repr(seen)


class TestUnixSockets:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_are_asked_without_tls(self, tmp_path: Path, abstract: bool) -> None:
        host = f"@handshake-{os.getpid()}" if abstract else str(tmp_path)
        with RudeServer(lambda login: STARTING, host=host) as rude:
            assert ask_at(rude, sslmode="require").sqlstate == "57P03"
            assert rude.ssl_requests == 0


class TestTls:
    @pytest.mark.parametrize("sslmode", ["prefer", "require", ""])
    def test_is_used_unverified_where_the_connection_uses_it(
        self, certificates: Certificates, sslmode: str
    ) -> None:
        seen: list[Login] = []

        def decide(login: Login) -> Reply:
            seen.append(login)
            return STARTING

        with RudeServer(decide, tls=server_context(certificates, "wrong")) as rude:
            assert ask_at(rude, sslmode=sslmode).sqlstate == "57P03"
            assert rude.ssl_requests == 1
        assert [login.in_tls for login in seen] == [True]

    @pytest.mark.parametrize("sslmode", ["disable", "allow"])
    def test_is_not_used_where_it_is_not(self, certificates: Certificates, sslmode: str) -> None:
        with RudeServer(lambda login: STARTING, tls=server_context(certificates)) as rude:
            assert ask_at(rude, sslmode=sslmode).sqlstate == "57P03"
            assert rude.ssl_requests == 0

    def test_is_done_without_where_it_is_only_preferred(self) -> None:
        with RudeServer(lambda login: STARTING) as rude:
            assert ask_at(rude, sslmode="prefer").sqlstate == "57P03"
            assert (rude.ssl_requests, rude.accepted) == (1, 1)

    @pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
    def test_is_told_to_be_missing_where_it_is_needed(
        self, certificates: Certificates, sslmode: str
    ) -> None:
        with RudeServer(lambda login: STARTING) as rude:
            answer = ask_at(rude, sslmode=sslmode, sslrootcert=str(certificates.ca))
            assert answer == Answer(
                False, None, "server does not support SSL, but SSL was required"
            )
            assert rude.logins == 0

    @pytest.mark.parametrize(("sslmode", "first"), [("prefer", True), ("allow", False)])
    def test_and_plain_text_are_both_tried_if_the_first_is_forbidden(
        self, certificates: Certificates, sslmode: str, first: bool
    ) -> None:
        def decide(login: Login) -> Reply:
            forbidden = Refuse("28000", "kein Eintrag in pg_hba.conf")
            return forbidden if login.in_tls is first else AskPassword(Hang())

        with RudeServer(decide, tls=server_context(certificates)) as rude:
            assert ask_at(rude, sslmode=sslmode).takes_logins
            rude.decide = lambda login: Refuse("28000", "TLS" if login.in_tls else "plain")
            assert ask_at(rude, sslmode=sslmode).text == ("TLS" if first else "plain")

    def test_tells_the_server_s_name(self, certificates: Certificates) -> None:
        with RudeServer(lambda login: STARTING, tls=server_context(certificates)) as rude:
            for host, options in (
                ("db.test", {}),
                ("db.test", {"sslsni": "0"}),
                (rude.host, {}),
            ):
                ask(options, host, rude.host, rude.port, LONG, NOBODY)
            assert rude.server_names == ["db.test", None, None]

    def test_may_begin_at_once(self, certificates: Certificates) -> None:
        seen: list[Login] = []

        def decide(login: Login) -> Reply:
            seen.append(login)
            return STARTING

        with RudeServer(decide, tls=server_context(certificates)) as rude:
            answer = ask_at(rude, sslmode="require", sslnegotiation="direct")
            assert answer.sqlstate == "57P03"
            assert rude.ssl_requests == 0
        assert [login.alpn for login in seen] == ["postgresql"]

    def test_hangs_no_longer_than_told(self) -> None:
        """A server that answers S and then says nothing."""
        with RudeServer() as rude:
            rude.tls = _SilentContext()  # type: ignore[assignment]
            with pytest.raises(TimeoutError):
                ask_at(rude, SHORT, sslmode="require")

    def test_to_a_server_that_does_not_speak_it_is_no_answer(self) -> None:
        garbage = Send(b"HTTP/1.1 400 Bad Request\r\n\r\n", Hang())
        with RudeServer(lambda login: garbage) as rude, pytest.raises(OSError, match=r"."):
            ask_at(rude, 1.0, sslmode="require", sslnegotiation="direct")

    @pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
    def test_is_verified_before_the_user_is_named(
        self, certificates: Certificates, strangers: Certificates, sslmode: str
    ) -> None:
        with RudeServer(lambda login: STARTING, tls=server_context(certificates)) as rude:
            roots = {"sslmode": sslmode, "sslrootcert": str(certificates.ca)}
            assert ask(roots, "db.test", rude.host, rude.port, LONG, NOBODY).sqlstate == "57P03"
            roots["sslrootcert"] = str(strangers.ca)
            answer = ask(roots, "db.test", rude.host, rude.port, LONG, NOBODY)
            assert "certificate verify failed" in (answer.text or "")
            assert rude.logins == 1

    def test_is_verified_by_name_only_where_that_is_wanted(
        self, certificates: Certificates
    ) -> None:
        with RudeServer(lambda login: STARTING, tls=server_context(certificates, "wrong")) as rude:
            roots = {"sslmode": "verify-ca", "sslrootcert": str(certificates.ca)}
            assert ask(roots, "db.test", rude.host, rude.port, LONG, NOBODY).sqlstate == "57P03"
            roots["sslmode"] = "verify-full"
            assert not ask(roots, "db.test", rude.host, rude.port, LONG, NOBODY).sqlstate

    def test_needs_the_file_of_root_certificates_to_verify(self, tmp_path: Path) -> None:
        missing = {"sslmode": "verify-ca", "sslrootcert": str(tmp_path / "missing")}
        with RudeServer(lambda login: STARTING) as rude, pytest.raises(FileNotFoundError):
            ask_at(rude, **missing)


class _SilentContext:
    """Stands for a TLS that never begins."""

    def wrap_socket(self, client: Any, **_: Any) -> Any:
        while client.recv(4096):
            pass
        raise EOFError


class TestPostgres:
    def test_takes_logins(self, server: Server) -> None:
        assert ask_at(server, **PLAIN, user="postgres") == Answer(takes_logins=True)
        assert ask_at(server, user="postgres") == Answer(takes_logins=True)
        unix = ask({"user": "postgres"}, server.socket_dir, None, server.port, LONG, NOBODY)
        assert unix == Answer(takes_logins=True)

    def test_refuses_what_it_does_not_have(self) -> None:
        hba = ["host all missing 127.0.0.0/8 trust", "host missing all 127.0.0.0/8 trust"]
        with Server.create(hba=hba) as made:
            answer = ask_at(made, **PLAIN, user="postgres", dbname="missing")
            assert answer == Answer(False, "3D000", 'database "missing" does not exist')
            assert ask_at(made, **PLAIN, user="missing").sqlstate == "28000"

    def test_asks_for_a_password_before_it_refuses(self) -> None:
        with Server.create(hba=["host all all 127.0.0.0/8 scram-sha-256"]) as guarded:
            assert ask_at(guarded, user="missing", dbname="missing").takes_logins
            mark = guarded.mark()
            assert ask_at(guarded, user="postgres").takes_logins
            assert "password authentication failed" not in guarded.log_text(mark)

    def test_is_full(self, make_server: MakeServer) -> None:
        small = make_server(max_connections=4, superuser_reserved_connections=1)
        sessions = [psycopg2.connect(**small.params) for _ in range(4)]
        try:
            answer = wait_until(lambda: ask_at(small, **PLAIN, user="postgres"))
            assert answer.sqlstate == "53300"
        finally:
            for session in sessions:
                session.close()

    def test_is_stopping(self, make_server: MakeServer) -> None:
        stopping = make_server()
        session = psycopg2.connect(**stopping.params)
        try:
            assert stopping.pid is not None
            os.kill(stopping.pid, signal.SIGTERM)  # it waits for the session
            answer = wait_until(lambda: _refusal(ask_at(stopping, **PLAIN, user="postgres")))
            assert answer == Answer(False, "57P03", "the database system is shutting down")
        finally:
            session.close()

    def test_shows_no_error_in_its_log(self, fresh_server: Server) -> None:
        mark = fresh_server.mark()
        assert ask_at(fresh_server, user="postgres").takes_logins
        fresh_server.execute("SELECT 1")
        assert "FATAL" not in fresh_server.log_text(mark)
        assert "ERROR" not in fresh_server.log_text(mark)


def _refusal(answer: Answer) -> Answer | None:
    return None if answer.takes_logins else answer


class TestDebianPostgres:
    """With TLS."""

    @pytest.mark.parametrize("sslmode", ["disable", "allow", "prefer", "require", "verify-full"])
    def test_takes_logins(self, tls_server: TlsServer, sslmode: str) -> None:
        roots = str(tls_server.certificates.ca)
        answer = ask_at(tls_server, sslmode=sslmode, sslrootcert=roots, user="postgres")
        assert answer == Answer(takes_logins=True)

    def test_refuses_what_it_does_not_have(self, tls_server: TlsServer) -> None:
        answer = ask_at(tls_server, sslmode="require", user="postgres", dbname="missing")
        assert answer == Answer(takes_logins=True), "it asks for the password first"


class TestPgBouncer:
    def test_takes_logins(self, pgbouncer: MakePgBouncer) -> None:
        assert ask_at(pgbouncer(), user="postgres", dbname="postgres").takes_logins

    def test_refuses_options(self, pgbouncer: MakePgBouncer) -> None:
        answer = ask_at(pgbouncer(), user="postgres", options="-c work_mem=1MB")
        assert (answer.takes_logins, answer.sqlstate) == (False, "08P01")
        assert "unsupported startup parameter" in (answer.text or "")

    def test_is_full(self, pgbouncer: MakePgBouncer) -> None:
        bouncer = pgbouncer(max_client_conn=1)
        session = psycopg2.connect(**bouncer.params)
        try:
            answer = ask_at(bouncer, user="postgres")
            assert answer.text == "no more connections allowed (max_client_conn)"
        finally:
            session.close()
