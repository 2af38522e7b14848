"""What servers and their users choose is shown by no command as a terminal would obey it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, quote_ident

from psycopg2_pool2.cli.demo.screen import Screen, log_shown
from psycopg2_pool2.contrib.embedded import Server
from tests.integration.test_cli import run, run_on_terminal
from tests.support.rude import rude_server

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202eevil\u2066[bold red]x[/]"
TEXT = f"{ESCAPES}\nFORGED line\r\nFORGED again\u2028FORGED"
SHOWN = "\\x1b]0;pwned\\x07\\x1b[2J\\x9b31m\\u202eevil\\u2066[bold red]x[/]"
NAME = "\x1b]0;\x07\x9b\u202e[red]x[/]\nFORGED"  # of 63 bytes at most
NAME_SHOWN = "\\x1b]0;\\x07\\x9b\\u202e[red]x[/]\\nFORGED"

COMMANDS = {
    "doctor": ["doctor", "--timeout", "5"],
    "watch": ["watch", "--once"],
    "bench": ["bench", "--seconds", "1"],
    "demo": ["demo", "--seconds", "1"],
}
WAYS = ("rich", "no rich", "NO_COLOR", "dumb", "pipe")


class Shown:
    """Runs commands, with rich or without, on a terminal or not; returns all that they write."""

    def __init__(self, way: str, without_rich: str) -> None:
        self.way = way
        extra = {
            "no rich": {"PYTHONPATH": without_rich},
            "NO_COLOR": {"NO_COLOR": "1"},
            "dumb": {"TERM": "dumb"},
        }
        self._environment = {"COLUMNS": "400", **extra.get(way, {})}  # so that nothing is wrapped

    def of(self, *command: str) -> str:
        if self.way != "pipe":
            return run_on_terminal(*command, env=self._environment)[1]
        done = run(*command, **self._environment)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.fixture(params=WAYS)
def shown(request: pytest.FixtureRequest, tmp_path: Path) -> Shown:
    if request.param == "rich":
        pytest.importorskip("rich")
    (tmp_path / "rich.py").touch()  # hides the real one
    return Shown(request.param, str(tmp_path))


def assert_harmless(written: str) -> None:
    """See that nothing in it is obeyed: of escape codes only those of our own output."""
    for code in ("\x1b]", "\x07", "\x9b", "\u202e", "\u2066", "\u2028"):
        assert code not in written
    assert not any(line.startswith("FORGED") for line in written.splitlines())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_of_a_refusal(shown: Shown, command: list[str]) -> None:
    with rude_server(TEXT, greets=False) as server:
        written = shown.of(*command, server.dsn)
    assert_harmless(written)
    assert SHOWN in written


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_of_a_version_and_of_failing_statements(shown: Shown, command: list[str]) -> None:
    with rude_server(TEXT, greets=True) as server:
        written = shown.of(*command, server.dsn)
    assert_harmless(written)
    assert SHOWN in written


@pytest.fixture
def rude_user(server: Server) -> Iterator[None]:
    """Have a session whose user, database and application have such names."""
    with closing(psycopg2.connect(server.dsn)) as conn:
        name = quote_ident(NAME, conn)
    server.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{server.verifier}'")
    server.execute(f"CREATE DATABASE {name}")
    params = {**server.params, "user": NAME, "dbname": NAME, "application_name": NAME}
    with closing(psycopg2.connect(**params)):
        yield
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.execute(f"DROP ROLE {name}")


@pytest.mark.usefixtures("rude_user")
@pytest.mark.parametrize("command", ["doctor", "watch"])
def test_of_another_user(shown: Shown, server: Server, command: str) -> None:
    written = shown.of(*COMMANDS[command], server.dsn)
    assert_harmless(written)
    assert NAME_SHOWN in written


@pytest.mark.usefixtures("rude_user")
@pytest.mark.parametrize("command", ["doctor", "watch"])
def test_of_this_user(shown: Shown, server: Server, command: str) -> None:
    dsn = make_dsn(server.dsn, user=NAME, dbname=NAME)
    assert_harmless(shown.of(*COMMANDS[command], dsn))


@pytest.mark.usefixtures("rude_user")
@pytest.mark.parametrize("command", ["doctor", "watch"])
def test_in_json_it_is_data(server: Server, command: str) -> None:
    done = run(*COMMANDS[command], "--json", server.dsn)
    assert done.stdout.isascii()
    assert_harmless(done.stdout)
    found = json.loads(done.stdout)
    groups = found["groups"] if command == "watch" else found["endpoints"][0]["server"]["activity"]
    assert NAME in [group["user"] for group in groups]


def test_of_the_command_line(shown: Shown) -> None:
    written = shown.of(f"--{ESCAPES}\nFORGED")
    assert_harmless(written)


def test_of_the_log_that_the_demo_shows() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    with log_shown(screen):
        logging.getLogger("psycopg2_pool2").warning("cannot connect: %s", TEXT)
    screen.say(f"PostgreSQL {TEXT}")
    screen.show(TEXT)
    assert_harmless(stream.getvalue())
    lines = stream.getvalue().splitlines()
    assert lines[0] == f"  log: cannot connect: {SHOWN} | FORGED line | FORGED again | FORGED"
    assert len(lines) == 3
