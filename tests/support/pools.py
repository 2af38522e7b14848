"""Pools on the shared server, and what tests ask of them again and again."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import psutil
import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.monitor import get_monitor
from tests.support.servers import StatementLog
from tests.support.waiting import Running, in_thread, wait_until


class MakePool(Protocol):
    """What the fixtures give: a new pool, closed when the test ends."""

    def __call__(self, minconn: int = ..., maxconn: float = ..., **kwargs: Any) -> ConnectionPool:
        """Make a pool on the shared server, under the test's application name, unless told."""


@contextmanager
def pool_maker(**defaults: Any) -> Iterator[MakePool]:
    """Make pools that are closed at the end."""
    with ExitStack() as stack:

        def make(minconn: int = 0, maxconn: float = 4, **kwargs: Any) -> ConnectionPool:
            # With a dsn of its own a pool goes elsewhere.
            inherited = {
                name: value
                for name, value in defaults.items()
                if not ({"dsn", "host"} & kwargs.keys() and name in _WHERE)
            }
            pool = ConnectionPool(minconn, maxconn, **{**inherited, **kwargs})
            stack.callback(pool.shutdown)
            return pool

        yield make


_WHERE = {"host", "port", "user", "dbname"}


@pytest.fixture
def app(statement_log: StatementLog) -> str:
    """Return the application name of this test's pools."""
    return statement_log.application_name


@pytest.fixture
def make_pool(statement_log: StatementLog) -> Iterator[MakePool]:
    """Make pools on the shared server; `statement_log` has what they send."""
    with pool_maker(**statement_log.params) as make:
        yield make


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_any_pool(
    statement_log: StatementLog, request: pytest.FixtureRequest
) -> Iterator[MakePool]:
    """Make pools as `make_pool` does; the test runs with the background thread and without it."""
    with pool_maker(**statement_log.params, num_workers=request.param) as make:
        yield make


def ask(conn: Any, sql: str = "SELECT 1", *params: object) -> Any:
    """Run a statement; return the first value of its answer, None if it has none."""
    with conn.cursor() as cursor:
        cursor.execute(sql, params or None)
        row = cursor.fetchone() if cursor.description else None
    return row and row[0]


def pid_of(conn: Any) -> int:
    """Return the process id of the connection's backend, without asking the server."""
    pid: int = conn.info.backend_pid
    return pid


def borrow(pool: ConnectionPool, number: int) -> list[Any]:
    """Borrow so many."""
    return [pool.getconn(timeout=10) for _ in range(number)]


def give_back(pool: ConnectionPool, conns: list[Any]) -> None:
    """Return them, in order, and leave the list empty."""
    while conns:
        pool.putconn(conns.pop(0))


def fill(pool: ConnectionPool, number: int) -> list[int]:
    """Have at least so many idle connections; return their backends, idle longest first."""
    conns = borrow(pool, number)
    pids = [pid_of(conn) for conn in conns]
    give_back(pool, conns)
    return pids


def borrowed_pids(pool: ConnectionPool, number: int) -> list[int]:
    """Borrow so many at a time, see that each answers, return all; tell their backends."""
    conns = borrow(pool, number)
    try:
        assert [ask(conn) for conn in conns] == [1] * number
        return [pid_of(conn) for conn in conns]
    finally:
        give_back(pool, conns)


def round_trip(pool: ConnectionPool, timeout: float | None = 10) -> int:
    """Borrow, ask, return; tell which backend it was."""
    conn = pool.getconn(timeout=timeout)
    try:
        assert ask(conn) == 1
        return pid_of(conn)
    finally:
        pool.putconn(conn)


def waiting(pool: ConnectionPool) -> int:
    """Return how many borrowers wait."""
    number: int = pool.get_stats()["requests_waiting"]
    return number


def wait_for_waiters(pool: ConnectionPool, number: int) -> None:
    """Wait until so many borrowers wait."""
    wait_until(lambda: waiting(pool) == number, message=f"{number} waiters")


def start_waiter(pool: ConnectionPool, timeout: float | None = 30) -> Running[Any]:
    """Have a thread wait for a connection; return when it is in the queue."""
    before = set(pool._store.waiters)
    waiter = in_thread(pool.getconn, timeout=timeout)
    wait_until(
        # Not by their number: others may leave meanwhile.
        lambda: set(pool._store.waiters) - before or waiter.done,
        message="the waiter is in the queue",
    )
    return waiter


def wait_until_lost(pool: ConnectionPool, number: int = 1) -> None:
    """Wait until the pool has noticed so many losses, and has probed the others because of them.

    For tests that kill backends and borrow untested. The server's list is about a millisecond
    faster than the monitor, and what is being probed is not idle for a moment. A pool without
    workers looks when somebody borrows.
    """
    if pool._monitor is not None:
        wait_until(lambda: pool.get_stats()["connections_lost"] >= number)
        wait_until_at_rest()


def wait_until_at_rest() -> None:
    """Wait until nothing is being probed, opened or closed in the background."""
    workers = get_monitor().workers
    calm = 0

    def is_calm() -> bool:
        # One that has just taken a job does not look busy yet: so look again.
        nonlocal calm
        calm = 0 if workers.busy else calm + 1
        return calm == 3

    wait_until(is_calm)


def assert_whole(pool: ConnectionPool) -> None:
    """See that nothing is in use, and that all of maxconn can be borrowed at a time."""
    gc.collect()
    wait_until(lambda: pool.stats().in_use == 0)
    number = int(pool.maxconn)
    assert len(set(borrowed_pids(pool, number))) == number
    assert pool.stats().in_use == 0


def wait_for_backends(server: Server, app: str, number: int) -> list[int]:
    """Wait until the application has so many sessions; return their process ids."""
    wait_until(
        lambda: len(server.backends(app)) == number,
        message=f"{number} backends, there are {server.backends(app)}",
    )
    return server.backends(app)


def end_sessions(server: Server, app: str) -> list[int]:
    """End all of an application's sessions, as an administrator does; return those they were."""
    pids = server.backends(app)
    # Without a timeout, as the server looks only every 100 ms whether they have ended.
    server.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [pids])
    wait_until(lambda: not set(pids) & set(server.backends(app)))
    return pids


class SessionWatch:
    """The largest number of sessions that an application had at one moment.

    What the server shows is taken at its word up to `limit`. Beyond, a backend may just outlive
    its socket: counted are those whose sockets are still open after the server named them, here or
    in the process that has them.
    """

    def __init__(self, server: Server, app: str, limit: int, process: int | None = None) -> None:
        self.peak = 0
        self.samples = 0
        self._app = app
        self._limit = limit
        self._process = process
        self._stop = threading.Event()
        self._conn = psycopg2.connect(**server.params, application_name="watch")
        self._conn.autocommit = True
        self._running = in_thread(self._watch)

    def finish(self) -> None:
        """End, and raise what went wrong."""
        self._stop.set()
        self._running.result()
        self._conn.close()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._sample()

    def _sample(self) -> None:
        with self._conn.cursor() as cursor:
            cursor.execute(
                "SELECT client_port FROM pg_stat_activity WHERE application_name = %s", [self._app]
            )
            ports = {port for (port,) in cursor}
        if len(ports) > self._limit:
            ports &= _ports_of(self._process)
        self.peak = max(self.peak, len(ports))
        self.samples += 1


def _ports_of(process: int | None) -> set[int]:
    sockets = psutil.Process(process).net_connections("tcp")
    return {found.laddr.port for found in sockets if found.laddr}


@contextmanager
def watched_sessions(
    server: Server, app: str, limit: int, process: int | None = None
) -> Iterator[SessionWatch]:
    """Count an application's sessions all the time; `peak` is final after the block."""
    watch = SessionWatch(server, app, limit, process)
    try:
        yield watch
    finally:
        watch.finish()


class Park:
    """A place where a call can be held: it reports its arrival and waits for its release."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.release = threading.Event()
        self._armed = threading.Event()

    def arm(self) -> None:
        """Hold the next call."""
        self._armed.set()

    def __call__(self, *args: object) -> None:
        if self._armed.is_set():
            self._armed.clear()
            self.arrived.set()
            assert self.release.wait(30)


@contextmanager
def parked(park: Park, call: Callable[[], object]) -> Iterator[Running[object]]:
    """Start a call that is held at `park` during the block, and see it end after it."""
    park.arm()
    running = in_thread(call)
    try:
        assert park.arrived.wait(10), "nothing came to the park"
        yield running
        assert not park.release.is_set()
    finally:
        park.release.set()
        with suppress(psycopg2.Error):
            running.result()
