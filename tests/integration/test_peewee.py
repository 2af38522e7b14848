"""docs/examples/peewee_app.py: a peewee database whose connections are borrowed from a pool."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peewee
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import MakePool, ask, assert_whole, pid_of, wait_for_waiters
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

_EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_PROGRAM = _EXAMPLES / "peewee_app.py"
_numbers = itertools.count(1)


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a database with the examples' tables where DATABASE_URL leads."""
    name = f"peewee_{os.getpid()}_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    url = f"postgresql://postgres@{server.host}:{server.port}/{name}"
    monkeypatch.setenv("DATABASE_URL", url)
    with ConnectionPool(0, 1, dsn=url) as pool, pool.transaction() as conn:
        ask(conn, (_EXAMPLES / "schema.sql").read_text())
    yield url
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def program(url: str) -> Any:
    """Import the program."""
    spec = importlib.util.spec_from_file_location("peewee_app", _PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pool(make_pool: MakePool, url: str, statement_log: StatementLog) -> Iterator[ConnectionPool]:
    """Make a pool of two; it is whole at the end."""
    app = statement_log.application_name
    with make_pool(maxconn=2, timeout=30, dsn=url, application_name=app) as made:
        yield made
        assert_whole(made)


@pytest.fixture
def message(program: Any, pool: ConnectionPool) -> Iterator[Any]:
    """Return the program's model, bound to a database on that pool."""
    database = program.PooledPsycopg2(pool)
    with database.bind_ctx([program.Message]):
        yield program.Message


def database_of(message: Any) -> Any:
    return message._meta.database


def bodies(message: Any) -> set[str]:
    return {row.body for row in message.select()}


def pid(database: Any) -> int:
    return pid_of(database.connection())


@pytest.mark.usefixtures("url")
def test_the_program_runs() -> None:
    ended = subprocess.run(
        [sys.executable, _PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == ("200\n", "")


def test_a_context_borrows_and_gives_back(pool: ConnectionPool, message: Any) -> None:
    database = database_of(message)
    with database.connection_context():
        assert pool.stats() == PoolStats(1, 0)
        message.create(body="kept")
        before = pid(database)
    assert pool.stats() == PoolStats(0, 1)
    with database.connection_context():
        assert bodies(message) == {"kept"}
        assert pid(database) == before


def test_costs_what_the_program_sends_and_the_pools_test(
    message: Any, statement_log: StatementLog
) -> None:
    def use() -> None:
        with database_of(message).connection_context(), database_of(message).atomic():
            database_of(message).execute_sql("SELECT 2")

    use()
    assert statement_log.during(use) == ["SELECT 1", "BEGIN", "SELECT 2", "COMMIT"]


def test_atomic_blocks_nest(message: Any) -> None:
    database = database_of(message)
    with database.connection_context():
        with database.atomic():
            message.create(body="kept")
            with pytest.raises(peewee.IntegrityError), database.atomic():
                message.create(body=None)
            message.create(body="too")
        with pytest.raises(ZeroDivisionError), database.atomic():
            message.create(body=f"{1 / 0}")
        assert bodies(message) == {"kept", "too"}


def test_without_a_context_a_thread_keeps_its_connection_until_it_closes(
    pool: ConnectionPool, message: Any
) -> None:
    database = database_of(message)
    message.create(body="kept")
    assert not database.is_closed()
    assert in_thread(lambda: bodies(message)).result() == {"kept"}  # by another one
    assert database.close()
    assert not database.close()  # harmless
    gc.collect()
    assert pool.stats().in_use == 0


def test_a_thread_that_ends_takes_no_slot_with_it(
    pool: ConnectionPool, message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "psycopg2_pool2")
    for _ in range(5):
        in_thread(lambda: bodies(message)).result()
    gc.collect()
    wait_until(lambda: pool.stats().in_use == 0)
    assert "was dropped without being returned" in caplog.text


def test_without_autoconnect_nothing_is_borrowed_unasked(
    program: Any, pool: ConnectionPool
) -> None:
    database = program.PooledPsycopg2(pool, autoconnect=False)
    with pytest.raises(peewee.InterfaceError):
        database.execute_sql("SELECT 1")
    database.connect()
    assert database.execute_sql("SELECT 1").fetchone() == (1,)
    assert not database.connect(reuse_if_open=True)
    with pytest.raises(peewee.OperationalError, match="already opened"):
        database.connect()
    database.close()


def test_who_waits_keeps_nobody_from_giving_back(pool: ConnectionPool, message: Any) -> None:
    database = database_of(message)
    pool.resize(0, 1)
    database.connect()
    waiter = in_thread(lambda: bodies(message))
    wait_for_waiters(pool, 1)
    database.close()
    assert waiter.result() == set()


def test_a_timeout_is_the_pools(program: Any, make_pool: MakePool) -> None:
    pool = make_pool(maxconn=1, timeout=0.05)
    database = program.PooledPsycopg2(pool)
    with pool.conn(timeout=30), pytest.raises(PoolTimeout):
        database.connect()
    assert database.is_closed()
    assert_whole(pool)


def test_many_threads_share_the_connections(pool: ConnectionPool, message: Any) -> None:
    def add(number: int) -> None:
        for turn in range(10):
            with database_of(message).connection_context(), database_of(message).atomic():
                message.create(body=f"{number}, {turn}")

    threads = [in_thread(add, number) for number in range(8)]
    for thread in threads:
        thread.result(60)
    with database_of(message).connection_context():
        assert message.select().count() == 80
    assert pool.get_stats()["pool_size"] <= 2


def test_a_lost_connection_costs_its_transaction_only(
    server: Server, pool: ConnectionPool, message: Any
) -> None:
    database = database_of(message)

    def lose() -> None:
        with database.connection_context(), database.atomic():
            message.create(body="undone")
            server.terminate_backend(pid(database))
            message.create(body="too")

    with pytest.raises((peewee.OperationalError, peewee.InterfaceError)):
        lose()
    assert database.is_closed()
    assert pool.stats().in_use == 0
    with database.connection_context():
        assert bodies(message) == set()


def test_other_borrowers_find_the_settings_as_they_were(pool: ConnectionPool, message: Any) -> None:
    with database_of(message).connection_context():
        assert database_of(message).connection().autocommit
    with pool.conn() as conn:
        assert not conn.autocommit
