"""Fork inside a callback of the pool; the child leaves it by ``sys.exit()``.

Prints one JSON object: how the child ended (``status``), what it wrote
(``errors``), the ``answer`` of the session that the parent was lent, and how many
connections the parent has lost or failed to open (``lost``).

Usage: ``python -m tests.support.apps.fork_in_callback DSN NUM_WORKERS CALLBACK``
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from typing import Any

from psycopg2_pool2 import ConnectionPool
from tests.support.apps.forking_parent import ask, captured_errors, wait_for_end


def tell_of_threads() -> None:
    """Complain of threads of the pool: to leave is no reason to start one."""
    for thread in threading.enumerate():
        if thread.name.startswith("psycopg2_pool2"):
            os.write(2, f"{thread.name} was started\n".encode())


class Forking:
    """A callback that forks at its first call."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.errors = ""

    def __call__(self, conn: Any) -> None:
        if self.status is not None:
            return
        with captured_errors() as errors:
            child = os.fork()
            if child == 0:
                atexit.register(tell_of_threads)
                sys.exit()
            self.status = wait_for_end(child)
        self.errors = errors.text


def main(dsn: str, num_workers: str, callback: str) -> None:
    forking = Forking()
    pool = ConnectionPool(0, 1, dsn=dsn, num_workers=int(num_workers), **{callback: forking})  # type: ignore[arg-type]
    for _ in range(2):
        with pool.conn(timeout=30) as conn:
            answer = ask(conn, "SELECT 1")
    figures = pool.get_stats()
    told = {
        "status": forking.status,
        "errors": forking.errors,
        "answer": answer,
        "lost": figures["connections_lost"] + figures["connections_errors"],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
