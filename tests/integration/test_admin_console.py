"""A pool for PgBouncer's admin console, which knows neither SELECT 1 nor BEGIN."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool
from tests.support.pgbouncer import MakePgBouncer, PgBouncer
from tests.support.pools import ask, borrow, give_back
from tests.support.waiting import wait_until


def in_autocommit(conn: Any) -> None:
    conn.autocommit = True


def show_version(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("SHOW VERSION")


SETTINGS: dict[str, Any] = {"configure": in_autocommit, "test_on_borrow": show_version}


@pytest.fixture
def bouncer(pgbouncer: MakePgBouncer) -> PgBouncer:
    return pgbouncer()


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def console(bouncer: PgBouncer, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of a pool for the console."""
    return {**bouncer.params, "dbname": "pgbouncer", "num_workers": request.param}


@pytest.mark.parametrize("timeout", [0, 10])
def test_works_in_autocommit_with_a_test_that_it_knows(
    console: dict[str, Any], timeout: float
) -> None:
    with ConnectionPool(0, 2, timeout=timeout, **SETTINGS, **console) as pool:
        for _ in range(3):
            with pool.conn() as conn, conn.cursor() as cursor:
                cursor.execute("SHOW POOLS")
                assert "database" in [column.name for column in cursor.description or ()]
        assert pool.check() == 0
        assert pool.stats().idle == 1
        stats = pool.get_stats()
        assert (stats["connections_num"], stats["connections_lost"]) == (1, 0)
        assert stats["connections_errors"] == 0


def test_keeps_its_connections_through_checks(console: dict[str, Any]) -> None:
    with ConnectionPool(0, 4, **SETTINGS, **console) as pool:
        give_back(pool, borrow(pool, 3))
        for _ in range(3):
            assert pool.check() == 0
        assert pool.stats().idle == 3
        assert pool.get_stats()["connections_num"] == 3


def test_keeps_its_connections_through_health_checks(bouncer: PgBouncer) -> None:
    tested: list[int] = []

    def show_and_count(conn: Any) -> None:
        tested.append(id(conn))
        show_version(conn)

    settings: dict[str, Any] = {"configure": in_autocommit, "test_on_borrow": show_and_count}
    params = {**bouncer.params, "dbname": "pgbouncer"}
    with ConnectionPool(2, 4, health_check_interval=0.1, **settings, **params) as pool:
        pool.wait()
        wait_until(lambda: len(tested) >= 6)
        assert pool.get_stats()["connections_num"] == 2
        assert pool.get_stats()["tests_failed"] == 0


def test_refuses_the_pool_s_own_test_which_is_told(console: dict[str, Any]) -> None:
    with ConnectionPool(0, 2, configure=in_autocommit, **console) as pool:
        with pytest.raises(psycopg2.Error, match=r"SHOW HELP|unsupported"):
            pool.getconn()
        assert pool.stats().in_use == 0


def test_works_without_a_test(console: dict[str, Any]) -> None:
    with ConnectionPool(
        0, 2, configure=in_autocommit, test_on_borrow=False, timeout=10, **console
    ) as pool:
        for _ in range(3):
            with pool.conn() as conn:
                assert ask(conn, "SHOW VERSION")
        assert pool.get_stats()["connections_num"] == 1
