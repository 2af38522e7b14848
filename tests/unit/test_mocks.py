"""Programs' own tests replace psycopg2.connect, by a mock or by a function of theirs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, Mock, call, patch

import psycopg2
import psycopg2.pool
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import (
    AsyncConnectionPool,
    ConnectionPool,
    PoolError,
    PoolExhausted,
    ThreadedConnectionPool,
)
from psycopg2_pool2.snapshots import PoolStats
from tests.support.aio import in_loop
from tests.support.waiting import wait_until

# There is no such name.
DSN = "host=db.invalid dbname=shop user=app password=secret"
KINDS: dict[str, Any] = {
    "MagicMock": MagicMock,
    "Mock": Mock,
    "open": lambda: MagicMock(closed=0),
    "spec": lambda: MagicMock(spec=ext.connection),
    "idle": lambda: MagicMock(closed=0, info=MagicMock(transaction_status=0)),
}


@pytest.fixture
def connect() -> Iterator[MagicMock]:
    """Replace psycopg2.connect by a mock."""
    with patch("psycopg2.connect") as mock:
        yield mock


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def workers(request: pytest.FixtureRequest) -> int:
    """Run the test with the background thread and without it."""
    number: int = request.param
    return number


def make_pool(minconn: int = 0, maxconn: int = 2, **kwargs: Any) -> ConnectionPool:
    """Make a pool whose server cannot be found."""
    return ConnectionPool(minconn, maxconn, dsn=DSN, timeout=kwargs.pop("timeout", 10), **kwargs)


class TestMocks:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_are_lent_and_taken_back(
        self, connect: MagicMock, kind: Any, workers: int, test_on_borrow: bool
    ) -> None:
        connect.side_effect = lambda **_: kind()
        with make_pool(num_workers=workers, test_on_borrow=test_on_borrow) as pool:
            conn: Any = pool.getconn()
            conn.cursor.return_value.fetchone.return_value = (7,)
            cursor = conn.cursor()
            cursor.execute("SELECT 7")
            assert cursor.fetchone() == (7,)
            pool.putconn(conn)
            again: Any = pool.getconn()
            assert again is conn
            assert connect.call_count == 1
            other: Any = pool.getconn()
            assert other is not conn
            with pytest.raises(PoolExhausted):
                pool.getconn(timeout=0)
            assert set(map(id, pool.connections_in_use)) == {id(conn), id(other)}
            pool.putconn(conn)
            pool.putconn(other, close=True)
            with pytest.raises(PoolError, match="unkeyed"):
                pool.putconn(other)
            assert pool.stats() == PoolStats(in_use=0, idle=1)
            cursor.execute.assert_called_once_with("SELECT 7")
            conn.close.assert_not_called()
            wait_until(lambda: other.close.called)
        conn.close.assert_called_once_with()
        conn.cancel.assert_not_called()

    def test_have_nothing_done_to_them_that_the_program_did_not_ask_for(
        self, connect: MagicMock, workers: int
    ) -> None:
        conn = connect.return_value = Mock()
        with make_pool(num_workers=workers, reset="session") as pool:
            for _ in range(2):
                with pool.conn() as lent:
                    assert lent is conn
                    lent.commit()
        assert conn.mock_calls == [call.commit(), call.commit(), call.close()]

    @pytest.mark.parametrize("status", [ext.TRANSACTION_STATUS_INTRANS, MagicMock()])
    def test_that_are_in_a_transaction_are_rolled_back(
        self, connect: MagicMock, workers: int, status: Any
    ) -> None:
        conn = connect.return_value = Mock(closed=0, info=Mock(transaction_status=status))
        with make_pool(num_workers=workers) as pool:
            pool.putconn(pool.getconn())
            conn.rollback.assert_called_once_with()
            assert pool.getconn() is conn
            assert connect.call_count == 1

    @pytest.mark.parametrize(
        "state",
        [{"closed": 1}, {"closed": 2}, {"closed": 0, "info.transaction_status": 4}],
    )
    def test_that_are_closed_or_lost_are_replaced(
        self, connect: MagicMock, workers: int, state: dict[str, int]
    ) -> None:
        connect.side_effect = lambda **_: Mock(closed=0)
        with make_pool(num_workers=workers) as pool:
            conn: Any = pool.getconn()
            conn.configure_mock(**state)
            pool.putconn(conn)
            assert pool.getconn() is not conn

    def test_of_one_connect_are_the_same_in_all_loans(
        self, connect: MagicMock, workers: int
    ) -> None:
        with make_pool(num_workers=workers) as pool:
            assert pool.getconn() is pool.getconn() is connect.return_value
            assert pool.stats().in_use == 2
            pool.putconn(connect.return_value)
            pool.putconn(connect.return_value)
            with pytest.raises(PoolError, match="unkeyed"):
                pool.putconn(connect.return_value)

    def test_go_through_blocks_keys_and_detaching(self, connect: MagicMock, workers: int) -> None:
        connect.side_effect = lambda **_: MagicMock()
        with make_pool(num_workers=workers) as pool:
            with pool.transaction() as conn:
                conn.cursor()
            with pool.conn() as conn:
                assert pool.detach(conn) is conn
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            keyed = pool.getconn("key")
            assert pool.getconn("key") is keyed
            pool.putconn(keyed, "key")
            assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_that_are_dropped_free_their_slots(self, connect: MagicMock, workers: int) -> None:
        connect.side_effect = lambda **_: Mock()
        with make_pool(maxconn=1, num_workers=workers) as pool:
            pool.getconn()
            gc.collect()
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            assert pool.getconn() is not None

    def test_are_given_to_the_programs_callbacks(self, connect: MagicMock, workers: int) -> None:
        conn = connect.return_value = Mock(closed=0, info=Mock(transaction_status=0))
        with make_pool(
            num_workers=workers,
            configure=lambda conn: conn.configured(),
            test_on_borrow=lambda conn: conn.tested(),
            reset=lambda conn: conn.was_reset(),
        ) as pool:
            pool.putconn(pool.getconn())
        assert conn.mock_calls == [
            call.configured(),
            call.tested(),
            call.was_reset(),
            call.close(),
        ]

    @in_loop
    async def test_are_lent_to_tasks(self, connect: MagicMock) -> None:
        async with AsyncConnectionPool(0, 1, dsn=DSN) as pool:
            conn = await pool.getconn()
            assert conn is connect.return_value
            assert await pool.run_on(conn, lambda conn: conn.cursor()) is conn.cursor.return_value
            await pool.putconn(conn)
            with pytest.raises(PoolError, match="unkeyed"):
                await pool.putconn(conn)

    @pytest.mark.parametrize("pool_class", [psycopg2.pool.ThreadedConnectionPool, None])
    def test_are_to_the_drop_in_what_they_are_to_psycopg2s_pool(
        self, connect: MagicMock, pool_class: Any
    ) -> None:
        conn = connect.return_value = MagicMock(closed=0)
        pool = (pool_class or ThreadedConnectionPool)(1, 2, DSN)
        connect.assert_called_once()
        lent = pool.getconn()
        assert lent is conn
        lent.cursor().execute("SELECT 1")
        lent.commit()
        pool.putconn(lent)
        conn.rollback.assert_called_once_with()
        conn.close.assert_not_called()
        pool.getconn()
        pool.closeall()
        conn.close.assert_called_once_with()
        with pytest.raises(psycopg2.pool.PoolError, match="connection pool is closed"):
            pool.getconn()


class Recorder:
    """A connection of a program's own making."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def cursor(self) -> Recorder:
        return self

    def execute(self, sql: str) -> None:
        self.done.append(sql)

    def commit(self) -> None:
        self.done.append("commit")

    def close(self) -> None:
        self.done.append("close")


class TestReplacements:
    def test_by_a_function_need_no_server_and_no_name_server(
        self, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        monkeypatch.setattr(psycopg2, "connect", lambda **_: Recorder())
        with make_pool(maxconn=1, num_workers=workers, resolver=lambda name: []) as pool:
            conn: Any = pool.getconn()
            conn.cursor().execute("SELECT 1")
            conn.commit()
            pool.putconn(conn)
            again: Any = pool.getconn()
            assert again is conn
            assert conn.done == ["SELECT 1", "commit"]

    def test_are_told_once_in_the_log_unless_they_are_mocks(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "psycopg2_pool2"):
            with patch("psycopg2.connect"), make_pool(2, 2) as pool:
                pool.wait()
            assert not caplog.records
            monkeypatch.setattr(psycopg2, "connect", lambda **_: Recorder())
            with make_pool(2, 2, resolver=lambda name: []) as pool:
                pool.wait()
        assert [record.getMessage() for record in caplog.records] == [
            "psycopg2.connect was replaced and returned a Recorder without a connection of the"
            " pool inside: it is lent, but neither tested nor reset"
        ]

    @pytest.mark.parametrize("specification", [True, False])
    def test_by_mocks_ask_no_resolver(self, specification: bool) -> None:
        def resolver(name: str) -> list[str]:
            raise AssertionError(f"{name} was asked for")

        with (
            patch("psycopg2.connect", autospec=specification) as connect,
            make_pool(resolver=resolver) as pool,
        ):
            assert pool.getconn() is connect.return_value
            assert connect.call_args.kwargs["host"] == "db.invalid"

    @pytest.mark.parametrize("returned", [None, 5, object()])
    def test_that_return_no_connection_are_named(
        self, connect: MagicMock, workers: int, returned: Any
    ) -> None:
        connect.return_value = returned
        with (
            make_pool(num_workers=workers) as pool,
            pytest.raises(TypeError, match=r"psycopg2\.connect was replaced"),
        ):
            pool.getconn()

    def test_that_raise_are_heard(self, connect: MagicMock, workers: int) -> None:
        connect.side_effect = psycopg2.OperationalError("no route to host")
        with (
            make_pool(num_workers=workers, timeout=0) as pool,
            pytest.raises(psycopg2.OperationalError, match="no route"),
        ):
            pool.getconn()
