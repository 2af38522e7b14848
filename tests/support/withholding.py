"""A proxy that accepts CancelRequests and answers them never, as a full PgBouncer may for long."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tests.support.proxy import Link, Proxy

_CANCEL_REQUEST = struct.pack("!ii", 16, 80877102)


class Withholding(Proxy):
    """Forwards everything except the CancelRequests that it can read: these it holds.

    `held` counts them; one that is encrypted passes.
    """

    held = 0

    def _advance(self, link: Link, action: Callable[[], None]) -> None:
        super()._advance(link, action)
        # It is the first message, or comes after a question for encryption.
        if link.to_server.next_bytes.startswith(_CANCEL_REQUEST) and not link.frozen:
            link.frozen = True
            self.held += 1


def withholding(server: Any) -> Withholding:
    """Make one before a server or a PgBouncer."""
    return Withholding((server.host, server.port))
