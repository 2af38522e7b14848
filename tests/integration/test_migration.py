"""docs/migration.rst: the programs before and after run on a real server and answer the same."""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from dbutils.pooled_db import PooledDB
from sqlalchemy.pool import QueuePool

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import ask
from tests.support.waiting import wait_until

_PAGE = Path(__file__).parents[2] / "docs" / "migration.rst"
_TEXT = _PAGE.read_text()
_numbers = itertools.count(1)


def sections() -> dict[str, str]:
    """Return the page's sections by their titles."""
    parts = re.split(r"^(.+)\n-+\n", _TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def programs(section: str) -> dict[str, str]:
    """Return a section's code blocks by the words before them: Before, After."""
    found = re.findall(
        r"^(.*):\n\n\.\. code-block:: python\n\n((?:    .*\n|\n)+)", section, flags=re.MULTILINE
    )
    return {words: textwrap.dedent(code) for words, code in found}


_PROGRAMS = {title: programs(section) for title, section in sections().items()}
_BLOCKS = [(title, words) for title, blocks in _PROGRAMS.items() for words in blocks]


@pytest.fixture
def database(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a database where DATABASE_URL leads; at the end no session may be left there."""
    name = f"migration_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    url = f"postgresql://postgres@{server.host}:{server.port}/{name}"
    monkeypatch.setenv("DATABASE_URL", url)
    yield url
    wait_until(
        lambda: not server.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", [name])
    )
    server.execute(f"DROP DATABASE {name}")


def run(title: str, words: str) -> dict[str, Any]:
    """Run a program of the page; its tracebacks name the page's lines."""
    code = _PROGRAMS[title][words]
    line = _TEXT[: _TEXT.index(textwrap.indent(code.rstrip(), "    "))].count("\n")
    namespace: dict[str, Any] = {}
    exec(compile("\n" * line + code, str(_PAGE), "exec"), namespace)
    return namespace


def test_the_page_has_all_its_programs() -> None:
    before_and_after = {"Before", "After"}
    *pools, new = _PROGRAMS.values()
    assert [set(blocks) for blocks in pools] == [before_and_after] * 4
    assert len(new) == 1
    assert _TEXT.count("code-block") == len(_BLOCKS) == 9


@pytest.mark.parametrize(("title", "words"), _BLOCKS, ids=[" ".join(block) for block in _BLOCKS])
@pytest.mark.usefixtures("database")
def test_each_program_answers_the_same_and_leaves_nothing_behind(title: str, words: str) -> None:
    if "psycopg2_pool import" in _PROGRAMS[title][words] and not _has("psycopg2_pool"):
        pytest.skip("psycopg2-pool is not installed")
    namespace = run(title, words)
    assert namespace["answer"] == 55
    ours = [value for value in namespace.values() if isinstance(value, ConnectionPool)]
    assert len(ours) == (words != "Before")
    assert all(pool.closed for pool in ours)


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def changed_lines(title: str) -> list[str]:
    blocks = _PROGRAMS[title]
    diff = difflib.ndiff(blocks["Before"].splitlines(), blocks["After"].splitlines())
    return [line for line in diff if line.startswith("+ ")]


def test_from_psycopg2_one_line_changes() -> None:
    assert changed_lines("From psycopg2.pool") == [
        "+ from psycopg2_pool2 import PoolError, ThreadedConnectionPool"
    ]


def test_from_psycopg2_pool_two_lines_change() -> None:
    assert changed_lines("From psycopg2-pool") == [
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
