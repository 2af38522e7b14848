"""What a borrower gets when its time is over, and what `wait()` does on a closed pool."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolClosed, PoolError, PoolTimeout
from psycopg2_pool2.contrib.embedded import free_port
from tests.support.rude_server import Refuse, RudeServer
from tests.support.waiting import in_thread, wait_until

WORKERS = pytest.mark.parametrize("num_workers", [3, 0], ids=["workers", "no-workers"])


@WORKERS
class TestTimeout:
    def test_is_an_operational_error_where_the_server_is_the_cause(self, num_workers: int) -> None:
        nowhere: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": free_port("127.0.0.1"),
            "user": "u",
            "dbname": "d",
        }
        with ConnectionPool(0, 2, num_workers=num_workers, **nowhere) as pool:
            with pytest.raises(PoolTimeout, match="refused") as caught:
                pool.getconn(timeout=0.2)
            assert isinstance(caught.value, psycopg2.OperationalError)
            assert isinstance(caught.value, PoolError)
            assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
            assert caught.value.pgcode is None

    def test_is_an_operational_error_where_the_server_is_not_ready(self, num_workers: int) -> None:
        with (
            RudeServer(lambda login: Refuse("57P03", "the database system is starting up")) as rude,
            ConnectionPool(0, 2, num_workers=num_workers, **rude.params) as pool,
        ):
            with pytest.raises(psycopg2.OperationalError, match="starting up") as caught:
                pool.getconn(timeout=0.2)
            assert isinstance(caught.value, PoolTimeout)

    def test_is_none_where_all_are_in_use(self, num_workers: int) -> None:
        with (
            RudeServer() as rude,
            ConnectionPool(0, 1, num_workers=num_workers, **rude.params) as pool,
            pool.conn(timeout=10),
        ):
            with pytest.raises(PoolTimeout) as caught:
                pool.getconn(timeout=0.1)
            assert not isinstance(caught.value, psycopg2.OperationalError)
            assert caught.value.__cause__ is None


class TestWaitOnAClosedPool:
    @WORKERS
    @pytest.mark.parametrize("minconn", [0, 1, 2])
    @pytest.mark.parametrize("lent", [0, 1])
    @pytest.mark.parametrize("timeout", [0.0, 1.0])
    def test_raises_whatever_minconn(
        self, num_workers: int, minconn: int, lent: int, timeout: float
    ) -> None:
        with RudeServer() as rude:
            pool = ConnectionPool(minconn, 2, timeout=10, num_workers=num_workers, **rude.params)
            conns = [pool.getconn() for _ in range(lent)]
            pool.shutdown()
            with pytest.raises(PoolClosed):
                pool.wait(timeout)
            for conn in conns:
                pool.putconn(conn)

    def test_raises_when_it_is_closed_meanwhile(self) -> None:
        with RudeServer(
            lambda login: Refuse("57P03", "the database system is starting up")
        ) as rude:
            pool = ConnectionPool(1, 2, **rude.params)
            waiting = in_thread(pool.wait, 30)
            wait_until(lambda: pool.get_stats()["connections_errors"])
            pool.shutdown()
            assert isinstance(waiting.error(), PoolClosed)
