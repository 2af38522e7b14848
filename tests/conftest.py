"""Fixtures for all tests, and the markers that tests get from their folders."""

from __future__ import annotations

import os
import tracemalloc  # noqa: F401  # else pytest imports it within a collection of garbage
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from hypothesis.internal.conjecture import providers

from psycopg2_pool2.contrib.embedded import Server, ports
from psycopg2_pool2.contrib.embedded.credentials import passfile
from tests.support.pgbouncer import MakePgBouncer, PgBouncer, new_pgbouncer
from tests.support.proxy import Proxy
from tests.support.servers import (
    MakeProxy,
    MakeServer,
    ReplicaSet,
    StatementLog,
    new_replica_set,
    new_server,
)
from tests.support.tls import TlsServer, new_tls_server

if TYPE_CHECKING:
    from tests.support.dns import DnsServer

# Some tests connect by psycopg2 itself in one thread and fork in another, where a child may copy a
# lock of GSSAPI that is being held (psycopg2_pool2.forks); libpq would ask GSSAPI at each connect.
os.environ.setdefault("PGGSSENCMODE", "disable")
# The password of the servers, for tests that write their dsn by hand.
os.environ["PGPASSFILE"] = str(passfile())

_MARKED_FOLDERS = {"integration", "stress"}
_numbers = count(1)
# The same examples in each run, and no judgement on the speed of the machine.
hypothesis.settings.register_profile(
    "the same every time",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("the same every time")
# Without the numbers and words in the code that is loaded, which depends on the tests before.
pytest.MonkeyPatch().setattr(
    providers, "_get_local_constants", lambda: providers._local_constants, raising=False
)


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of pytest-xdist ports of its own: none takes what another found free."""
    worker: dict[str, Any] = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    number = int(worker["workerid"].removeprefix("gw"))
    ports.PORTS = ports.PORTS[number :: worker["workercount"]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the name of its folder, where that is a marker."""
    tests = Path(__file__).parent
    for item in items:
        for name in _MARKED_FOLDERS.intersection(item.path.relative_to(tests).parts):
            item.add_marker(name)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Share one server: a test may end sessions of its own there, and nothing more."""
    with new_server(settings={"log_statement": "all", "max_connections": 200}) as shared:
        yield shared


@pytest.fixture
def dsn(server: Server) -> str:
    """Return the connection string of the shared server."""
    return server.dsn


@pytest.fixture
def make_server() -> Iterator[MakeServer]:
    """Make servers that the test may stop, restart, kill and freeze."""
    with ExitStack() as stack:

        def make(host: str = "127.0.0.1", port: int | None = None, **settings: Any) -> Server:
            return stack.enter_context(new_server(host, port, settings))

        yield make


@pytest.fixture
def fresh_server(make_server: MakeServer) -> Server:
    """Make a server of the test's own."""
    return make_server()


@pytest.fixture
def replica_set() -> Iterator[ReplicaSet]:
    """Make a primary on 127.0.0.1 with standbys on 127.0.0.2 and 127.0.0.3, all on one port."""
    with new_replica_set(standbys=2) as replicas:
        yield replicas


@pytest.fixture
def statement_log(server: Server) -> StatementLog:
    """Read what the shared server is sent, under an application name that no other test has."""
    return StatementLog(server, f"test-{next(_numbers)}")


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Iterator[MakeProxy]:
    """Make proxies before the shared server, or before another."""
    with ExitStack() as stack:

        def make(
            server: Server | None = None, host: str = "127.0.0.1", port: int | None = None
        ) -> Proxy:
            behind: Server = server or request.getfixturevalue("server")
            return stack.enter_context(Proxy((behind.host, behind.port), host, port))

        yield make


@pytest.fixture(scope="session")
def tls_server() -> Iterator[TlsServer]:
    """Share one server with TLS, as `server` is shared."""
    with new_tls_server(max_connections=200) as shared:
        yield shared


@pytest.fixture
def pgbouncer(request: pytest.FixtureRequest) -> Iterator[MakePgBouncer]:
    """Make PgBouncers before the shared server, or before another."""
    with ExitStack() as stack:

        def make(server: Server | None = None, **settings: object) -> PgBouncer:
            behind: Server = server or request.getfixturevalue("server")
            return stack.enter_context(new_pgbouncer(behind, **settings))

        yield make


@pytest.fixture
def dns_server() -> Iterator[DnsServer]:
    """Make a DNS server of the test's own, which knows no name yet."""
    from tests.support.dns import DnsServer  # dear to import, and few tests need it

    with DnsServer() as made:
        yield made
