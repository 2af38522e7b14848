"""A WSGI application for uWSGI, whose pool is made when the module is imported.

``APP_DSN`` says where its sessions go, ``APP_POOL`` the arguments of the pool in
JSON, and ``APP_WARM`` how many are borrowed at once and returned at import; one
more is then kept in use, and returned by the first request of each process.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from psycopg2_pool2 import ConnectionPool

pool = ConnectionPool(
    dsn=os.environ["APP_DSN"], maxconn=4, timeout=10, **json.loads(os.environ["APP_POOL"])
)
kept: list[Any] = []


def ask(conn: Any, token: str) -> tuple[int, str]:
    """Return the backend that answers, and what it was asked for; it takes its time for that."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid(), %s::text, pg_sleep(0.005)", [token])
        backend, echo, _ = cursor.fetchone()
        return backend, echo


def own_threads() -> list[str]:
    """Return the names of the threads that the library runs in this process."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("psycopg2_pool2")]


def warm_up(number: int) -> list[int]:
    """Borrow so many at a time and return them but one; tell their sessions."""
    conns = [pool.getconn() for _ in range(number)]
    backends = [ask(conn, "warm")[0] for conn in conns]
    kept.extend(conns[:1])
    for conn in conns[1:]:
        conn.rollback()
        pool.putconn(conn)
    for conn in kept:
        conn.rollback()
    return backends


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer with what was asked for, and who answers."""
    while kept:
        pool.putconn(kept.pop())
    token = urllib.parse.unquote(environ["QUERY_STRING"])
    conn = pool.getconn()  # by itself: a block asks more of the pool
    try:
        backend, echo = ask(conn, token)
        conn.rollback()  # so that the return has nothing to do
    finally:
        pool.putconn(conn)
    stats = pool.stats()
    answer = {
        "worker": os.getpid(),
        "backend": backend,
        "echo": echo,
        "threads": own_threads(),
        "missing": max(0, pool.minconn - stats.in_use - stats.idle),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]


sessions = warm_up(int(os.environ["APP_WARM"]))
print(
    "imported:",
    json.dumps({"pid": os.getpid(), "sessions": sessions, "threads": own_threads()}),
    flush=True,
)
