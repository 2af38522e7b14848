"""A server of a command's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server


def new_server() -> Server:
    """Make and start one; RuntimeError if that is not possible here, with what to do about it."""
    try:
        from psycopg2_pool2.contrib.embedded import Server
    except ImportError as error:
        raise RuntimeError(f"a server of its own needs Unix ({error}); name one") from error
    return Server.create()


def params_of(server: Server) -> dict[str, Any]:
    """Return how to reach it, whatever PGPASSWORD and PGSSLMODE say."""
    return {**server.params, "password": server.password, "sslmode": "disable"}
