"""Which server the demo is played on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ..embedded import new_server, params_of
from ..where import named_server
from .screen import Screen

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server


def place(
    dsn: str | None, screen: Screen, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Server | None]:
    """Say which server is used; return how to reach it, and the server if it is ours."""
    named = named_server(dsn)
    if named is not None:
        screen.say(f"Server: {named.by}; it is not restarted.")
        return named.params, None
    screen.show("Starting a PostgreSQL server ...")
    server = stack.enter_context(new_server())
    screen.say(f"Server: a new one for this demo, on {server.host} port {server.port}.")
    return params_of(server), server
