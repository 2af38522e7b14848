"""Which server the demo is played on."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from .screen import Screen

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server

# libpq's variables that say which server is meant; the others only say how to talk to it.
_SERVER_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE")


def place(
    dsn: str | None, screen: Screen, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Server | None]:
    """Say which server is used; return how to reach it, and the server if it is ours."""
    if dsn is not None:
        screen.say("Server: the one given; it is not restarted.")
        return {"dsn": dsn}, None
    if os.environ.get("DATABASE_URL"):
        screen.say("Server: the one of DATABASE_URL; it is not restarted.")
        return {"dsn": os.environ["DATABASE_URL"]}, None
    if named := [name for name in _SERVER_VARIABLES if os.environ.get(name)]:
        screen.say(f"Server: the one of {', '.join(named)}; it is not restarted.")
        return {}, None
    screen.show("Starting a PostgreSQL server ...")
    server = stack.enter_context(_new_server())
    screen.say(f"Server: a new one for this demo, on {server.host} port {server.port}.")
    return {**server.params, "sslmode": "disable"}, server


def _new_server() -> Server:
    try:
        from psycopg2_pool2.contrib.embedded import Server
    except ImportError as error:
        raise RuntimeError(f"a server of its own needs Unix ({error}); name one") from error
    return Server.create()
