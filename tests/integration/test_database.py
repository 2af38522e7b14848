"""Statements and transactions on a pool, without ceremony."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors, extras, sql
from psycopg2 import extensions as ext

from psycopg2_pool2 import (
    CommitUncertain,
    ConnectionPool,
    PooledDatabase,
    PoolError,
    PoolExhausted,
    PoolTimeout,
)
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.testing import rolled_back
from tests.support.pools import MakePool, ask, assert_whole, pid_of
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until


class SerializationFailure(errors.SerializationFailure):
    """Made here, without a server; psycopg2 lets nobody set the code of its own."""

    pgcode = "40001"


class DeadlockDetected(errors.DeadlockDetected):
    pgcode = "40P01"


@pytest.fixture
def table(server: Server, app: str) -> Iterator[str]:
    """Make a table for one test; return its name."""
    name = f"t_{app.replace('-', '_')}"
    server.execute(f"CREATE TABLE {name} (n int PRIMARY KEY, word text)")
    yield name
    server.execute(f"DROP TABLE {name}")


@pytest.fixture
def pool(make_pool: MakePool) -> ConnectionPool:
    return make_pool(maxconn=4, timeout=20)


@pytest.fixture
def db(pool: ConnectionPool) -> Iterator[PooledDatabase]:
    """Make a database, and see in the end that nothing of the pool is lost."""
    yield PooledDatabase(pool)
    assert_whole(pool)


def suppress_division_by_zero(conn: Any) -> None:
    with contextlib.suppress(errors.DivisionByZero):
        ask(conn, "SELECT 1 / 0")


def rows(server: Server, table: str) -> list[Any]:
    return [n for (n,) in server.execute(f"SELECT n FROM {table} ORDER BY n")]


class TestStatements:
    def test_execute_returns_the_rows(self, db: PooledDatabase) -> None:
        assert db.execute("SELECT generate_series(1, 3)") == [(1,), (2,), (3,)]
        assert db.execute("SELECT %s, %s", [1, "a"]) == [(1, "a")]
        assert db.execute("SELECT %(a)s", {"a": 2}) == [(2,)]

    def test_execute_returns_no_rows_where_there_are_none(
        self, db: PooledDatabase, table: str
    ) -> None:
        assert db.execute(f"INSERT INTO {table} VALUES (1)") == []
        assert db.execute(f"SELECT * FROM {table} WHERE n = 2") == []
        assert db.execute("SET application_name TO DEFAULT") == []

    def test_a_percent_sign_needs_doubling_only_with_parameters(self, db: PooledDatabase) -> None:
        assert db.fetch_val("SELECT '100%'") == "100%"
        assert db.fetch_val("SELECT '100%%' || %s", ["!"]) == "100%!"

    def test_composed_statements_are_taken(self, db: PooledDatabase, table: str) -> None:
        insert = sql.SQL("INSERT INTO {} VALUES (%s) RETURNING n").format(sql.Identifier(table))
        assert db.execute(insert, [7]) == [(7,)]
        assert db.execute_many(insert, [(8,), (9,)]) == 2

    def test_fetch_one_and_fetch_val(self, db: PooledDatabase, table: str) -> None:
        assert db.fetch_one("SELECT 1, 2 UNION SELECT 3, 4 ORDER BY 1") == (1, 2)
        assert db.fetch_val("SELECT 1, 2") == 1
        nothing = f"SELECT n FROM {table}"
        assert db.fetch_one(nothing) is None
        assert db.fetch_val(nothing) is None
        assert db.fetch_val("SELECT NULL") is None
        assert db.fetch_one(f"DELETE FROM {table}") is None

    def test_each_statement_is_committed(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        db.execute(f"INSERT INTO {table} VALUES (1)")
        db.fetch_one(f"INSERT INTO {table} VALUES (2) RETURNING n")
        db.fetch_val(f"INSERT INTO {table} VALUES (3) RETURNING n")
        assert rows(server, table) == [1, 2, 3]

    def test_each_statement_is_a_transaction_under_autocommit_too(
        self, make_pool: MakePool, statement_log: StatementLog
    ) -> None:
        def configure(conn: Any) -> None:
            conn.autocommit = True

        db = PooledDatabase(make_pool(configure=configure, test_on_borrow=False))
        sent = statement_log.during(lambda: db.execute("SELECT 1"))
        assert sent == ["BEGIN", "SELECT 1", "COMMIT"]

    def test_an_error_is_psycopg2s_and_undoes_the_statement(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with pytest.raises(errors.DivisionByZero):
            db.execute(f"INSERT INTO {table} SELECT 1 UNION SELECT 1 / 0")
        assert rows(server, table) == []

    @pytest.mark.parametrize(
        ("factory", "row", "value"),
        [
            (extras.RealDictCursor, {"a": 1, "b": 2}, 1),
            (extras.DictCursor, [1, 2], 1),
            (extras.NamedTupleCursor, (1, 2), 1),
        ],
    )
    def test_rows_are_what_the_cursor_factory_makes(
        self, pool: ConnectionPool, factory: Any, row: Any, value: int
    ) -> None:
        db = PooledDatabase(pool, cursor_factory=factory)
        query = "SELECT 1 AS a, 2 AS b"
        assert db.execute(query) == [row]
        assert db.fetch_one(query) == row
        assert db.fetch_val(query) == value
        assert list(db.stream(query)) == [row]
        with db.cursor() as cursor:
            cursor.execute(query)
            assert cursor.fetchone() == row
        with PooledDatabase(pool).cursor(factory) as cursor:
            assert type(cursor) is factory

    def test_the_pools_cursor_factory_is_the_default(self, make_pool: MakePool) -> None:
        db = PooledDatabase(make_pool(cursor_factory=extras.RealDictCursor))
        assert db.execute("SELECT 1 AS a") == [{"a": 1}]

    def test_a_cursor_outside_a_block_commits(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with db.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (1)")
            assert db.fetch_val(f"SELECT count(*) FROM {table}") == 1  # part of it
            assert rows(server, table) == []
        assert rows(server, table) == [1]
        with contextlib.suppress(KeyError), db.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} VALUES (2)")
            raise KeyError
        assert rows(server, table) == [1]


class TestExecuteMany:
    def test_inserts_a_thousand_rows_at_a_time(
        self, db: PooledDatabase, server: Server, table: str, statement_log: StatementLog
    ) -> None:
        insert = f"INSERT INTO {table} (n, word) VALUES (%s, lower(%s))"
        numbers = ((n, "X") for n in range(2500))
        sent = statement_log.during(
            lambda: numbers_inserted.append(db.execute_many(insert, numbers))
        )
        assert numbers_inserted.pop() == 2500
        assert sum(text.startswith("INSERT") for text in sent) == 3
        assert rows(server, table) == list(range(2500))

    @pytest.mark.parametrize(
        ("statement", "params"),
        [
            ("INSERT INTO {} VALUES (%s, 'a'), (%s, 'b')", [(1, 2), (3, 4)]),
            ("INSERT INTO {} (n) SELECT * FROM (VALUES (%s), (%s)) new", [(1, 2), (3, 4)]),
            ("WITH x AS (SELECT 1) INSERT INTO {} (n) VALUES (%s)", [(i,) for i in range(4)]),
        ],
    )
    def test_counts_rows_of_statements_of_every_form(
        self, db: PooledDatabase, table: str, statement: str, params: list[Any]
    ) -> None:
        assert db.execute_many(statement.format(table), params) == 4
        assert db.fetch_val(f"SELECT count(*) FROM {table}") == 4

    def test_counts_the_rows_that_were_affected(self, db: PooledDatabase, table: str) -> None:
        many = db.execute_many
        assert many(f"INSERT INTO {table} VALUES %s", [(1, "a"), (2, "b")]) == 2
        assert many(f"INSERT INTO {table} VALUES (%(n)s, %(word)s)", [{"n": 3, "word": "c"}]) == 1
        assert many(f"INSERT INTO {table} VALUES (%s) ON CONFLICT DO NOTHING", [(3,), (4,)]) == 1
        upsert = "VALUES (%s, %s) ON CONFLICT (n) DO UPDATE SET word = EXCLUDED.word"
        assert many(f"INSERT INTO {table} {upsert}", [(4, "x"), (4, "y")]) == 2
        assert db.fetch_val(f"SELECT word FROM {table} WHERE n = 4") == "y"
        assert many(f"UPDATE {table} SET word = %s WHERE n < %s", [("z", 3), ("w", 2)]) == 3
        assert many(f"DELETE FROM {table} WHERE n = %s", [(1,), (77,)]) == 1
        assert many(f"DELETE FROM {table} WHERE n = %s", []) == 0

    def test_is_one_transaction(self, db: PooledDatabase, server: Server, table: str) -> None:
        twice = [(n % 1500,) for n in range(2000)]
        with pytest.raises(errors.UniqueViolation):
            db.execute_many(f"INSERT INTO {table} VALUES (%s)", twice)
        assert rows(server, table) == []


numbers_inserted: list[int] = []


class TestBlocks:
    def test_statements_inside_use_the_blocks_connection(self, db: PooledDatabase) -> None:
        pid = "SELECT pg_backend_pid()"
        for block in (db.connection, db.transaction):
            with block() as conn:
                assert db.pool.stats().in_use == 1
                assert db.fetch_val(pid) == pid_of(conn)
                assert db.execute(pid) == [(pid_of(conn),)]
                assert list(db.stream(pid)) == [(pid_of(conn),)]
                assert db.run(pid_of) == pid_of(conn)
                with db.connection() as same, db.cursor() as cursor:
                    assert same is conn
                    assert cursor.connection is conn
                assert db.pool.stats().in_use == 1
            assert db.pool.stats().in_use == 0

    def test_a_transaction_commits_or_rolls_back(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with db.transaction():
            db.execute(f"INSERT INTO {table} VALUES (1)")
            assert rows(server, table) == []
        assert rows(server, table) == [1]
        with pytest.raises(KeyError), db.transaction():
            db.execute(f"INSERT INTO {table} VALUES (2)")
            raise KeyError
        assert rows(server, table) == [1]

    def test_a_connection_block_leaves_commit_to_its_user(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with db.connection() as conn:
            db.execute(f"INSERT INTO {table} VALUES (1)")
            conn.commit()
            db.execute(f"INSERT INTO {table} VALUES (2)")
        assert rows(server, table) == [1]

    def test_nested_transactions_are_savepoints(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with db.transaction():
            with pytest.raises(KeyError), db.transaction():
                db.execute(f"INSERT INTO {table} VALUES (1)")
                raise KeyError
            with db.transaction():
                db.execute(f"INSERT INTO {table} VALUES (2)")
                with contextlib.suppress(errors.UniqueViolation), db.transaction():
                    db.execute(f"INSERT INTO {table} VALUES (2)")
            assert db.fetch_val(f"SELECT sum(n) FROM {table}") == 2
        assert rows(server, table) == [2]

    def test_a_transaction_in_a_connection_block(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        with db.connection() as conn:
            with db.transaction(readonly=False):
                db.execute(f"INSERT INTO {table} VALUES (1)")
                with db.transaction():
                    db.execute(f"INSERT INTO {table} VALUES (2)")
            assert rows(server, table) == [1, 2]
            conn.autocommit = True
            with pytest.raises(KeyError), db.transaction():
                db.execute(f"INSERT INTO {table} VALUES (3)")
                raise KeyError
            db.execute(f"INSERT INTO {table} VALUES (4)")
            conn.autocommit = False
            db.execute("SELECT 1")  # begins one, of which the next is a part
            with db.transaction():
                db.execute(f"INSERT INTO {table} VALUES (5)")
        assert rows(server, table) == [1, 2, 4]

    def test_an_error_that_the_block_swallowed_is_told(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        """COMMIT would roll back, and say nothing."""
        with pytest.raises(errors.InFailedSqlTransaction), db.transaction() as conn:
            db.execute(f"INSERT INTO {table} VALUES (1)")
            suppress_division_by_zero(conn)
        with db.transaction():
            with pytest.raises(errors.InFailedSqlTransaction):
                db.run(suppress_division_by_zero)
            db.execute(f"INSERT INTO {table} VALUES (2)")
        assert rows(server, table) == [2]

    def test_characteristics_are_the_transactions(self, db: PooledDatabase) -> None:
        show = "SELECT current_setting('transaction_isolation')"
        with db.transaction("SERIALIZABLE", readonly=True, deferrable=True):
            assert db.fetch_val(show) == "serializable"
            assert db.fetch_val("SELECT current_setting('transaction_read_only')") == "on"
            assert db.fetch_val("SELECT current_setting('transaction_deferrable')") == "on"
        with db.transaction(ext.ISOLATION_LEVEL_REPEATABLE_READ):
            assert db.fetch_val(show) == "repeatable read"
        for _ in range(4):
            assert db.fetch_val(show) == "read committed"

    def test_characteristics_of_an_inner_transaction_are_refused(self, db: PooledDatabase) -> None:
        with db.transaction(), pytest.raises(ValueError, match="isolation_level"):
            db.run(pid_of, isolation_level="SERIALIZABLE")
        with pytest.raises(ValueError, match="isolation_level"):
            db.run(pid_of, isolation_level="NO SUCH LEVEL")

    def test_vacuum_has_its_place(self, db: PooledDatabase, table: str) -> None:
        with pytest.raises(errors.ActiveSqlTransaction):
            db.execute(f"VACUUM {table}")
        with db.connection() as conn:
            conn.autocommit = True
            db.execute(f"VACUUM {table}")
        assert db.execute("SELECT 1") == [(1,)]

    def test_threads_have_blocks_of_their_own(self, db: PooledDatabase) -> None:
        with db.transaction() as conn:
            other = in_thread(lambda: db.fetch_val("SELECT pg_backend_pid()")).result()
            assert other != pid_of(conn)

    def test_databases_have_blocks_of_their_own(
        self, db: PooledDatabase, pool: ConnectionPool
    ) -> None:
        other = PooledDatabase(pool)
        with db.transaction() as conn, other.transaction() as another:
            assert conn is not another
            assert db.fetch_val("SELECT pg_backend_pid()") == pid_of(conn)
            assert other.fetch_val("SELECT pg_backend_pid()") == pid_of(another)

    def test_a_thread_with_the_blocks_context_is_part_of_it_while_it_lasts(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        inside, ended = threading.Event(), threading.Event()
        insert = f"INSERT INTO {table} VALUES (%s)"

        def work() -> int:
            db.execute(insert, [1])
            inside.set()
            assert ended.wait(20)
            return int(db.fetch_val("SELECT pg_backend_pid()"))

        with pytest.raises(KeyError), db.transaction() as conn:
            pid = pid_of(conn)
            context = contextvars.copy_context()
            running = in_thread(lambda: context.run(work))
            assert inside.wait(20)
            raise KeyError
        assert rows(server, table) == []  # its part was rolled back too
        taken = db.pool.getconn()
        assert pid_of(taken) == pid
        ended.set()
        assert running.result() != pid  # and it does not use what is another borrower's now
        db.pool.putconn(taken)

    def test_the_end_of_a_block_waits_for_a_statement_of_its_threads(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        slow = f"INSERT INTO {table} SELECT 1 FROM pg_sleep(1)"
        with db.transaction() as conn:
            context = contextvars.copy_context()
            running = in_thread(lambda: context.run(db.execute, slow))
            # Seen here: to ask the server could take longer than the statement.
            wait_until(lambda: conn.get_transaction_status() == ext.TRANSACTION_STATUS_ACTIVE)
        running.result()
        assert rows(server, table) == [1]

    def test_leaves_no_trace_in_the_context(self, db: PooledDatabase) -> None:
        before = dict(contextvars.copy_context())
        with db.transaction(), db.connection(), db.cursor():
            pass
        db.run(lambda conn: None)
        after = dict(contextvars.copy_context())
        assert not [var for var in after if after[var] is not before.get(var)]


class TestStream:
    def test_gives_all_rows_some_at_a_time(
        self, db: PooledDatabase, statement_log: StatementLog
    ) -> None:
        found: list[Any] = []
        query = "SELECT generate_series(1, 10)"
        sent = statement_log.during(lambda: found.extend(db.stream(query, itersize=4)))
        assert found == [(n,) for n in range(1, 11)]
        assert sum("FETCH FORWARD 4" in text for text in sent) in (3, 4)

    def test_takes_parameters(self, db: PooledDatabase) -> None:
        assert list(db.stream("SELECT %s", [5])) == [(5,)]

    def test_borrows_nothing_before_it_is_read_and_returns_what_it_borrowed(
        self, db: PooledDatabase
    ) -> None:
        stream = db.stream("SELECT generate_series(1, 100)", itersize=5)
        assert db.pool.stats().in_use == 0
        assert next(stream) == (1,)
        assert db.pool.stats().in_use == 1
        assert db.execute("SELECT 1") == [(1,)]  # on another: it is nobody's block
        stream.close()  # type: ignore[attr-defined]
        assert db.pool.stats().in_use == 0
        with pytest.raises(errors.DivisionByZero):
            list(db.stream("SELECT 1 / 0"))
        stream = db.stream("SELECT 1")
        next(stream)
        del stream
        assert db.pool.stats().in_use == 0

    def test_holds_few_rows_in_memory(self, db: PooledDatabase) -> None:
        query = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"  # 20 MB
        tracemalloc.start()
        try:
            assert sum(1 for _ in db.stream(query, itersize=100)) == 20000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2_000_000

    @pytest.mark.parametrize("read", ["one row", "all rows"])
    def test_leaves_no_cursor_in_the_block_that_it_is_part_of(
        self, db: PooledDatabase, read: str
    ) -> None:
        with db.transaction():
            stream = db.stream("SELECT generate_series(1, 100)", itersize=5)
            list(stream) if read == "all rows" else next(stream)
            stream.close()  # type: ignore[attr-defined]
            assert db.execute("SELECT name FROM pg_cursors") == []

    def test_ends_with_the_block_that_it_is_part_of(self, db: PooledDatabase) -> None:
        query = "SELECT generate_series(1, 100)"
        with db.transaction():
            stream = db.stream(query, itersize=5)
            next(stream)
        with pytest.raises(psycopg2.InterfaceError, match="block"):
            list(stream)


class TestRun:
    def test_returns_what_the_function_returns_and_commits(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        def work(conn: Any) -> str:
            db.execute(f"INSERT INTO {table} VALUES (1)")  # part of it
            ask(conn, f"INSERT INTO {table} VALUES (2)")
            return "done"

        assert db.run(work) == "done"
        assert rows(server, table) == [1, 2]

    @pytest.mark.parametrize("failure", [SerializationFailure, DeadlockDetected])
    def test_begins_anew_after_a_conflict(
        self, db: PooledDatabase, server: Server, table: str, failure: type[Exception]
    ) -> None:
        calls = 0

        def work(conn: Any) -> int:
            nonlocal calls
            calls += 1
            db.execute(f"INSERT INTO {table} VALUES (%s)", [calls])
            if calls < 4:
                raise failure
            return calls

        assert db.run(work) == 4
        assert rows(server, table) == [4]

    @pytest.mark.parametrize("retries", [0, 1, 5])
    def test_gives_up_after_so_many_retries(self, db: PooledDatabase, retries: int) -> None:
        calls: list[int] = []

        def work(conn: Any) -> None:
            calls.append(pid_of(conn))
            raise SerializationFailure

        with pytest.raises(errors.SerializationFailure):
            db.run(work, retries=retries)
        assert len(calls) == retries + 1

    def test_begins_anew_on_another_connection_when_one_is_lost(self, db: PooledDatabase) -> None:
        pids: list[int] = []

        def work(conn: Any) -> None:
            pids.append(pid_of(conn))
            if len(pids) < 3:
                ask(conn, "SELECT pg_terminate_backend(pg_backend_pid())")

        db.run(work)
        assert len(set(pids)) == 3

    def test_other_errors_are_raised_at_once(self, db: PooledDatabase) -> None:
        calls: list[int] = []

        def work(conn: Any) -> None:
            calls.append(1)
            ask(conn, "SELECT 1 / 0")

        with pytest.raises(errors.DivisionByZero):
            db.run(work)
        assert len(calls) == 1

    def test_inside_a_block_it_is_called_once_in_a_savepoint(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        calls: list[int] = []

        def work(conn: Any) -> None:
            calls.append(1)
            db.execute(f"INSERT INTO {table} VALUES (1)")
            raise SerializationFailure

        with db.transaction():
            with pytest.raises(errors.SerializationFailure):
                db.run(work)
            db.execute(f"INSERT INTO {table} VALUES (2)")
        assert len(calls) == 1
        assert rows(server, table) == [2]

    def test_real_serialization_failures(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        """Each adds one to what it has read: under SERIALIZABLE none is lost."""
        db.execute(f"INSERT INTO {table} VALUES (0, '0')")
        attempts: list[int] = []

        def add_one(conn: Any) -> None:
            attempts.append(1)
            word = ask(conn, f"SELECT word FROM {table} WHERE n = 0")
            ask(conn, f"UPDATE {table} SET word = %s WHERE n = 0", str(int(word) + 1))

        def add_ten() -> None:
            for _ in range(10):
                db.run(add_one, retries=1000, isolation_level="SERIALIZABLE")

        for running in [in_thread(add_ten) for _ in range(4)]:
            running.result()
        assert server.execute(f"SELECT word FROM {table}") == [("40",)]
        assert len(attempts) > 40, "there was no conflict"

    def test_a_serialization_failure_at_commit_is_begun_anew(
        self, db: PooledDatabase, table: str
    ) -> None:
        """Write skew, which PostgreSQL finds at the latest when the second one commits."""
        db.execute_many(f"INSERT INTO {table} VALUES (%s, 'on call')", [(1,), (2,)])
        both_have_read = threading.Barrier(2)

        def leave(number: int) -> Callable[[Any], bool]:
            tried: list[int] = []

            def work(conn: Any) -> bool:
                on_call = ask(conn, f"SELECT count(*) FROM {table} WHERE word = 'on call'")
                if not tried:
                    tried.append(1)
                    both_have_read.wait(20)
                if on_call < 2:
                    return False
                ask(conn, f"UPDATE {table} SET word = 'off' WHERE n = %s", number)
                return True

            return work

        runs = [
            in_thread(lambda n=n: db.run(leave(n), isolation_level="SERIALIZABLE"))  # type: ignore[misc]
            for n in (1, 2)
        ]
        assert sorted(running.result() for running in runs) == [False, True]

    def test_real_deadlocks(self, db: PooledDatabase, server: Server, table: str) -> None:
        db.execute_many(f"INSERT INTO {table} VALUES (%s, '')", [(1,), (2,)])
        first_locks = threading.Barrier(2)
        calls: list[int] = []

        def update(order: tuple[int, int]) -> Callable[[Any], None]:
            tried: list[int] = []

            def work(conn: Any) -> None:
                calls.append(1)
                ask(conn, "SET LOCAL deadlock_timeout = '10ms'")
                touch = f"UPDATE {table} SET word = word || 'x' WHERE n = %s"
                ask(conn, touch, order[0])
                if not tried:
                    tried.append(1)
                    first_locks.wait(20)
                ask(conn, touch, order[1])

            return work

        for running in [
            in_thread(lambda o=order: db.run(update(o)))  # type: ignore[misc]
            for order in ((1, 2), (2, 1))
        ]:
            running.result()
        assert server.execute(f"SELECT word FROM {table}") == [("xx",), ("xx",)]
        assert len(calls) == 3


class TestLostConnections:
    def test_a_statement_is_done_on_another(self, db: PooledDatabase, server: Server) -> None:
        """Up to three times after the first attempt."""
        die = "SELECT pg_terminate_backend(pg_backend_pid())"
        before = db.pool.get_stats()["connections_num"]
        with pytest.raises(psycopg2.OperationalError) as raised:
            db.execute(die)
        assert not isinstance(raised.value, CommitUncertain)
        assert db.pool.get_stats()["connections_num"] - before >= 4

    def test_a_block_is_not_begun_anew(self, db: PooledDatabase) -> None:
        entered = 0
        with pytest.raises(psycopg2.OperationalError), db.transaction():
            entered += 1
            db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert entered == 1

    def test_a_loss_before_commit_leaves_no_doubt(self, db: PooledDatabase) -> None:
        """Nothing can have been committed, so whoever wants to may try again."""
        lost = pytest.raises(psycopg2.OperationalError, match="before COMMIT")
        with lost as raised, db.transaction(), contextlib.suppress(psycopg2.Error):
            db.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        assert not isinstance(raised.value, CommitUncertain)

    def test_failing_to_get_a_connection_is_the_pools_business(self, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=1)
        db = PooledDatabase(pool)
        with pool.conn():
            with pytest.raises(PoolExhausted):
                db.execute("SELECT 1")
            assert pool.get_stats()["requests_errors"] == 1
        db = PooledDatabase(make_pool(maxconn=1, timeout=0.05))
        with db.pool.conn(), pytest.raises(PoolTimeout):
            db.execute("SELECT 1")

    def test_commit_uncertain_is_both_kinds_of_error(self) -> None:
        assert issubclass(CommitUncertain, PoolError)
        assert issubclass(CommitUncertain, psycopg2.OperationalError)


class TestTheWhole:
    def test_from_env_waits_and_closes(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", server.dsn)
        with PooledDatabase.from_env(maxconn=3) as db:
            assert db.fetch_val("SELECT 1") == 1
            assert db.pool.maxconn == 3
            assert db.pool._options.timeout == 30
            pool = db.pool
        assert pool.closed
        with PooledDatabase.from_env(timeout=1) as db:
            assert db.pool._options.timeout == 1

    def test_it_needs_a_pool(self) -> None:
        with pytest.raises(TypeError, match="pool"):
            PooledDatabase("postgresql://")  # type: ignore[arg-type]

    def test_tests_can_roll_it_back(self, db: PooledDatabase, server: Server, table: str) -> None:
        with rolled_back(db.pool):
            db.execute(f"INSERT INTO {table} VALUES (1)")
            db.execute_many(f"INSERT INTO {table} VALUES (%s)", [(2,), (3,)])
            with pytest.raises(KeyError), db.transaction():
                db.execute(f"INSERT INTO {table} VALUES (4)")
                raise KeyError
            assert [n for (n,) in db.stream(f"SELECT n FROM {table} ORDER BY n")] == [1, 2, 3]
            assert db.run(lambda conn: ask(conn, f"SELECT count(*) FROM {table}")) == 3
        assert rows(server, table) == []
