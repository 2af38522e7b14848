"""Statements that are stopped on the server, and servers that do not take notice of it.

What could stop a whole process is done in a program of its own, so that a failure ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg2
import pytest

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool, cancelling, libpq
from psycopg2_pool2.connection import really_close
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.waits import ask_to_stop
from tests.support.aio import eventually, in_loop
from tests.support.pgbouncer import MakePgBouncer
from tests.support.pools import MakePool, ask, pid_of
from tests.support.processes import Ended, in_child, run_program
from tests.support.tls import TlsServer
from tests.support.waiting import Running, in_thread, wait_until
from tests.support.withholding import Withholding, withholding

LONG = 120
"""Seconds that a statement takes unless it is stopped."""
HELD_UP = 5.0
"""Seconds for which nothing of the pool's is held up, even on a busy machine."""


def sleeps(server: Server, app: str) -> int:
    """Tell how many statements are running that are to be stopped."""
    [[number]] = server.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        " AND state = 'active' AND query LIKE '%%pg_sleep%%'",
        [app],
    )
    return int(number)


def sleep(conn: Any) -> None:
    ask(conn, f"SELECT pg_sleep({LONG})")


def use_older_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without the functions of libpq 17."""
    if libpq.key_functions() is None:
        pytest.skip("this libpq does not tell the key")
    monkeypatch.setattr(libpq, "cancel_functions", lambda: None)


@pytest.fixture(params=["by libpq's functions", "by its key"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Send requests in each of both ways."""
    name: str = request.param
    if name == "by its key":
        use_older_libpq(monkeypatch)
    elif libpq.cancel_functions() is None:
        pytest.skip("this libpq is older than version 17")
    return name


# -- places -----------------------------------------------------------------------

Place = tuple[Server, dict[str, Any]]


@pytest.fixture(params=["TCP", "Unix socket", "TLS", "PgBouncer"])
def place(request: pytest.FixtureRequest) -> Place:
    """Return a server and how to connect to it."""
    if request.param == "TLS":
        tls: TlsServer = request.getfixturevalue("tls_server")
        return tls, tls.params
    server: Server = request.getfixturevalue("server")
    if request.param == "PgBouncer":
        make: MakePgBouncer = request.getfixturevalue("pgbouncer")
        return server, make().params
    socket = {"host": str(server.socket_dir)} if request.param == "Unix socket" else {}
    return server, {**server.params, **socket}


class TestStatements:
    @in_loop
    async def test_of_a_cancelled_task_are_stopped_wherever_the_server_is(
        self, place: Place, app: str, way: str
    ) -> None:
        server, params = place
        pool = AsyncConnectionPool(0, 2, **params, application_name=app)
        async with pool:
            task = asyncio.create_task(pool.run(sleep))
            await eventually(lambda: sleeps(server, app) == 1)
            task.cancel()
            await eventually(lambda: sleeps(server, app) == 0)
            await eventually(lambda: pool.stats().in_use == 0)

    def test_of_a_connection_that_is_given_back_are_stopped(
        self, server: Server, make_any_pool: MakePool, app: str, way: str
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        running = in_thread(sleep, conn)
        wait_until(lambda: sleeps(server, app) == 1)
        pool.putconn(conn)
        assert isinstance(running.error(), psycopg2.Error)
        wait_until(lambda: sleeps(server, app) == 0)

    def test_are_stopped_more_than_once(
        self, server: Server, make_pool: MakePool, app: str
    ) -> None:
        conn = make_pool().getconn()
        for _ in range(3):
            running = in_thread(sleep, conn)
            wait_until(lambda: sleeps(server, app) == 1)
            ask_to_stop(conn, 20)
            assert isinstance(running.error(), psycopg2.errors.QueryCanceled)
            conn.rollback()
        assert ask(conn) == 1

    def test_of_a_parent_are_not_stopped_by_its_child(
        self, server: Server, make_pool: MakePool, app: str, way: str
    ) -> None:
        conn: Any = make_pool().getconn()
        running = in_thread(sleep, conn)
        wait_until(lambda: sleeps(server, app) == 1)
        assert in_child(lambda: conn.pool_cancel_request.send(5)) == "False"
        assert sleeps(server, app) == 1
        ask_to_stop(conn, 20)
        assert isinstance(running.error(), psycopg2.errors.QueryCanceled)

    def test_go_on_where_libpq_cannot_be_called_and_hold_nothing_up(
        self, server: Server, app: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(libpq, "cancel_functions", lambda: None)
        monkeypatch.setattr(libpq, "key_functions", lambda: None)
        with ConnectionPool(0, 1, **server.params, application_name=app) as pool:
            conn = pool.getconn()
            running = in_thread(sleep, conn)
            wait_until(lambda: sleeps(server, app) == 1)
            pid = pid_of(conn)
            pool.putconn(conn)
            assert isinstance(running.error(), psycopg2.Error)
            with pool.conn(timeout=20) as other:
                assert ask(other) == 1
        assert sleeps(server, app) == 1
        server.execute("SELECT pg_terminate_backend(%s)", [pid])


def test_a_key_that_belongs_to_another_session_is_not_used(make_pool: MakePool) -> None:
    keys = libpq.key_functions()
    if keys is None:
        pytest.skip("this libpq does not tell the key")
    conn: Any
    with make_pool().conn() as conn:
        pid = pid_of(conn)
        assert keys.key(conn.pgconn_ptr, pid) is not None
        assert keys.key(conn.pgconn_ptr, pid + 1) is None


def test_a_request_is_encrypted_if_the_connection_is(tls_server: TlsServer, app: str) -> None:
    if libpq.cancel_functions() is None:
        pytest.skip("a libpq before version 17 sends them in the clear")
    with withholding(tls_server) as network:
        params = {**tls_server.params, "host": network.host, "port": network.port}
        with ConnectionPool(0, 1, **params, application_name=app) as pool:
            conn = pool.getconn()
            running = in_thread(sleep, conn)
            wait_until(lambda: sleeps(tls_server, app) == 1)
            ask_to_stop(conn, 20)
            assert isinstance(running.error(), psycopg2.errors.QueryCanceled)
        assert network.held == 0


# -- silence ----------------------------------------------------------------------


@pytest.fixture
def network(server: Server) -> Iterator[Withholding]:
    """Make a way to the server on which CancelRequests get no answer."""
    with withholding(server) as made:
        yield made


@pytest.fixture
def held(server: Server, network: Withholding, app: str) -> Iterator[tuple[Any, Running[None]]]:
    """Make a connection that executes a statement whose CancelRequests get no answer."""
    params = {**server.params, "host": network.host, "port": network.port}
    with ConnectionPool(0, 1, **params, application_name=app) as pool:
        conn = pool.getconn()
        running = in_thread(sleep, conn)
        wait_until(lambda: sleeps(server, app) == 1)
        yield conn, running
        network.cut()
        assert isinstance(running.error(), psycopg2.Error)


def sockets_to(network: Withholding) -> int:
    """Tell how many sockets of this process lead to a network."""
    there = (network.host, network.port)
    return sum(connection.raddr == there for connection in psutil.Process().net_connections("tcp"))


class TestUnansweredRequest:
    def test_ends_in_time(self, held: tuple[Any, Running[None]], way: str) -> None:
        conn, running = held
        request = cancelling.cancel_request(conn)
        assert request is not None
        sending = in_thread(_outcome, lambda: request.send(0.2))
        assert sending.result(HELD_UP) in (False, "TimeoutError")
        assert not running.done

    def test_leaves_no_socket_behind_when_it_is_interrupted(
        self,
        held: tuple[Any, Running[None]],
        network: Withholding,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupted(*args: object) -> None:
            raise KeyboardInterrupt

        conn, _ = held
        if libpq.cancel_functions() is None:
            pytest.skip("this libpq is older than version 17")
        assert sockets_to(network) == 1
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cancelling, "wait_ready", interrupted)
            conn.pool_cancel_request.send(20)
        assert sockets_to(network) == 1
        conn.pool_cancel_request.send(0.05)
        assert sockets_to(network) == 1

    def test_is_not_sent_twice_at_a_time(
        self, held: tuple[Any, Running[None]], network: Withholding
    ) -> None:
        conn, _ = held
        if libpq.cancel_functions() is None:
            pytest.skip("this libpq is older than version 17")
        first = in_thread(conn.pool_cancel_request.send, 2)
        wait_until(lambda: network.held == 1)
        assert not conn.pool_cancel_request.send(20)
        assert network.held == 1
        assert first.result() is False

    def test_outlives_its_connection(
        self, held: tuple[Any, Running[None]], network: Withholding
    ) -> None:
        """It needs nothing of the connection's, which any thread may close meanwhile."""
        conn, running = held
        request = cancelling.cancel_request(conn)
        assert request is not None
        network.cut()
        assert isinstance(running.error(), psycopg2.Error)
        really_close(conn)
        sending = in_thread(_outcome, lambda: request.send(0.2))
        sending.result(HELD_UP)


def _outcome(call: Callable[[], object]) -> object:
    """Return what a call returns, or the name of what it raises."""
    try:
        return call()
    except OSError as error:
        return type(error).__name__


class TestProcess:
    """A process stands still for no request, however many of them are held."""

    def test_goes_on_while_cancelled_tasks_wait_for_the_server(
        self, network: Withholding, app: str, way: str
    ) -> None:
        told = told_by(TASKS, network, app, way)
        assert network.held == 8
        assert told["longest"] < HELD_UP
        # For each connection one that executes and one that asks; a few of the process's.
        assert told["threads"] <= 2 * 8 + 16

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_goes_on_while_a_busy_connection_is_given_back(
        self, network: Withholding, app: str, num_workers: int, way: str
    ) -> None:
        told = told_by(GIVEN_BACK, network, app, way, str(num_workers))
        assert network.held == 1
        assert told["longest"] < HELD_UP

    def test_goes_on_while_a_pgbouncer_is_stopped(
        self, pgbouncer: MakePgBouncer, app: str, way: str
    ) -> None:
        bouncer = pgbouncer()
        told = told_by(TASKS, bouncer, app, way, str(bouncer.process_id))
        assert told["longest"] < HELD_UP


def told_by(program: str, where: Any, *args: str) -> dict[str, Any]:
    """Run a program to its end; return what it tells."""
    ended: Ended = run_program(_HEAD + program, where.host, str(where.port), *args, timeout=60)
    assert ended.status == 0, ended.errors
    told: dict[str, Any] = json.loads(ended.output)
    return told


_HEAD = """
import asyncio, json, os, signal, sys, threading
from functools import partial
from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool, libpq
from tests.support.heartbeat import heartbeat
from tests.support.waiting import in_thread, wait_until

host, port, app, way, *rest = sys.argv[1:]
if way == "by its key":
    libpq.cancel_functions = lambda: None
options = {"host": host, "port": port, "user": "postgres", "dbname": "postgres",
           "application_name": app, "test_timeout": 1, "timeout": 30}

def sleep(conn):
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(120)")

def is_active(conn):  # and not by the BEGIN that psycopg2 sends first
    return conn.status == 2 and conn.get_transaction_status() == 1
"""
TASKS = """
stopped = int(rest[0]) if rest else None

async def main():
    async with AsyncConnectionPool(0, 8, **options) as pool:
        tasks = [asyncio.create_task(pool.run(sleep)) for _ in range(8)]
        while sum(map(is_active, pool.connections_in_use)) < 8:
            await asyncio.sleep(0.01)
        if stopped:
            os.kill(stopped, signal.SIGSTOP)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        most = 0
        while pool.stats().in_use:
            most = max(most, threading.active_count())
            await asyncio.sleep(0.01)
        if stopped:
            os.kill(stopped, signal.SIGCONT)
        return most

with heartbeat() as beats:
    threads = asyncio.run(asyncio.wait_for(main(), 50))
print(json.dumps({"longest": beats.longest, "threads": threads}))
"""
GIVEN_BACK = """
with ConnectionPool(0, 1, num_workers=int(rest[0]), **options) as pool, heartbeat() as beats:
    conn = pool.getconn()
    running = in_thread(sleep, conn)
    wait_until(partial(is_active, conn))
    pool.putconn(conn)
    assert running.error() is not None
    del conn
    with pool.conn() as conn:
        pass
print(json.dumps({"longest": beats.longest}))
"""
