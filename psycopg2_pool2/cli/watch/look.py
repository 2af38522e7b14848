"""Look who is connected, through a pool, which also finds the server again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import psycopg2

from psycopg2_pool2 import ConnectionPool, PoolExhausted

from ..activity import Group, read_activity
from ..errors import reason
from ..patience import NoAnswer, within
from ..words import label

APPLICATION = "psycopg2_pool2 watch"
PATIENCE = 5.0
"""Seconds after which a server that does not answer is away."""
_LONGEST_START = 60.0

_SERVER = "SELECT current_setting('max_connections')::int, pg_is_in_recovery()"


@dataclass(frozen=True)
class Server:
    """The server that answered."""

    host: str | None
    address: str | None
    port: int
    version: str
    standby: bool
    max_connections: int

    @property
    def label(self) -> str:
        """Return how it is called."""
        return label(self.host, self.address, self.port)


@dataclass(frozen=True)
class View:
    """What was seen at a moment: a server and who is connected to it, or why there is none."""

    time: datetime
    server: Server | None = None
    groups: tuple[Group, ...] = ()
    error: str | None = None


def open_pool(params: Mapping[str, Any]) -> ConnectionPool:
    """Open a pool of one connection; raise what psycopg2 raises if the server is not there."""
    return within(
        _LONGEST_START,
        lambda: ConnectionPool(
            1,
            1,
            background_prewarm=False,
            test_timeout=PATIENCE,
            configure=_configure,
            name="watch",
            **{**params, "application_name": APPLICATION},
        ),
    )


def views(pool: ConnectionPool, interval: float, number: int | None) -> Iterator[View]:
    """Look every `interval` seconds, so many times, or for ever."""
    for turn in itertools.count(1):
        began = time.monotonic()
        yield look(pool)
        if turn == number:
            return
        time.sleep(max(0.0, began + interval - time.monotonic()))


def look(pool: ConnectionPool) -> View:
    """Look once; takes little longer than `PATIENCE`, whatever the server does."""
    now = datetime.now(timezone.utc)
    try:
        server, groups = within(PATIENCE, lambda: _ask(pool))
    except PoolExhausted:  # the connection is still out with the look before
        return View(now, error="no answer yet")
    except (psycopg2.Error, NoAnswer) as error:
        return View(now, error=reason(error))
    return View(now, server, groups)


def _ask(pool: ConnectionPool) -> tuple[Server, tuple[Group, ...]]:
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute(_SERVER)
        [(max_connections, standby)] = cursor.fetchall()
        info = conn.info
        server = Server(
            info.host,
            info.dsn_parameters.get("hostaddr"),
            info.port,
            info.parameter_status("server_version") or "unknown",
            standby,
            max_connections,
        )
        return server, tuple(read_activity(cursor, but=APPLICATION))


def _configure(conn: Any) -> None:
    conn.autocommit = True
