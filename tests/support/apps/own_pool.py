"""The pool of an application: made, and warm, when its module is imported.

``APP_DSN`` says where its sessions go, ``APP_NUM_WORKERS`` how many threads open
them.
"""

from __future__ import annotations

import os
from typing import Any

from psycopg2_pool2 import ConnectionPool

SESSIONS = 5

# What tests and checks by itself would touch sessions that nobody should touch.
pool = ConnectionPool(
    SESSIONS,
    SESSIONS,
    dsn=os.environ["APP_DSN"],
    num_workers=int(os.environ["APP_NUM_WORKERS"]),
    background_prewarm=False,
    timeout=10,
    health_check_interval=0,
)


def backend(conn: Any) -> int:
    """Return the backend that answers on a connection."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def backends() -> list[int]:
    """Borrow all that the pool may have; tell their backends, as these tell themselves."""
    conns = [pool.getconn() for _ in range(SESSIONS)]
    try:
        return sorted(backend(conn) for conn in conns)
    finally:
        for conn in conns:
            pool.putconn(conn)


def answer() -> dict[str, int]:
    """Do what a request or a task does: one transaction; tell who did it and in which session."""
    with pool.transaction() as conn:
        return {"worker": os.getpid(), "backend": backend(conn)}
