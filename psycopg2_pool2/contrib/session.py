"""One statement in a session of its own, for who looks at a server from beside the pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg2

Params = Sequence[object] | Mapping[str, object]


def execute(
    connect: Mapping[str, Any], sql: str, params: Params | None = None
) -> list[tuple[Any, ...]]:
    """Connect with these arguments, run one statement under autocommit, and return its rows."""
    connection = psycopg2.connect(**connect)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()
