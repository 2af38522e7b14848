"""A server that does not know some statements: a real one, behind a proxy that garbles them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.proxy import Pipe, Proxy


class _Misspelling(Pipe):
    def __init__(self, pipe: Pipe, statements: Iterable[bytes]) -> None:
        super().__init__(pipe.source, pipe.sink)
        self._statements = list(statements)

    def read(self, delay: float) -> None:
        super().read(delay)
        if self._pending:
            due, chunk = self._pending.pop()
            for statement in self._statements:
                chunk = chunk.replace(statement, b"?" * len(statement))
            self._pending.append((due, chunk))


class Refusing(Proxy):
    """Has the server answer each of these statements with a syntax error."""

    def __init__(self, target: tuple[str, int], statements: Iterable[str]) -> None:
        self._statements = [statement.encode() for statement in statements]
        super().__init__(target)

    def _add_link(self, client: socket.socket) -> None:
        known = list(self._links)
        super()._add_link(client)
        for link in self._links:
            if link not in known:
                link.to_server = _Misspelling(link.to_server, self._statements)


@contextmanager
def refusing(server: Any, *statements: str) -> Iterator[Refusing]:
    """Put one before a server."""
    with Refusing((server.host, server.port), statements) as proxy:
        yield proxy
