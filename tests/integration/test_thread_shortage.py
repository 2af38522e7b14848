"""A process that can have no more threads, and starts that are interrupted."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_ACTIVE

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolStats, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.monitor import Monitor, get_monitor
from psycopg2_pool2.supply import Supply
from psycopg2_pool2.upkeep import Upkeep
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    end_sessions,
    fill,
    give_back,
    pid_of,
    round_trip,
    wait_for_backends,
)
from tests.support.processes import in_child, run_program
from tests.support.shortage import REFUSAL, no_threads
from tests.support.waiting import in_thread, wait_until

NOBODY = 65533
"""A user that has no processes."""


@pytest.fixture(autouse=True)
def no_monitor_yet() -> None:
    """Wait until no thread is left of the tests before."""
    wait_until(lambda: get_monitor()._thread is None)
    wait_until(lambda: not get_monitor().workers._threads)


class TestWithoutThreads:
    def test_borrower_connects_by_itself(
        self, make_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        with no_threads():
            pool = make_pool(1, 3)
            assert len(set(borrowed_pids(pool, 3))) == 3
            for _ in range(20):
                pool.putconn(pool.getconn(), close=True)
                round_trip(pool)
        assert len(caplog.records) == 1
        assert f"cannot start a thread: {REFUSAL}" in caplog.text

    def test_waiters_are_served_in_their_turn(self, make_pool: MakePool) -> None:
        with no_threads():
            pool = make_pool(0, 2)
            conns = borrow(pool, 2)
            waiters = [in_thread(round_trip, pool) for _ in range(3)]
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 3)
            give_back(pool, conns)
            assert {waiter.result() for waiter in waiters} <= set(borrowed_pids(pool, 2))
            with pytest.raises(PoolTimeout):
                conns = borrow(pool, 2)
                pool.getconn(timeout=0.05)
            give_back(pool, conns)

    def test_borrowers_open_at_the_same_time(self, make_pool: MakePool) -> None:
        opening = threading.Barrier(2)
        together: list[bool] = []

        def configure(conn: Any) -> None:
            if together:
                opening.wait(10)

        with no_threads():
            pool = make_pool(0, 4, configure=configure)
            conns = borrow(pool, 2)  # the first attempts are made one by one
            together.append(True)
            borrowers = [in_thread(pool.getconn, timeout=20) for _ in range(2)]
            conns += [borrower.result() for borrower in borrowers]
            give_back(pool, conns)

    def test_connection_that_is_closed_frees_its_place(self, make_pool: MakePool) -> None:
        with no_threads():
            pool = make_pool(0, 1)
            for _ in range(3):
                conn = pool.getconn(timeout=10)
                conn.cursor().execute("SELECT 1")
                pool.putconn(conn, close=True)
            busy = pool.getconn(timeout=10)
            busy.autocommit = True  # one statement, and no BEGIN before it
            sleeping = in_thread(ask, busy, "SELECT pg_sleep(60)")
            wait_until(lambda: busy.get_transaction_status() == TRANSACTION_STATUS_ACTIVE)
            pool.putconn(busy)
            assert isinstance(sleeping.error(), psycopg2.Error)
            assert_whole(pool)

    def test_minconn_are_opened_by_whoever_waits_for_them(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        with no_threads():
            pool = make_pool(2, 3)
            assert server.backends(app) == []
            pool.wait(10)
            assert pool.stats() == PoolStats(in_use=0, idle=2)

    def test_error_of_connecting_reaches_the_borrower(self, make_pool: MakePool) -> None:
        with no_threads():
            pool = make_pool(0, 1, dsn="host=127.0.0.1 port=1")
            with pytest.raises(psycopg2.OperationalError, match="refused"):
                pool.getconn(timeout=0)
            with pytest.raises(PoolTimeout, match="refused"):
                pool.getconn(timeout=0.5)

    def test_borrower_that_is_interrupted_tells_no_other(self, make_pool: MakePool) -> None:
        """1. One connects. 2. Another waits. 3. The first is interrupted. 4. The other gets one."""
        waits = threading.Event()
        first = [True]

        def configure(conn: Any) -> None:
            if first:
                first.clear()
                assert waits.wait(10)
                raise KeyboardInterrupt

        with no_threads():
            pool = make_pool(0, 1, configure=configure)
            interrupted = in_thread(pool.getconn, timeout=10)
            wait_until(lambda: not first)
            other = in_thread(round_trip, pool)
            wait_until(lambda: pool.get_stats()["requests_waiting"] == 2)
            waits.set()
            other.result()
            error = interrupted.error()
            assert error is None or isinstance(error, KeyboardInterrupt)
            if error is None:
                pool.putconn(interrupted.result())

    def test_idle_connection_that_has_died_is_not_lent_untested(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        """Nobody watches the sockets, so each is probed."""
        with no_threads():
            pool = make_pool(0, 2, test_on_borrow=False)
            fill(pool, 2)
            end_sessions(server, app)
            conns = borrow(pool, 2)
            assert [ask(conn) for conn in conns] == [1, 1]
            give_back(pool, conns)

    def test_everything_begins_as_soon_as_there_are_threads(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        with no_threads():
            pool = make_pool(1, 4, idle_timeout=0.2, reap_idle_interval=0.02)
            fill(pool, 3)
            had_begun = pool._started
        assert not had_begun
        round_trip(pool)
        assert pool._started
        wait_for_backends(server, app, 1)
        end_sessions(server, app)
        wait_for_backends(server, app, 1)

    def test_monitor_that_has_no_workers_finds_some_later(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        with no_threads("worker"):
            pool = make_pool(1, 4, idle_timeout=0.2, reap_idle_interval=0.02)
            fill(pool, 3)
        wait_for_backends(server, app, 1)

    def test_tasks_are_served(self, server: Server) -> None:
        async def main() -> list[Any]:
            async with AsyncConnectionPool(1, 2, dsn=server.dsn, timeout=10) as pool:
                return await asyncio.gather(*(pool.run(ask) for _ in range(4)))

        with no_threads():
            assert asyncio.run(main()) == [1] * 4

    def test_pools_close(self, make_pool: MakePool, server: Server, app: str) -> None:
        with no_threads():
            pool = make_pool(1, 2)
            fill(pool, 2)
            pool.shutdown(timeout=10)
            wait_for_backends(server, app, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="a limit of threads holds for others than root")
def test_limit_of_the_system_is_survived(server: Server, app: str) -> None:
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    _, most = resource.getrlimit(resource.RLIMIT_NPROC)

    def program() -> str:
        os.environ["PGPASSWORD"] = server.password  # the password file is another user's
        os.setuid(NOBODY)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
        with pytest.raises(RuntimeError):
            threading.Thread(target=int).start()
        logging.getLogger().addHandler(Handler(logging.WARNING))
        params = {**server.params, "password": server.password, "application_name": app}
        pool = ConnectionPool(2, 3, timeout=10, **params)
        for _ in range(20):
            assert len(set(borrowed_pids(pool, 3))) == 3
            pool.putconn(pool.getconn(), close=True)
        text = " ".join(told)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        round_trip(pool)
        end_sessions(server, app)
        wait_for_backends(server, app, 2)
        pool.shutdown()
        return text

    text = in_child(program)
    assert text.count("cannot start a thread") == 1


class TestStart:
    @pytest.mark.parametrize(
        ("part", "method"),
        [(Monitor, "serve"), (Upkeep, "start"), (Supply, "grow"), (ConnectionPool, "_choose_path")],
    )
    @pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
    def test_that_is_interrupted_begins_again_with_the_next_borrow(
        self,
        make_pool: MakePool,
        server: Server,
        app: str,
        part: type,
        method: str,
        before: bool,
    ) -> None:
        pool = make_pool(0, 4, idle_timeout=0.2, reap_idle_interval=0.02, test_on_borrow=False)
        act: Callable[..., Any] = getattr(part, method)
        left = [1]

        def interrupted(*args: Any) -> Any:
            if left and before:
                left.clear()
                raise KeyboardInterrupt
            done = act(*args)
            if left:
                left.clear()
                raise KeyboardInterrupt
            return done

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.getconn(timeout=10)
        fill(pool, 3)
        assert pool._started
        wait_for_backends(server, app, 0)
        assert_whole(pool)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    def test_that_fails_in_a_child_begins_with_a_later_borrow(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_pool(0, 4, idle_timeout=0.2, reap_idle_interval=0.02)
        fill(pool, 1)

        def child() -> str:
            with no_threads():
                first = round_trip(pool)
            fill(pool, 3)
            wait_until(lambda: first not in server.backends(app))
            wait_until(lambda: pool.stats() == PoolStats(0, 0))
            return "reaped"

        assert in_child(child) == "reaped"


class TestNoThreadBeforeItIsNeeded:
    @pytest.mark.parametrize(
        "use",
        ["pool.getconn(timeout=10)", "pool.resize(1, 2)"],
    )
    def test_a_pool_without_minconn_starts_none(self, server: Server, use: str) -> None:
        program = f"""
import sys, threading
from psycopg2_pool2 import ConnectionPool
options = dict(dsn=sys.argv[1])
pools = [ConnectionPool(0, 2, **options), ConnectionPool(0, 2, background_prewarm=False, **options)]
for pool in pools:
    pool.stats(), pool.get_stats(), pool.endpoints(), pool.check(), pool.reap_idle_connections()
    pool.wait()
print(threading.active_count())
for pool in pools:
    {use}
print(threading.active_count() > 1)
"""
        assert run_program(program, server.dsn).output == "1\nTrue\n"

    def test_minconn_that_is_raised_later_is_kept(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_pool(0, 4)
        pool.resize(2, 4)
        wait_for_backends(server, app, 2)
        assert pool._started
        end_sessions(server, app)
        wait_for_backends(server, app, 2)

    def test_a_closed_pool_starts_none(self, make_pool: MakePool) -> None:
        pool = make_pool(0, 4)
        pool.shutdown()
        pool.resize(2, 4)
        with pytest.raises(PoolClosed):
            pool.getconn()
        assert get_monitor()._thread is None

    def test_a_pool_that_is_closed_while_it_starts_keeps_none(self, make_pool: MakePool) -> None:
        """1. A borrow starts it. 2. It is closed. 3. The monitor serves it, after all."""
        pool = make_pool(0, 4)
        serve = Monitor.serve

        def serve_late(*args: Any) -> bool:
            pool.shutdown()
            return serve(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Monitor, "serve", serve_late)
            with pytest.raises(PoolClosed):
                pool.getconn(timeout=10)
        wait_until(lambda: get_monitor()._thread is None)

    def test_first_borrow_of_an_untested_pool_is_watched(
        self, make_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_pool(0, 2, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        pid = pid_of(conn)
        pool.putconn(conn)
        if get_monitor().watches:
            assert pool._lends_untested[0]
        server.terminate_backend(pid)
        wait_until(lambda: pool.stats().idle == 0)
