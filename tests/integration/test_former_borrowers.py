"""What former borrowers do with what they have kept, in pools with ``debug=True`` and without."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions as ext
from psycopg2 import sql

from psycopg2_pool2 import (
    ConnectionReturned,
    PooledDatabase,
    PoolError,
    PoolStats,
    ThreadedConnectionPool,
)
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.testing import rolled_back
from tests.support.aio import MakeAsyncPool, in_loop
from tests.support.pools import MakePool, ask, assert_whole, pid_of
from tests.support.processes import in_child
from tests.support.proxying import Forwarding, Opaque, Slotted, fresh, trace
from tests.support.waiting import in_thread

pytestmark = pytest.mark.integration

ACTS: dict[str, Callable[[Any], object]] = {
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "close": lambda conn: conn.close(),
    "cursor": lambda conn: conn.cursor(),
    "cancel": lambda conn: conn.cancel(),
    "autocommit": lambda conn: setattr(conn, "autocommit", True),
    "set_session": lambda conn: conn.set_session(readonly=True),
    "reset": lambda conn: conn.reset(),
    "lobject": lambda conn: conn.lobject(),
    "poll": lambda conn: conn.poll(),
    "with": lambda conn: conn.__enter__(),
    "exit": lambda conn: conn.__exit__(None, None, None),
    "delete": lambda conn: delattr(conn, "notices"),
}
any_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


def borrow_here(pool: Any) -> Any:
    return pool.getconn(timeout=10)


def return_here(pool: Any, conn: Any) -> None:
    pool.putconn(conn)


def borrow_after(pool: Any) -> Any:
    return pool.getconn(timeout=10)


class TestDebug:
    @any_act
    def test_refuses_what_acts_and_tells_the_places(
        self, make_any_pool: MakePool, act: Callable[[Any], object]
    ) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        former = borrow_here(pool)
        return_here(pool, former)
        with pytest.raises(ConnectionReturned) as idle:
            act(former)
        assert "borrow_here" in str(idle.value)
        assert "return_here" in str(idle.value)
        assert "not lent to anybody" in str(idle.value)
        present = borrow_after(pool)
        ask(present, "CREATE TEMPORARY TABLE mine ()")
        with pytest.raises(PoolError) as in_use:
            act(former)
        for place in ("borrow_here", "return_here", "borrow_after"):
            assert place in str(in_use.value)
        assert present.get_transaction_status() == ext.TRANSACTION_STATUS_INTRANS
        assert not present.autocommit
        present.commit()
        pool.putconn(present)
        assert_whole(pool)

    def test_refuses_methods_that_were_kept(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        former: Any = pool.getconn(timeout=10)
        kept = [former.commit, former.rollback, former.close, former.cursor]
        pool.putconn(former)
        with pool.conn(timeout=10):
            for method in kept:
                with pytest.raises(ConnectionReturned, match=method.__name__):
                    method()

    @pytest.mark.parametrize("give_back", ["putconn", "detach"])
    def test_refuses_a_second_return_and_tells_the_places(
        self, make_any_pool: MakePool, give_back: str
    ) -> None:
        pool = make_any_pool(maxconn=2, debug=True)
        former = borrow_here(pool)
        return_here(pool, former)
        with pytest.raises(PoolError, match="not lent to anybody"):
            getattr(pool, give_back)(former)
        present = borrow_after(pool)
        assert pid_of(present) == pid_of(former.__wrapped__)
        with pytest.raises(PoolError, match="returned before") as caught:
            getattr(pool, give_back)(former)
        for place in ("borrow_here", "return_here", "borrow_after"):
            assert place in str(caught.value)
        other = pool.getconn(timeout=10)
        assert pid_of(other) != pid_of(present)
        for conn in (present, other):
            pool.putconn(conn)
        assert_whole(pool)

    def test_tells_of_the_loan_that_was_the_former_borrowers(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        former = borrow_here(pool)
        return_here(pool, former)
        with pool.conn():
            pass
        present = borrow_after(pool)
        with pytest.raises(ConnectionReturned) as caught:
            former.rollback()
        for place in ("borrow_here", "return_here", "borrow_after"):
            assert str(caught.value).count(place) == 1
        pool.putconn(present)

    def test_lets_threads_and_tasks_hand_a_loan_on(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = in_thread(pool.getconn, timeout=10).result(30)
        assert in_thread(ask, conn).result(30) == 1
        in_thread(conn.commit).result(30)
        in_thread(pool.putconn, conn).result(30)
        with pytest.raises(ConnectionReturned):
            in_thread(conn.commit).result(30)
        assert_whole(pool)

    @in_loop
    async def test_refuses_former_borrowers_that_are_tasks(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1, debug=True)
        async with pool.conn() as conn:
            assert await pool.run_on(conn, ask) == 1
        async with pool.conn() as present:
            assert await pool.run_on(present, ask) == 1
            for act in (conn.commit, conn.rollback, conn.close, conn.cursor):
                with pytest.raises(ConnectionReturned):
                    act()
            with pytest.raises(PoolError, match="returned before"):
                await pool.putconn(conn)
            with pytest.raises(TypeError):
                await pool.run_on(conn, ask)
            task = asyncio.ensure_future(pool.run_on(present, ask))
            assert await task == 1
        assert await pool.run(ask) == 1
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_leaves_what_only_tells(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn: Any = pool.getconn(timeout=10)
        pool.putconn(conn)
        assert conn.closed == 0
        assert conn.autocommit is False
        assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_IDLE
        assert conn.info.backend_pid == conn.get_backend_pid()
        assert conn.fileno() > 0
        assert "connection object" in repr(conn)
        with contextlib.suppress(conn.Error):
            raise conn.ProgrammingError

    def test_leaves_what_is_closed_to_psycopg2(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn: Any = pool.getconn(timeout=10)
        pool.putconn(conn, close=True)
        conn.close()
        with pytest.raises(psycopg2.InterfaceError, match="already closed"):
            conn.commit()
        with pytest.raises(PoolError):
            pool.putconn(conn)

    def test_leaves_what_is_detached_to_its_owner(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn(timeout=10)
        own = pool.detach(conn)
        with pool.conn(timeout=10) as other:
            assert pid_of(other) != pid_of(own)
            assert ask(own) == ask(conn) == 1
            own.commit()
            with conn, conn.cursor() as cursor:
                cursor.execute("SELECT 2")
        conn.close()
        assert own.closed
        assert_whole(pool)

    def test_lets_close_be_repeated_where_it_returns(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True, close_returns=True)
        conn = pool.getconn(timeout=10)
        conn.close()
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        with pool.conn() as present:
            conn.close()
            with pytest.raises(ConnectionReturned):
                conn.commit()
            assert ask(present) == 1
        assert_whole(pool)

    def test_ends_with_blocks_of_every_kind(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        database = PooledDatabase(pool)
        for block in (pool.conn, pool.transaction, database.connection, database.transaction):
            with block() as conn:
                assert ask(conn) == 1
            with pytest.raises(ConnectionReturned):
                conn.cursor()
        with pytest.raises(PoolError), pool.conn() as conn:
            pool.putconn(conn)
        with pytest.raises(PoolError), pool.transaction() as conn:
            pool.putconn(conn)
        with pytest.raises(ZeroDivisionError), pool.transaction() as conn:
            pool.putconn(conn)
            raise ZeroDivisionError
        with pool.conn() as conn:
            pool.detach(conn)
        conn.close()
        assert_whole(pool)

    def test_gives_one_object_for_a_key(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn("key", timeout=10)
        assert pool.getconn("key") is conn
        pool.putconn(conn, "key")
        assert pool.getconn("key", timeout=10) is not conn

    def test_notices_loans_that_are_dropped(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn(timeout=10)
        gc.disable()
        try:
            del conn
            assert pool.stats() == PoolStats(in_use=0, idle=0)
        finally:
            gc.enable()

    @pytest.mark.parametrize("kind", [object, Forwarding, Slotted, Opaque])
    def test_stands_before_a_tracers_proxy(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        made = fresh(kind)
        trace(monkeypatch, made)
        pool = make_any_pool(maxconn=1, debug=True)
        conn: Any = pool.getconn(timeout=10)
        assert type(conn.__wrapped__) is made
        assert ask(conn) == 1
        pool.putconn(conn)
        assert made.counted() == 1
        present: Any = pool.getconn(timeout=10)
        assert present.__wrapped__ is conn.__wrapped__
        for act in (conn.commit, conn.rollback, conn.close, conn.cursor):
            with pytest.raises(ConnectionReturned):
                act()
        with pytest.raises(PoolError):
            pool.putconn(conn)
        pool.putconn(present)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_is_told_by_psycopg2s_pool_in_its_words(self, server: Server) -> None:
        pool = ThreadedConnectionPool(1, 2, debug=True, **server.params)
        conn = pool.getconn("key")
        assert pool.getconn("key") is conn
        pool.putconn(conn, "key")
        pool.getconn()
        with pytest.raises(psycopg2.pool.PoolError, match="unkeyed") as caught:
            pool.putconn(conn)
        assert "borrowed since" in str(caught.value.__cause__)
        pool.closeall()

    def test_leaves_a_child_alone(self, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=1, debug=True)
        conn = pool.getconn(timeout=10)

        def child() -> int:
            pool.putconn(conn)
            conn.close()
            with pool.conn(timeout=10) as own:
                return pid_of(own)

        assert in_child(child) != str(pid_of(conn))
        assert ask(conn) == 1
        pool.putconn(conn)

    def test_works_in_a_sandbox_of_tests(self, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=2, debug=True)
        with rolled_back(pool):
            with pool.transaction() as conn:
                ask(conn, "CREATE TABLE undone ()")
            with pool.conn() as other:
                assert ask(other, "SELECT to_regclass('undone')") == "undone"
            with pytest.raises(ConnectionReturned):
                conn.commit()


class TestHandle:
    """What is lent with ``debug=True`` is the connection to Python."""

    def test_is_a_connection(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn: Any = pool.getconn(timeout=10)
        assert [conn] == [x for x in (conn,) if isinstance(x, ext.connection)]
        assert conn == conn.__wrapped__
        assert conn.__wrapped__ == conn
        assert {conn: 1}[conn.__wrapped__] == 1
        assert conn in pool.connections_in_use
        assert conn.cursor().connection is conn.__wrapped__
        assert "cursor" in dir(conn)
        conn.autocommit = True
        assert conn.__wrapped__.autocommit
        conn.cursor_factory = psycopg2.extras.DictCursor
        assert isinstance(conn.cursor(), psycopg2.extras.DictCursor)
        with pytest.raises(AttributeError):
            conn.missing  # noqa: B018
        pool.putconn(conn)

    def test_is_a_transactions_block(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn(timeout=10)
        with conn as same:
            assert same is conn
            ask(conn, "CREATE TEMPORARY TABLE kept ()")
        with pytest.raises(ZeroDivisionError), conn:
            ask(conn, "CREATE TEMPORARY TABLE undone ()")
            raise ZeroDivisionError
        assert ask(conn, "SELECT to_regclass('kept') IS NOT NULL")
        assert ask(conn, "SELECT to_regclass('undone') IS NULL")
        pool.putconn(conn)

    def test_serves_psycopg2s_extras_in_python(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        with pool.conn(timeout=10) as conn, conn.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE rows (i int)")
            psycopg2.extras.execute_values(cursor, "INSERT INTO rows VALUES %s", [(1,), (2,)])
            psycopg2.extras.execute_batch(cursor, "INSERT INTO rows VALUES (%s)", [(3,)])
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("rows")))
            assert cursor.fetchone() == (3,)
            assert psycopg2.extras.HstoreAdapter.get_oids(conn) is not None  # type: ignore[no-untyped-call]

    def test_leads_to_what_functions_in_c_want(self, make_any_pool: MakePool) -> None:
        """They say so in a TypeError, never do half of it."""
        pool = make_any_pool(maxconn=1, debug=True)
        conn: Any = pool.getconn(timeout=10)
        real = conn.__wrapped__
        wanting: list[Callable[[Any], object]] = [
            lambda scope: ext.quote_ident("x", scope),
            lambda scope: ext.register_type(ext.UNICODE, scope),
            lambda scope: psycopg2.extras.register_default_json(scope, globally=False),
            lambda scope: psycopg2.extras.register_uuid(conn_or_curs=scope),  # type: ignore[no-untyped-call]
            lambda scope: sql.Identifier("x").as_string(scope),
            lambda scope: ext.encrypt_password("x", "y", scope, "md5"),
            lambda scope: ext.adapt("x").prepare(scope),
        ]
        for use in wanting:
            use(real)
            with pytest.raises(TypeError):
                use(conn)
        pool.putconn(conn)


class TestWithoutDebug:
    """What the guarantees say is not caught; to catch it costs an object for each loan."""

    def test_a_second_return_is_refused_while_nobody_has_the_connection(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        pool.putconn(conn)
        with pytest.raises(PoolError, match="returned before"):
            pool.putconn(conn)
        assert_whole(pool)

    def test_a_second_return_is_the_present_borrowers_return_to_the_pool(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        former = pool.getconn(timeout=10)
        pool.putconn(former)
        present = pool.getconn(timeout=10)
        assert present is former
        pool.putconn(former)
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        with pytest.raises(ConnectionReturned):
            present.cursor()
        with pytest.raises(PoolError):
            pool.putconn(present)
