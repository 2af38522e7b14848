"""The command line: what it takes, and what it says of what it does not take."""

from __future__ import annotations

import os
import re

import psycopg2
import pytest

from psycopg2_pool2 import PoolTimeout
from psycopg2_pool2.cli import main
from psycopg2_pool2.cli.errors import UsageError, reason
from psycopg2_pool2.cli.where import named_server, server_params

COMMANDS = ("bench", "doctor", "watch")


@pytest.fixture(autouse=True)
def _no_server_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("PG") or n == "DATABASE_URL"]:
        monkeypatch.delenv(name)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command line that cannot be understood; return the line that says so."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return the_line(capsys)


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that was written, to stderr; no password is in it."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "hush" not in err
    return err


class TestUsage:
    def test_a_command_is_needed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "command" in refused(capsys)

    def test_an_unknown_command_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        line = refused(capsys, "docter")
        assert "'docter'" in line
        assert "doctor" in line

    @pytest.mark.parametrize("command", COMMANDS)
    def test_an_unknown_option_is_named(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, command, "--dsn=postgresql://u:hush@h/d")
        program = f"psycopg2_pool2 {command}"
        assert line == f"{program}: unknown option --dsn (see {program} --help)\n"

    @pytest.mark.parametrize(
        "argv",
        [
            ("postgresql://u:hush@h/d",),
            ("password='hush hush'",),
            ("doctor", "host=h", "postgresql://u:hush@h/d"),
            ("doctor", "--maxconn", "postgresql://u:hush@h/d"),
            ("doctor", "--js=hush"),
            ("doctor", "-phush"),
            ("doctor", "--json=hush hush"),
            ("watch", "--count", "password=hush"),
            ("demo", "--seconds", "postgresql://u:hush@h/d"),
        ],
    )
    def test_a_dsn_in_the_wrong_place_is_not_repeated(
        self, argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(capsys, *argv)

    @pytest.mark.parametrize(
        ("argv", "told"),
        [
            (("doctor", "--processes", "0"), "a whole number from 1 to 1,000,000"),
            (("doctor", "--maxconn", "1.5"), "a whole number"),
            (("doctor", "--timeout", "nan"), "a number from 0.1 to 3,600"),
            (("watch", "--interval", "inf"), "a number from"),
            (("watch", "--count", "-1"), "a whole number"),
            (("watch", "--once", "--count", "2"), "not allowed with"),
            (("bench", "--seconds", "0"), "a number from 1 to"),
        ],
    )
    def test_a_number_out_of_range_is_refused(
        self, argv: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert told in refused(capsys, *argv)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_the_help_tells_the_exit_status(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert re.search(r"Exit\s+status: 0", capsys.readouterr().out)


class TestBadServers:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        ("dsn", "told"),
        [
            ("hush", "invalid dsn"),
            ("postgresql://u:hush@127.0.0.1:x/", "port must be a number"),
            ("host=127.0.0.1 colour=hush", 'invalid connection option "'),
            ("host=127.0.0.1 password=hush\0x", "zero byte"),
            ("service=nosuch", 'definition of service "nosuch" not found'),
        ],
    )
    def test_a_dsn_that_cannot_be_read(
        self, command: str, dsn: str, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([command, dsn]) == 2
        line = the_line(capsys)
        assert line.startswith(f"psycopg2_pool2 {command}: ")
        assert told in line

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_port_that_refuses(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, "postgresql://u:hush@127.0.0.1:1/d"]) == 1
        line = the_line(capsys)
        assert line.startswith(f"psycopg2_pool2 {command}: ")
        assert "127.0.0.1" in line
        assert "Connection refused" in line

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_name_that_is_none(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        # No name server has to be asked for this one.
        assert main([command, "host=no..such password=hush"]) == 1
        assert 'host "no..such" could not be resolved' in the_line(capsys)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_socket_that_is_not_there(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([command, "host=/nowhere password=hush"]) == 1
        assert "No such file or directory" in the_line(capsys)


class TestWhichServer:
    def test_the_one_given_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "host=b")
        monkeypatch.setenv("PGHOST", "c")
        assert server_params("host=a") == {"dsn": "host=a"}
        assert server_params(None) == {"dsn": "host=b"}
        monkeypatch.delenv("DATABASE_URL")
        assert server_params(None) == {}
        named = named_server(None)
        assert named is not None
        assert named.by == "the one of PGHOST"

    def test_none_is_named_by_an_empty_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "")
        monkeypatch.setenv("PGAPPNAME", "x")
        assert named_server(None) is None

    def test_a_bad_environment_is_bad_usage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGPORT", "many")
        with pytest.raises(UsageError, match="port"):
            server_params(None)


AT = 'connection to server at "db.test" (127.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{AT}Connection refused\n\tIs the server running on that host?\n", "Connection refused"),
        (f'{AT}FATAL:  role "x" does not exist\n', 'role "x" does not exist'),
        (f"{AT}FATAL:  first\n{AT}FATAL:  second\n", "second"),
        (
            'connection to server on socket "/run/.s.PGSQL.5432" failed: No such file',
            "No such file",
        ),
        ("server closed the connection unexpectedly\n\tThis probably means", "server closed the"),
        ("", "OperationalError"),
    ],
)
def test_the_reason_is_told_without_the_place(text: str, told: str) -> None:
    assert reason(psycopg2.OperationalError(text)).startswith(told)
    assert "\n" not in reason(psycopg2.OperationalError(text))


def test_the_reason_of_a_pools_error_is_its_cause() -> None:
    error = PoolTimeout("no connection within 1 s")
    assert reason(error) == "no connection within 1 s"
    error.__cause__ = psycopg2.OperationalError(f"{AT}Connection refused\n")
    assert reason(error) == "Connection refused"
