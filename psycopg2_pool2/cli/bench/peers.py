"""The pools that are measured, each behind the same three functions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.pool
from psycopg2.extensions import connection, make_dsn

from psycopg2_pool2 import ConnectionPool, __version__

OURS = "psycopg2_pool2"
TIMEOUT = 30.0
"""Seconds that a borrower waits, where a pool lets him wait."""


@dataclass(frozen=True)
class Peer:
    """A pool that is open. `waits` is false if it raises when all connections are in use."""

    name: str
    version: str
    borrow: Callable[[], Any]
    give_back: Callable[[Any], object]
    close: Callable[[], object]
    waits: bool = True


class Autocommit(connection):
    """A connection without transactions: a query is a query, and leaves nothing to roll back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.autocommit = True


def open_peers(params: Mapping[str, Any], size: int, stack: ExitStack) -> list[Peer]:
    """Open a pool of `size` open connections of each peer that is installed, ours first."""
    peers = []
    for opener in _OPENERS:
        try:
            peer = opener(params, size)
        except ImportError:
            continue
        stack.callback(peer.close)
        for conn in [peer.borrow() for _ in range(size)]:
            peer.give_back(conn)
        peers.append(peer)
    return peers


def server_version(peer: Peer) -> str:
    """Return the version of the server that a pool of psycopg2 connections leads to."""
    conn = peer.borrow()
    try:
        return conn.info.parameter_status("server_version") or "unknown"
    finally:
        peer.give_back(conn)


def _ours(params: Mapping[str, Any], size: int) -> Peer:
    return _open_ours(OURS, params, size, test=False)


def _ours_by_default(params: Mapping[str, Any], size: int) -> Peer:
    return _open_ours(f"{OURS}, tested", params, size, test=True)


def _open_ours(name: str, params: Mapping[str, Any], size: int, *, test: bool) -> Peer:
    pool = ConnectionPool(
        size,
        size,
        timeout=TIMEOUT,
        background_prewarm=False,
        test_on_borrow=test,
        connection_factory=Autocommit,
        **params,
    )
    return Peer(name, __version__, pool.getconn, pool.putconn, pool.shutdown)


def _psycopg2_pool(params: Mapping[str, Any], size: int) -> Peer:
    pool = psycopg2.pool.ThreadedConnectionPool(
        size, size, connection_factory=Autocommit, **_connect_kwargs(params)
    )
    version = psycopg2.__version__.split()[0]  # type: ignore[attr-defined]
    return Peer("psycopg2.pool", version, pool.getconn, pool.putconn, pool.closeall, waits=False)


def _psycopg_pool(params: Mapping[str, Any], size: int) -> Peer:
    import psycopg_pool

    pool = psycopg_pool.ConnectionPool(
        make_dsn(**params),
        kwargs={"autocommit": True},
        min_size=size,
        max_size=size,
        timeout=TIMEOUT,
        open=True,
    )
    name, version = "psycopg_pool", psycopg_pool.__version__
    return Peer(name, version, pool.getconn, pool.putconn, pool.close)


def _sqlalchemy(params: Mapping[str, Any], size: int) -> Peer:
    import sqlalchemy.pool

    pool = sqlalchemy.pool.QueuePool(
        lambda: psycopg2.connect(connection_factory=Autocommit, **_connect_kwargs(params)),
        pool_size=size,
        max_overflow=0,
        timeout=TIMEOUT,
    )
    give_back = operator.methodcaller("close")
    return Peer("SQLAlchemy", sqlalchemy.__version__, pool.connect, give_back, pool.dispose)


def _dbutils(params: Mapping[str, Any], size: int) -> Peer:
    import dbutils.pooled_db

    pool = dbutils.pooled_db.PooledDB(
        psycopg2,
        mincached=size,
        maxcached=size,
        maxconnections=size,
        blocking=True,
        connection_factory=Autocommit,
        **_connect_kwargs(params),
    )
    give_back = operator.methodcaller("close")
    return Peer("DBUtils", dbutils.__version__, pool.connection, give_back, pool.close)


def _connect_kwargs(params: Mapping[str, Any]) -> dict[str, Any]:
    return {"dsn": make_dsn(**params)}


_OPENERS = (_ours, _ours_by_default, _psycopg2_pool, _psycopg_pool, _sqlalchemy, _dbutils)
