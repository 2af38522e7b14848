"""`doctor`, `watch` and `bench` as programs of their own, on real servers."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.cli import main
from psycopg2_pool2.cli.doctor import questions
from psycopg2_pool2.cli.doctor.collect import examine
from psycopg2_pool2.cli.doctor.facts import Name, Pooler
from psycopg2_pool2.cli.watch import look as watch_look
from psycopg2_pool2.contrib.embedded import Server
from tests.integration import test_demo
from tests.support.dns import DnsServer, Mode, a
from tests.support.pgbouncer import MakePgBouncer
from tests.support.servers import ReplicaSet, new_server
from tests.support.tls import TlsServer
from tests.support.waiting import wait_until

_MODULE = (sys.executable, "-m", "psycopg2_pool2")
_LIMIT = 60
_CURSOR_HIDDEN, _CURSOR_SHOWN = "\x1b[?25l", "\x1b[?25h"
_COLOUR = re.compile(r"\x1b\[[\d;]*3\d")

Done = subprocess.CompletedProcess[str]


def environment(**extra: str) -> dict[str, str]:
    """Return ours without what names a server, and with output that is buffered as usual."""
    own = test_demo.environment(**extra)
    own.pop("PYTHONUNBUFFERED", None)
    return own


def run(*args: str, **env: str) -> Done:
    return subprocess.run(
        [*_MODULE, *args],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )


def doctor(dsn: str, *args: str) -> tuple[int, dict[str, Any]]:
    """Let the doctor examine a dsn; return its exit status and what it writes as JSON."""
    done = run("doctor", dsn, "--json", *args)
    found = json.loads(done.stdout)
    assert found["command"] == "doctor"
    assert found["status"] == ("problems" if done.returncode else "fine")
    return done.returncode, found


def problems(found: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what the problems are about, and where they are."""
    return [(f["about"], f["where"]) for f in found["findings"] if f["severity"] == "problem"]


def groups_of(found: dict[str, Any], application: str) -> list[dict[str, Any]]:
    """Return the connections of an application at the only endpoint."""
    [endpoint] = found["endpoints"]
    groups = endpoint["server"]["activity"]
    return [group for group in groups if group["application"] == application]


@contextlib.contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[str]]:
    """Run a command whose output is read while it runs; it is ended with the block."""
    with subprocess.Popen(
        [*_MODULE, *args],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_on_terminal(
    *args: str,
    env: dict[str, str] | None = None,
    end_at: str = "",
    end_by: signal.Signals = signal.SIGINT,
) -> tuple[int, str]:
    """Run a command on a terminal; return its exit status and what it wrote.

    It is sent a signal when it has written a certain text. See that it leaves the terminal as it
    was.
    """
    leader, follower = pty.openpty()
    before = termios.tcgetattr(leader)
    surroundings = {"TERM": "xterm", "COLUMNS": "100", "LINES": "50", **(env or {})}
    with subprocess.Popen(
        [*_MODULE, *args],
        env=environment(**surroundings),
        stdin=follower,
        stdout=follower,
        stderr=follower,
    ) as process:
        os.close(follower)
        written = ""
        # Linux reports the end of a terminal as an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(leader, 65536):
                written += chunk.decode()
                if end_at and end_at in written:
                    process.send_signal(end_by)
                    end_at = ""
        process.wait(_LIMIT)
        assert termios.tcgetattr(leader) == before
    os.close(leader)
    assert "Traceback" not in written
    return process.returncode, written


@pytest.fixture
def without_rich(tmp_path: Path) -> str:
    """Return a folder that hides rich from a program that has it on its path."""
    (tmp_path / "rich.py").touch()
    return str(tmp_path)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen where connections are accepted, by the kernel, and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def hasty(server: Server) -> Iterator[str]:
    """Make a role with limits of its own; return the dsn for it."""
    server.execute(f"CREATE ROLE hasty LOGIN CONNECTION LIMIT 7 PASSWORD '{server.verifier}'")
    server.execute("ALTER ROLE hasty SET idle_session_timeout = '5s'")
    server.execute("ALTER ROLE hasty SET statement_timeout = '90s'")
    server.execute("ALTER ROLE hasty SET default_transaction_read_only = on")
    yield f"host={server.host} port={server.port} user=hasty dbname=postgres"
    server.execute("DROP ROLE hasty")


@pytest.fixture
def secured(server: Server) -> Iterator[Server]:
    """Make a table with row-level security and no policy yet."""
    server.execute('CREATE TABLE note (n int, owner text, "user" text)')
    server.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY")
    server.execute(
        "CREATE FUNCTION my_tenant() RETURNS text LANGUAGE sql STABLE AS"
        " $$ SELECT current_setting('app.tenant', true) $$"
    )
    yield server
    server.execute("DROP TABLE note")
    server.execute("DROP FUNCTION my_tenant")


class TestDoctor:
    def test_tells_what_a_server_is_and_allows(self, server: Server) -> None:
        status, found = doctor(server.dsn)
        [endpoint] = found["endpoints"]
        told = endpoint["server"]
        [(version,)] = server.execute("SHOW server_version")
        assert (status, endpoint["error"]) == (0, None)
        assert (endpoint["address"], endpoint["port"]) == (server.host, server.port)
        assert (told["version"], told["standby"], told["read_only"]) == (version, False, False)
        assert (told["tls"], told["pooler"]) == (None, None)
        assert told["limits"]["max_connections"] == 200
        assert 0 < told["query_seconds"] < told["connect_seconds"] < 10
        assert told["settings"]["statement_timeout"] == {
            "shown": "0",
            "number": 0.0,
            "source": "default",
        }

    def test_tells_it_in_words_too(self, server: Server) -> None:
        done = run("doctor", DATABASE_URL=server.dsn)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{server.host} port {server.port}\n  server")
        assert "max_connections=200, 3 reserved\n" in done.stdout
        assert done.stdout.endswith("\nNo problems found.\n")
        assert done.stdout.replace("\n", "").isascii()

    def test_counts_who_is_connected_as_far_as_this_user_may_see(
        self, server: Server, hasty: str, app: str
    ) -> None:
        holder = psycopg2.connect(server.dsn, application_name=app)
        with contextlib.closing(holder), holder.cursor() as cursor:
            cursor.execute("SELECT 1")
            seen = [doctor(dsn)[1] for dsn in (server.dsn, hasty)]
        [[all_of_it], [some_of_it]] = [groups_of(found, app) for found in seen]
        assert (all_of_it["user"], all_of_it["connections"]) == ("postgres", 1)
        assert all_of_it["state"] == "idle in transaction"
        assert all_of_it["oldest_seconds"] >= all_of_it["longest_seconds"] >= 0
        assert (some_of_it["user"], some_of_it["connections"]) == ("postgres", 1)
        assert (some_of_it["state"], some_of_it["oldest_seconds"]) == (None, None)

    def test_finds_what_the_role_is_subject_to(self, hasty: str) -> None:
        status, found = doctor(hasty)
        told = found["endpoints"][0]["server"]
        assert (status, problems(found)) == (
            1,
            [("idle_session_timeout", [found["endpoints"][0]["label"]])],
        )
        assert told["settings"]["idle_session_timeout"] == {
            "shown": "5s",
            "number": 5.0,
            "source": "user",
        }
        assert (told["read_only"], told["limits"]["role"]) == (True, 7)
        about = [finding["about"] for finding in found["findings"]]
        assert {"statement_timeout", "default_transaction_read_only"} <= set(about)

    def test_compares_a_plan_with_what_the_server_allows(self, server: Server) -> None:
        done = run("doctor", server.dsn, "--processes", "20", "--maxconn", "50")
        assert done.returncode == 1
        assert "20 processes with maxconn=50 may open 1000; 197 are possible" in done.stdout

    def test_visits_all_servers_whatever_their_role(self, replica_set: ReplicaSet) -> None:
        wish = f"{replica_set.dsn} target_session_attrs=read-write"
        status, found = doctor(wish)
        servers = [endpoint["server"] for endpoint in found["endpoints"]]
        assert status == 0
        assert [s["standby"] for s in servers] == [False, True, True]
        assert [s["suits"] for s in servers] == [True, False, False]
        replica_set.primary.stop()
        primary = f"{replica_set.hosts[0]} port {replica_set.port}"
        status, found = doctor(wish)
        assert (status, problems(found)) == (1, [("role", []), ("unreachable", [primary])])
        done = run("doctor", wish)
        assert (done.returncode, done.stderr) == (1, "")
        assert f"{primary}\n  unreachable: Connection refused\n" in done.stdout

    def test_tells_how_a_connection_is_encrypted(self, tls_server: TlsServer) -> None:
        _, found = doctor(tls_server.dsn)
        tls = found["endpoints"][0]["server"]["tls"]
        assert re.fullmatch(r"TLSv1\.[23]", tls["version"])
        assert "AES" in tls["cipher"] or "CHACHA" in tls["cipher"]

    @pytest.mark.parametrize(
        ("policy", "reads"),
        [
            ("USING (owner = current_setting('app.tenant', true))", "current_setting"),
            ("WITH CHECK (owner = current_setting('app.tenant'))", "current_setting"),
            ("USING (owner = current_user)", "current_user"),
            ("USING (owner = session_user)", "session_user"),
            ("USING (owner = my_tenant())", "current_setting"),
        ],
    )
    def test_warns_of_policies_that_depend_on_the_session(
        self, secured: Server, pgbouncer: MakePgBouncer, policy: str, reads: str
    ) -> None:
        secured.execute(f"CREATE POLICY mine ON note {policy}")
        status, found = doctor(secured.dsn)
        [endpoint] = found["endpoints"]
        assert endpoint["server"]["policies"] == [{"table": "note", "name": "mine", "reads": reads}]
        [told] = [f for f in found["findings"] if f["about"] == "row-level security"]
        assert (status, told["severity"]) == (0, "advice")
        assert f"mine on note reads {reads}" in told["text"]
        assert 'reset="session"' in told["text"]
        shown = run("doctor", secured.dsn).stdout
        assert "row-level security depends on the session" in shown
        _, through = doctor(pgbouncer(secured).dsn)
        [told] = [f for f in through["findings"] if f["about"] == "row-level security"]
        assert "SET LOCAL" in told["text"]
        assert "reset" not in told["text"]

    @pytest.mark.parametrize("policy", ["USING (n > 0)", "USING (\"user\" = 'ann')"])
    def test_does_not_mind_other_policies(self, secured: Server, policy: str) -> None:
        secured.execute(f"CREATE POLICY mine ON note {policy}")
        _, found = doctor(secured.dsn)
        assert "row-level security" not in [f["about"] for f in found["findings"]]

    def test_does_not_mind_policies_that_are_not_in_force(self, secured: Server) -> None:
        secured.execute("CREATE POLICY mine ON note USING (owner = current_user)")
        secured.execute("ALTER TABLE note DISABLE ROW LEVEL SECURITY")
        _, found = doctor(secured.dsn)
        assert "row-level security" not in [f["about"] for f in found["findings"]]

    def test_finds_a_pooler(self, pgbouncer: MakePgBouncer) -> None:
        _, found = doctor(pgbouncer().dsn)
        pooler = found["endpoints"][0]["server"]["pooler"]
        assert pooler["shares"] is True
        assert pooler["software"].startswith("PgBouncer")
        assert pooler["max_clients"] == 500
        assert "pooler" in [finding["about"] for finding in found["findings"]]

    def test_finds_a_pooler_that_does_not_tell_who_it_is(
        self, pgbouncer: MakePgBouncer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(questions, "_CONSOLE", "nosuch")
        [endpoint] = examine(pgbouncer().params, 10).endpoints
        assert endpoint.server is not None
        assert endpoint.server.pooler == Pooler(shares=True)

    def test_is_not_held_up_by_who_never_answers(self, silent_port: int) -> None:
        done = run("doctor", f"host=127.0.0.1 port={silent_port}", "--timeout", "0.5")
        complaint = f"psycopg2_pool2 doctor: 127.0.0.1 port {silent_port}: no answer in time\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", complaint)

    def test_can_be_interrupted_while_nobody_answers(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            dsn = f"host=127.0.0.1 port={listener.getsockname()[1]} connect_timeout=600"
            with running("doctor", dsn, "--timeout", "600") as process:
                listener.settimeout(_LIMIT)
                client, _ = listener.accept()
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate(timeout=_LIMIT)
                client.close()
        assert (process.returncode, output, errors) == (130, "", "\ninterrupted\n")


class TestNames:
    def look_up(self, hosts: str, server: Server, dns: DnsServer, **kwargs: Any) -> Any:
        params = {**server.params, "host": hosts}
        return examine(params, kwargs.pop("seconds", 10.0), dns.resolver())

    def test_have_their_addresses_and_time_to_live(
        self, server: Server, dns_server: DnsServer
    ) -> None:
        dns_server.zone["db.test"] = [a("127.0.0.1", ttl=300), a("127.0.0.9", ttl=300)]
        seen = self.look_up("db.test", server, dns_server)
        [name] = seen.names
        assert sorted(name.addresses) == ["127.0.0.1", "127.0.0.9"]
        assert 200 < name.ttl_seconds <= 300
        assert not name.one_at_a_time
        servers = {e.label: e.server is not None for e in seen.endpoints}
        assert servers == {
            f"db.test (127.0.0.1) port {server.port}": True,
            f"db.test (127.0.0.9) port {server.port}": False,
        }

    def test_may_stand_for_one_address_at_a_time(
        self, server: Server, dns_server: DnsServer
    ) -> None:
        dns_server.zone["reader.test"] = [a("127.0.0.1"), a("127.0.0.9")]
        dns_server.one_at_a_time("reader.test")
        seen = self.look_up("reader.test", server, dns_server)
        [name] = seen.names
        assert name.one_at_a_time
        assert len(seen.endpoints) == 2

    def test_may_stand_for_nobody(self, server: Server, dns_server: DnsServer) -> None:
        dns_server.zone["db.test"] = [a("127.0.0.1")]
        seen = self.look_up("nobody.test,db.test", server, dns_server)
        nobody, db = seen.names
        assert nobody.error == 'host "nobody.test" could not be resolved: there is no such name'
        assert (db.addresses, db.error) == (("127.0.0.1",), None)
        assert [e.host for e in seen.endpoints] == ["db.test"]

    def test_may_be_known_to_nobody_who_answers(
        self, server: Server, dns_server: DnsServer
    ) -> None:
        dns_server.behave(Mode.SILENCE)
        seen = self.look_up("db.test", server, dns_server, seconds=0.3)
        [name] = seen.names
        assert isinstance(name, Name)
        assert 'host "db.test" could not be resolved' in str(name.error)
        assert seen.endpoints == ()


class TestWatch:
    def test_shows_who_is_connected(self, server: Server, app: str) -> None:
        with contextlib.closing(psycopg2.connect(server.dsn, application_name=app)):
            text = run("watch", server.dsn, "--once")
            line = run("watch", server.dsn, "--once", "--json")
        assert (text.returncode, text.stderr) == (0, "")
        assert re.search(rf"^  {app} +postgres +idle +1 ", text.stdout, re.MULTILINE)
        assert line.stdout.count("\n") == 1
        view = json.loads(line.stdout)
        assert (view["available"], view["error"]) == (True, None)
        assert view["server"]["max_connections"] == 200
        [group] = [g for g in view["groups"] if g["application"] == app]
        assert (group["user"], group["state"], group["connections"]) == ("postgres", "idle", 1)
        assert not any("watch" in group["application"] for group in view["groups"])

    def test_looks_as_often_as_it_is_told(self, server: Server) -> None:
        done = run("watch", server.dsn, "--count", "3", "--interval", "0.1", "--json")
        times = [json.loads(line)["time"] for line in done.stdout.splitlines()]
        assert done.returncode == 0
        assert len(times) == 3
        assert times == sorted(set(times))

    def test_outlives_a_restart_of_the_server(self, fresh_server: Server) -> None:
        with running("watch", fresh_server.dsn, "--interval", "0.1", "--json") as process:
            self.wait_for(process, available=True)
            fresh_server.stop()
            gone = self.wait_for(process, available=False)
            fresh_server.start()
            self.wait_for(process, available=True)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=_LIMIT)
        assert (gone["server"], gone["groups"]) == (None, [])
        assert gone["error"]
        assert (process.returncode, errors) == (0, "")

    def wait_for(self, process: subprocess.Popen[str], *, available: bool) -> dict[str, Any]:
        """Read views until one finds the server there, or gone."""
        assert process.stdout is not None
        for line in process.stdout:
            view: dict[str, Any] = json.loads(line)
            if view["available"] is available:
                return view
        raise AssertionError(f"it ended: {process.communicate()}")

    def test_is_not_held_up_by_a_server_that_stands_still(
        self, fresh_server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with watch_look.open_pool(fresh_server.params) as pool:
            assert watch_look.look(pool).error is None
            with pool.conn():  # as if it were still out with the look before
                assert watch_look.look(pool).error == "no answer yet"
            fresh_server.freeze()
            with monkeypatch.context() as hurry:
                hurry.setattr(watch_look, "PATIENCE", 0.2)
                assert watch_look.look(pool).error == "no answer in time"
                assert watch_look.look(pool).error is not None
            fresh_server.thaw()
            wait_until(lambda: watch_look.look(pool).error is None)

    def test_ends_with_an_error_if_the_server_is_away_in_the_end(
        self,
        fresh_server: Server,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        pause = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: fresh_server.stop())
        monkeypatch.setattr(watch_look, "time", pause)
        assert main(["watch", fresh_server.dsn, "--count", "2", "--json"]) == 1
        views = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [view["available"] for view in views] == [True, False]

    @pytest.mark.parametrize(
        ("rich", "end_by", "status"),
        [
            (True, signal.SIGINT, 0),
            (True, signal.SIGTERM, 128 + signal.SIGTERM),
            (False, signal.SIGINT, 0),
        ],
    )
    def test_leaves_the_terminal_as_it_was(
        self, server: Server, without_rich: str, rich: bool, end_by: signal.Signals, status: int
    ) -> None:
        if rich:
            pytest.importorskip("rich")
        env = {} if rich else {"PYTHONPATH": without_rich}
        args = ("watch", server.dsn, "--interval", "0.1")
        ended, written = run_on_terminal(*args, env=env, end_at="PostgreSQL", end_by=end_by)
        assert ended == status
        assert "interrupt" not in written.lower()
        assert (_CURSOR_HIDDEN in written) is rich
        assert written.rfind(_CURSOR_HIDDEN) <= written.rfind(_CURSOR_SHOWN)


class TestBench:
    def test_measures_what_is_installed(self, server: Server) -> None:
        done = run("bench", server.dsn, "--seconds", "1", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        pools = {pool["pool"]: pool for pool in found["pools"]}
        ours = pools["psycopg2_pool2"]
        assert list(pools)[:3] == ["psycopg2_pool2", "psycopg2_pool2, tested", "psycopg2.pool"]
        assert pools["psycopg2.pool"]["crowded"] is None
        assert (ours["ours_to_its"], ours["crowded"]["ours_to_its"]) == (1.0, 1.0)
        assert 0 < ours["cycle_seconds"] < pools["psycopg2_pool2, tested"]["cycle_seconds"]
        assert 0 <= ours["crowded"]["fewest"] <= ours["crowded"]["most"]
        assert (found["threads"], found["connections"], found["seconds"]) == (32, 4, 1.0)

    def test_needs_no_other_pool_and_no_server(self, tmp_path: Path) -> None:
        for name in ("psycopg_pool", "sqlalchemy", "dbutils"):
            (tmp_path / f"{name}.py").write_text("raise ImportError")
        done = run("bench", "--seconds", "1", PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        rows = re.findall(r"^  (psycopg2\S*)", done.stdout, re.MULTILINE)
        assert rows == ["psycopg2_pool2", "psycopg2_pool2,", "psycopg2.pool"]


@pytest.fixture(scope="class")
def locked_server() -> Iterator[Server]:
    """Make a server with the role "locked"; "nobody", which does not exist, needs no password."""
    with new_server(hba=["host all nobody 127.0.0.1/32 trust"]) as made:
        made.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
        yield made


class TestBadInput:
    @pytest.mark.parametrize("command", ["bench", "doctor", "watch"])
    def test_is_told_in_one_line(self, command: str, locked_server: Server) -> None:
        at = f"{locked_server.host}:{locked_server.port}/postgres"
        complaints = {"locked": "password authentication failed", "nobody": "does not exist"}
        for user, complaint in complaints.items():
            done = run(command, f"postgresql://{user}:hush@{at}")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith(f"psycopg2_pool2 {command}: ")
            assert complaint in done.stderr
            assert done.stderr.count("\n") == 1
            assert "hush" not in done.stderr

    def test_leaves_the_json_complete(self, locked_server: Server) -> None:
        at = f"{locked_server.host}:{locked_server.port}/postgres"
        status, found = doctor(f"postgresql://locked:hush@{at}")
        assert (status, [about for about, _ in problems(found)]) == (1, ["refused login"])
        assert "hush" not in json.dumps(found)

    def test_leaves_no_password_where_it_is_right(self, locked_server: Server) -> None:
        dsn = f"postgresql://locked:right@{locked_server.host}:{locked_server.port}/postgres"
        for args in (["doctor"], ["doctor", "--json"], ["watch", "--once", "--json"]):
            done = run(*args, dsn)
            assert done.returncode == 0, done.stderr
            assert "right" not in done.stdout + done.stderr


class TestOutput:
    def test_is_coloured_on_a_terminal(self, dsn: str) -> None:
        pytest.importorskip("rich")
        status, written = run_on_terminal("doctor", dsn)
        assert status == 0
        assert _COLOUR.search(written)

    @pytest.mark.parametrize("reason", ["NO_COLOR", "TERM", "rich"])
    def test_is_not_where_that_is_not_wanted(
        self, dsn: str, without_rich: str, reason: str
    ) -> None:
        unwanted = {
            "NO_COLOR": {"NO_COLOR": "1"},
            "TERM": {"TERM": "dumb"},
            "rich": {"PYTHONPATH": without_rich},
        }
        status, written = run_on_terminal("doctor", dsn, env=unwanted[reason])
        assert status == 0
        assert "No problems found." in written
        assert not _COLOUR.search(written)

    def test_is_plain_and_the_same_in_a_pipe(self, dsn: str, without_rich: str) -> None:
        texts = [
            run("doctor", dsn, **env).stdout
            for env in ({"FORCE_COLOR": "1"}, {"PYTHONPATH": without_rich})
        ]
        with_it, without = (re.sub(r"[\d.,]+ ms", "0 ms", text) for text in texts)
        assert "\x1b" not in with_it
        heads = [text[: text.index("  connections ")] for text in (with_it, without)]
        assert heads[0] == heads[1]

    def test_ends_quietly_when_nobody_reads_it(self, dsn: str) -> None:
        for args in (["--help"], ["watch", "--interval", "0.1", "--json", dsn]):
            with running(*args) as process:
                assert process.stdout is not None
                assert process.stderr is not None
                process.stdout.close()
                assert process.stderr.read() == ""

    def test_tells_that_a_disk_is_full(self, dsn: str) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full")
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*_MODULE, "doctor", dsn],
                env=environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=_LIMIT,
                check=False,
            )
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert done.stderr.count("\n") == 1


def test_is_installed_as_a_command() -> None:
    command = Path(sys.executable).with_name("psycopg2_pool2")
    if not command.exists():
        pytest.skip("the package was installed before it had a command")
    done = subprocess.run([command, "--help"], capture_output=True, timeout=_LIMIT, check=True)
    assert done.stdout.startswith(b"usage: psycopg2_pool2 ")
