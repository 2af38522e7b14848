"""Settings that libpq or TLS cannot use: told at once, unless they may be mended in a moment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolTimeout
from psycopg2_pool2 import breaker as breaker_module
from psycopg2_pool2.contrib.embedded.folders import new_folder
from tests.support.pools import MakePool, pool_maker, round_trip, start_waiter
from tests.support.rude_server import RudeServer
from tests.support.tls import TlsServer, new_certificates, programs
from tests.support.waiting import wait_until

AT_ONCE = 5.0
"""Seconds; borrowers have ten."""


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_pool(request: pytest.FixtureRequest) -> Iterator[MakePool]:
    with pool_maker(num_workers=request.param) as make:
        yield make


# -- what libpq refuses by itself ----------------------------------------------

MISTAKES = {
    "sslmode": {"sslmode": "maybe"},
    "gssencmode": {"gssencmode": "perhaps"},
    "channel_binding": {"channel_binding": "sometimes"},
    "ssl_min_protocol_version": {"ssl_min_protocol_version": "TLSv9"},
    "target_session_attrs": {"target_session_attrs": "any-one"},
    "require_auth": {"require_auth": "good-looks"},
    "sslcertmode": {"sslcertmode": "maybe"},
    "load_balance_hosts": {"load_balance_hosts": "fairly"},
    "connect_timeout": {"connect_timeout": "soon"},
    "tcp_user_timeout": {"tcp_user_timeout": "soon"},
    "keepalives_idle": {"keepalives_idle": "soon"},
    "port": {"port": "70000"},
}


@pytest.mark.parametrize("timeout", [10, 0, None])
@pytest.mark.parametrize(("option", "mistake"), MISTAKES.items(), ids=MISTAKES)
def test_what_libpq_refuses_by_itself_is_raised_at_once_and_names_the_option(
    make_pool: MakePool, option: str, mistake: dict[str, str], timeout: float | None
) -> None:
    started = time.monotonic()
    with RudeServer() as rude:
        with pytest.raises((psycopg2.Error, ValueError, TypeError), match=option) as caught:
            make_pool(0, 2, **{**rude.params, **mistake}).getconn(timeout=timeout)
        assert not isinstance(caught.value, PoolTimeout)
        assert rude.logins == 0
    assert time.monotonic() - started < AT_ONCE


# -- TLS -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsServer]:
    """Share a server that asks the role "certified" for a certificate."""
    if programs() is None or shutil.which("openssl") is None:
        pytest.skip("no PostgreSQL of Debian's, or no openssl")
    with TlsServer.create(hba=["hostssl all certified 127.0.0.0/8 cert"]) as server:
        assert isinstance(server, TlsServer)
        server.certificates.issue("client", ["certified"])
        server._data.configure({"ssl_ca_file": str(server.certificates.ca)})
        server.restart()
        server.execute("CREATE ROLE certified LOGIN")
        yield server


@pytest.fixture
def files(tls: TlsServer) -> Iterator[Path]:
    """Make the files of a client in a folder, which the test may spoil."""
    folder = new_folder()
    try:
        for name in ("ca.crt", "client.crt", "client.key"):
            shutil.copy(tls.certificates.folder / name, folder / name)
        (folder / "client.key").chmod(0o600)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def params(tls: TlsServer, files: Path) -> dict[str, Any]:
    """Return what a client with a certificate connects by."""
    return {
        **tls.params,
        "user": "certified",
        "sslrootcert": str(files / "ca.crt"),
        "sslcert": str(files / "client.crt"),
        "sslkey": str(files / "client.key"),
    }


def lock(key: Path, *, pass_phrase: str = "right") -> None:
    """Encrypt a key."""
    open_key = key.rename(key.with_suffix(".open"))
    command = ("openssl", "ec", "-aes256", "-passout", f"pass:{pass_phrase}", "-in", open_key)
    subprocess.run([*command, "-out", key], check=True, capture_output=True)
    key.chmod(0o600)


def error_of(pool: ConnectionPool) -> psycopg2.OperationalError:
    """Borrow in vain; return the error, which must not be that of a time that is over."""
    started = time.monotonic()
    with pytest.raises(psycopg2.OperationalError) as caught:
        pool.getconn(timeout=10)
    assert type(caught.value) is psycopg2.OperationalError
    assert time.monotonic() - started < AT_ONCE
    return caught.value


class TestTls:
    def test_works_with_the_right_files(self, make_pool: MakePool, params: dict[str, Any]) -> None:
        assert round_trip(make_pool(0, 2, **params))

    def test_works_with_the_right_pass_phrase(
        self, make_pool: MakePool, params: dict[str, Any], files: Path
    ) -> None:
        lock(files / "client.key")
        assert round_trip(make_pool(0, 2, **params, sslpassword="right"))

    def test_tells_of_a_wrong_pass_phrase_at_once(
        self, make_pool: MakePool, params: dict[str, Any], files: Path
    ) -> None:
        lock(files / "client.key")
        error = error_of(make_pool(0, 2, **params, sslpassword="wrong-5510"))
        assert "could not load private key file" in str(error)
        assert "wrong-5510" not in repr(error)

    def test_tells_at_once_of_a_key_that_others_may_read(
        self, make_pool: MakePool, params: dict[str, Any], files: Path
    ) -> None:
        (files / "client.key").chmod(0o644)
        assert "has group or world access" in str(error_of(make_pool(0, 2, **params)))

    def test_tells_at_once_of_authentication_that_is_not_the_one_required(
        self, make_pool: MakePool, params: dict[str, Any]
    ) -> None:
        error = error_of(make_pool(0, 2, **params, require_auth="scram-sha-256"))
        assert "scram-sha-256" in str(error)

    def test_tells_at_once_of_a_certificate_that_the_server_asks_for(
        self, make_pool: MakePool, params: dict[str, Any], files: Path
    ) -> None:
        del params["sslcert"], params["sslkey"]
        params["sslcert"] = str(files / "none.crt")  # as if there were none in the home folder
        assert "certificate" in str(error_of(make_pool(0, 2, **params)))

    def test_tells_at_once_of_a_root_certificate_of_another_authority(
        self, make_pool: MakePool, params: dict[str, Any]
    ) -> None:
        with new_certificates() as others:
            params["sslrootcert"] = str(others.ca)
            assert "certificate verify failed" in str(error_of(make_pool(0, 2, **params)))


@pytest.mark.parametrize("name", ["ca.crt", "client.key"])
class TestMissingFile:
    @pytest.fixture(autouse=True)
    def quick_retries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(breaker_module, "PROMPT_RETRY", 0.05)

    def test_is_waited_for_by_a_pool_that_has_connected(
        self, make_pool: MakePool, params: dict[str, Any], files: Path, name: str
    ) -> None:
        pool = make_pool(0, 2, **params)
        round_trip(pool)
        aside = (files / name).rename(files / "aside")
        pool.discard_all_idle()
        waiter = start_waiter(pool)
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 4)
        assert not waiter.done
        aside.rename(files / name)
        pool.putconn(waiter.result())

    def test_is_told_by_a_fresh_pool_in_about_a_second(
        self, make_pool: MakePool, params: dict[str, Any], files: Path, name: str
    ) -> None:
        (files / name).rename(files / "aside")
        pool = make_pool(0, 2, **params)
        assert name in str(error_of(pool))

    def test_that_comes_in_a_moment_is_waited_for_by_a_fresh_pool(
        self, make_pool: MakePool, params: dict[str, Any], files: Path, name: str
    ) -> None:
        aside = (files / name).rename(files / "aside")
        pool = make_pool(0, 2, **params)
        waiter = start_waiter(pool)
        wait_until(lambda: pool.get_stats()["connections_errors"])
        aside.rename(files / name)
        pool.putconn(waiter.result())


PROGRAM = """
import contextlib, sys, time
import psycopg2
from psycopg2_pool2 import ConnectionPool, login_backoff

login_backoff.FIRST_PAUSE = 0.05
with ConnectionPool(1, 4, num_workers=int(sys.argv[2]), dsn=sys.argv[1]) as pool:
    deadline = time.monotonic() + 20
    while pool.get_stats()["connections_errors"] < 5 and time.monotonic() < deadline:
        with contextlib.suppress(psycopg2.OperationalError):
            pool.getconn(timeout=1)
        time.sleep(0.01)
    print(pool.get_stats()["connections_errors"])
"""


@pytest.mark.parametrize("num_workers", [3, 0])
def test_a_pass_phrase_is_not_asked_for_at_every_attempt(
    params: dict[str, Any], files: Path, num_workers: int
) -> None:
    """OpenSSL asks at the terminal; there is none here, so that it says so and fails."""
    lock(files / "client.key")
    dsn = psycopg2.extensions.make_dsn(**params)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, dsn, str(num_workers)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=True,
    )
    assert int(ended.stdout) >= 5
    # Twice for each of the attempts that may have begun before the first has ended.
    assert ended.stderr.count("pass phrase") <= 2 * max(1, num_workers)
