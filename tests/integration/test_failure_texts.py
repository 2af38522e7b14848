"""What psycopg2 says of a failed connect, and what is made of it: real texts, German ones too."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.embedded.folders import new_folder
from psycopg2_pool2.failure_kinds import (
    FailureKind,
    is_answer,
    never_connected,
    recognise,
)
from psycopg2_pool2.handshake import Answer, ask
from tests.support.german import GermanServer, Latin1Server, new_german_server
from tests.support.rude_server import Accept, RudeServer, Send, error_response
from tests.support.rude_server import Close as CloseConnection
from tests.support.rude_server import Refuse as RefuseLogin
from tests.support.tls import NAMES, WRONG_NAMES, Certificates, new_certificates, server_context
from tests.support.waiting import wait_until

LONG = 20.0
HBA = (
    "host all guarded 127.0.0.0/8 scram-sha-256",
    "host forbidden all 127.0.0.0/8 reject",
    "host all few,missing,usual 127.0.0.0/8 trust",  # so that they are refused without a password
)
ROLES = (
    "CREATE ROLE guarded LOGIN PASSWORD 'right'",
    "CREATE ROLE few LOGIN CONNECTION LIMIT 0",
    "CREATE ROLE usual LOGIN",
)


def failure(params: Mapping[str, Any]) -> tuple[str, psycopg2.Error | None]:
    """Return the text of a failed connect, and the error; psycopg2 cannot make it of Latin-1."""
    try:
        psycopg2.connect(**params).close()
    except psycopg2.Error as error:
        return str(error), error
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "replace"), None
    return "", None


def failed(params: Mapping[str, Any]) -> tuple[str, psycopg2.Error | None]:
    """Return the same, where a connect has to fail."""
    text, error = failure(params)
    assert text
    return text, error


def connected(params: Mapping[str, Any]) -> Any:
    """Return a connection, as soon as there is room for one."""

    def connect() -> Any:
        with contextlib.suppress(psycopg2.Error, UnicodeDecodeError):
            return psycopg2.connect(**params)

    return wait_until(connect)


def ask_server(server: Server, **parameters: str) -> Answer:
    params = {name: str(value) for name, value in {**server.params, **parameters}.items()}
    return ask(params, server.host, server.host, server.port, LONG, {})


@pytest.fixture(scope="module", params=[GermanServer, Latin1Server])
def german(request: pytest.FixtureRequest) -> Iterator[GermanServer]:
    """Share a server that speaks German, in UTF-8 and in Latin-1."""
    kind: type[GermanServer] = request.param
    with new_german_server(kind, HBA) as server:
        for statement in ROLES:
            server.execute(statement)
        yield server


@pytest.fixture(params=[GermanServer, Latin1Server])
def small(request: pytest.FixtureRequest) -> Iterator[GermanServer]:
    """Make a German server that has room for few."""
    kind: type[GermanServer] = request.param
    with new_german_server(
        kind, HBA, max_connections=4, superuser_reserved_connections=1
    ) as server:
        server.execute("CREATE ROLE usual LOGIN")
        yield server


def assert_foreign(
    server: Server, text: str, error: psycopg2.Error | None, kind: FailureKind | None = None
) -> None:
    """Check that a text is known to be an answer, and not more unless it says that it is full."""
    assert text.startswith(f'connection to server at "{server.host}", port {server.port} failed: ')
    assert is_answer(text), text
    assert recognise(text) is kind
    if error is not None:
        assert not never_connected(error, server.host, server.host, server.port)


class TestGerman:
    @pytest.mark.parametrize(
        ("parameters", "words", "sqlstate"),
        [
            (
                {"user": "usual", "dbname": "missing"},
                "Datenbank »missing« existiert nicht",
                "3D000",
            ),
            ({"user": "missing"}, "Rolle »missing« existiert nicht", "28000"),
            ({"user": "few"}, "zu viele Verbindungen von Rolle »few«", "53300"),
            ({"dbname": "forbidden"}, "pg_hba.conf lehnt Verbindung ab", "28000"),
            (
                {"user": "usual", "options": "-c work_mem=x"},
                "ungültiger Wert für Parameter",
                "22023",
            ),
        ],
    )
    def test_refusals_are_answers_whose_sqlstate_is_asked_for(
        self, german: GermanServer, parameters: dict[str, str], words: str, sqlstate: str
    ) -> None:
        text, error = failure({**german.params, **parameters})
        kind = FailureKind.FULL if sqlstate == "53300" else None
        assert_foreign(german, text, error, kind)
        if german.charset == "UTF-8":
            assert words in text
        else:
            assert words.encode("latin-1").decode("utf-8", "replace") in text
        answer = ask_server(german, **parameters)
        assert (answer.takes_logins, answer.sqlstate) == (False, sqlstate)
        assert answer.text is not None
        assert answer.text.splitlines()[0] in text

    def test_a_wrong_password_is_refused_by_a_server_that_takes_logins(
        self, german: GermanServer
    ) -> None:
        text, error = failure({**german.params, "user": "guarded", "password": "wrong"})
        assert_foreign(german, text, error)
        assert "Passwort-Authentifizierung f" in text
        assert ask_server(german, user="guarded") == Answer(takes_logins=True)

    def test_a_full_server_says_so(self, small: GermanServer) -> None:
        usual = {**small.params, "user": "usual"}
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(contextlib.closing(connected(usual)))
            self._assert_full(small, usual, "die verbleibenden Verbindungen sind f")
            stack.enter_context(contextlib.closing(connected(small.params)))
            self._assert_full(small, usual, "tut mir leid, schon zu viele Verbindungen")

    def _assert_full(self, server: Server, params: Mapping[str, Any], words: str) -> None:
        # One that has been refused takes up room for a moment.
        wait_until(lambda: words in failure(params)[0])
        assert_foreign(server, *failed(params), FailureKind.FULL)
        answer = ask_server(server, user=params["user"])
        assert answer.kind is FailureKind.FULL

    def test_a_stopping_server_says_so(self, small: GermanServer) -> None:
        with contextlib.closing(psycopg2.connect(**small.params)):
            assert small.pid is not None
            os.kill(small.pid, signal.SIGTERM)  # it waits for the session
            wait_until(lambda: failure(small.params)[0])
            text, error = failed(small.params)
            assert_foreign(small, text, error)
            assert "das Datenbanksystem f" in text
            assert ask_server(small).kind is FailureKind.NOT_NOW

    def test_a_starting_server_says_so(self, small: GermanServer) -> None:
        small.stop()
        small.start_and_never_end()
        wait_until(lambda: is_answer(failure(small.params)[0]))
        text, error = failed(small.params)
        assert_foreign(small, text, error)
        assert "das Datenbanksystem " in text
        assert ask_server(small).kind is FailureKind.NOT_NOW


@pytest.fixture(scope="module")
def files() -> Iterator[Path]:
    """Make the files of a client in a folder: good ones, and others."""
    folder = new_folder()
    try:
        with new_certificates() as ours, new_certificates() as others:
            ours.issue("client", ["somebody"])
            ours.issue("other", ["another"])
            for name in ("client.crt", "client.key", "other.key"):
                shutil.copy(ours.folder / name, folder / name)
            shutil.copy(ours.ca, folder / "ours.crt")
            shutil.copy(others.ca, folder / "others.crt")
        shutil.copy(folder / "client.key", folder / "open.key")
        (folder / "garbage.crt").write_text("garbage")
        (folder / "client.key").chmod(0o600)
        (folder / "other.key").chmod(0o600)
        (folder / "open.key").chmod(0o644)
        locked = folder / "locked.key"
        lock = ("openssl", "ec", "-aes256", "-passout", "pass:right", "-in", folder / "client.key")
        subprocess.run([*lock, "-out", locked], check=True, capture_output=True)
        locked.chmod(0o600)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    """Make what a server presents."""
    with new_certificates() as made:
        made.issue("server", NAMES)
        made.issue("wrong", WRONG_NAMES)
        yield made


class TestTlsFiles:
    """libpq speaks English here, as it has no translations."""

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({"sslmode": "verify-ca", "sslrootcert": "missing"}, FailureKind.MISSING_FILE),
            ({"sslcert": "client.crt", "sslkey": "missing"}, FailureKind.MISSING_FILE),
            ({"sslmode": "verify-ca", "sslrootcert": "garbage.crt"}, FailureKind.LOGIN),
            ({"sslmode": "verify-ca", "sslrootcert": "others.crt"}, FailureKind.LOGIN),
            ({"sslcert": "garbage.crt", "sslkey": "client.key"}, FailureKind.LOGIN),
            ({"sslcert": "client.crt", "sslkey": "open.key"}, FailureKind.LOGIN),
            ({"sslcert": "client.crt", "sslkey": "other.key"}, FailureKind.LOGIN),
            (
                {"sslcert": "client.crt", "sslkey": "locked.key", "sslpassword": "wrong"},
                FailureKind.LOGIN,
            ),
            ({"sslcertmode": "require"}, FailureKind.LOGIN),
            ({"channel_binding": "require"}, FailureKind.LOGIN),
            ({"require_auth": "scram-sha-256"}, FailureKind.LOGIN),
        ],
    )
    def test_are_recognised_where_they_are_wrong(
        self,
        certificates: Certificates,
        files: Path,
        options: dict[str, str],
        kind: FailureKind,
    ) -> None:
        with RudeServer(tls=server_context(certificates)) as rude:
            params = {**rude.params, "sslmode": "require", **_in_folder(files, options)}
            text, error = failure(params)
        assert recognise(text) is kind, text
        assert error is not None
        assert not is_answer(text)
        assert not never_connected(error, rude.host, rude.host, rude.port)

    def test_of_another_name_are_recognised(self, certificates: Certificates) -> None:
        with RudeServer(tls=server_context(certificates, "wrong")) as rude:
            roots = {"sslmode": "verify-full", "sslrootcert": str(certificates.ca)}
            text, _ = failure({**rude.params, **roots})
        assert recognise(text) is FailureKind.LOGIN, text

    def test_that_a_server_wants_are_recognised(self, certificates: Certificates) -> None:
        context = server_context(certificates)
        context.load_verify_locations(str(certificates.ca))
        context.verify_mode = ssl.CERT_REQUIRED
        with RudeServer(tls=context) as rude:
            text, _ = failure({**rude.params, "sslmode": "require"})
        assert recognise(text) is FailureKind.LOGIN, text


def _in_folder(folder: Path, options: Mapping[str, str]) -> dict[str, str]:
    files = ("sslrootcert", "sslcert", "sslkey")
    return {k: str(folder / v) if k in files else v for k, v in options.items()}


class TestPsycopg2:
    def test_has_the_bytes_of_a_text_that_it_cannot_read(self) -> None:
        refusal = RefuseLogin("57P03", "für", "FATAL", "latin-1")
        with RudeServer(lambda login: refusal) as rude:
            with pytest.raises(UnicodeDecodeError) as caught:
                psycopg2.connect(**rude.params)
            assert caught.value.object.endswith(b"failed: FATAL:  f\xfcr\n")

    def test_says_of_its_first_statements_that_they_are_its_own(self) -> None:
        """It names no place then, and libpq had connected all the same."""
        reports = Accept({"DateStyle": "German"})
        closing = RudeServer(lambda login: reports, on_statement=lambda _: CloseConnection())
        with closing as rude:
            text, error = failure(rude.params)
        assert error is not None
        assert error.pgerror is not None
        assert recognise(text) is FailureKind.CUT
        assert not never_connected(error, rude.host, rude.host, rude.port)

    def test_tells_of_both_attempts_with_and_without_tls(self, certificates: Certificates) -> None:
        full = RefuseLogin("53300", "sorry, too many clients already")
        none = RefuseLogin("28000", 'no pg_hba.conf entry for host "x", no encryption')
        with RudeServer(
            lambda login: Send(error_response(full if login.in_tls else none), CloseConnection()),
            tls=server_context(certificates),
        ) as rude:
            text, _ = failure({**rude.params, "sslmode": "prefer"})
        assert "too many clients" in text
        assert "no pg_hba.conf entry" in text
        assert recognise(text) is FailureKind.FULL
