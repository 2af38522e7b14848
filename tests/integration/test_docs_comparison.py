"""docs/comparison.rst: what is said there of other pools, which an update of theirs may change."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import psycopg2
import pytest
from dbutils.pooled_db import PooledDB
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool as PsycopgPool
from sqlalchemy.pool import QueuePool

from psycopg2_pool2 import ConnectionPool
from tests.support.pools import ask


class Peer(NamedTuple):
    """A pool of two connections, how it is used, and what is said of it."""

    borrow: Callable[[], Any]
    give_back: Callable[[Any], object]
    drivers: Callable[[Any], Any]  # the driver's connection within what is lent
    lends_idle_longest: bool
    puts_settings_back: bool
    loses_what_is_dropped: bool


def _itself(conn: Any) -> Any:
    return conn


def _ours(dsn: str, stack: ExitStack) -> Peer:
    pool = stack.enter_context(ConnectionPool(2, 2, dsn=dsn))
    return Peer(pool.getconn, pool.putconn, _itself, True, True, False)


def _psycopg2(dsn: str, stack: ExitStack) -> Peer:
    pool = ThreadedConnectionPool(2, 2, dsn)
    stack.callback(pool.closeall)
    return Peer(pool.getconn, pool.putconn, _itself, False, False, True)


def _psycopg(dsn: str, stack: ExitStack) -> Peer:
    pool = stack.enter_context(PsycopgPool(dsn, min_size=2, timeout=1, open=False))
    return Peer(pool.getconn, pool.putconn, _itself, True, False, True)


def _sqlalchemy(dsn: str, stack: ExitStack) -> Peer:
    creator: Any = lambda: psycopg2.connect(dsn)  # noqa: E731
    pool = QueuePool(creator, pool_size=2, max_overflow=0, timeout=1)
    stack.callback(pool.dispose)
    return Peer(pool.connect, _close, lambda x: x.dbapi_connection, True, False, False)


def _dbutils(dsn: str, stack: ExitStack) -> Peer:
    pool = PooledDB(psycopg2, maxconnections=2, dsn=dsn)
    stack.callback(pool.close)
    return Peer(pool.connection, _close, lambda x: x._con._con, True, False, False)


def _close(conn: Any) -> None:
    conn.close()


@pytest.fixture(params=[_ours, _psycopg2, _psycopg, _sqlalchemy, _dbutils])
def peer(dsn: str, request: pytest.FixtureRequest) -> Iterator[Peer]:
    with ExitStack() as stack:
        yield request.param(dsn, stack)


def test_which_is_lent(peer: Peer) -> None:
    first, second = peer.borrow(), peer.borrow()
    expected = peer.drivers(first if peer.lends_idle_longest else second)
    peer.give_back(first)
    peer.give_back(second)
    conn = peer.borrow()
    assert peer.drivers(conn) is expected
    peer.give_back(conn)


def test_whether_settings_are_put_back(peer: Peer) -> None:
    for conn in (peer.borrow(), peer.borrow()):
        peer.drivers(conn).autocommit = True
        peer.give_back(conn)
    conn = peer.borrow()
    assert peer.drivers(conn).autocommit is not peer.puts_settings_back
    peer.give_back(conn)


def test_what_becomes_of_dropped_connections(peer: Peer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # psycopg's own
        dropped = [peer.borrow(), peer.borrow()]
        dropped.clear()
        gc.collect()
    if peer.loses_what_is_dropped:
        with pytest.raises(Exception, match=r"exhausted|couldn't get a connection"):
            peer.borrow()
    else:
        conn = peer.borrow()
        assert ask(conn) == 1
        peer.give_back(conn)
