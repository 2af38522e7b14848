"""Cursors, which end with the loan in which they were made."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions as ext
from psycopg2 import extras

from psycopg2_pool2 import ConnectionPool, ConnectionReturned, PooledDatabase, PoolError, PoolStats
from tests.support.aio import MakeAsyncPool, in_loop
from tests.support.pools import MakePool, ask, assert_whole, pid_of
from tests.support.proxying import Forwarding, Opaque, fresh, trace
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

pytestmark = pytest.mark.integration

MANY = "SELECT i FROM generate_series(1, 5000) i"


class Raising(ext.cursor):
    """Raises when it is closed."""

    def close(self) -> None:
        raise ZeroDivisionError


class Slotted(ext.cursor):
    """Has a layout of its own."""

    __slots__ = ("mine",)


class Odd(ext.cursor):
    """Cannot be compared, hashed or given attributes."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __setattr__(self, name: str, value: Any) -> None:
        raise ZeroDivisionError


class Meta(type):
    """Refuses classes whose names it does not know."""

    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if bases != (ext.cursor,):
            raise ZeroDivisionError
        return super().__new__(cls, name, bases, body)


class Final(ext.cursor, metaclass=Meta):
    """Cannot be subclassed."""


def _make(conn: Any, name: Any = None) -> ext.cursor:
    return ext.cursor(conn, name)


FACTORIES = [
    None,
    extras.DictCursor,
    extras.RealDictCursor,
    extras.NamedTupleCursor,
    Raising,
    Slotted,
    Odd,
    _make,
]
any_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: getattr(f, "__name__", f))
any_name = pytest.mark.parametrize("name", [None, "kept"], ids=["client-side", "named"])


def begin(conn: Any, /, name: str | None = None, factory: Any = None, **kwargs: Any) -> Any:
    """Return a cursor that has read one row of many."""
    cursor = conn.cursor(name, cursor_factory=factory, **kwargs)
    cursor.execute(MANY)
    assert cursor.fetchone() is not None
    return cursor


def assert_ended(cursor: Any) -> None:
    uses: list[Callable[[], object]] = [
        lambda: cursor.execute("INSERT INTO nothing VALUES (1)"),
        lambda: list(cursor),
        lambda: next(cursor),
        cursor.fetchone,
        cursor.fetchmany,
        cursor.fetchall,
        lambda: cursor.scroll(1),
    ]
    for use in uses:
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            use()
    assert cursor.closed


class TestLoan:
    @any_factory
    @any_name
    @pytest.mark.parametrize("end", ["commit", "rollback", None])
    def test_ends_with_its_cursors(
        self, make_any_pool: MakePool, factory: Any, name: str | None, end: str | None
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        cursor = begin(conn, name, factory)
        if end:
            getattr(conn, end)()
        pool.putconn(conn)
        assert_ended(cursor)
        with pool.conn(timeout=10) as conn:
            mine = begin(conn, "kept")
            assert_ended(cursor)
            with contextlib.suppress(ZeroDivisionError):
                cursor.close()
            with contextlib.suppress(ZeroDivisionError):
                cursor.__exit__(None, None, None)
            assert len(mine.fetchall()) == 4999
        assert_whole(pool)

    def test_in_a_block_of_the_pool_or_a_database_ends_with_its_cursors(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        database = PooledDatabase(pool)
        for block in (pool.conn, pool.transaction, database.connection, database.transaction):
            with block() as conn:
                cursors = [begin(conn), begin(conn, "named")]
            for cursor in cursors:
                assert_ended(cursor)

    @in_loop
    async def test_of_a_task_ends_with_its_cursors(
        self, make_any_async_pool: MakeAsyncPool
    ) -> None:
        pool = make_any_async_pool(maxconn=1)
        kept = []
        async with pool.conn() as conn:
            kept.append(await pool.run_on(conn, begin))
        kept.append(await pool.run(begin))
        async with pool.transaction() as conn:
            kept.append(await pool.run_on(conn, begin, "named"))
        conn = await pool.getconn()
        kept.append(await pool.run_on(conn, begin))
        await pool.putconn(conn)
        for cursor in kept:
            assert_ended(cursor)

    def test_that_ends_by_close_ends_with_its_cursors(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, close_returns=True)
        conn = pool.getconn(timeout=10)
        cursors = [begin(conn), begin(conn, "named")]
        conn.close()
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        for cursor in cursors:
            assert_ended(cursor)

    @pytest.mark.parametrize("kind", [Forwarding, Opaque])
    def test_of_a_tracers_proxy_ends_with_its_cursors(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        trace(monkeypatch, fresh(kind))
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        for commits in (True, False):
            conn = pool.getconn(timeout=10)
            cursors = [conn.cursor(), conn.cursor("named")]
            for cursor in cursors:
                cursor.execute(MANY)
            if commits:
                conn.commit()
            pool.putconn(conn)
            for cursor in cursors:
                assert_ended(cursor)

    @pytest.mark.parametrize(
        "options",
        [
            {"reset": "session"},
            {"reset": lambda conn: conn.cursor().execute("SELECT 1")},
            {"max_uses": 1},
            {"leak_timeout": 60},
            {"debug": True},
            {"lifetime_timeout": 0},
        ],
        ids=["session", "own-reset", "max_uses", "leak_timeout", "debug", "lifetime_timeout"],
    )
    def test_ends_with_its_cursors_whatever_the_options(
        self, make_any_pool: MakePool, options: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **options)
        conn = pool.getconn(timeout=10)
        cursors = [begin(conn), begin(conn, "named")]
        conn.commit()
        pool.putconn(conn)
        for cursor in cursors:
            assert_ended(cursor)

    def test_that_is_detached_keeps_its_cursors(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.detach(pool.getconn(timeout=10))
        cursor, named = begin(conn), begin(conn, "named")
        assert cursor.fetchone() == named.fetchone() == (2,)
        named.close()
        gc.collect()
        assert ask(conn) == 1
        conn.close()

    def test_that_begins_before_detach_keeps_its_cursors(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        cursor, named = begin(conn), begin(conn, "named")
        pool.detach(conn)
        assert cursor.fetchone() == named.fetchone() == (2,)
        conn.close()

    def test_of_a_key_notes_no_more_cursors_than_there_are(self, make_pool: MakePool) -> None:
        """A loan may last as long as its process does."""
        pool = make_pool(maxconn=1)
        conn: Any = pool.getconn("key", timeout=10)
        kept = [conn.cursor() for _ in range(100)]
        for _ in range(2000):
            conn.cursor()
        assert len(conn.pool_record.cursors) < 500
        pool.putconn(conn)
        assert all(cursor.closed for cursor in kept)
        assert not conn.pool_record.cursors


class TestNamedCursors:
    @pytest.mark.parametrize("factory", [None, extras.DictCursor, _make])
    def test_end_without_a_statement(
        self, make_any_pool: MakePool, statement_log: StatementLog, factory: Any
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        never_executed = conn.cursor("other", cursor_factory=factory)
        cursor = begin(conn, "kept", factory)
        statement_log.clear()
        pool.putconn(conn)
        cursor.close()
        never_executed.close()
        assert statement_log.statements() == ["ROLLBACK"]

    @pytest.mark.parametrize("factory", [None, extras.DictCursor])
    @pytest.mark.parametrize("withhold", [False, True])
    def test_send_nothing_by_what_was_kept_of_them(
        self, make_any_pool: MakePool, statement_log: StatementLog, factory: Any, withhold: bool
    ) -> None:
        """A method, an exit of a block, or an iteration that is under way."""
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        with contextlib.ExitStack() as stack:
            conn = pool.getconn(timeout=10)
            cursor = stack.enter_context(begin(conn, "kept", factory, withhold=withhold))
            stack.callback(cursor.close)
            rows = iter(cursor)
            next(rows)
            methods = [cursor.fetchone, cursor.fetchmany, cursor.fetchall, lambda: next(rows)]
            methods.append(lambda execute=cursor.execute: execute("SELECT 1"))
            conn.commit()
            pool.putconn(conn)
            conn = pool.getconn(timeout=10)
            mine = begin(conn, "kept")
            statement_log.clear()
            for method in methods:
                with pytest.raises(psycopg2.InterfaceError):
                    method()
        assert statement_log.statements() == []
        assert len(mine.fetchall()) == 4999
        pool.putconn(conn)

    def test_of_a_class_that_cannot_be_subclassed_end_with_a_statement_of_their_own_loan(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        pid = pid_of(conn)
        cursor = begin(conn, "kept", Final)
        pool.putconn(conn)
        assert cursor.closed
        conn = pool.getconn(timeout=10)
        assert pid_of(conn) == pid
        cursor = begin(conn, "kept", Final)
        conn.commit()  # the cursor is gone, which psycopg2 cannot be told
        pool.putconn(conn)
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            cursor.fetchone()
        with pool.conn(timeout=10) as conn:
            assert begin(conn, "kept").fetchone() == (2,)

    def test_are_what_their_factory_made_them(self, make_pool: MakePool) -> None:
        def make(conn: Any, name: Any = None) -> Any:
            cursor = ext.cursor(conn, name)
            cursor.arraysize, cursor.itersize = 7, 11
            return cursor

        pool = make_pool(maxconn=1)
        with pool.conn(timeout=10) as conn:
            cursor = conn.cursor("kept", cursor_factory=make, scrollable=True, withhold=True)
            assert (cursor.arraysize, cursor.itersize) == (7, 11)
            assert cursor.scrollable
            assert cursor.withhold
            assert cursor.name == "kept"
            named = begin(conn, "dicts", extras.RealDictCursor)
            assert isinstance(named, extras.RealDictCursor)
            assert type(named).__name__ == "RealDictCursor"
            assert named.fetchone() == {"i": 2}
            assert next(iter(begin(conn, "rows", extras.DictCursor)))["i"] == 2


class TestHoldCursors:
    @pytest.mark.parametrize("reset", [None, "session"])
    @pytest.mark.parametrize("autocommit", [False, True])
    def test_are_closed_on_the_server_too(
        self, make_any_pool: MakePool, reset: Any, autocommit: bool
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False, reset=reset)
        conn = pool.getconn(timeout=10)
        conn.autocommit = autocommit
        kept = begin(conn, 'o"dd', withhold=True)
        begin(conn, "dropped", withhold=True)
        later = conn.cursor("later")
        later.withhold = True
        later.execute(MANY)
        if not autocommit:
            conn.commit()
        pool.putconn(conn)
        assert_ended(kept)
        with pool.conn(timeout=10) as conn:
            assert ask(conn, "SELECT count(*) FROM pg_cursors") == 0

    def test_that_their_transaction_took_along_cost_no_error(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        pid = pid_of(conn)
        kept = begin(conn, "kept", withhold=True)
        conn.rollback()
        pool.putconn(conn)
        assert_ended(kept)
        with pool.conn(timeout=10) as conn:
            assert pid_of(conn) == pid

    def test_that_were_closed_cost_no_statement(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        begin(conn, "kept", withhold=True).close()
        conn.commit()
        statement_log.clear()
        pool.putconn(conn)
        assert statement_log.statements() == []

    def test_that_a_program_declares_in_sql_are_its_own(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        with pool.transaction(timeout=10) as conn:
            conn.cursor().execute(f"DECLARE mine CURSOR WITH HOLD FOR {MANY}")
            begin(conn, "ours", withhold=True)
        with pool.conn() as conn:
            assert ask(conn, "FETCH FROM mine") == 1
            assert ask(conn, "SELECT count(*) FROM pg_cursors WHERE is_holdable") == 1


class OwnWay(ext.connection):
    """Makes its cursors by psycopg2's class."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return ext.connection.cursor(self, *args, **kwargs)


class Wrapper:
    """What a connection of the program's may put around a cursor."""

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)


class Wrapping(ext.connection):
    """Makes wrappers."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        return Wrapper(super().cursor(*args, **kwargs))


@any_name
@pytest.mark.parametrize(
    "made", [OwnWay, Wrapping, extras.DictConnection, lambda *args, **kwargs: OwnWay(*args)]
)
def test_connections_of_a_programs_class_end_their_cursors(
    make_any_pool: MakePool, made: Any, name: str | None
) -> None:
    pool = make_any_pool(maxconn=1, test_on_borrow=False, connection_factory=made)
    for commits in (True, False):
        conn = pool.getconn(timeout=10)
        cursor = conn.cursor(name)
        cursor.execute(MANY)
        if commits:
            conn.commit()
        pool.putconn(conn)
        assert cursor.closed
        with pytest.raises(psycopg2.InterfaceError, match="closed"):
            cursor.fetchone()
        with pytest.raises(ConnectionReturned):
            conn.cursor()


class TestIdleConnections:
    def test_refuse_cursor_and_say_why(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        pool.putconn(conn)
        for name in (None, "named"):
            for error in (PoolError, psycopg2.InterfaceError, ConnectionReturned):
                with pytest.raises(error, match="was returned to its pool"):
                    conn.cursor(name)
        assert ask(pool.getconn(timeout=10)) == 1

    def test_give_cursors_to_the_pools_own_callbacks(self, make_any_pool: MakePool) -> None:
        kept: list[Any] = []

        def use(conn: Any) -> None:
            kept.append(conn.cursor())
            kept[-1].execute("SELECT 1")

        pool = make_any_pool(minconn=1, maxconn=1, configure=use, test_on_borrow=use, reset=use)
        for _ in range(2):
            with pool.conn(timeout=10) as conn:
                assert ask(conn) == 1
        assert pool.check() == 0
        assert len(kept) > 5
        assert pool.get_stats()["connections_num"] == 1

    def test_leave_what_configure_made(self, make_any_pool: MakePool) -> None:
        kept: list[Any] = []
        pool = make_any_pool(maxconn=1, configure=lambda conn: kept.append(conn.cursor()))
        for number in range(2):
            with pool.conn(timeout=10):
                kept[0].execute("SELECT %s", [number])
                assert kept[0].fetchone() == (number,)

    def test_after_shutdown_are_closed(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        cursor = begin(conn)
        pool.shutdown()
        assert cursor.fetchone() == (2,)
        pool.putconn(conn)
        wait_until(lambda: conn.closed)
        with pytest.raises(psycopg2.InterfaceError):
            cursor.fetchone()


class TestThreads:
    def test_a_statement_that_still_runs_has_its_connection_closed(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        pid = pid_of(conn)
        cursor = conn.cursor()
        running = in_thread(lambda: cursor.execute("SELECT pg_sleep(60)"))
        active = ext.TRANSACTION_STATUS_ACTIVE
        wait_until(lambda: conn.get_transaction_status() == active)
        pool.putconn(conn)
        with pytest.raises(psycopg2.Error):
            running.result(30)
        with pytest.raises(psycopg2.Error):  # of its socket, if it is not closed yet
            cursor.execute("SELECT 1")
        with pool.conn(timeout=30) as conn:
            assert pid_of(conn) != pid

    def test_that_make_cursors_while_another_returns_keep_none_that_works(
        self, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=1, test_on_borrow=False)
        made: list[Any] = []
        over = threading.Event()

        def make(conn: Any) -> None:
            while not over.is_set():
                with contextlib.suppress(ConnectionReturned):
                    made.append(conn.cursor())

        for _ in range(20):
            over.clear()
            made.clear()
            conn = pool.getconn(timeout=10)
            maker = in_thread(make, conn)
            wait_until(lambda: len(made) > 10)
            pool.putconn(conn)
            over.set()
            maker.result(30)
            assert all(cursor.closed for cursor in made)
        assert_whole(pool)


def test_a_pool_with_held_cursors_is_collected(make_pool: MakePool) -> None:
    """A cursor refers to its connection, and nothing of the pool to the cursor."""
    pool: ConnectionPool = make_pool(maxconn=1)
    conn: Any = pool.getconn(timeout=10)
    cursor = begin(conn, "kept")
    gc.disable()
    try:
        del conn, cursor
        assert pool.stats() == PoolStats(in_use=0, idle=0)
    finally:
        gc.enable()
