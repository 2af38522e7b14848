"""Beginning and end: arguments, environment, closing, being forgotten, exit."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.pool
import pytest

from psycopg2_pool2 import ConnectionPool, PoolClosed, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    borrow,
    fill,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
)
from tests.support.processes import run_program
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, threads_named, wait_until

OURS = "psycopg2_pool2"


class TestShutdown:
    @pytest.mark.parametrize("name", ["shutdown", "close", "closeall"])
    def test_is_harmless_when_repeated(
        self, server: Server, app: str, make_any_pool: MakePool, name: str
    ) -> None:
        pool = make_any_pool()
        fill(pool, 2)
        assert not pool.closed
        for _ in range(3):
            getattr(pool, name)()
            assert pool.closed
        wait_for_backends(server, app, 0)

    def test_lets_nobody_borrow(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        fill(pool, 1)
        pool.shutdown()
        for timeout in (0, 5, None):
            with pytest.raises(PoolClosed):
                pool.getconn(timeout=timeout)
        with pytest.raises(PoolClosed), pool.conn():
            pytest.fail("it lent a connection")
        with pytest.raises(psycopg2.pool.PoolError):
            pool.getconn("key")

    def test_tells_those_who_wait(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        waiters = [start_waiter(pool, timeout) for timeout in (30, None)]
        pool.shutdown()
        assert [type(waiter.error()) for waiter in waiters] == [PoolClosed, PoolClosed]
        pool.putconn(conn)

    def test_has_those_in_use_closed_when_they_come_back(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool()
        conn, other = borrow(pool, 2)
        pool.putconn(other)
        pool.shutdown()
        assert (conn.closed, other.closed) == (0, 1)
        assert ask(conn) == 1
        pool.putconn(conn)
        assert conn.closed
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        wait_for_backends(server, app, 0)

    def test_with_a_timeout_waits_for_those_in_use(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        closing = in_thread(pool.shutdown, timeout=30)
        wait_until(lambda: pool.closed)
        assert not closing.done
        pool.putconn(conn)
        closing.result()
        assert conn.closed

    def test_with_a_timeout_does_not_wait_for_ever(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conn = pool.getconn()
        started = time.monotonic()
        pool.shutdown(timeout=0.1)
        assert 0.09 <= time.monotonic() - started < 10
        assert ask(conn) == 1
        pool.putconn(conn)

    def test_is_the_end_of_a_with_block(self, statement_log: StatementLog) -> None:
        with ConnectionPool(0, 2, **statement_log.params) as pool:
            assert isinstance(pool, ConnectionPool)
            round_trip(pool)
        assert pool.closed

    def test_while_connections_are_being_opened_leaves_none(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        for _ in range(10):
            pool = make_pool(minconn=4)
            pool.shutdown()
        wait_for_backends(server, app, 0)

    def test_while_others_borrow_leaves_none(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=4)

        def use_until_closed() -> None:
            while True:
                round_trip(pool)

        users = [in_thread(use_until_closed) for _ in range(8)]
        wait_until(lambda: pool.get_stats()["requests_num"] > 20)
        pool.shutdown()
        assert {type(user.error()) for user in users} == {PoolClosed}
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        wait_for_backends(server, app, 0)

    def test_is_followed_by_drop_database_at_once(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        for _ in range(3):
            server.execute("CREATE DATABASE doomed STRATEGY wal_log")
            pool = make_any_pool(maxconn=4, dbname="doomed")
            fill(pool, 4)
            pool.shutdown()
            server.execute("DROP DATABASE doomed")


class TestForgottenPools:
    def test_are_collected_and_their_backends_end(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ConnectionPool(3, 4, **statement_log.params)
        pool.wait()
        fill(pool, 4)
        gone = weakref.ref(pool)
        del pool

        def collected() -> bool:
            gc.collect()
            return gone() is None

        wait_until(collected)
        wait_for_backends(server, app, 0)

    def test_without_workers_are_collected_and_their_backends_end(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ConnectionPool(0, 4, num_workers=0, **statement_log.params)
        fill(pool, 4)
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None
        wait_for_backends(server, app, 0)

    def test_leave_a_borrowed_connection_to_its_borrower(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ConnectionPool(0, 4, close_returns=True, **statement_log.params)
        conn = pool.getconn()
        gone = weakref.ref(pool)
        del pool

        def collected() -> bool:
            gc.collect()
            return gone() is None

        wait_until(collected)
        assert ask(conn) == 1
        conn.close()
        assert conn.closed
        wait_for_backends(server, app, 0)


AT_ONCE = 10.0
"""Seconds; a busy machine is slow, and whatever a process might wait for takes a minute here."""

USE = """
import sys, threading, time
from psycopg2_pool2 import ConnectionPool, workers
workers.LINGER = float(sys.argv[2]) if sys.argv[2:] else workers.LINGER
pool = ConnectionPool(3, 5, dsn=sys.argv[1], lifetime_timeout=100)
pool.wait()
conn = pool.getconn()
conn.cursor().execute("SELECT 1")
"""


class TestProcesses:
    def test_that_close_nothing_exit_at_once(self, server: Server) -> None:
        ended = run_program(USE + "print('last words')", server.dsn, "60")
        assert (ended.status, ended.output, ended.errors) == (0, "last words\n", "")
        assert ended.exit_seconds < AT_ONCE

    def test_that_cannot_connect_exit_at_once(self) -> None:
        program = (
            "import sys; from psycopg2_pool2 import ConnectionPool, workers\n"
            "workers.LINGER = 60.0\n"
            "pool = ConnectionPool(3, 5, host='127.0.0.1', port=1)\n"
            "threads = __import__('threading')\n"
            "t = threads.Thread(target=lambda: pool.getconn(timeout=60), daemon=True); t.start()\n"
            "print('last words')"
        )
        ended = run_program(program)
        assert (ended.status, ended.output) == (0, "last words\n")
        assert ended.exit_seconds < AT_ONCE

    def test_that_exit_with_an_exception_exit_at_once(self, server: Server) -> None:
        program = "print('last words'); raise SystemExit(7)"
        ended = run_program(USE + program, server.dsn, "60")
        assert (ended.status, ended.errors) == (7, "")
        assert ended.exit_seconds < AT_ONCE

    def test_keep_no_thread_of_ours_after_the_last_pool_is_closed(self, server: Server) -> None:
        program = """
pool.putconn(conn)
other = ConnectionPool(1, 2, dsn=sys.argv[1])
other.wait()
print(any(t.name.startswith("psycopg2_pool2") for t in threading.enumerate()))
pool.close()
other.close()
ends = time.monotonic() + 30
while threading.active_count() > 1 and time.monotonic() < ends:
    time.sleep(0.01)
print([t.name for t in threading.enumerate()])
"""
        ended = run_program(USE + program, server.dsn)
        assert ended.output == "True\n['MainThread']\n", ended.errors

    def test_keep_no_thread_of_ours_after_the_last_pool_is_forgotten(self, server: Server) -> None:
        program = """
pool.putconn(conn)
print(any(t.name.startswith("psycopg2_pool2") for t in threading.enumerate()))
del pool, conn
import gc
ends = time.monotonic() + 30
while threading.active_count() > 1 and time.monotonic() < ends:
    gc.collect()
    time.sleep(0.01)
print([t.name for t in threading.enumerate()])
"""
        ended = run_program(USE + program, server.dsn)
        assert ended.output == "True\n['MainThread']\n", ended.errors

    def test_start_no_thread_with_num_workers_zero(self, server: Server) -> None:
        program = """
import sys, threading
from psycopg2_pool2 import ConnectionPool
pool = ConnectionPool(1, 5, dsn=sys.argv[1], num_workers=0, background_prewarm=False)
with pool.conn() as conn:
    conn.cursor().execute("SELECT 1")
pool.reap_idle_connections(); pool.check(); pool.drain(); pool.putconn(pool.getconn())
print(threading.active_count())
"""
        ended = run_program(program, server.dsn)
        assert (ended.status, ended.output, ended.errors) == (0, "1\n", "")

    def test_start_no_thread_by_importing_us(self) -> None:
        ended = run_program("import threading, psycopg2_pool2; print(threading.active_count())")
        assert ended.output == "1\n"

    def test_share_one_monitor_among_many_pools(self, server: Server) -> None:
        program = """
pools = [ConnectionPool(0, 2, dsn=sys.argv[1]) for _ in range(200)]
print(sum(t.name.startswith("psycopg2_pool2") for t in threading.enumerate()) < 10)
"""
        ended = run_program(USE + program, server.dsn)
        assert (ended.output, ended.errors) == ("True\n", "")


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGAPPNAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


class TestFromEnv:
    def test_takes_the_database_url(
        self, server: Server, clean_environment: pytest.MonkeyPatch
    ) -> None:
        url = f"postgresql://postgres@{server.host}:{server.port}/postgres?application_name=by-url"
        clean_environment.setenv("DATABASE_URL", url)
        clean_environment.setenv("PGPORT", "1")
        with ConnectionPool.from_env(minconn=0, maxconn=2) as pool, pool.conn() as conn:
            assert ask(conn, "SHOW application_name") == "by-url"
            assert pool.maxconn == 2

    def test_takes_libpqs_variables_else(
        self, server: Server, clean_environment: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGUSER": "postgres",
            "PGDATABASE": "postgres",
            "PGAPPNAME": "by-variables",
        }.items():
            clean_environment.setenv(name, value)
        with ConnectionPool.from_env(minconn=0) as pool, pool.conn() as conn:
            assert ask(conn, "SHOW application_name") == "by-variables"

    def test_prefers_what_is_given(
        self, server: Server, clean_environment: pytest.MonkeyPatch
    ) -> None:
        clean_environment.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        with ConnectionPool.from_env(minconn=0, dsn=server.dsn) as pool:
            assert round_trip(pool)

    def test_makes_an_instance_of_the_class_it_is_called_on(
        self, server: Server, clean_environment: pytest.MonkeyPatch
    ) -> None:
        class MyPool(ConnectionPool):
            pass

        with MyPool.from_env(minconn=0, dsn=server.dsn) as pool:
            assert type(pool) is MyPool


BAD_ARGUMENTS: list[tuple[str, Any, Any]] = [
    ("minconn", -1, ValueError),
    ("minconn", 1.5, TypeError),
    ("minconn", "2", TypeError),
    ("minconn", True, TypeError),
    ("minconn", None, TypeError),
    ("minconn", 5, ValueError),  # more than maxconn
    ("maxconn", 0, ValueError),
    ("maxconn", -3, ValueError),
    ("maxconn", "4", TypeError),
    ("maxconn", None, TypeError),
    ("maxconn", math.nan, (ValueError, TypeError)),
    ("maxconn", -math.inf, (ValueError, TypeError)),
    *((name, -1, ValueError) for name in ("timeout", "idle_timeout", "lifetime_timeout")),
    *((name, math.nan, ValueError) for name in ("timeout", "idle_timeout", "lifetime_timeout")),
    *((name, "5", TypeError) for name in ("timeout", "idle_timeout", "lifetime_timeout")),
    *((name, True, TypeError) for name in ("timeout", "idle_timeout", "lifetime_timeout")),
    ("reap_idle_interval", -1, ValueError),
    ("reap_idle_interval", None, TypeError),
    ("health_check_interval", -0.1, ValueError),
    ("health_check_interval", "often", TypeError),
    ("test_idle_after", -1, ValueError),
    ("test_idle_after", None, TypeError),
    ("test_timeout", 0, ValueError),
    ("test_timeout", None, TypeError),
    ("leak_timeout", 0, ValueError),
    ("leak_timeout", "late", TypeError),
    ("address_timeout", -1, ValueError),
    ("max_waiting", -1, ValueError),
    ("max_waiting", 2.5, TypeError),
    ("max_uses", 0, ValueError),
    ("max_uses", "3", TypeError),
    ("num_workers", -1, ValueError),
    ("num_workers", None, TypeError),
    ("test_on_borrow", "SELECT 1", TypeError),
    ("test_on_borrow", None, TypeError),
    ("background_prewarm", 1, TypeError),
    ("close_returns", "yes", TypeError),
    ("debug", None, TypeError),
    ("configure", "SET work_mem = '5MB'", TypeError),
    ("reset", "everything", (ValueError, TypeError)),
    ("reset", True, TypeError),
    ("connect_params", {"password": "x"}, TypeError),
    ("resolver", "8.8.8.8", TypeError),
    ("breaker", 3, TypeError),
    ("name", 7, TypeError),
    ("connection_factory", 5, TypeError),
    ("cursor_factory", "dict", TypeError),
    ("async_", True, ValueError),
]


class TestBadArguments:
    @pytest.mark.parametrize(
        ("name", "value", "raised"),
        BAD_ARGUMENTS,
        ids=[f"{name}={value!r}" for name, value, _ in BAD_ARGUMENTS],
    )
    def test_are_refused_by_name_before_anything_is_started(
        self,
        server: Server,
        app: str,
        statement_log: StatementLog,
        name: str,
        value: Any,
        raised: Any,
    ) -> None:
        arguments: dict[str, Any] = {"minconn": 1, "maxconn": 4, **statement_log.params}
        before = set(threads_named(OURS))
        with pytest.raises(raised, match=name):
            ConnectionPool(**{**arguments, name: value})
        assert set(threads_named(OURS)) <= before
        assert server.backends(app) == []

    @pytest.mark.parametrize(
        "arguments",
        [
            {"dsn": "this is no dsn"},
            {"dsn": "postgresql://[::1/db"},
            {"dsn": "host=127.0.0.1", "no_such_option": 1},
        ],
    )
    def test_for_libpq_are_refused_by_the_constructor(self, arguments: dict[str, Any]) -> None:
        before = set(threads_named(OURS))
        with pytest.raises(psycopg2.ProgrammingError):
            ConnectionPool(1, 2, **arguments)
        assert set(threads_named(OURS)) <= before

    def test_do_not_include_a_dsn_that_is_none(self, server: Server, app: str) -> None:
        params: dict[str, Any] = {**server.params, "application_name": app}
        with ConnectionPool(0, 1, dsn=None, **params) as pool:
            assert round_trip(pool)


class TestNewConnections:
    def test_get_timeouts_that_need_no_servers_support(self, make_any_pool: MakePool) -> None:
        with make_any_pool().conn() as conn:
            parameters = conn.get_dsn_parameters()
        assert parameters["connect_timeout"] == "5"
        assert parameters["keepalives_idle"] == "30"
        assert parameters["keepalives_interval"] == "10"
        assert parameters["keepalives_count"] == "3"
        assert int(parameters["tcp_user_timeout"]) > 0
        assert not parameters.get("options")  # PgBouncer refuses it

    @pytest.mark.parametrize("by_dsn", [True, False])
    def test_keep_the_timeouts_they_are_given(
        self, server: Server, statement_log: StatementLog, by_dsn: bool
    ) -> None:
        own: dict[str, Any] = {"connect_timeout": 9, "keepalives_idle": 77, "tcp_user_timeout": 0}
        text = " ".join(f"{name}={value}" for name, value in own.items())
        arguments: dict[str, Any] = (
            {"dsn": f"{statement_log.dsn} {text}"} if by_dsn else {"dsn": statement_log.dsn, **own}
        )
        with ConnectionPool(0, 1, **arguments) as pool, pool.conn() as conn:
            parameters = conn.get_dsn_parameters()
        assert {name: parameters[name] for name in own} == {k: str(v) for k, v in own.items()}

    def test_get_what_connect_params_returns_each_time(self, make_any_pool: MakePool) -> None:
        calls: list[int] = []

        def connect_params() -> dict[str, Any]:
            calls.append(1)
            return {"application_name": f"token-{len(calls)}"}

        pool = make_any_pool(maxconn=2, connect_params=connect_params)
        first, second = borrow(pool, 2)
        names = [ask(conn, "SHOW application_name") for conn in (first, second)]
        assert sorted(names) == ["token-1", "token-2"]
        assert len(calls) == 2
        for conn in (first, second):
            pool.putconn(conn)

    def test_are_of_the_class_that_is_asked_for(self, make_any_pool: MakePool) -> None:
        class Mine(psycopg2.extensions.connection):
            def shout(self) -> str:
                return "mine!"

        pool = make_any_pool(maxconn=1, connection_factory=Mine)
        with pool.conn() as conn:
            assert isinstance(conn, Mine)
            assert conn.shout() == "mine!"
            assert ask(conn) == 1
        assert round_trip(pool) == pid_of(conn)


class TestCallbacks:
    def test_may_use_the_pool_themselves(self, make_any_pool: MakePool) -> None:
        """No lock is held while they run, so that they cannot wait for their own."""
        pool: ConnectionPool

        def look(conn: Any) -> None:
            pool.stats()
            pool.get_stats()
            pool.reap_idle_connections()

        calls: list[Callable[[Any], object]] = [look]

        def forward(conn: Any) -> None:
            for call in calls:
                call(conn)

        pool = make_any_pool(0, 2, test_on_borrow=forward, configure=forward, reset=forward)
        done = threading.Event()

        def use() -> None:
            round_trip(pool)
            done.set()

        in_thread(use).result()
        assert done.is_set()
