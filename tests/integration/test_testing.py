"""Tests of programs: what they do is rolled back, and until then is as it always is."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import psycopg2
import psycopg2.extras
import pytest
from psycopg2 import errors, sql
from psycopg2 import extensions as ext

from psycopg2_pool2 import ConnectionPool, PoolError, PoolExhausted
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.monitor import get_monitor
from psycopg2_pool2.testing import NeedsRealTransactions, pool_fixture, rolled_back
from psycopg2_pool2.testing.statements import control
from tests.support.pools import MakePool, ask, end_sessions
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

IDLE = ext.TRANSACTION_STATUS_IDLE
INTRANS = ext.TRANSACTION_STATUS_INTRANS
INERROR = ext.TRANSACTION_STATUS_INERROR

_TABLES = """
CREATE TABLE item (n int PRIMARY KEY, part_of int REFERENCES item DEFERRABLE INITIALLY DEFERRED);
INSERT INTO item VALUES (1), (2);
"""


@pytest.fixture(scope="module")
def items(server: Server) -> Iterator[None]:
    """Make a table with two rows, and see in the end that nobody has changed it."""
    server.execute(_TABLES)
    yield
    assert server.execute("SELECT * FROM item ORDER BY n") == [(1, None), (2, None)]
    server.execute("DROP TABLE item")


@pytest.fixture
def real(items: None, make_pool: MakePool) -> ConnectionPool:
    """Make a pool that is not in a test."""
    return make_pool(0, 4, timeout=10)


@pytest.fixture
def pool(real: ConnectionPool, count_outside: Callable[[], int]) -> Iterator[ConnectionPool]:
    """Roll a pool back after each test, and see that nobody else ever saw more than two rows."""
    with rolled_back(real) as pool:
        yield pool
        assert count_outside() == 2
    assert count_outside() == 2
    assert real.stats().in_use == 0


@pytest.fixture
def count_outside(server: Server) -> Callable[[], int]:
    """Count the rows as any other session does."""
    return lambda: int(server.execute("SELECT count(*) FROM item")[0][0])


def insert(conn: Any, n: int) -> None:
    ask(conn, "INSERT INTO item VALUES (%s)", n)


def _rollback_past_the_overrides(conn: Any) -> None:
    with conn._loan.statement():
        ext.cursor.execute(conn.cursor(), "ROLLBACK")


def _own_fileno(conn: Any) -> int:
    return ext.connection.fileno(conn)


def rows(pool: ConnectionPool) -> list[int]:
    """Read the rows beside the two as a new borrower."""
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT n FROM item WHERE n > 2 ORDER BY n")
        return [n for (n,) in cursor]


class TestTransactions:
    def test_of_a_transaction_block(
        self, pool: ConnectionPool, count_outside: Callable[[], int]
    ) -> None:
        with pool.transaction() as conn:
            insert(conn, 3)
        assert rows(pool) == [3]
        assert count_outside() == 2
        with suppress(ZeroDivisionError), pool.transaction() as conn:
            insert(conn, 4)
            raise ZeroDivisionError
        assert rows(pool) == [3]

    def test_of_a_conn_block(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            insert(conn, 3)
            conn.commit()
            insert(conn, 4)
        assert rows(pool) == [3]

    def test_of_a_program_that_commits_and_rolls_back(self, pool: ConnectionPool) -> None:
        conn = pool.getconn()
        states = [(conn.status, conn.get_transaction_status())]
        insert(conn, 3)
        states.append((conn.status, conn.get_transaction_status()))
        conn.rollback()
        insert(conn, 4)
        conn.commit()
        states.append((conn.status, conn.get_transaction_status()))
        insert(conn, 5)
        pool.putconn(conn)
        assert rows(pool) == [4]
        assert states == [
            (ext.STATUS_READY, IDLE),
            (ext.STATUS_BEGIN, INTRANS),
            (ext.STATUS_READY, IDLE),
        ]

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_of_psycopg2s_with(self, pool: ConnectionPool, autocommit: bool) -> None:
        with pool.conn() as conn:
            conn.autocommit = autocommit
            with conn:
                insert(conn, 3)
            with suppress(errors.UniqueViolation), conn:
                insert(conn, 4)
                insert(conn, 1)
            with pytest.raises(psycopg2.ProgrammingError, match="re-entered"), conn, conn:
                pass
        assert rows(pool) == [3]

    def test_of_autocommit(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            conn.autocommit = True
            insert(conn, 3)
            assert conn.get_transaction_status() == IDLE
            with pytest.raises(errors.UniqueViolation):
                insert(conn, 3)
            assert conn.get_transaction_status() == IDLE
            insert(conn, 4)
            conn.rollback()
        assert rows(pool) == [3, 4]

    def test_typed_by_hand(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            conn.autocommit = True
            ask(conn, "BEGIN ISOLATION LEVEL SERIALIZABLE")
            insert(conn, 3)
            ask(conn, "ROLLBACK -- all of it")
            ask(conn, "START TRANSACTION")
            insert(conn, 4)
            ask(conn, "COMMIT;")
            conn.autocommit = False
            insert(conn, 5)
            ask(conn, "END")
            cursor = conn.cursor()
            cursor.execute(sql.SQL("ROLLBACK"))
            cursor.execute(b"ROLLBACK")
        assert rows(pool) == [4, 5]

    def test_savepoints_of_the_program(self, pool: ConnectionPool) -> None:
        with pool.transaction() as conn:
            insert(conn, 3)
            ask(conn, "SAVEPOINT mine")
            with pytest.raises(errors.UniqueViolation):
                insert(conn, 3)
            assert conn.get_transaction_status() == INERROR
            ask(conn, "ROLLBACK TO SAVEPOINT mine")
            insert(conn, 4)
        assert rows(pool) == [3, 4]

    def test_a_failed_statement_aborts_until_the_rollback(self, pool: ConnectionPool) -> None:
        with pool.transaction() as conn:
            insert(conn, 3)
        with pool.conn() as conn:
            insert(conn, 4)
            with pytest.raises(errors.UniqueViolation):
                insert(conn, 1)
            with pytest.raises(errors.InFailedSqlTransaction):
                ask(conn)
            conn.rollback()
            insert(conn, 5)
            with pytest.raises(errors.UniqueViolation):
                insert(conn, 1)
            conn.commit()  # a rollback, as always
            assert ask(conn) == 1
        assert rows(pool) == [3]

    def test_deferred_constraints_are_checked_at_commit(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            for _ in range(2):  # deferred again after the first
                ask(conn, "INSERT INTO item VALUES (3, 4)")
                with pytest.raises(errors.ForeignKeyViolation):
                    conn.commit()
                assert conn.get_transaction_status() == IDLE
            ask(conn, "INSERT INTO item VALUES (3, 4)")
            insert(conn, 4)
            conn.commit()
            ask(conn, "INSERT INTO item VALUES (5, 6)")
            insert(conn, 6)
            conn.commit()
        assert rows(pool) == [3, 4, 5, 6]

    @pytest.mark.parametrize(
        "text",
        ["BEGIN; DELETE FROM item; COMMIT", "COMMIT AND CHAIN", "PREPARE TRANSACTION 'x'"],
    )
    def test_what_would_end_the_test_is_refused(self, pool: ConnectionPool, text: str) -> None:
        with pool.conn() as conn, conn.cursor() as cursor:
            with pytest.raises(psycopg2.NotSupportedError):
                cursor.execute(text)
            with pytest.raises(psycopg2.NotSupportedError):
                cursor.executemany(text, [()])
            with pytest.raises(psycopg2.NotSupportedError):
                cursor.executemany("COMMIT", [()])

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("VACUUM", errors.ActiveSqlTransaction),
            ("DISCARD ALL", errors.ActiveSqlTransaction),
            ("COMMIT PREPARED 'x'", errors.ActiveSqlTransaction),
            ("DO 'BEGIN COMMIT; END'", errors.InvalidTransactionTermination),
        ],
    )
    def test_what_cannot_run_in_a_transaction_fails(
        self, pool: ConnectionPool, text: str, error: type[Exception]
    ) -> None:
        with pool.conn() as conn:
            conn.autocommit = True
            with pytest.raises(error):
                ask(conn, text)
            insert(conn, 3)
        assert rows(pool) == [3]

    def test_what_ends_the_test_all_the_same_is_noticed(self, real: ConnectionPool) -> None:
        with rolled_back(real), real.conn() as conn:
            ask(conn)
            with pytest.raises(NeedsRealTransactions, match="ended the transaction"):
                _rollback_past_the_overrides(conn)
            with pytest.raises(psycopg2.InterfaceError, match="has ended"):
                insert(conn, 3)
        with rolled_back(real), real.conn() as conn:
            ask(conn)
            ext.cursor.execute(conn.cursor(), "ROLLBACK")
            with pytest.raises(NeedsRealTransactions, match="ended the transaction"):
                insert(conn, 3)

    def test_two_phase_commit_is_refused(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn, pytest.raises(psycopg2.NotSupportedError):
            conn.tpc_begin("x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT 1", None),
        ("SELECT CASE WHEN true THEN 1 END; SELECT 2", None),
        ("SELECT 'a; COMMIT'", None),
        ("SELECT E'\\'; COMMIT;'", None),
        ("DO $x$ BEGIN; COMMIT; END $x$", None),
        ("-- COMMIT\nSELECT 1", None),
        ('SELECT 1 AS "; COMMIT;"', None),
        ("/* ; commit ; */ SELECT 1", None),
        ("ROLLBACK TO mine", None),
        ("rollback work to savepoint mine", None),
        ("PREPARE q AS SELECT 1", None),
        ("PREPARE q AS SELECT $1; COMMIT", "forbidden"),
        ("SELECT 'it''s; COMMIT'", None),
        ("SELECT 'C:\\'; COMMIT", "forbidden"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END", None),
        (" /* so */ commit ; ", "commit"),
        ("END", "commit"),
        ("abort", "rollback"),
        ("ROLLBACK AND NO CHAIN", "rollback"),
        ("begin work", "begin"),
        ("SELECT 'x'; COMMIT", "forbidden"),
        ("commit and chain", "forbidden"),
        ("PREPARE TRANSACTION 'x'", "forbidden"),
    ],
)
def test_control(text: str, found: str | None) -> None:
    assert control(text) == found


class TestSeveralBorrowers:
    def test_see_each_other(self, pool: ConnectionPool) -> None:
        with pool.conn() as one, pool.conn() as two:
            assert one is not two
            insert(one, 3)
            assert ask(two, "SELECT count(*) FROM item") == 3

    def test_one_may_commit_inside_another_who_reads(self, pool: ConnectionPool) -> None:
        with pool.conn() as one:
            assert ask(one, "SELECT count(*) FROM item") == 2
            with pool.transaction() as two:
                insert(two, 3)
            assert one.get_transaction_status() == INTRANS
        assert rows(pool) == [3]

    def test_one_may_roll_back_inside_another(self, pool: ConnectionPool) -> None:
        with pool.transaction() as one:
            insert(one, 3)
            with pool.conn() as two:
                insert(two, 4)
            insert(one, 5)
        assert rows(pool) == [3, 5]

    def test_may_end_in_any_order(self, pool: ConnectionPool) -> None:
        one, two = pool.getconn(), pool.getconn()
        insert(one, 3)
        insert(two, 4)
        insert(one, 5)
        one.commit()
        insert(two, 6)
        pool.putconn(one)
        two.commit()
        pool.putconn(two)
        assert rows(pool) == [3, 4, 5, 6]

    def test_the_earlier_may_commit_before_the_later_rolls_back(self, pool: ConnectionPool) -> None:
        one, two = pool.getconn(), pool.getconn()
        insert(one, 3)
        insert(two, 4)
        one.commit()
        pool.putconn(one)
        pool.putconn(two)
        assert rows(pool) == [3]

    def test_the_earlier_may_roll_back_while_the_later_reads(self, pool: ConnectionPool) -> None:
        with pool.conn() as one:
            insert(one, 3)
            with pool.conn() as two:
                assert ask(two, "SELECT count(*) FROM item") == 3
                one.rollback()
                assert ask(two, "SELECT count(*) FROM item") == 2

    def test_a_rollback_that_undoes_a_commit_of_another_is_an_error(
        self, pool: ConnectionPool
    ) -> None:
        one = pool.getconn()
        insert(one, 3)
        with pool.transaction() as two:
            insert(two, 4)
        with pytest.raises(NeedsRealTransactions):
            pool.putconn(one)
        assert rows(pool) == []

    @pytest.mark.parametrize("end", ["rollback", "commit"])
    def test_a_rollback_that_undoes_open_work_of_another_is_an_error(
        self, pool: ConnectionPool, end: str
    ) -> None:
        with pool.conn() as one, pool.conn() as two:
            insert(one, 3)
            insert(two, 4)
            with pytest.raises(NeedsRealTransactions):
                one.rollback()
            with pytest.raises(errors.InFailedSqlTransaction):
                ask(two)
            getattr(two, end)()
            insert(two, 5)
            two.commit()
        assert rows(pool) == [5]

    def test_the_failure_of_one_is_not_that_of_another(self, pool: ConnectionPool) -> None:
        with pool.conn() as one:
            insert(one, 3)
            with pytest.raises(errors.UniqueViolation):
                insert(one, 1)
            with pool.transaction() as two:
                insert(two, 4)
            assert one.get_transaction_status() == INERROR
            with pytest.raises(errors.InFailedSqlTransaction):
                ask(one)
            one.rollback()
            insert(one, 5)
            one.commit()
        assert rows(pool) == [4, 5]

    def test_one_that_is_dropped_leaves_nothing(self, pool: ConnectionPool) -> None:
        conn = pool.getconn()
        insert(conn, 3)
        del conn
        assert rows(pool) == []

    def test_in_other_threads(self, pool: ConnectionPool) -> None:
        def work(n: int) -> int:
            with pool.transaction(timeout=10) as conn:
                insert(conn, n)
            return len(rows(pool))

        with pool.conn() as held:
            ask(held)
            running = [in_thread(work, n) for n in range(3, 9)]
            assert all(thread.result(30) for thread in running)
        assert rows(pool) == [3, 4, 5, 6, 7, 8]


class TestConnections:
    def test_keep_settings_for_the_time_of_the_loan(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            conn.set_session(isolation_level="SERIALIZABLE", readonly=True)
            assert conn.isolation_level == ext.ISOLATION_LEVEL_SERIALIZABLE
            with pytest.raises(errors.ReadOnlySqlTransaction):
                insert(conn, 3)
            with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
                conn.set_session(readonly=False)
            with pytest.raises(psycopg2.ProgrammingError, match="inside a transaction"):
                conn.autocommit = True
            conn.set_isolation_level(ext.ISOLATION_LEVEL_AUTOCOMMIT)
            assert conn.autocommit
        with pool.transaction() as conn:
            assert (conn.isolation_level, conn.readonly, conn.autocommit) == (None, None, False)
            insert(conn, 4)
        assert rows(pool) == [4]

    def test_can_be_reset(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            ask(conn, "SET work_mem TO '12MB'")
            conn.commit()
            insert(conn, 3)
            conn.reset()
            assert ask(conn, "SHOW work_mem") != "12MB"
        assert rows(pool) == []

    def test_keep_their_encoding(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            conn.set_client_encoding("UTF8")
            with pytest.raises(psycopg2.NotSupportedError):
                conn.set_client_encoding("LATIN1")

    def test_can_be_closed(self, pool: ConnectionPool) -> None:
        conn = pool.getconn()
        cursor = conn.cursor()
        insert(conn, 3)
        conn.close()
        assert conn.closed == 1
        for use in (conn.cursor, conn.commit, lambda: cursor.execute("SELECT 1")):
            with pytest.raises(psycopg2.InterfaceError):
                use()
        pool.putconn(conn)
        assert rows(pool) == []
        assert pool.get_stats()["returns_bad"] == 1

    def test_cannot_be_used_after_their_return(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            cursor = conn.cursor()
        with pytest.raises(psycopg2.InterfaceError, match="returned"):
            cursor.execute("SELECT 1")

    def test_that_outlive_the_test_do_nothing_any_more(
        self, real: ConnectionPool, server: Server, app: str
    ) -> None:
        with rolled_back(real) as pool:
            conn = pool.getconn()
            insert(conn, 3)
        fileno = _own_fileno(conn)
        assert fileno in get_monitor()._watched
        with pytest.raises(psycopg2.InterfaceError, match="has ended"):
            insert(conn, 4)
        real.putconn(conn)
        wait_until(lambda: conn.closed and server.backends(app) == [])
        assert fileno not in get_monitor()._watched
        with real.conn() as conn:
            assert ask(conn, "SELECT count(*) FROM item") == 2

    def test_are_the_programs_class(self, real: ConnectionPool, make_any_pool: MakePool) -> None:
        made = make_any_pool(connection_factory=psycopg2.extras.RealDictConnection)
        with rolled_back(made) as pool, pool.transaction() as conn:
            assert isinstance(conn, psycopg2.extras.RealDictConnection)
            with conn.cursor() as cursor:
                assert isinstance(cursor, psycopg2.extras.RealDictCursor)
                assert cursor.connection is conn
                psycopg2.extras.execute_values(cursor, "INSERT INTO item VALUES %s", [(3,), (4,)])
                cursor.execute("SELECT n FROM item ORDER BY n")
                assert [row["n"] for row in cursor] == [1, 2, 3, 4]
        with made.conn() as conn:
            assert type(conn).__name__ == "PooledRealDictConnection"

    def test_make_cursors_of_other_factories(self, pool: ConnectionPool) -> None:
        class Counting(ext.cursor):
            executed = 0

            def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002
                self.executed += 1
                super().execute(query, vars)

        conn: Any
        with pool.conn() as conn:
            counting = conn.cursor(cursor_factory=Counting)
            counting.execute("SELECT 1")
            made = conn.cursor(cursor_factory=partial(psycopg2.extras.DictCursor))
            made.execute("SELECT 1 AS one")
            assert made.fetchone()["one"] == counting.executed == 1
            with pytest.raises(TypeError, match="Python class"):
                conn.cursor(cursor_factory=partial(ext.cursor))

    def test_know_the_types_registered_for_them(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            shout = ext.new_type((25,), "SHOUT", lambda value, _: value and value.upper())
            ext.register_type(shout, conn)
            assert ask(conn, "SELECT 'a'::text") == "A"
            name = sql.Identifier('a"b').as_string(conn)
            assert (name, ext.quote_ident("x", conn)) == ('"a""b"', '"x"')

    def test_belong_to_the_test_after_detach_too(self, pool: ConnectionPool) -> None:
        borrowed = pool.getconn()
        assert _own_fileno(borrowed) in get_monitor()._watched
        conn = pool.detach(borrowed)
        assert conn is borrowed
        assert _own_fileno(conn) not in get_monitor()._watched
        assert pool.stats().in_use == 0
        insert(conn, 3)
        conn.commit()
        conn.close()
        assert rows(pool) == [3]
        assert pool.get_stats()["pool_size"] <= 4

    def test_tell_of_the_session_that_they_share(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            pid = ask(conn, "SELECT pg_backend_pid()")
            assert conn.info.backend_pid == conn.get_backend_pid() == pid
            ask(conn, "DO $$BEGIN RAISE NOTICE 'so'; END$$")
            assert conn.notices == ["NOTICE:  so\n"]
            assert conn.get_parameter_status("server_encoding") == "UTF8"


class TestFeatures:
    def test_executemany_and_callproc(self, pool: ConnectionPool) -> None:
        with pool.transaction() as conn, conn.cursor() as cursor:
            cursor.executemany("INSERT INTO item VALUES (%s)", [(3,), (4,)])
            cursor.callproc("abs", [-1])
            assert cursor.fetchone() == (1,)
        assert rows(pool) == [3, 4]

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_copy(self, pool: ConnectionPool, autocommit: bool) -> None:
        with pool.conn() as conn, conn.cursor() as cursor:
            conn.autocommit = autocommit
            cursor.copy_from(io.StringIO("3\n4\n"), "item", columns=["n"])
            cursor.copy_expert("COPY item (n) FROM STDIN", io.StringIO("5\n"))
            conn.commit()
            with pytest.raises(errors.UniqueViolation):
                cursor.copy_from(io.StringIO("5\n"), "item", columns=["n"])
            conn.rollback()
            target = io.StringIO()
            cursor.copy_to(target, "item", columns=["n"])
            assert target.getvalue() == "1\n2\n3\n4\n5\n"
        assert rows(pool) == [3, 4, 5]

    def test_named_cursors(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            with conn.cursor("by_name") as cursor:
                cursor.itersize = 1
                cursor.execute("SELECT n FROM item ORDER BY n")
                assert list(cursor) == [(1,), (2,)]
            conn.rollback()
            conn.autocommit = True
            with pytest.raises(psycopg2.ProgrammingError, match="outside of transactions"):
                conn.cursor("by_name").execute("SELECT 1")

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_named_cursors_with_hold(self, pool: ConnectionPool, autocommit: bool) -> None:
        with pool.conn() as conn:
            conn.autocommit = autocommit
            cursor = conn.cursor("held", withhold=True, scrollable=True)
            cursor.execute("SELECT n FROM item ORDER BY n")
            conn.commit()
            assert cursor.fetchall() == [(1,), (2,)]
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchmany(1) == [(1,)]
            cursor.close()
            with pytest.raises(errors.InvalidCursorName):
                ask(conn, "FETCH held")

    def test_a_fetch_that_fails_leaves_the_test_as_it_is(self, pool: ConnectionPool) -> None:
        with pool.conn() as conn:
            conn.autocommit = True
            insert(conn, 3)
            cursor = conn.cursor("held", withhold=True)
            cursor.execute("SELECT 1")
            ask(conn, "CLOSE held")
            for fetch in (partial(next, cursor), cursor.fetchone, cursor.fetchall):
                with pytest.raises(errors.InvalidCursorName):
                    fetch()
        assert rows(pool) == [3]

    def test_large_objects(self, pool: ConnectionPool, server: Server) -> None:
        conn: Any
        with pool.transaction() as conn:
            large = conn.lobject(0, "wb")
            large.write(b"so")
            large.close()
        with pool.conn() as conn:
            assert conn.lobject(large.oid, "rb").read() == b"so"
        found = server.execute("SELECT FROM pg_largeobject_metadata WHERE oid = %s", [large.oid])
        assert found == []

    def test_notifications_are_received_and_never_sent(
        self, pool: ConnectionPool, server: Server
    ) -> None:
        with pool.conn() as conn, closing(psycopg2.connect(server.dsn)) as other:
            other.autocommit = True
            ask(other, "LISTEN from_the_test")
            ask(conn, "NOTIFY from_the_test")
            conn.commit()
            ask(other)
            assert other.notifies == []
            # A LISTEN counts from its commit, which never comes.
            ask(conn, "LISTEN to_the_test")
            conn.commit()
            ask(other, "NOTIFY to_the_test")
            assert select.select([conn], [], [], 0)[0] == []
            conn.poll()
            assert conn.notifies == []

    def test_ddl(self, pool: ConnectionPool, server: Server) -> None:
        with pool.transaction() as conn:
            ask(conn, "CREATE TABLE never_there AS SELECT 1 AS n")
        with pool.conn() as conn:
            assert ask(conn, "SELECT n FROM never_there") == 1
        assert server.execute("SELECT to_regclass('never_there')") == [(None,)]


class TestPools:
    def test_are_what_they_were(self, real: ConnectionPool) -> None:
        own = type(real)
        with rolled_back(real) as pool:
            assert pool is real
            assert isinstance(pool, own)
            conn = pool.getconn()
            assert conn in pool.connections_in_use
            assert pool.stats().in_use == 1
            pool.putconn(conn)
            with pytest.raises(PoolError, match="returned before"):
                pool.putconn(conn)
            with pytest.raises(PoolError, match="belong here"):
                pool.putconn(object())
        assert type(real) is own

    def test_keep_their_limit(self, pool: ConnectionPool) -> None:
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(pool.conn())
            with pytest.raises(PoolExhausted):
                pool.getconn(timeout=0)

    def test_keep_their_keys(self, pool: ConnectionPool) -> None:
        conn = pool.getconn("key")
        insert(conn, 3)
        assert pool.getconn("key") is conn
        assert pool.getconn("key", timeout=1).get_transaction_status() == INTRANS
        pool.putconn(conn, "key")
        assert rows(pool) == []

    def test_close_on_request(self, pool: ConnectionPool) -> None:
        conn = pool.getconn()
        insert(conn, 3)
        conn.commit()
        pool.putconn(conn, close=True)
        assert conn.closed
        assert rows(pool) == [3]

    def test_send_nothing_through_the_connections_that_they_lend(
        self, make_any_pool: MakePool, statement_log: StatementLog, items: None
    ) -> None:
        made = make_any_pool(0, 2, test_on_borrow=True)
        with rolled_back(made) as pool:
            with pool.transaction() as conn:
                insert(conn, 3)
            sent = statement_log.during(lambda: rows(pool))
        assert sent[0] == "SELECT 1"  # the pool's test, in the session of its own
        assert [text.split()[0] for text in sent[1:]] == [
            "SAVEPOINT",
            "SELECT",
            "ROLLBACK",
        ]

    def test_with_options_that_clean(self, make_any_pool: MakePool) -> None:
        configured = []

        def configure(conn: Any) -> None:
            configured.append(conn)
            ask(conn, "SET work_mem TO '11MB'")

        made = make_any_pool(0, 3, reset="session", configure=configure)
        with rolled_back(made) as pool:
            with pool.conn() as conn:
                ask(conn, "SET work_mem TO '12MB'")
                ask(conn, "SET search_path TO nowhere")
                ask(conn, "CREATE TEMP TABLE mine (n int)")
                ask(conn, "SELECT pg_advisory_lock(7)")
                conn.commit()
            with pool.conn() as conn:
                assert ask(conn, "SHOW work_mem") == "11MB"
                assert ask(conn, "SHOW search_path") != "nowhere"
                assert ask(conn, "SELECT to_regclass('pg_temp.mine')") is None
                locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                assert ask(conn, locks) == 0
        assert configured

    def test_whose_connections_return_by_close(
        self, make_any_pool: MakePool, count_outside: Callable[[], int], items: None
    ) -> None:
        made = make_any_pool(0, 2, close_returns=True)
        with rolled_back(made) as pool:
            conn = pool.getconn()
            insert(conn, 3)
            conn.close()
            assert pool.stats().in_use == 0
            assert rows(pool) == []

    def test_that_commit_everything_at_once(self, make_any_pool: MakePool, items: None) -> None:
        made = make_any_pool(0, 2, configure=lambda conn: setattr(conn, "autocommit", True))
        with rolled_back(made) as pool:
            with pool.conn() as conn:
                insert(conn, 3)
            assert rows(pool) == [3]
        assert rows(made) == []

    def test_may_be_shut_down(self, make_any_pool: MakePool, items: None) -> None:
        made = make_any_pool(0, 2)
        with rolled_back(made) as pool:
            conn = pool.getconn()
            insert(conn, 3)
            pool.shutdown()
            pool.putconn(conn)
        assert made.closed

    def test_blocks_inside_blocks(self, pool: ConnectionPool) -> None:
        with pool.transaction() as conn:
            insert(conn, 3)
        for _ in range(2):
            with rolled_back(pool) as again:
                assert again is pool
                with pool.transaction() as conn:
                    insert(conn, 4)
                assert rows(pool) == [3, 4]
        assert rows(pool) == [3]
        with pool.conn() as conn:
            insert(conn, 5)
            with pytest.raises(NeedsRealTransactions), rolled_back(pool):
                pass

    def test_nothing_stays_behind(
        self, real: ConnectionPool, app: str, server: Server, items: None
    ) -> None:
        with rolled_back(real), real.transaction() as conn:
            insert(conn, 3)
        real.shutdown()
        wait_until(lambda: server.backends(app) == [])

    def test_a_lost_server_is_an_error_and_no_hang(
        self, real: ConnectionPool, app: str, server: Server
    ) -> None:
        with rolled_back(real), suppress(psycopg2.OperationalError), real.transaction() as conn:
            insert(conn, 3)
            end_sessions(server, app)
            insert(conn, 4)
            pytest.fail("nobody noticed")
        with real.conn(timeout=10) as conn:
            assert ask(conn, "SELECT count(*) FROM item") == 2

    def test_a_statement_of_another_thread_does_not_hold_up_the_end(
        self, real: ConnectionPool, monkeypatch: pytest.MonkeyPatch, server: Server, app: str
    ) -> None:
        monkeypatch.setattr("psycopg2_pool2.testing.session._PATIENCE", 0.1)
        with rolled_back(real) as pool:
            conn = pool.getconn()
            running = in_thread(ask, conn, "SELECT pg_sleep(100)")
            sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            wait_until(lambda: server.execute(f"{sleeping} AND application_name = '{app}'"))
        assert isinstance(running.error(), psycopg2.Error)
        with pytest.raises(psycopg2.InterfaceError):
            in_thread(ask, conn).result()
        real.putconn(conn)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.parametrize("held", [False, True])
    def test_a_forked_child_does_no_harm(self, pool: ConnectionPool, held: bool) -> None:
        conn = pool.getconn()
        insert(conn, 3)
        conn.commit()
        if not held:
            pool.putconn(conn)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with suppress(psycopg2.Error):  # past all overrides
                    ext.cursor(pool._sandbox.session.conn).execute("ROLLBACK")  # type: ignore[attr-defined]
                ask(conn if held else pool.getconn(timeout=10))
            except psycopg2.InterfaceError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            assert "forked" in told.read()
        os.waitpid(pid, 0)
        assert rows(pool) == [3]
        if held:
            pool.putconn(conn)

    def test_only_pools(self) -> None:
        with pytest.raises(TypeError, match="str"), rolled_back("dbname=x"):  # type: ignore[type-var]
            pass


# -- the fixture, and the page ------------------------------------------------


@pytest.fixture
def arguments(dsn: str) -> dict[str, Any]:
    return {"dsn": dsn, "maxconn": 3}


@pytest.fixture(scope="module")
def arguments_of_the_module(server: Server) -> str:
    return server.dsn


by_name = pool_fixture("arguments")
of_the_module = pool_fixture("arguments_of_the_module", scope="module")
inside = pool_fixture("prepared")


@pytest.fixture(scope="module")
def prepared(of_the_module: ConnectionPool) -> ConnectionPool:
    with of_the_module.transaction() as conn:
        ask(conn, "CREATE TABLE prepared AS SELECT 1 AS n")
    return of_the_module


again_by_name = pool_fixture("by_name", name="same_pool")


class TestFixture:
    @pytest.mark.parametrize("n", [1, 2])
    def test_takes_arguments_from_a_fixture(self, by_name: ConnectionPool, n: int) -> None:
        assert by_name.maxconn == 3
        with by_name.transaction() as conn:
            ask(conn, "CREATE TABLE of_the_fixture (n int)")

    @pytest.mark.parametrize("n", [1, 2])
    def test_has_what_a_wider_one_has_prepared(
        self, inside: ConnectionPool, n: int, server: Server
    ) -> None:
        with inside.transaction() as conn:
            ask(conn, "INSERT INTO prepared VALUES (2)")
            assert ask(conn, "SELECT sum(n) FROM prepared") == 3
        assert server.execute("SELECT to_regclass('prepared')") == [(None,)]

    def test_takes_a_pool(self, same_pool: ConnectionPool, by_name: ConnectionPool) -> None:
        assert same_pool is by_name

    def test_does_not_take_a_dsn_for_a_name(self) -> None:
        with pytest.raises(ValueError, match="not a dsn"):
            pool_fixture("postgresql://localhost/test")


def test_pytest_is_imported_only_where_it_is_used() -> None:
    program = "import sys, psycopg2_pool2.testing; print('pytest' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    )
    assert found.stdout.split() == [b"False"]
