"""A real PgBouncer before a server, in transaction mode unless told otherwise."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import psycopg2
import pytest

from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.contrib.embedded.credentials import write_secret
from psycopg2_pool2.contrib.embedded.endpoint import Endpoint
from psycopg2_pool2.contrib.embedded.folders import new_folder
from psycopg2_pool2.contrib.embedded.processes import _cut, _lifeline
from psycopg2_pool2.contrib.embedded.programs import owner, spawn
from psycopg2_pool2.contrib.session import execute
from tests.support.waiting import wait_until

_CONFIGURATION = """
[databases]
* = host={server.host} port={server.port}

[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
admin_users = postgres
"""
_SETTINGS = {"pool_mode": "transaction", "default_pool_size": 20, "max_client_conn": 500}


class MakePgBouncer(Protocol):
    """What the fixture `pgbouncer` gives: one before a server, closed when the test ends."""

    def __call__(self, server: Server | None = ..., **settings: object) -> PgBouncer:
        """Start one in transaction mode, or with other settings of pgbouncer.ini."""


class PgBouncer(Endpoint):
    """One PgBouncer, started on a free port; it ends with this process at the latest.

    Clients reach the server's databases through it as `postgres`, and as each of the setting
    `other_users`, with the server's password.
    """

    def __init__(
        self, server: Server, settings: Mapping[str, object], host: str = "127.0.0.1"
    ) -> None:
        self.host = host
        # Not one of those that the kernel gives to outgoing connections: one of these could
        # hold it during a restart.
        self.port = free_port(host)
        self._folder = new_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._write_configuration(server, {**_SETTINGS, **settings})
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int:
        """The process id; it has to be running."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        if self.running:
            return
        self._wait_ended()  # it may have ended by itself
        program, log = _program(), self._folder / "log"
        assert program is not None
        with log.open("ab") as file:
            self._process = spawn(program, str(self._ini), stdout=file, stderr=file)
        self._watcher = _lifeline(self._process.pid, self._folder)
        wait_until(lambda: self._answers() or not self.running, message="PgBouncer answers")
        assert self.running, log.read_text()

    def stop(self) -> None:
        """Shut it down at once: its clients find their connections closed."""
        if not self.running:
            return
        with contextlib.suppress(psycopg2.OperationalError):  # it does not live to answer
            self.administer("SHUTDOWN")
        self._wait_ended()

    def restart(self) -> None:
        """Stop it and start it again under the same address."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Wait until the running transactions have ended, then let clients wait.

        Connections stay open, and new ones are accepted.
        """
        self.administer("PAUSE")

    def resume(self) -> None:
        """Serve again after `pause`."""
        self.administer("RESUME")

    def administer(self, command: str) -> list[tuple[Any, ...]]:
        """Run a command of the administrator's console, such as SHOW POOLS; return its rows."""
        return execute({**self.params, "dbname": "pgbouncer", "connect_timeout": 5}, command)

    def close(self) -> None:
        """End it whatever its state, and remove its folder; harmless when repeated."""
        if self._process is not None:
            self._process.kill()
        self._wait_ended()
        shutil.rmtree(self._folder, ignore_errors=True)

    # Below

    @property
    def _ini(self) -> Path:
        return self._folder / "pgbouncer.ini"

    def _write_configuration(self, server: Server, settings: dict[str, Any]) -> None:
        folder = self._folder
        text = _CONFIGURATION.format(server=server, host=self.host, port=self.port, folder=folder)
        users = ("postgres", *settings.pop("other_users", ()))
        text += "".join(f"{name} = {settings[name]}\n" for name in settings)
        write_secret(self._ini, text, owner())
        # The server's own verifier: a client that has logged in here can log in there.
        known = "".join(f'"{user}" "{server.verifier}"\n' for user in users)
        write_secret(folder / "users", known, owner())

    def _answers(self) -> bool:
        try:
            return bool(self.administer("SHOW VERSION"))
        except psycopg2.OperationalError:
            return False

    def _wait_ended(self) -> None:
        if self._process is None:
            return
        self._process.wait(10)
        self._process = None
        _cut(self._watcher)
        self._watcher = None


@contextlib.contextmanager
def new_pgbouncer(server: Server, **settings: object) -> Iterator[PgBouncer]:
    """Make one before a server; skip the test where there is none to run."""
    if _program() is None:
        pytest.skip("no PgBouncer here: install Debian's package pgbouncer")
    with PgBouncer(server, settings) as made:
        yield made


def _program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
