"""The pools of Django's databases: one for each alias."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from psycopg2.extras import register_default_jsonb

from ... import checks
from ...manager import PoolManager
from ...pool import ConnectionPool

MAXCONN = 10
"""How many connections a pool may have unless it is told."""


class AliasPool:
    """The pool of one alias; safe to use from any thread.

    It is made when it is first asked for, and made anew when the settings lead
    elsewhere: to the test database, for one.
    """

    def __init__(self) -> None:
        self._manager = PoolManager(max_pools=1)
        # The last answer: the manager's costs as much as two round trips.
        self._known: tuple[Mapping[str, Any], ConnectionPool] | None = None

    def get(self, wanted: Mapping[str, Any], others: Mapping[str, Any]) -> ConnectionPool:
        """Return the pool with the wanted arguments; if there is none, made with the others too.

        Raises what :class:`~psycopg2_pool2.ConnectionPool` raises for bad ones.
        """
        if self._known is not None:
            known, pool = self._known
            if known == wanted and not pool.closed:
                return pool
        pool = self._manager.get_pool({"maxconn": MAXCONN, **others, **wanted})
        self._known = wanted, pool
        return pool

    def close(self) -> None:
        """Close the pool; who asks next gets a new one."""
        self._known = None
        self._manager.clear_cache()


_pools: dict[str, AliasPool] = {}


def alias_pool(alias: str) -> AliasPool:
    """Return the one of an alias."""
    return _pools.get(alias) or _pools.setdefault(alias, AliasPool())


@functools.cache
def preparation(
    isolation_level: int | None,
    autocommit: bool,
    role: str | None,
    configure: Callable[[Any], object] | None,
) -> Callable[[Any], None]:
    """Return a function that does once to a connection what Django does at every connect.

    For the same settings it is the same function, so that they lead to the same
    pool.
    """
    checks.function("configure", configure, None)

    def prepare(conn: Any) -> None:
        if isolation_level is not None:
            conn.isolation_level = isolation_level
        conn.autocommit = autocommit
        register_default_jsonb(conn, loads=lambda text: text)  # JSONField decodes by itself
        if role:
            with conn.cursor() as cursor:
                cursor.execute("SET ROLE %s", [role])
        if configure is not None:
            configure(conn)

    return prepare
