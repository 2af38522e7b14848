"""A server of a command's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server


def new_server() -> Server:
    """Make and start one; RuntimeError if that is not possible here, with what to do about it."""
    try:
        from psycopg2_pool2.contrib.embedded import Server
    except ImportError as error:
        raise RuntimeError(f"a server of its own needs Unix ({error}); name one") from error
    return Server.create()
