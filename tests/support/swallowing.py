"""A proxy that lets the server commit, and its client never hear of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support.proxy import Link, Proxy


class Swallowing(Proxy):
    """Forwards everything; when armed, it cuts the next COMMIT's connection instead of answering.

    The server gets the COMMIT.
    """

    armed = False

    def _advance(self, link: Link, action: Callable[[], None]) -> None:
        super()._advance(link, action)
        if self.armed and b"COMMIT" in link.to_server.next_bytes:
            self.armed = False
            link.to_client.budget = 0


def swallowing(server: Any) -> Swallowing:
    """Make one before a server."""
    return Swallowing((server.host, server.port))
