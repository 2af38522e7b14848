"""Processes and process pools of the standard library, beside a warm connection pool.

Prints one JSON object: the ``status`` of each child by how it ended, the
``backends`` that workers of process pools were lent, and what was ``touched`` of
this process's own sessions.

Usage: ``python -m tests.support.apps.multiprocess DSN NUM_WORKERS METHOD``, where
the method is fork, forkserver or spawn.  Children of the latter two import this
module themselves, and have a pool of their own from the beginning.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

from psycopg2_pool2 import ConnectionPool
from tests.support.apps.forking_parent import ask
from tests.support.apps.sessions import Witness

SESSIONS = 3
PROCESSES = 2
TASKS = 8

pool = ConnectionPool(
    0,
    SESSIONS,
    dsn=sys.argv[1],
    num_workers=int(sys.argv[2]),
    timeout=10,
    health_check_interval=0,
)
held: list[Any] = []


class UncaughtError(Exception):
    """What a child ends with that raises."""


def backends() -> list[int]:
    """Borrow all that the pool may have; tell their backends, as these tell themselves."""
    conns = [pool.getconn() for _ in range(SESSIONS)]
    try:
        return [ask(conn, "SELECT pg_backend_pid()") for conn in conns]
    finally:
        for conn in conns:
            pool.putconn(conn)


def backend_of_task(number: int) -> int:
    """Run one task of a process pool."""
    with pool.transaction() as conn:
        return int(ask(conn, "SELECT pg_backend_pid()"))


def run(ending: str) -> None:
    """Run one child: use the pool, return what was inherited, and end."""
    backends()
    for conn in held:
        pool.putconn(conn)
    held.clear()
    if ending == "sys.exit":
        sys.exit()
    if ending == "os._exit":
        os._exit(0)
    if ending == "exception":
        raise UncaughtError
    if ending == "pool.close":
        pool.close()


ENDINGS = ["sys.exit", "os._exit", "exception", "normal end", "pool.close"]


def statuses(context: BaseContext) -> dict[str, int | None]:
    """Start a process for each ending, all at a time."""
    children = {ending: context.Process(target=run, args=(ending,)) for ending in ENDINGS}  # type: ignore[attr-defined]
    for child in children.values():
        child.start()
    for child in children.values():
        child.join(20)
        if child.is_alive():
            child.kill()
            child.join()
    return {ending: child.exitcode for ending, child in children.items()}


def lent_to_workers(context: BaseContext) -> list[int]:
    """Have two process pools run tasks; tell the backends that these were lent."""
    with context.Pool(PROCESSES) as workers:
        lent = workers.map(backend_of_task, range(TASKS), chunksize=1)
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as executor:
        return lent + list(executor.map(backend_of_task, range(TASKS)))


def main(dsn: str, num_workers: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    witness = Witness(dsn)
    mine = backends()
    with pool.conn() as conn:
        ask(conn, "SELECT 1")
        held.append(conn)
        before = witness.look(mine)
        ended = statuses(context)
        lent = lent_to_workers(context)
        touched = witness.changes(before)
        held.clear()
    witness.close()
    touched += [f"{pid} was lent to a child" for pid in lent if pid in mine]
    print(json.dumps({"status": ended, "backends": lent, "touched": touched}))


if __name__ == "__main__":
    main(*sys.argv[1:])
