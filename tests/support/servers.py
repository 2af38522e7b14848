"""Real servers as tests want them: one, several, a primary with standbys, their statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from psycopg2.extensions import make_dsn

from psycopg2_pool2.contrib.embedded import EmbeddedServerMissing, Server, free_port
from tests.support.proxy import Proxy


class MakeServer(Protocol):
    """What the fixture `make_server` gives: a new server, closed when the test ends."""

    def __call__(self, host: str = ..., port: int | None = ..., **settings: Any) -> Server: ...


class MakeProxy(Protocol):
    """What the fixture `proxy` gives: a new proxy before a server, closed when the test ends."""

    def __call__(
        self, server: Server | None = ..., host: str = ..., port: int | None = ...
    ) -> Proxy: ...


@contextmanager
def new_server(*args: Any, **kwargs: Any) -> Iterator[Server]:
    """Make a server as `Server.create` does; skip the test where there are no binaries."""
    try:
        server = Server.create(*args, **kwargs)
    except EmbeddedServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@dataclass
class ReplicaSet:
    """A primary and its streaming standbys, on addresses of their own with one port."""

    primary: Server
    replicas: list[Server]

    @property
    def servers(self) -> list[Server]:
        return [self.primary, *self.replicas]

    @property
    def hosts(self) -> list[str]:
        return [server.host for server in self.servers]

    @property
    def port(self) -> int:
        return self.primary.port

    @property
    def dsn(self) -> str:
        """A connection string that names all of them, the primary first."""
        return str(make_dsn(**{**self.primary.params, "host": ",".join(self.hosts)}))

    def wait_caught_up(self) -> None:
        """Wait until every standby shows what the primary has."""
        for replica in self.replicas:
            replica.wait_caught_up()

    def fail_over(self) -> Server:
        """Kill the primary and promote the first standby; return the new primary."""
        self.wait_caught_up()
        self.primary.kill()
        promoted = self.replicas[0]
        promoted.promote()
        return promoted


@contextmanager
def new_replica_set(standbys: int = 2) -> Iterator[ReplicaSet]:
    """Make a primary on 127.0.0.1 and standbys on 127.0.0.2 and so on."""
    hosts = [f"127.0.0.{number}" for number in range(1, standbys + 2)]
    with ExitStack() as stack:
        primary = stack.enter_context(new_server(hosts[0], free_port(*hosts)))
        replicas = [stack.enter_context(primary.replica(host)) for host in hosts[1:]]
        replica_set = ReplicaSet(primary, replicas)
        replica_set.wait_caught_up()
        yield replica_set


class StatementLog:
    """The statements that the server got from sessions under one application name."""

    def __init__(self, server: Server, application_name: str) -> None:
        self.application_name = application_name
        self.params = {**server.params, "application_name": application_name}
        self.dsn = f"{server.dsn} application_name={application_name}"
        self._server = server
        self._mark = server.mark()

    def clear(self) -> None:
        """Forget what was sent until now."""
        self._mark = self._server.mark()

    def statements(self) -> list[str]:
        """Return the statements sent since the last `clear`, in order."""
        return self._server.statements(self._mark, self.application_name)

    def during(self, call: Callable[[], object]) -> list[str]:
        """Return the statements that a call sends."""
        self.clear()
        call()
        return self.statements()
