"""Several servers behind one name: where a pool's connections lead to, and who borrows them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.census import Tally
from tests.support.dns import DnsServer, a
from tests.support.pools import ask, borrow, give_back
from tests.support.servers import new_server
from tests.support.waiting import in_thread, wait_until

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
NAME = "db.test"


class Places:
    """Servers on addresses of their own with one port, and a name server of the test's own."""

    def __init__(self, servers: list[Server], dns: DnsServer, stack: ExitStack) -> None:
        self.servers = servers
        self.dns = dns
        self.port = servers[0].port
        self._stack = stack

    def name(self, *numbers: int, name: str = NAME, ttl: int = 1) -> None:
        """Have a name stand for these of the servers, counted from 1."""
        self.dns.zone[name] = [a(HOSTS[number - 1], ttl) for number in numbers]

    def pool(self, minconn: int = 0, maxconn: float = 4, **kwargs: Any) -> ConnectionPool:
        """Make a pool, for `NAME` unless told otherwise, that is closed when the test ends."""
        where: dict[str, Any] = {} if "dsn" in kwargs else {"host": NAME, "port": self.port}
        defaults = {**where, "user": "postgres", "dbname": "postgres"}
        kwargs = {"resolver": self.dns.resolver(), **defaults, **kwargs}
        pool = ConnectionPool(minconn, maxconn, **kwargs)
        self._stack.callback(pool.shutdown)
        return pool

    def warm_pool(self, minconn: int, maxconn: float, **kwargs: Any) -> ConnectionPool:
        """Make a pool and wait until `minconn` are open."""
        pool = self.pool(minconn, maxconn, **kwargs)
        pool.wait(20)
        return pool


@contextmanager
def new_servers(*hosts: str) -> Iterator[list[Server]]:
    """Make a server on each address, all with one port.

    The role "careful" has to give the password "secret" to each of them.
    """
    port = free_port(*hosts)
    hba = ["host all careful 127.0.0.0/8 scram-sha-256"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(new_server(host, port, {"max_connections": 150}, hba))
            for host in hosts
        ]
        for server in servers:
            server.execute("CREATE ROLE careful LOGIN PASSWORD 'secret'")
            server.execute("CHECKPOINT")  # it may be killed, and commits are not synchronous
        yield servers


@pytest.fixture(scope="module")
def four_servers() -> Iterator[list[Server]]:
    """Share four servers among the tests of a module; who stops one starts it again."""
    with new_servers(*HOSTS) as servers:
        yield servers


@pytest.fixture
def places(four_servers: list[Server], dns_server: DnsServer) -> Iterator[Places]:
    """Return the module's servers, of which `NAME` stands for the first three."""
    for server in four_servers:
        server.start()
    with ExitStack() as stack:
        made = Places(four_servers, dns_server, stack)
        made.name(1, 2, 3)
        yield made


# -- where the connections are ---------------------------------------------


def shares(pool: ConnectionPool) -> dict[str | None, int]:
    """Return how many connections each address has, as the pool tells it."""
    return {e.address: e.connections for e in pool.endpoints()}


def spread(pool: ConnectionPool) -> list[int]:
    """Return how many connections the addresses have, the most first."""
    return sorted(shares(pool).values(), reverse=True)


def real_shares(pool: ConnectionPool, number: int) -> Counter[str]:
    """Borrow so many and ask the servers who they are."""
    conns = borrow(pool, number)
    try:
        return Counter(server_of(conn) for conn in conns)
    finally:
        give_back(pool, conns)


def server_of(conn: Any) -> str:
    """Return the address of the server that is at the other end, asked of itself."""
    return ask(conn, "SELECT coalesce(host(inet_server_addr()), 'socket')") or ""


def wait_for_spread(pool: ConnectionPool, *expected: int, timeout: float = 30) -> float:
    """Wait until the connections are spread so; return how many seconds that took."""
    started = time.monotonic()
    wait_until(
        lambda: spread(pool) == list(expected),
        timeout,
        message=f"spread {expected}, it is {shares(pool)}",
    )
    return time.monotonic() - started


def wait_until_even(pool: ConnectionPool, timeout: float = 30) -> float:
    """Wait until no address has two more than another; return how many seconds that took."""
    started = time.monotonic()
    wait_until(
        lambda: max(spread(pool)) - min(spread(pool)) <= 1,
        timeout,
        message=f"even shares: {pool.endpoints()}",
    )
    return time.monotonic() - started


# -- who uses them ---------------------------------------------------------


class Customers:
    """Threads that borrow, ask and return all the time, until the end of the block.

    `errors` are those of borrowing; a statement that fails because its server dies is the
    program's own matter and counts in `lost` only. `slowest` is the longest borrow, in seconds;
    `fewest` how many connections were open or being opened at least.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        number: int = 1,
        timeout: float | None = 5,
        sql: str = "SELECT 1",
        close: bool = False,
    ) -> None:
        self.pool = pool
        self.errors: list[Exception] = []
        self._timeout = timeout
        self._sql = sql
        self._close = close
        self._stopped = False
        self.begin_anew()
        self._running = [in_thread(self._use) for _ in range(number)]

    def begin_anew(self) -> None:
        """Forget what has been counted, but for the errors."""
        self.slowest = 0.0
        self.fewest = self.pool.minconn
        self.served = self.lost = 0

    def wait_served(self, number: int) -> None:
        """Wait until so many more loans have ended well."""
        goal = self.served + number
        wait_until(lambda: self.served >= goal, 30, message=f"{goal} loans; {self.errors}")

    def __enter__(self) -> Customers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        for running in self._running:
            running.result(40)

    def _use(self) -> None:
        while not self._stopped and len(self.errors) < 100:
            started = time.monotonic()
            try:
                conn = self.pool.getconn(timeout=self._timeout)
            except Exception as error:
                self.errors.append(error)
                continue
            finally:
                self.slowest = max(self.slowest, time.monotonic() - started)
            self._ask(conn)
            self.fewest = min(self.fewest, self.pool.get_stats()["pool_size"])

    def _ask(self, conn: Any) -> None:
        try:
            ask(conn, self._sql)
            self.served += 1
        except psycopg2.Error:
            self.lost += 1
        finally:
            self.pool.putconn(conn, close=self._close)


def counted(kwargs: dict[str, Any] | None = None) -> tuple[Tally, dict[str, Any]]:
    """Return a count of a pool's sockets, and keywords for the pool that is to be counted."""
    tally = Tally()
    return tally, {**(kwargs or {}), "connection_factory": tally.factory()}
