"""No other user of the machine reaches the servers of demos and tests, or reads their password."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.embedded.binaries import binary
from psycopg2_pool2.contrib.embedded.clusters import make_cluster
from psycopg2_pool2.contrib.embedded.credentials import password
from psycopg2_pool2.contrib.embedded.endpoint import Endpoint
from psycopg2_pool2.contrib.embedded.folders import new_process_folder
from tests.support.pgbouncer import MakePgBouncer
from tests.support.servers import MakeServer, ReplicaSet
from tests.support.tls import TlsServer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def refusal(**params: Any) -> str:
    """Return why a connection is refused."""
    with pytest.raises(psycopg2.OperationalError) as raised:
        psycopg2.connect(**params).close()
    return str(raised.value)


def as_nobody(call: Callable[[], str]) -> str:
    """Return what a call returns to another user, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.write(writer, call().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        text = told.read().decode()
    os.waitpid(child, 0)
    return text


@needs_root
class TestAnotherUser:
    def test_cannot_connect_without_the_password(self, server: Server) -> None:
        # It finds the name of the file, and may not read it.
        assert "no password supplied" in as_nobody(lambda: refusal(**server.params))
        wrong = {**server.params, "password": "guess"}
        assert "password authentication failed" in as_nobody(lambda: refusal(**wrong))

    def test_cannot_enter_the_folder_of_the_socket(self, server: Server) -> None:
        assert "Permission denied" in as_nobody(lambda: refusal(dsn=server.unix_dsn))
        for path in (server.socket_dir, str(Path(server.params["passfile"]).parent)):
            told = as_nobody(lambda path=path: str(os.listdir(path)))  # type: ignore[misc]
            assert told.startswith("PermissionError")

    def test_has_no_power_over_the_server(self, server: Server) -> None:
        def kill() -> str:
            assert server.pid is not None
            os.kill(server.pid, 0)
            return "allowed"

        assert as_nobody(kill).startswith("PermissionError")

    def test_is_none_that_the_system_lists(self, server: Server) -> None:
        uids = psutil.Process(server.pid).uids()
        assert len(set(uids)) == 1
        with pytest.raises(KeyError):
            pwd.getpwuid(uids.real)


class TestWithoutThePassword:
    """Whoever connects: no rule trusts."""

    @pytest.fixture(params=["server", "replica", "tls_server", "pgbouncer"])
    def endpoint(self, request: pytest.FixtureRequest) -> Endpoint:
        if request.param == "pgbouncer":
            make: MakePgBouncer = request.getfixturevalue("pgbouncer")
            return make()
        if request.param == "replica":
            replicas: ReplicaSet = request.getfixturevalue("replica_set")
            return replicas.replicas[0]
        found: Endpoint = request.getfixturevalue(request.param)
        return found

    def test_nobody_is_let_in(self, endpoint: Endpoint) -> None:
        params = {**endpoint.params, "passfile": "/nowhere"}
        assert "no password supplied" in refusal(**params)
        assert "authentication failed" in refusal(**params, password="guess")
        with closing(psycopg2.connect(**params, password=endpoint.password)) as conn:
            assert conn.info.password == password()

    @pytest.mark.parametrize("more", [{}, {"replication": "true"}])
    def test_nor_by_the_socket_nor_as_a_standby(self, server: Server, more: dict[str, str]) -> None:
        for dsn in (server.dsn, server.unix_dsn):
            assert "no password supplied" in refusal(dsn=dsn, passfile="/nowhere", **more)

    def test_a_role_may_be_given_the_same_one(self, server: Server) -> None:
        server.execute(f"CREATE ROLE same LOGIN PASSWORD '{server.verifier}'")
        psycopg2.connect(**{**server.params, "user": "same"}).close()
        server.execute("DROP ROLE same")

    def test_a_password_of_the_environment_does_not_lock_its_owner_out(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", "of another server")
        assert server.execute("SELECT 1") == [(1,)]


class TestFiles:
    def test_are_open_to_their_owner_only(self, server: Server, tls_server: TlsServer) -> None:
        for made in (server, tls_server):
            for path in (Path(made.socket_dir), Path(made.socket_dir, "data")):
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
        [socket] = Path(server.socket_dir).glob(".s.PGSQL.*[0-9]")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        passfile = Path(parse_dsn(server.dsn)["passfile"])
        assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
        assert stat.S_IMODE(passfile.parent.stat().st_mode) == 0o700


class TestPassword:
    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the arguments and environments of what is started; see what initdb is given."""
        seen: list[str] = []
        real = subprocess.Popen

        def popen(command: Any, *args: Any, **kwargs: Any) -> Any:
            if "--pwfile" in command:
                pwfile = Path(command[command.index("--pwfile") + 1])
                assert stat.S_IMODE(pwfile.stat().st_mode) == 0o600
                assert pwfile.parent.stat().st_mode & stat.S_IRWXO == 0
                seen.append(pwfile.read_text())
            seen.extend((repr(command), repr(kwargs.get("env"))))
            return real(command, *args, **kwargs)

        monkeypatch.setattr(subprocess, "Popen", popen)
        return seen

    def test_is_no_argument_of_any_program(
        self, started: list[str], make_server: MakeServer, pgbouncer: MakePgBouncer
    ) -> None:
        make_cluster(binary("initdb"), data=new_process_folder() / "data")
        primary = make_server()
        with primary.replica("127.0.0.2"):
            pgbouncer(primary)
            for process in psutil.process_iter(["cmdline"]):
                started += process.info["cmdline"] or ()
        for program in ("initdb", "pg_basebackup", "postgres", "pgbouncer"):
            assert any(program in arguments for arguments in started)
        assert not [arguments for arguments in started if password() in arguments]

    def test_of_initdb_is_removed(self) -> None:
        folder = new_process_folder()
        make_cluster(binary("initdb"), data=folder / "data")
        assert [path.name for path in folder.iterdir()] == ["data"]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_is_not_shown(self, server: Server) -> None:
        shown = f"{server!r} {server} {server.params} {server.dsn} {server.unix_dsn}"
        assert password() not in shown + server.log_text()

    def test_is_random(self) -> None:
        assert len(password()) >= 22  # 128 bits in base 64
