"""The Django site of tests/support/apps/django_site, in the process of the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.session import execute
from tests.support.servers import StatementLog
from tests.support.waiting import LONG_ENOUGH

SETTINGS = "tests.support.apps.django_site.settings"
ENGINE = "psycopg2_pool2.contrib.django"
TABLE = "django_site_account"


def database(server: Server, name: str, app: str = "", **settings: Any) -> dict[str, Any]:
    """Return what an alias of `DATABASES` is set to; its pool is made as `pool` says."""
    options = {"application_name": app, "pool": True, **settings.pop("options", {})}
    if "pool" in settings:
        options["pool"] = settings.pop("pool")
    return {
        "ENGINE": ENGINE,
        "NAME": name,
        "USER": "postgres",
        "HOST": server.host,
        "PORT": str(server.port),
        "OPTIONS": options,
        **settings,
    }


def environment(**databases: dict[str, Any]) -> dict[str, str]:
    """Return what a process of the site's own reads."""
    return {"DJANGO_SETTINGS_MODULE": SETTINGS, "SITE_DATABASES": json.dumps(databases)}


@dataclass
class Answer:
    """What a request was answered."""

    status: int
    text: str

    @property
    def told(self) -> Any:
        """What was said as JSON."""
        return json.loads(self.text)


class Site:
    """The site, whose databases are set up as a test wants them."""

    NAMES = ("site", "site_other")

    def __init__(self, server: Server, app: str) -> None:
        self._server = server
        self._app = app
        for name in self.NAMES:
            execute({**server.params, "dbname": name}, f"TRUNCATE {TABLE}")

    def set_up(self, alias: str = "default", **settings: Any) -> ConnectionPool:
        """Have an alias use these settings, also in threads that have used it; return its pool."""
        from django.db import connections

        name = self.NAMES[alias != "default"]
        wanted = database(self._server, name, self._app, **settings)
        connections[alias].close()
        connections[alias].close_pool()
        connections.settings[alias].clear()
        connections.settings[alias].update(
            connections.configure_settings({"default": wanted})["default"]
        )
        pool: ConnectionPool = connections[alias].pool
        return pool

    def get(self, path: str) -> Answer:
        """Serve a request in this thread, from its first signal to its last."""
        from django.core.handlers.wsgi import WSGIHandler

        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ["PATH_INFO"], _, environ["QUERY_STRING"] = path.partition("?")
        status = []
        response = WSGIHandler()(environ, lambda line, headers: status.append(line))
        try:
            text = b"".join(response).decode()
        finally:
            response.close()
        return Answer(int(status[0].split()[0]), text)

    async def get_async(self, path: str) -> Answer:
        """Serve a request as an ASGI server does."""
        request = await self.asgi_request(path)
        start = await request.receive_output(LONG_ENOUGH)
        body = await request.receive_output(LONG_ENOUGH)
        await request.wait(LONG_ENOUGH)
        return Answer(start["status"], body["body"].decode())

    async def asgi_request(self, path: str) -> Any:
        """Begin to serve one."""
        from asgiref.testing import ApplicationCommunicator
        from django.core.handlers.asgi import ASGIHandler

        scope = {"type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": path}
        request: Any = ApplicationCommunicator(  # type: ignore[no-untyped-call]
            ASGIHandler(), {**scope, "headers": []}
        )
        await request.send_input({"type": "http.request"})
        return request

    def close(self) -> None:
        """Return what this thread has borrowed, and close the pools."""
        from django.db import connections

        for connection in connections.all(initialized_only=True):
            connection.close()
            connection.close_pool()


def ask(sql: str = "SELECT 1", *params: object, using: str = "default") -> Any:
    """Run a statement; return the first value of its answer, None if it has none."""
    from django.db import connections

    with connections[using].cursor() as cursor:
        cursor.execute(sql, params or None)
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def ask_once(sql: str = "SELECT 1", using: str = "default") -> Any:
    """Do what a request does: borrow, ask, return."""
    from django.db import connections

    try:
        return ask(sql, using=using)
    finally:
        connections[using].close()


def backend(using: str = "default") -> int:
    """Return the backend of the connection that this thread has, or borrows now."""
    return int(ask("SELECT pg_backend_pid()", using=using))


@pytest.fixture(scope="session")
def django_site(server: Server) -> None:
    """Set Django up in this process, once and for all, and make the site's databases."""
    import django
    from django.core.management import call_command

    first, second = Site.NAMES
    for name in Site.NAMES:
        server.execute(f"CREATE DATABASE {name}")
    os.environ.update(environment(default=database(server, first), other=database(server, second)))
    django.setup()
    for alias in ("default", "other"):
        call_command("migrate", database=alias, verbosity=0)


@pytest.fixture
def site(django_site: None, server: Server, statement_log: StatementLog) -> Iterator[Site]:
    """Use the site, under the application name of this test."""
    used = Site(server, statement_log.application_name)
    yield used
    used.close()
