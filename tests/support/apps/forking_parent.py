"""A process that forks a child for each line it reads, and tells what became of both.

A line is a JSON object: what the parent has in use (``held``), what the child
does (``act``) and how it ends (``ending``).  The answer is one JSON line::

    {"status": ..., "errors": "...", "touched": [...]}

``errors`` is what the child wrote to stderr, ``touched`` names what the child
did to the parent's sessions, and should be empty.

Usage: ``python -m tests.support.apps.forking_parent DSN NUM_WORKERS``
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from psycopg2_pool2 import ConnectionPool
from tests.support.apps.sessions import Witness

MAXCONN = 4
CHILD_SECONDS = 30

Hold = Callable[["Parent", ExitStack], Any]
Act = Callable[["Parent", Any], object]


class UncaughtError(Exception):
    """What a child ends with that raises."""


class _NormalEnd(BaseException):
    """Carry the child out of all blocks to the end of its program."""


class Parent:
    """The pool, and who watches its sessions."""

    def __init__(self, dsn: str, num_workers: int) -> None:
        # Nothing but children may touch a session between two looks.
        self.pool = ConnectionPool(
            0, MAXCONN, dsn=dsn, num_workers=num_workers, timeout=10, health_check_interval=0
        )
        # As the documentation of psycopg's pool advises.
        atexit.register(self.pool.close)
        self.witness = Witness(dsn)
        self.sessions = self.backends()

    def backends(self) -> list[int]:
        """Borrow all that the pool may have; tell their backends, as these tell themselves."""
        conns = [self.pool.getconn() for _ in range(MAXCONN)]
        try:
            return [ask(conn, "SELECT pg_backend_pid()") for conn in conns]
        finally:
            for conn in conns:
                self.pool.putconn(conn)


def ask(conn: Any, sql: str) -> Any:
    """Return the only value of a statement's answer."""
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


# -- what the parent has in use -------------------------------------------------


def hold_nothing(parent: Parent, stack: ExitStack) -> Any:
    return None


def hold_borrowed(parent: Parent, stack: ExitStack) -> Any:
    conn = parent.pool.getconn()
    stack.callback(parent.pool.putconn, conn)
    return conn


def hold_keyed(parent: Parent, stack: ExitStack) -> Any:
    conn = parent.pool.getconn("key")
    stack.callback(parent.pool.putconn, conn, "key")
    return conn


def hold_block(parent: Parent, stack: ExitStack) -> Any:
    return stack.enter_context(parent.pool.conn())


def hold_transaction(parent: Parent, stack: ExitStack) -> Any:
    return stack.enter_context(parent.pool.transaction())


def hold_psycopg2_block(parent: Parent, stack: ExitStack) -> Any:
    """Hold what psycopg2's documentation calls ``with conn, conn.cursor()``."""
    conn = stack.enter_context(parent.pool.conn())
    stack.enter_context(conn)
    stack.enter_context(conn.cursor()).execute("SELECT 1")
    return conn


def hold_server_side_cursor(parent: Parent, stack: ExitStack) -> Any:
    conn = stack.enter_context(parent.pool.transaction())
    cursor = stack.enter_context(conn.cursor("rows"))
    cursor.execute("SELECT generate_series(1, 1000)")
    cursor.fetchone()
    return conn


HOLDS: dict[str, Hold] = {
    "nothing": hold_nothing,
    "borrowed": hold_borrowed,
    "keyed": hold_keyed,
    "block": hold_block,
    "transaction": hold_transaction,
    "psycopg2 block": hold_psycopg2_block,
    "server-side cursor": hold_server_side_cursor,
}


# -- what the child does --------------------------------------------------------


def do_nothing(parent: Parent, conn: Any) -> None:
    pass


def return_it(parent: Parent, conn: Any) -> None:
    if conn is not None:
        parent.pool.putconn(conn)


def return_to_be_closed(parent: Parent, conn: Any) -> None:
    if conn is not None:
        parent.pool.putconn(conn, close=True)


def close_it(parent: Parent, conn: Any) -> None:
    if conn is not None:
        conn.close()


def close_the_pool(parent: Parent, conn: Any) -> None:
    parent.pool.close()
    assert parent.pool.closed


def close_all(parent: Parent, conn: Any) -> None:
    parent.pool.closeall()


def discard_and_drain(parent: Parent, conn: Any) -> None:
    parent.pool.discard_all_idle()
    parent.pool.drain()
    parent.pool.check()
    parent.pool.reap_idle_connections()


def borrow(parent: Parent, conn: Any) -> None:
    stats = parent.pool.stats()
    assert (stats.in_use, stats.idle) == (0, 0), stats
    assert not set(parent.backends()) & set(parent.sessions)


def fork_again(parent: Parent, conn: Any) -> None:
    """Have a grandchild that does all of it; the child's own session outlives it."""
    with parent.pool.conn() as mine:
        backend = ask(mine, "SELECT pg_backend_pid()")
        grandchild = os.fork()
        if grandchild == 0:
            return_it(parent, mine)
            close_it(parent, mine)
            borrow(parent, mine)
            close_the_pool(parent, mine)
            sys.exit()
        assert wait_for_end(grandchild) == 0
        assert ask(mine, "SELECT pg_backend_pid()") == backend


ACTS: dict[str, Act] = {
    "nothing": do_nothing,
    "return": return_it,
    "return to be closed": return_to_be_closed,
    "close": close_it,
    "close the pool": close_the_pool,
    "closeall": close_all,
    "discard and drain": discard_and_drain,
    "borrow": borrow,
    "fork again": fork_again,
}


# -- how it ends ----------------------------------------------------------------


def end(ending: str) -> None:
    """End the child, as a program may."""
    if ending == "os._exit":
        os._exit(0)
    if ending == "sys.exit":
        sys.exit()
    if ending == "exception":
        raise UncaughtError
    raise _NormalEnd


ENDINGS = ["sys.exit", "os._exit", "exception", "normal end"]


# -- one child ------------------------------------------------------------------


def serve(parent: Parent, held: str, act: str, ending: str) -> dict[str, Any]:
    """Fork one child, in which this raises whatever ends it; tell what it did."""
    with ExitStack() as stack:
        conn = HOLDS[held](parent, stack)
        backend = None if conn is None else ask(conn, "SELECT pg_backend_pid()")
        before = parent.witness.look(parent.sessions)
        with captured_errors() as errors:
            child = os.fork()
            if child == 0:
                ACTS[act](parent, conn)
                del conn
                gc.collect()
                end(ending)
            status = wait_for_end(child)
        touched = parent.witness.changes(before)
        if conn is not None and not touched:
            assert ask(conn, "SELECT pg_backend_pid()") == backend
        if touched:
            stack.pop_all()  # whatever it is, it is not as it was
            parent.pool.drain()
            parent.sessions = parent.backends()
    return {"status": status, "errors": errors.text, "touched": touched}


class _Errors:
    text = ""


@contextmanager
def captured_errors() -> Iterator[_Errors]:
    """Have this process, and a child forked inside, write stderr elsewhere."""
    errors = _Errors()
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            parent = os.getpid()
            try:
                yield errors
            finally:
                if os.getpid() == parent:  # the child writes there until its end
                    os.dup2(saved, 2)
                    file.seek(0)
                    errors.text = file.read().decode()
    finally:
        os.close(saved)


def wait_for_end(child: int) -> int:
    """Return a child's exit status; one that hangs is killed, which its status tells."""
    deadline = time.monotonic() + CHILD_SECONDS
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline += CHILD_SECONDS
        time.sleep(0.001)


def main(dsn: str, num_workers: str) -> None:
    parent = Parent(dsn, int(num_workers))
    try:
        for line in sys.stdin:
            print(json.dumps(serve(parent, **json.loads(line))), flush=True)
    except _NormalEnd:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
