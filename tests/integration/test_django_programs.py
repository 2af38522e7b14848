"""contrib.django in processes of its own: commands, servers, Django's test runner, both drivers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.contrib.embedded.binaries import binary
from psycopg2_pool2.contrib.session import execute
from tests.support.pools import wait_for_backends
from tests.support.programs import Program, started
from tests.support.servers import StatementLog
from tests.support.site import SETTINGS, TABLE, database, environment
from tests.support.waiting import wait_until

SITE = "tests.support.apps.django_site"
ROOT = Path(__file__).parents[2]
_numbers = count(1)


class Manager:
    """Runs the site's commands on a database of its own."""

    def __init__(self, server: Server, name: str, app: str) -> None:
        self.name = name
        self.app = app
        self.server = server
        # What stays idle is what would hinder most.
        pool = {"minconn": 2, "timeout": 20}
        self.environment = environment(default=database(server, name, app, pool=pool))

    def run(self, *command: str, **variables: str) -> str:
        """Run a command to its end; return what it wrote."""
        done = subprocess.run(
            [sys.executable, "-m", SITE, *command],
            env={**os.environ, **self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement in its database."""
        return execute({**self.server.params, "dbname": self.name}, sql)


@pytest.fixture
def manager(server: Server, statement_log: StatementLog) -> Iterator[Manager]:
    """Make a database, and who manages a site there; in the end no session may be left."""
    name = f"managed_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    yield Manager(server, name, statement_log.application_name)
    wait_for_backends(server, statement_log.application_name, 0)
    server.execute(f"DROP DATABASE {name}")


def test_commands(manager: Manager) -> None:
    assert "Applying django_site.0001_initial... OK" in manager.run("migrate")
    assert "no issues" in manager.run("check", "--database", "default")
    assert f"db_table = '{TABLE}'" in manager.run("inspectdb")
    psql = Path(binary("psql"))
    path = os.pathsep.join([str(psql.parent), os.environ["PATH"]])
    insert = f"INSERT INTO {TABLE} VALUES (1, 'a', 0, '{{}}', now())"
    assert "INSERT 0 1" in manager.run("dbshell", "--", "-c", insert, PATH=path)
    manager.run("flush", "--no-input")
    assert manager.ask(f"SELECT count(*) FROM {TABLE}") == [(0,)]


def test_djangos_test_runner_makes_and_destroys_its_databases(manager: Manager) -> None:
    told = manager.run("test", SITE, "--parallel", "2")
    assert re.search(r"Ran 6 tests.*\n\nOK", told), told
    assert manager.ask("SELECT datname FROM pg_database WHERE datname LIKE 'test_managed%'") == []


# -- servers --------------------------------------------------------------------


def get(port: int) -> Any:
    """Ask a server for who answers there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/one", timeout=20) as answer:
        return json.loads(answer.read())


def test_gunicorns_workers_borrow_their_own(manager: Manager, tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    config = f"{SITE}.wsgi"
    command = ["-m", "gunicorn", "-c", f"python:{config}", f"{config}:application"]
    with started(command, manager.environment, tmp_path / "log") as gunicorn:
        port = int(gunicorn.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])
        wait_until(lambda: len(gunicorn.workers()) == 2)
        masters = set(wait_for_backends(manager.server, manager.app, 2))
        answers: dict[int, int] = {}

        def both_have_answered() -> bool:
            told = get(port)
            answers[told["worker"]] = told["backend"]
            return len(answers) == 2

        wait_until(both_have_answered)
        assert len(masters | set(answers.values())) == 4
        assert masters <= set(manager.server.backends(manager.app))
        gunicorn.ask_to_end()
        assert gunicorn.exit_status() == 0
    assert "Traceback" not in gunicorn.output


def test_the_development_server_reloads(manager: Manager, tmp_path: Path) -> None:
    module = tmp_path / "reloaded.py"
    module.write_text(f"from {SETTINGS} import *\n")
    variables = {"DJANGO_SETTINGS_MODULE": "reloaded", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    port = free_port()
    command = ["-m", SITE, "runserver", f"127.0.0.1:{port}"]
    with started(command, {**manager.environment, **variables}, tmp_path / "log") as runserver:
        before = first_answer(runserver, port)
        sessions = set(wait_for_backends(manager.server, manager.app, 2))
        module.write_text(f"from {SETTINGS} import *\nDEBUG = False\n")

        def has_reloaded() -> bool:
            # It may answer before it has looked when the file was written: a change
            # that comes in between is none to it.
            module.touch()
            return not sessions & set(manager.server.backends(manager.app))

        wait_until(has_reloaded)
        assert first_answer(runserver, port)["worker"] != before["worker"]
    assert "Traceback" not in runserver.output


def first_answer(program: Program, port: int) -> Any:
    """Wait until a server answers."""

    def answered() -> Any:
        try:
            return get(port)
        except OSError:
            assert program.process.poll() is None, program.output
            return None

    return wait_until(answered)


# -- both drivers ---------------------------------------------------------------

_BOTH = """
import json, sys
{first}
from django.conf import settings
settings.configure(DATABASES=json.loads(sys.argv[1]), INSTALLED_APPS=sys.argv[2:])
import django
django.setup()
from django.db import connections
for connection in connections.all():
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::int[]", [[1, 2]])
        print(connection.Database.__name__, cursor.fetchone())
import psycopg
print(psycopg.connect)
"""


def drivers(server: Server, first: str, *apps: str, engine: str | None = None) -> list[str]:
    """Use two databases where psycopg is installed too; return the drivers, or the last error."""
    pytest.importorskip("psycopg")
    databases = {alias: database(server, "postgres") for alias in ("default", "other")}
    if engine is not None:
        databases["default"].update(ENGINE=engine, OPTIONS={})
    done = subprocess.run(
        [sys.executable, "-c", _BOTH.format(first=first), json.dumps(databases), *apps],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        return done.stderr.splitlines()[-1:]
    *lines, last = done.stdout.splitlines()
    assert "Connection.connect" in last
    return [line.partition(" ")[0] for line in lines]


BACKEND = "psycopg2_pool2.contrib.django"
OURS_FIRST = f"import {BACKEND}"


@pytest.mark.parametrize(
    ("first", "apps"),
    [
        pytest.param("", [], id="by-the-engine"),
        pytest.param("import psycopg", [], id="psycopg-imported"),
        pytest.param(OURS_FIRST, ["django.contrib.postgres"], id="by-an-import"),
    ],
)
def test_psycopg2_is_used_where_psycopg_is_installed_too(
    server: Server, first: str, apps: list[str]
) -> None:
    assert drivers(server, first, *apps) == ["psycopg2", "psycopg2"]


def test_djangos_own_backend_uses_psycopg2_then(server: Server) -> None:
    engine = "django.db.backends.postgresql"
    assert drivers(server, OURS_FIRST, engine=engine) == ["psycopg2", "psycopg2"]


@pytest.mark.parametrize(
    ("apps", "engine"),
    [(["django.contrib.postgres"], None), ([], "django.db.backends.postgresql")],
    ids=["contrib-postgres", "an-alias-without-a-pool"],
)
def test_where_django_has_chosen_psycopg_the_error_says_what_to_do(
    server: Server, apps: list[str], engine: str | None
) -> None:
    [error] = drivers(server, "", *apps, engine=engine)
    assert "ImproperlyConfigured" in error
    assert "Uninstall psycopg, or put 'import psycopg2_pool2.contrib.django' at the top" in error
