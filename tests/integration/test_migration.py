"""docs/migration.rst: what it says of the change, and of other pools.

That its programs run, those before and those after, is seen by test_docs.py.
"""

from __future__ import annotations

import difflib
from typing import Any

import psycopg2
import pytest
from dbutils.pooled_db import PooledDB
from sqlalchemy.pool import QueuePool

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.doc_blocks import ROOT, Block, read_blocks
from tests.support.pools import ask

_BLOCKS = read_blocks(ROOT / "docs" / "migration.rst")


def changed_lines(before: Block, after: Block) -> list[str]:
    diff = difflib.ndiff(before.code.splitlines(), after.code.splitlines())
    return [line for line in diff if line.startswith("+ ")]


def test_from_psycopg2_one_line_changes() -> None:
    assert changed_lines(*_BLOCKS[:2]) == [
        "+ from psycopg2_pool2 import PoolError, ThreadedConnectionPool"
    ]


def test_from_psycopg2_pool_two_lines_change() -> None:
    assert changed_lines(*_BLOCKS[2:4]) == [
        "+ from psycopg2_pool2 import PoolError, ThreadSafeConnectionPool",
        "+ pool.shutdown()",
    ]


class TestWhatIsSaidOfOthers:
    """Claims about the other pools that an update of theirs may make wrong."""

    def test_queue_pool_lends_a_dead_connection(self, server: Server) -> None:
        creator: Any = lambda: psycopg2.connect(server.dsn)  # noqa: E731
        pool = QueuePool(creator, pool_size=1, max_overflow=0)
        try:
            conn = pool.connect()
            pid = ask(conn, "SELECT pg_backend_pid()")
            conn.close()
            server.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            conn = pool.connect()
            with pytest.raises(psycopg2.OperationalError):
                ask(conn)
            conn.invalidate()
        finally:
            pool.dispose()

    def test_pooled_db_lends_a_dead_connection_and_repeats_the_statement(
        self, server: Server
    ) -> None:
        pool = PooledDB(psycopg2, maxconnections=1, dsn=server.dsn)
        try:
            conn = pool.connection()
            pid = ask(conn, "SELECT pg_backend_pid()")
            conn.close()
            server.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            conn = pool.connection()
            assert conn._con._con.info.backend_pid == pid
            assert ask(conn, "SELECT pg_backend_pid()") != pid
            conn.close()
        finally:
            pool.close()

    def test_pooled_db_undoes_setsession_on_return(self, server: Server) -> None:
        pool = PooledDB(psycopg2, setsession=["SET statement_timeout = '31s'"], dsn=server.dsn)
        try:
            for expected in ("31s", "0"):
                conn = pool.connection()
                assert ask(conn, "SHOW statement_timeout") == expected
                conn.close()
        finally:
            pool.close()

    def test_configure_lasts(self, server: Server) -> None:
        def prepare(conn: Any) -> None:
            ask(conn, "SET statement_timeout = '31s'")

        with ConnectionPool(0, 1, configure=prepare, close_returns=True, dsn=server.dsn) as pool:
            for _ in range(2):
                conn = pool.getconn()
                assert ask(conn, "SHOW statement_timeout") == "31s"
                conn.close()
