"""Pools before a real PgBouncer: in transaction mode with the defaults, and what other modes need.

What docs/pgbouncer.rst tells of PgBouncer is proved here, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pgbouncer import MakePgBouncer, PgBouncer
from tests.support.pools import (
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    give_back,
    round_trip,
    start_waiter,
)
from tests.support.servers import MakeServer
from tests.support.waiting import in_thread, wait_until

SERVER_CONNECTIONS = 4


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def through(bouncer: PgBouncer, app: str, *sizes: int, **kwargs: Any) -> ConnectionPool:
    """Make a pool of PgBouncer's connections."""
    return ConnectionPool(*sizes, application_name=app, **{**bouncer.params, **kwargs})


def in_autocommit(conn: Any) -> None:
    conn.autocommit = True


# -- transaction mode ---------------------------------------------------------------


class TestDefaults:
    def test_share_few_connections_of_the_server_among_hundreds(
        self, server: Server, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        """All are held at a time, as by the processes of a large program."""
        bouncer = pgbouncer(default_pool_size=SERVER_CONNECTIONS)
        with ExitStack() as stack:
            pools = [stack.enter_context(through(bouncer, app, 0, 100)) for _ in range(3)]
            lent = [borrow(pool, 100) for pool in pools]
            for conns in lent:
                for conn in conns:
                    assert ask(conn) == 1
                    conn.commit()
            assert len(server.backends(app)) <= SERVER_CONNECTIONS
            for pool, conns in zip(pools, lent, strict=True):
                give_back(pool, conns)
                assert pool.stats().idle == 100

    def test_pin_nothing_while_idle_in_use_or_checked(
        self, server: Server, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        """One connection of the server is enough for all that do not need it at the moment."""
        bouncer = pgbouncer(default_pool_size=1)
        with through(bouncer, app, 2, 4, num_workers=num_workers) as pool:
            give_back(pool, borrow(pool, 2))
            with pool.conn(timeout=10) as conn:
                ask(conn)
                conn.rollback()
                assert pool.check() == 0
                for _ in range(4):
                    assert round_trip(pool)
            assert len(server.backends(app)) == 1

    def test_survive_its_restart(
        self, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        bouncer = pgbouncer()
        with through(bouncer, app, 0, 4, num_workers=num_workers, timeout=20) as pool:
            with at_work(pool) as progress:
                progress()
                bouncer.restart()
                progress()
            assert_whole(pool)

    def test_survive_a_restart_of_the_server_behind(
        self, make_server: MakeServer, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        server = make_server()
        bouncer = pgbouncer(server, server_login_retry=1)
        with through(bouncer, app, 0, 4, timeout=20) as pool:
            with at_work(pool) as progress:
                progress()
                server.restart()
                progress()
            assert_whole(pool)

    def test_do_not_mind_that_it_clears_sessions_itself(
        self, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        with through(pgbouncer(server_reset_query_always=1), app, 0, 4) as pool:
            assert_whole(pool)

    def test_wait_while_it_is_paused_for_longer_than_a_test_may_take(
        self, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        bouncer = pgbouncer()
        with through(bouncer, app, 0, 2, test_timeout=0.1) as pool:
            borrowed_pids(pool, 2)
            bouncer.pause()
            waiting = in_thread(round_trip, pool, 20)
            wait_until(lambda: pool.get_stats()["tests_failed"] > 1)
            assert not waiting.done
            bouncer.resume()
            assert waiting.result()
            assert_whole(pool)

    def test_serve_waiters_from_what_is_returned_while_it_is_full(
        self, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        bouncer = pgbouncer(max_client_conn=2)
        with through(bouncer, app, 0, 9, num_workers=num_workers) as pool:
            conns = borrow(pool, 2)
            waiter = start_waiter(pool)
            wait_until(lambda: pool.get_stats()["connections_errors"])
            pool.putconn(conns.pop())
            conns.append(waiter.result())
            give_back(pool, conns)

    def test_notice_that_it_closes_idle_clients(self, pgbouncer: MakePgBouncer, app: str) -> None:
        bouncer = pgbouncer(client_idle_timeout=1)
        with through(bouncer, app, 0, 3, test_on_borrow=False) as pool:
            borrowed_pids(pool, 3)
            wait_until(lambda: pool.get_stats()["connections_lost"] == 3)
            assert_whole(pool)


@contextmanager
def at_work(pool: ConnectionPool) -> Iterator[Callable[[], None]]:
    """Have eight threads borrow and ask during the block; give what waits for all of them."""
    rounds = [0] * 8
    done = threading.Event()

    def work(number: int) -> None:
        while not done.is_set():
            with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
                with pool.transaction() as conn:
                    assert ask(conn, "SELECT %s", number) == number
                rounds[number] += 1

    def progress() -> None:
        before = list(rounds)
        wait_until(lambda: all(now > was + 3 for now, was in zip(rounds, before, strict=True)))

    workers = [in_thread(work, number) for number in range(len(rounds))]
    try:
        yield progress
    finally:
        done.set()
        for worker in workers:
            worker.result(30)


class TestOptions:
    """The startup parameter ``options``, which the pool never sends by itself."""

    def test_are_refused_and_no_borrower_waits_for_that_to_change(
        self, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        options = {"num_workers": num_workers, "options": "-c statement_timeout=1000"}
        with (
            through(pgbouncer(), app, 0, 2, **options) as pool,
            pytest.raises(psycopg2.OperationalError, match="unsupported startup parameter"),
        ):
            pool.getconn(timeout=60)

    def test_are_lost_where_they_are_ignored(self, pgbouncer: MakePgBouncer, app: str) -> None:
        bouncer = pgbouncer(ignore_startup_parameters="options")
        with (
            through(bouncer, app, 0, 2, options="-c statement_timeout=1000") as pool,
            pool.conn(timeout=10) as conn,
        ):
            assert ask(conn, "SHOW statement_timeout") == "0"

    def test_may_be_set_for_a_transaction_or_for_a_database(
        self, server: Server, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        server.execute(f'CREATE DATABASE "{app}"')
        server.execute(f'ALTER DATABASE "{app}" SET statement_timeout = 7000')
        with through(pgbouncer(default_pool_size=1), app, 0, 2, dbname=app) as pool:
            with pool.transaction(timeout=10) as conn:
                ask(conn, "SET LOCAL statement_timeout = 5000")
                assert ask(conn, "SHOW statement_timeout") == "5s"
            with pool.transaction(timeout=10) as conn:
                assert ask(conn, "SHOW statement_timeout") == "7s"


# What is made in one transaction, and whether it is there in the next.
SESSION_STATE = {
    "SET": ("SET work_mem = '7MB'", "SELECT current_setting('work_mem') = '7MB'"),
    "PREPARE": ("PREPARE p AS SELECT 1", "SELECT count(*) > 0 FROM pg_prepared_statements"),
    "LISTEN": ("LISTEN news", "SELECT count(*) > 0 FROM pg_listening_channels()"),
    "temporary table": (
        "CREATE TEMP TABLE notes (id int)",
        "SELECT count(*) > 0 FROM pg_class WHERE relname = 'notes' AND pg_table_is_visible(oid)",
    ),
    "cursor WITH HOLD": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) > 0 FROM pg_cursors WHERE is_holdable",
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
}


class TestSessionState:
    """Two clients that take turns, on two connections of the server."""

    @pytest.mark.parametrize("kind", SESSION_STATE)
    def test_does_not_stay_with_the_client_but_with_the_servers_connection(
        self, pgbouncer: MakePgBouncer, app: str, kind: str
    ) -> None:
        make, look = SESSION_STATE[kind]
        with self.clients(pgbouncer, app) as (_, mine, other):
            ask(mine, make)
            mine.commit()
            ask(other)  # takes the server's connection that was used last
            assert not ask(mine, look)
            assert ask(other, look)

    def test_is_cleared_by_reset_session_somewhere_else(
        self, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        make, look = SESSION_STATE["SET"]
        with self.clients(pgbouncer, app, reset="session") as (pool, mine, other):
            ask(mine, make)
            mine.commit()
            ask(other)
            pool.putconn(mine)  # DISCARD ALL
            assert ask(other, look)

    def test_of_a_transaction_works(self, pgbouncer: MakePgBouncer, app: str) -> None:
        with self.clients(pgbouncer, app) as (_, mine, other):
            assert ask(mine, "SELECT pg_try_advisory_xact_lock(8)")
            assert not ask(other, "SELECT pg_try_advisory_xact_lock(8)")
            mine.commit()
            assert ask(other, "SELECT pg_try_advisory_xact_lock(8)")
            other.rollback()
            with mine.cursor("named") as cursor:
                cursor.execute("SELECT generate_series(1, 5000)")
                assert len(cursor.fetchall()) == 5000
            mine.commit()

    @contextmanager
    def clients(
        self, pgbouncer: MakePgBouncer, app: str, **options: Any
    ) -> Iterator[tuple[ConnectionPool, Any, Any]]:
        bouncer = pgbouncer(default_pool_size=2)
        with through(bouncer, app, 0, 2, **options) as pool:
            mine, other = borrow(pool, 2)
            yield pool, mine, other


class TestRoles:
    @pytest.mark.parametrize("attrs", ["read-write", "primary", "any", "prefer-standby"])
    def test_are_asked_for_through_it(self, pgbouncer: MakePgBouncer, app: str, attrs: str) -> None:
        with through(pgbouncer(), app, 0, 1, target_session_attrs=attrs) as pool:
            assert round_trip(pool)

    def test_that_the_server_has_not_are_refused(
        self, server: Server, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        bouncer = pgbouncer()
        for attrs in ("standby", "read-only"):
            with (
                through(bouncer, app, 0, 1, target_session_attrs=attrs) as pool,
                pytest.raises(psycopg2.OperationalError, match=r"standby|read-only"),
            ):
                pool.getconn()


# -- the other modes ----------------------------------------------------------------


class TestSessionMode:
    def test_gives_each_connection_one_of_the_server(
        self, server: Server, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        bouncer = pgbouncer(pool_mode="session")
        with through(bouncer, app, 0, 5) as pool:
            assert_whole(pool)
            assert len(server.backends(app)) == 5

    def test_keeps_what_a_session_keeps_and_reset_clears_it(
        self, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        bouncer = pgbouncer(pool_mode="session")
        with through(bouncer, app, 0, 1, reset="session") as pool:
            for kind, (make, look) in SESSION_STATE.items():
                with pool.conn(timeout=10) as conn:
                    assert not ask(conn, look), kind
                    ask(conn, make)
                    conn.commit()
                    assert ask(conn, look), kind

    def test_resets_the_servers_connection_itself_when_the_client_goes(
        self, pgbouncer: MakePgBouncer, app: str
    ) -> None:
        make, look = SESSION_STATE["SET"]
        bouncer = pgbouncer(pool_mode="session", default_pool_size=1)
        with through(bouncer, app, 0, 1) as pool:
            conn = pool.getconn(timeout=10)
            ask(conn, make)
            conn.commit()
            pool.putconn(conn, close=True)
            with pool.conn(timeout=10) as conn:
                assert not ask(conn, look)


class TestStatementMode:
    def test_works_in_autocommit(
        self, server: Server, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        bouncer = pgbouncer(pool_mode="statement", default_pool_size=SERVER_CONNECTIONS)
        options: dict[str, Any] = {"num_workers": num_workers, "configure": in_autocommit}
        with through(bouncer, app, 0, 20, **options) as pool:
            assert_whole(pool)
            assert len(server.backends(app)) <= SERVER_CONNECTIONS

    def test_ends_connections_that_begin_a_transaction_and_the_pool_replaces_them(
        self, pgbouncer: MakePgBouncer, app: str, num_workers: int
    ) -> None:
        bouncer = pgbouncer(pool_mode="statement")
        with through(bouncer, app, 0, 2, num_workers=num_workers) as pool:
            for _ in range(3):
                with pool.conn(timeout=10) as conn, pytest.raises(psycopg2.OperationalError):
                    ask(conn)
            assert pool.stats().in_use == 0
