"""A real server that speaks TLS, and the certificates that it and its clients need.

The wheel's PostgreSQL is built without TLS, so the programs are those of Debian's packages, and
the certificates are made by the command `openssl`, which Debian's PostgreSQL depends on.
"""

from __future__ import annotations

import re
import shutil
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.embedded.clusters import RULES, make_cluster
from psycopg2_pool2.contrib.embedded.data import DataDirectory, Setting
from psycopg2_pool2.contrib.embedded.folders import new_folder
from psycopg2_pool2.contrib.embedded.log import PREFIX
from psycopg2_pool2.contrib.embedded.processes import Processes, _lifeline
from psycopg2_pool2.contrib.embedded.programs import run, spawn
from psycopg2_pool2.contrib.session import execute
from tests.support.waiting import wait_until

NAMES = ("localhost", "db.test", "127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")
"""What the right certificate is good for."""
WRONG_NAMES = ("elsewhere.test",)

_INSTALLATIONS = Path("/usr/lib/postgresql")
# As for the embedded servers: quick and unsafe.
_SETTINGS: dict[str, Setting] = {
    "autovacuum": False,
    "dynamic_shared_memory_type": "mmap",
    "fsync": False,
    "full_page_writes": False,
    "log_line_prefix": PREFIX,
    "max_connections": 100,
    "shared_buffers": "16MB",
    "ssl": True,
    "synchronous_commit": False,
    "unix_socket_permissions": "0700",
}


@cache
def programs() -> Path | None:
    """Return the folder of Debian's newest PostgreSQL, None if there is none."""
    found = [path.parent for path in _INSTALLATIONS.glob("*/bin/postgres")]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class Certificates:
    """A certificate authority in a folder, and what it signs; all as the server's user.

    `ca` is the file that clients trust.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.crt"
        self._make_key("ca")
        run(
            *("openssl", "req", "-x509", "-new", "-key", self._path("ca.key"), "-days", "3650"),
            *("-subj", "/CN=psycopg2_pool2 tests", "-out", str(self.ca)),
        )

    def issue(self, name: str, hosts: Sequence[str]) -> None:
        """Sign `name`.crt, whose key is `name`.key, for these host names and addresses."""
        self._make_key(name)
        run(
            *("openssl", "req", "-new", "-key", self._path(f"{name}.key")),
            *("-subj", f"/CN={hosts[0]}", "-out", self._path(f"{name}.csr")),
        )
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(map(_alternative, hosts))}\n")
        extensions.chmod(0o644)
        run(
            *("openssl", "x509", "-req", "-in", self._path(f"{name}.csr"), "-days", "3650"),
            *("-CA", str(self.ca), "-CAkey", self._path("ca.key"), "-CAcreateserial"),
            *("-extfile", str(extensions), "-out", self._path(f"{name}.crt")),
        )

    def files(self, name: str) -> Mapping[str, Setting]:
        """Return the server's settings that present a certificate."""
        return {
            "ssl_cert_file": self._path(f"{name}.crt"),
            "ssl_key_file": self._path(f"{name}.key"),
        }

    def _make_key(self, name: str) -> None:
        run(
            *("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-out", self._path(f"{name}.key")),
        )

    def _path(self, name: str) -> str:
        return str(self.folder / name)


@contextmanager
def new_certificates() -> Iterator[Certificates]:
    """Make a certificate authority; skip the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    folder = new_folder()
    try:
        yield Certificates(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server_context(certificates: Certificates, name: str = "server") -> ssl.SSLContext:
    """Return how a server of the test's own presents a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = certificates.files(name)
    context.load_cert_chain(str(files["ssl_cert_file"]), str(files["ssl_key_file"]))
    context.set_alpn_protocols(["postgresql"])
    return context


class TlsServer(Server):
    """A server that presents a certificate for `NAMES`; `params` insist on it.

    A client may be sent to another address, or a proxy's, by `host` and `port`: the certificate
    is good for all of `NAMES`.
    """

    def __init__(self, folder: Path, host: str, port: int, primary: Server | None = None) -> None:
        super().__init__(folder, host, port, primary)
        self._data = _Data(folder / "data")
        self._processes = _Processes()
        self.certificates = Certificates(folder)
        self.certificates.issue("server", NAMES)
        self.certificates.issue("wrong", WRONG_NAMES)

    @property
    def params(self) -> dict[str, Any]:
        """Arguments for `psycopg2.connect` that have the server's name verified."""
        verified = {"sslmode": "verify-full", "sslrootcert": str(self.certificates.ca)}
        return {**super().params, **verified}

    def present(self, name: str) -> None:
        """Show new clients another certificate: "server" or "wrong"."""
        mark = self.mark()
        self._data.configure(self.certificates.files(name))
        execute({"dsn": self.unix_dsn}, "SELECT pg_reload_conf()")  # without TLS
        # The server logs this first and accepts nobody before it has done it.
        wait_until(lambda: "received SIGHUP" in self.log_text(mark))

    def _address(self) -> dict[str, Setting]:
        return {**super()._address(), **self.certificates.files("server")}


class _Data(DataDirectory):
    """A data directory that Debian's `initdb` has made."""

    def fill(self, settings: Mapping[str, Setting], hba: Sequence[str]) -> None:
        make_cluster(_program("initdb"), data=self.path)
        (self.path / "pg_hba.conf").write_text("\n".join([*hba, *RULES, ""]))
        self.configure({**_SETTINGS, **settings})


class _Processes(Processes):
    """The processes of Debian's `postgres`."""

    def start(self, data: Path, log: Path, folder: Path) -> None:
        with log.open("ab") as file:
            self._first = spawn(_program("postgres"), "-D", str(data), stdout=file, stderr=file)
        self._lifeline = _lifeline(self._first.pid, folder)


@contextmanager
def new_tls_server(**settings: Setting) -> Iterator[TlsServer]:
    """Make a server with TLS; skip the test where its programs are missing."""
    if programs() is None:
        pytest.skip(f"no PostgreSQL in {_INSTALLATIONS}: install Debian's package postgresql")
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    with TlsServer.create(settings=settings) as server:
        assert isinstance(server, TlsServer)
        yield server


def _program(name: str) -> str:
    return f"{programs()}/{name}"


def _alternative(host: str) -> str:
    return f"IP:{host}" if re.fullmatch(r"[\d.]+|[\da-f:]+", host) else f"DNS:{host}"
