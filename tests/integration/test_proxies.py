"""Pools whose psycopg2.connect returns proxies, as tracers have it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import (
    AsyncPooledDatabase,
    ConnectionPool,
    PooledDatabase,
    PoolError,
    ThreadedConnectionPool,
)
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.proxies import real_connection
from psycopg2_pool2.snapshots import PoolStats
from psycopg2_pool2.testing import rolled_back
from tests.support.aio import MakeAsyncPool, eventually, in_loop
from tests.support.pools import (
    MakePool,
    ask,
    end_sessions,
    pid_of,
    wait_until_lost,
)
from tests.support.processes import in_child
from tests.support.proxying import Forwarding, Opaque, Slotted, fresh, trace
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

pytestmark = pytest.mark.integration

# object stands for wrapt's proxy, which may not be installed.
TRANSPARENT = [object, Forwarding, Slotted]
KINDS = [*TRANSPARENT, Opaque]


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the class of the proxies that are made from now on."""
    made = fresh(request.param)
    trace(monkeypatch, made)
    return made


any_kind = pytest.mark.parametrize("kind", KINDS, indirect=True, ids=lambda k: k.__name__)
transparent = pytest.mark.parametrize("kind", TRANSPARENT, indirect=True, ids=lambda k: k.__name__)
wrapt_kind = pytest.mark.parametrize("kind", [object], indirect=True, ids=["wrapt"])


class TestLoans:
    @any_kind
    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_give_the_same_proxy_again_and_use_it_for_nothing_else(
        self,
        kind: Any,
        make_any_pool: MakePool,
        statement_log: StatementLog,
        test_on_borrow: bool,
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=test_on_borrow, reset="session")
        conn: Any = pool.getconn(timeout=10)
        assert type(conn) is kind
        assert ask(conn, "SELECT 42") == 42
        conn.commit()
        assert list(pool.connections_in_use) == [
            real_connection(conn) if issubclass(kind, Slotted) else conn
        ]
        pool.putconn(conn)
        assert kind.counted() == 1
        statement_log.clear()
        again = pool.getconn()
        assert again is conn
        ask(again, "SELECT 43")
        pool.putconn(again)
        assert kind.counted() == 1
        assert ("SELECT 1" in statement_log.statements()) == test_on_borrow
        assert statement_log.statements()[-2:] == ["ROLLBACK", "DISCARD ALL"]
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    @transparent
    def test_have_the_settings_put_back_that_were_made_by_the_proxy(
        self, kind: Any, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        for _ in range(2):
            with pool.conn(timeout=10) as conn:
                assert conn.autocommit is False
                conn.autocommit = True

    @any_kind
    def test_end_once(self, kind: Any, make_any_pool: MakePool) -> None:
        pool, other = make_any_pool(maxconn=1), make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        with pytest.raises(PoolError, match="unkeyed"):
            other.putconn(conn)
        pool.putconn(conn)
        for misuse in (pool.putconn, pool.detach):
            with pytest.raises(PoolError, match="unkeyed"):
                misuse(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    @any_kind
    @pytest.mark.parametrize("closes", [False, True])
    def test_may_end_with_the_connection_inside(
        self, kind: Any, make_any_pool: MakePool, closes: bool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn: Any = pool.getconn(timeout=10)
        inside = conn._conn if kind.__name__ != "Wrapt" else conn.__wrapped__
        pool.putconn(inside, close=closes)
        with pytest.raises(PoolError):
            pool.putconn(conn)
        again = pool.getconn(timeout=10)
        assert type(again) is kind
        assert (again is conn) != closes

    @any_kind
    def test_may_end_with_a_cursors_connection_after_the_proxy_was_dropped(
        self, kind: Any, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        for number in range(3):
            cursor = pool.getconn(timeout=10).cursor()
            cursor.execute("SELECT %s", [number])
            pool.putconn(cursor.connection)
            pid = pid_of(cursor.connection)
        with pool.conn() as conn:
            assert type(conn) is kind
            assert pid_of(real_connection_of(conn)) == pid

    @pytest.mark.parametrize("kind", [object, Forwarding, Opaque], indirect=True)
    def test_that_are_dropped_are_noticed_at_once(
        self, kind: Any, make_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        assert ask(conn) == 1
        gc.disable()
        try:
            del conn
            assert pool.stats() == PoolStats(in_use=0, idle=0)
        finally:
            gc.enable()
        assert ask(pool.getconn(timeout=10)) == 1

    @pytest.mark.parametrize("kind", [Slotted], indirect=True)
    def test_of_what_is_never_referred_to_weakly_are_noticed_by_the_collector(
        self, kind: Any, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=1)
        pool.getconn(timeout=10)
        gc.collect()
        assert pool.stats() == PoolStats(in_use=0, idle=0)

    @any_kind
    def test_under_a_key_are_one(self, kind: Any, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conn = pool.getconn("key", timeout=10)
        assert type(conn) is kind
        assert pool.getconn("key") is conn
        assert pool.stats().in_use == 1
        pool.putconn(conn, "key")
        other = pool.getconn()
        assert pool.getconn("key", timeout=10) is not other
        assert pool.stats().in_use == 2

    @any_kind
    def test_end_with_their_blocks(
        self, kind: Any, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn(timeout=10) as conn:
            assert type(conn) is kind
            ask(conn, "SELECT 1")
        assert statement_log.statements()[-1] == "ROLLBACK"
        with pool.transaction() as conn:
            ask(conn, "SELECT 2")
        assert statement_log.statements()[-1] == "COMMIT"
        with pytest.raises(ZeroDivisionError), pool.transaction() as conn:
            ask(conn, "SELECT 3")
            raise ZeroDivisionError
        assert statement_log.statements()[-1] == "ROLLBACK"
        with pool.conn() as conn:
            pool.detach(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        conn.close()

    @any_kind
    def test_that_are_detached_give_the_proxy(
        self, kind: Any, make_any_pool: MakePool, server: Server
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        assert pool.detach(conn) is conn
        assert ask(conn) == 1
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        assert pool.getconn(timeout=10) is not conn
        conn.close()

    @any_kind
    def test_end_with_close_where_that_returns(self, kind: Any, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, close_returns=True)
        with contextlib.closing(pool.getconn(timeout=10)) as conn:
            ask(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        conn.close()  # as harmless as ever
        assert pool.getconn() is conn

    @any_kind
    def test_of_a_lost_connection_are_replaced(
        self, kind: Any, make_any_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_any_pool(maxconn=1)
        with pool.conn(timeout=10) as conn:
            ask(conn)
        end_sessions(server, app)
        with pool.conn(timeout=10) as other:
            assert type(other) is kind
            assert other is not conn
            assert ask(other) == 1

    @transparent
    def test_that_are_not_tested_are_of_watched_connections(
        self, kind: Any, make_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_pool(1, 1, test_on_borrow=False)
        pool.wait(10)
        end_sessions(server, app)
        wait_until_lost(pool)
        with pool.conn(timeout=10) as conn:
            assert ask(conn) == 1

    @any_kind
    def test_leave_no_cycle_behind_when_the_pool_closes_the_connection(
        self, kind: Any, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        inside = weakref.ref(real_connection_of(conn))
        gc.disable()
        try:
            pool.putconn(conn, close=True)
            del conn
            wait_until(lambda: inside() is None)
        finally:
            gc.enable()

    @any_kind
    def test_that_last_when_the_pool_is_closed_are_closed_on_return(
        self, kind: Any, make_any_pool: MakePool, server: Server, app: str
    ) -> None:
        pool = make_any_pool(maxconn=2)
        conn, other = pool.getconn(timeout=10), pool.getconn(timeout=10)
        pool.putconn(other)
        pool.shutdown()
        assert len(server.backends(app)) <= 2
        pool.putconn(conn)
        wait_until(lambda: not server.backends(app))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @transparent
    def test_that_a_forked_child_inherited_are_let_go(self, kind: Any, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=1)
        conn = pool.getconn(timeout=10)

        def child() -> int:
            pool.putconn(conn)
            conn.close()
            with pool.conn(timeout=10) as own:
                assert type(own) is kind
                return pid_of(own)

        assert in_child(child) != str(pid_of(conn))
        assert ask(conn) == 1
        pool.putconn(conn)

    @any_kind
    def test_are_told_to_observers_and_leak_warnings(
        self, kind: Any, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_pool(maxconn=1, leak_timeout=0.01, debug=True)
        conn = pool.getconn(timeout=10)
        wait_until(lambda: pool.reap_idle_connections() or "has been in use" in caplog.text)
        pool.putconn(conn)
        with pytest.raises(PoolError, match="unkeyed"):
            pool.putconn(conn)


def real_connection_of(lent: Any) -> Any:
    """Return the connection inside, which an opaque proxy does not lead to by itself."""
    conn = real_connection(lent)
    return conn._conn if isinstance(conn, Opaque) else conn


class TestOtherWays:
    @any_kind
    def test_of_psycopg2s_pools(self, kind: Any, statement_log: StatementLog) -> None:
        pool = ThreadedConnectionPool(1, 2, **statement_log.params)
        conn = pool.getconn("key")
        with pytest.raises(KeyError):
            pool.putconn(conn, "other")
        pool.putconn(conn, "key")
        held = pool.getconn()
        pool.closeall()
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            ask(held)

    @transparent
    def test_of_databases(self, kind: Any, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, timeout=10)
        db = PooledDatabase(pool, cursor_factory=psycopg2.extras.DictCursor)
        assert db.fetch_one("SELECT 1 AS one")["one"] == 1
        with db.transaction(readonly=True):
            with pytest.raises(psycopg2.Error), db.transaction():
                db.execute("SELECT nonsense")
            assert db.fetch_val("SELECT 2") == 2
        assert list(db.stream("SELECT generate_series(1, 3)", itersize=2)) == [[1], [2], [3]]
        assert kind.counted() > 0
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    @transparent
    def test_of_tests_that_are_rolled_back(self, kind: Any, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2, timeout=10)
        with rolled_back(pool):
            with pool.transaction() as conn:
                assert type(conn) is kind
                ask(conn, "CREATE TABLE of_a_test AS SELECT 1")
            with pool.conn() as other:
                assert ask(other, "SELECT count(*) FROM of_a_test") == 1
        with pool.conn() as conn:
            assert ask(conn, "SELECT to_regclass('of_a_test') IS NULL")

    @any_kind
    @in_loop
    async def test_of_tasks(self, kind: Any, make_any_async_pool: MakeAsyncPool) -> None:
        pool = make_any_async_pool(maxconn=1)
        if kind.__name__ != "Opaque":
            assert await pool.run(ask, "SELECT 42") == 42
        conn = await pool.getconn()
        assert type(conn) is kind
        assert await pool.run_on(conn, ask, "SELECT 43") == 43
        await pool.putconn(conn)
        async with pool.transaction() as conn:
            assert type(conn) is kind
        with pytest.raises(PoolError):
            await pool.putconn(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    @any_kind
    @in_loop
    async def test_of_a_task_that_is_cancelled(
        self, kind: Any, make_async_pool: MakeAsyncPool, server: Server
    ) -> None:
        pool = make_async_pool(maxconn=1)
        conn = await pool.getconn()
        task = asyncio.create_task(pool.run_on(conn, ask, "SELECT pg_sleep(60)"))
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"
        await eventually(lambda: server.execute(sleeping + " AND state = 'active'") == [(1,)])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pool.putconn(conn)
        await eventually(lambda: pool.stats() == PoolStats(in_use=0, idle=0))
        await eventually(lambda: server.execute(sleeping + " AND state = 'active'") == [(0,)])
        async with pool.conn() as conn:
            assert await pool.run_on(conn, ask, "SELECT 44") == 44

    @wrapt_kind
    @in_loop
    async def test_of_a_database_of_tasks(
        self, kind: Any, make_any_async_pool: MakeAsyncPool
    ) -> None:
        db = AsyncPooledDatabase(make_any_async_pool(maxconn=1))
        async with db.transaction() as conn:
            assert type(conn) is kind
            assert await db.fetch_val("SELECT 1") == 1


class TestTracers:
    def test_that_come_and_go_are_met_and_forgotten(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn: Any
        with pool.conn(timeout=10) as conn:
            assert isinstance(conn, ext.connection)
        with monkeypatch.context() as patch:
            trace(patch, Forwarding)
            pool.drain()
            with pool.conn(timeout=10) as conn:
                assert type(conn) is Forwarding
            del conn
            cursor = pool.getconn().cursor()
        pool.putconn(cursor.connection)  # whose proxy is gone, and nobody makes another
        with pool.conn() as conn:
            assert conn is cursor.connection
        pool.drain()
        with pool.conn(timeout=10) as conn:
            assert issubclass(type(conn), ext.connection)

    def test_that_fail_after_the_connect_leave_no_session(
        self,
        make_any_pool: MakePool,
        monkeypatch: pytest.MonkeyPatch,
        server: Server,
        app: str,
    ) -> None:
        def fail(conn: Any) -> Any:
            raise psycopg2.OperationalError("the agent cannot be reached")

        with monkeypatch.context() as patch:
            trace(patch, fail)
            pool = make_any_pool(maxconn=1)
            with pytest.raises(psycopg2.OperationalError, match="agent"):
                pool.getconn(timeout=0)
        wait_until(lambda: not server.backends(app))

    def test_that_connect_again_with_the_pools_arguments_change_nothing(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept: list[Any] = []
        connect = psycopg2.connect

        def remember(*args: Any, **kwargs: Any) -> Any:
            kept.append(partial(connect, *args, **kwargs))
            return Forwarding(connect(*args, **kwargs))

        monkeypatch.setattr(psycopg2, "connect", remember)
        pool = make_any_pool(maxconn=1)
        with pool.conn(timeout=10) as conn:
            own = kept[0]()  # to explain a plan, for example
            assert pid_of(own) != pid_of(conn)
            assert ask(own) == 1
            ended = weakref.ref(own)
            own.close()
            del own
            assert ended() is None
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    @wrapt_kind
    def test_are_met_by_many_threads_at_once(self, kind: Any, make_pool: MakePool) -> None:
        pool = make_pool(0, 4, test_on_borrow=False, timeout=30)

        def borrow() -> set[type]:
            kinds = set()
            for _ in range(200):
                with pool.conn() as conn:
                    kinds.add(type(conn))
            return kinds

        for running in [in_thread(borrow) for _ in range(8)]:
            assert running.result(60) == {kind}


class TestForeignConnections:
    """Which psycopg2.connect returns in the place of those that the pool has asked for."""

    def test_are_rolled_back_replaced_and_let_go_in_a_forked_child(
        self,
        make_any_pool: MakePool,
        monkeypatch: pytest.MonkeyPatch,
        statement_log: StatementLog,
        server: Server,
    ) -> None:
        connect = psycopg2.connect
        params = statement_log.params
        monkeypatch.setattr(psycopg2, "connect", lambda **_: connect(**params))
        pool = make_any_pool(maxconn=1, timeout=10)
        conn = pool.getconn()
        assert type(conn) is ext.connection
        ask(conn, "SELECT 42")
        pool.putconn(conn)
        assert statement_log.statements() == ["BEGIN", "SELECT 42", "ROLLBACK"]
        with pool.transaction() as again:
            assert again is conn
        again.close()
        with pool.conn() as other:
            assert other is not conn
            assert ask(other) == 1
        monkeypatch.undo()
        if hasattr(os, "fork"):
            inherited = pool.getconn()
            child = in_child(lambda: pool.getconn().info.backend_pid)
            assert child != str(pid_of(inherited))
            assert ask(inherited) == 1

    def test_that_are_dropped_free_their_slots(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch, server: Server
    ) -> None:
        connect = psycopg2.connect
        monkeypatch.setattr(psycopg2, "connect", lambda **_: connect(**server.params))
        pool = make_any_pool(maxconn=1, timeout=10)
        pool.getconn()
        assert pool.stats() == PoolStats(in_use=0, idle=0)


class Mine(ext.connection):
    """A program's own class of connections."""


class Slots:
    """A proxy that keeps what is inside to itself."""

    __slots__ = ("__inside",)

    def __init__(self, conn: Any) -> None:
        self.__inside = conn

    def cursor(self) -> Any:
        return self.__inside.cursor()


class TestConnectionFactories:
    @pytest.mark.parametrize("kind", [object, Forwarding, Opaque], ids=["wrapt", "own", "opaque"])
    def test_may_make_proxies_of_a_class_of_their_own(
        self, make_any_pool: MakePool, kind: type
    ) -> None:
        proxy = fresh(kind)
        pool = make_any_pool(maxconn=1, connection_factory=lambda *a, **k: proxy(Mine(*a, **k)))
        for _ in range(2):
            with pool.conn(timeout=10) as conn:
                assert type(conn) is proxy
                assert isinstance(real_connection_of(conn), Mine)
                assert ask(conn) == 1

    @pytest.mark.parametrize("kind", [Forwarding, Slots])
    def test_of_proxies_of_what_cannot_be_extended_are_refused(
        self, make_any_pool: MakePool, kind: type
    ) -> None:
        made = make_any_pool(
            maxconn=1, connection_factory=lambda *a, **k: kind(ext.connection(*a, **k))
        )
        with pytest.raises(TypeError, match="connection_factory must be a class"):
            made.getconn(timeout=10)

    @pytest.mark.parametrize(
        "factory",
        [
            psycopg2.extras.LogicalReplicationConnection,
            psycopg2.extras.PhysicalReplicationConnection,
        ],
    )
    def test_of_replication_connections_are_refused(
        self, make_any_pool: MakePool, factory: Any
    ) -> None:
        with pytest.raises(TypeError, match="must not make replication connections"):
            make_any_pool(connection_factory=factory)

    def test_that_make_them_unseen_are_refused_at_the_first_connect(
        self, make_any_pool: MakePool
    ) -> None:
        make = psycopg2.extras.LogicalReplicationConnection
        pool = make_any_pool(maxconn=1, connection_factory=partial(make))
        with pytest.raises(TypeError, match="must not make replication connections"):
            pool.getconn(timeout=10)


@pytest.fixture(autouse=True)
def _no_pool_left() -> Iterator[None]:
    yield
    gc.collect()


def test_two_proxies_around_one_connection_are_one_loan(
    make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inner(Forwarding):
        pass

    class Outer(Forwarding):
        pass

    trace(monkeypatch, Inner)
    trace(monkeypatch, Outer)
    pool: ConnectionPool = make_any_pool(maxconn=1)
    conn: Any = pool.getconn(timeout=10)
    assert type(conn) is Outer
    pool.putconn(conn._conn)
    assert pool.getconn() is conn
