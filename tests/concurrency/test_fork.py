"""A forked child has a pool of its own, and leaves its parent's sessions alone."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import MethodType
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps import forking_parent as forking_parent_app
from tests.support.apps import raw_fork, run_app, start_app
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    fill,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
)
from tests.support.processes import in_child, run_program
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


class TestChild:
    def test_starts_empty_and_works(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=3)
        pids = fill(pool, 3)

        def child() -> object:
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            mine = borrowed_pids(pool, 3)
            assert not set(mine) & set(pids)
            assert_whole(pool)
            pool.shutdown()
            return "fine"

        assert in_child(child) == "fine"
        assert borrowed_pids(pool, 3) == pids

    def test_has_all_of_maxconn_though_the_parent_has_lent_some(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2)
        conns = borrow(pool, 2)

        def child() -> object:
            assert_whole(pool)
            return "fine"

        assert in_child(child) == "fine"
        assert [ask(conn) for conn in conns] == [1, 1]
        give_back(pool, conns)
        assert_whole(pool)

    def test_warms_minconn_on_first_need(self, make_pool: MakePool) -> None:
        pool = make_pool(minconn=2)
        pool.wait()

        def child() -> object:
            round_trip(pool)
            pool.wait(timeout=5)
            return pool.stats().idle

        assert in_child(child) == "2"

    def test_returns_inherited_connections_without_effect(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conn, keyed = pool.getconn(), pool.getconn("key")

        def child() -> object:
            pool.putconn(conn)
            pool.putconn(keyed, "key")
            pool.putconn(conn, close=True)
            assert pool.stats() == PoolStats(in_use=0, idle=0)
            assert_whole(pool)
            return "fine"

        assert in_child(child) == "fine"
        assert [ask(conn), ask(keyed)] == [1, 1]

    def test_closes_inherited_connections_without_effect(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2)
        conns = borrow(pool, 1)
        [pid] = fill(make_any_pool(maxconn=1), 1)

        def child() -> object:
            conns[0].close()
            conns.clear()
            gc.collect()
            pool.discard_all_idle()
            pool.drain()
            pool.shutdown()
            return "fine"

        assert in_child(child) == "fine"
        assert ask(conns[0]) == 1
        assert pid

    def test_leaves_the_block_of_its_parent_quietly(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)

        def child() -> object:
            block.__exit__(None, None, None)
            return "fine"

        for block in (pool.conn(), pool.transaction()):
            conn = block.__enter__()
            ask(conn)
            assert in_child(child) == "fine"
            assert ask(conn) == 1
            block.__exit__(None, None, None)
        assert_whole(pool)

    def test_of_a_closed_pool_has_a_closed_pool(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        pool.shutdown()
        assert in_child(lambda: pool.closed) == "True"

    def test_made_while_others_borrow_works(self, make_any_pool: MakePool) -> None:
        """Whatever locks the parent's other threads hold at that moment."""
        pool = make_any_pool(maxconn=3)
        stop = threading.Event()

        def borrow_on_and_on() -> None:
            while not stop.is_set():
                round_trip(pool, timeout=30)

        borrowers = [in_thread(borrow_on_and_on) for _ in range(6)]
        try:
            for _ in range(5):
                assert int(in_child(lambda: round_trip(pool, timeout=10)))
        finally:
            stop.set()
            for borrower in borrowers:
                borrower.result(timeout=30)
        assert_whole(pool)

    def test_has_no_waiters(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        waiter = start_waiter(pool)
        assert in_child(lambda: pool.get_stats()["requests_waiting"]) == "0"
        pool.putconn(conn)
        assert waiter.result() is conn
        pool.putconn(conn)

    def test_may_have_children_of_its_own(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        round_trip(pool)

        def child() -> object:
            mine = round_trip(pool)
            grandchilds = int(in_child(lambda: round_trip(pool)))
            assert mine != grandchilds
            return round_trip(pool) == mine

        assert in_child(child) == "True"


PROGRAM = """
import os, sys
from psycopg2_pool2 import ConnectionPool
pool = ConnectionPool(2, 4, dsn=sys.argv[1], num_workers=int(sys.argv[2]), background_prewarm=False)
def pids(number):
    conns = [pool.getconn(timeout=10) for _ in range(number)]
    for conn in conns:
        conn.cursor().execute("SELECT 1")
    found = [conn.info.backend_pid for conn in conns]
    for conn in conns:
        pool.putconn(conn)
    return found
before = pids(3)
lent = pool.getconn()
with pool.conn() as in_block:
    in_block.cursor().execute("SELECT 1")
    child = os.fork()
    if child == 0:
        CHILD
    _, status = os.waitpid(child, 0)
    in_block.cursor().execute("SELECT 1")
lent.cursor().execute("SELECT 1")
pool.putconn(lent)
print(status, sorted(pids(3)) == sorted(before))
"""


@pytest.mark.parametrize("workers", ["3", "0"])
@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit()",
        "os._exit(0)",
        "pids(2); sys.exit()",
        "pids(2); os._exit(0)",
        "pool.close(); sys.exit()",
        "del pool, lent, in_block; sys.exit()",
    ],
)
def test_the_end_of_a_child_leaves_the_parents_sessions_alive_and_is_quiet(
    server: Server, workers: str, ending: str
) -> None:
    ended = run_program(PROGRAM.replace("CHILD", ending), server.dsn, workers)
    assert (ended.output, ended.errors, ended.status) == ("0 True\n", "", 0)


def test_many_children_work_at_once(server: Server, make_any_pool: MakePool) -> None:
    pool = make_any_pool(maxconn=3)
    pids = fill(pool, 3)
    children = [in_thread(in_child, lambda: borrowed_pids(pool, 2)) for _ in range(4)]
    for child in children:
        assert child.result(timeout=30)
    assert borrowed_pids(pool, 3) == pids


def test_pools_made_in_the_child_work(server: Server, app: str) -> None:
    def child() -> object:
        with ConnectionPool(1, 2, dsn=server.dsn) as pool:
            pool.wait(timeout=10)
            with pool.conn() as conn:
                return pid_of(conn) in server.backends()

    assert in_child(child) == "True"
    assert sys.exc_info() == (None, None, None)


# -- every way to hold, to act and to end ---------------------------------------


class ForkingParent:
    """A program that forks a child for each order and tells what became of it."""

    def __init__(self, dsn: str, workers: str) -> None:
        self._process = start_app("forking_parent", dsn, workers, stdin=subprocess.PIPE)

    def fork(self, held: str, act: str, ending: str) -> dict[str, Any]:
        """Have one child; return its status, what it wrote, and what it touched."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"held": held, "act": act, "ending": ending}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the program has ended"
        told: dict[str, Any] = json.loads(answer)
        return told

    def close(self) -> None:
        """End the program; its sessions end with it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(20) == 0


@pytest.fixture(scope="module", params=["3", "0"], ids=["workers", "no-workers"])
def forking_parent(server: Server, request: pytest.FixtureRequest) -> Iterator[ForkingParent]:
    """Have a process that forks; with the background thread and without it."""
    parent = ForkingParent(f"{server.dsn} application_name=forking-parent", request.param)
    yield parent
    parent.close()
    wait_for_backends(server, "forking-parent", 0)


# Its own end, which closes the cursor, is an error in the child; the parent's stays as it is.
NOISY = "server-side cursor"


def assert_ended_well(told: dict[str, Any], held: str, ending: str) -> None:
    assert told["touched"] == []
    if held == NOISY:
        return
    if ending == "exception":
        assert told["status"] == 1
        assert told["errors"].endswith("UncaughtError\n")
        assert told["errors"].count("Traceback") == 1
    else:
        assert (told["status"], told["errors"]) == (0, "")


@pytest.mark.parametrize("ending", forking_parent_app.ENDINGS)
@pytest.mark.parametrize("held", forking_parent_app.HOLDS)
def test_however_a_child_ends_its_parents_sessions_are_untouched(
    forking_parent: ForkingParent, held: str, ending: str
) -> None:
    assert_ended_well(forking_parent.fork(held, "nothing", ending), held, ending)


@pytest.mark.parametrize("act", forking_parent_app.ACTS)
@pytest.mark.parametrize("held", forking_parent_app.HOLDS)
def test_whatever_a_child_does_its_parents_sessions_are_untouched(
    forking_parent: ForkingParent, held: str, act: str
) -> None:
    assert_ended_well(forking_parent.fork(held, act, "sys.exit"), held, "sys.exit")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("workers", ["3", "0"])
def test_processes_of_the_standard_library_leave_their_parents_sessions_alone(
    server: Server, app: str, method: str, workers: str
) -> None:
    told = run_app("multiprocess", f"{server.dsn} application_name={app}", workers, method)
    assert told["touched"] == []
    assert told["status"] == {
        **dict.fromkeys(["sys.exit", "os._exit", "normal end", "pool.close"], 0),
        "exception": 1,
    }
    assert len(told["backends"]) == 16
    wait_for_backends(server, app, 0)


def locks_of(*roots: object) -> list[Any]:
    """Return all locks that these objects have, and the modules of the package."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PACKAGE)]
    locks: dict[int, Any] = {}
    seen: set[int] = set()
    left = [*roots, *(vars(module) for module in modules)]
    while left:
        found = left.pop()
        if isinstance(found, LOCKS):
            locks[id(found)] = found
        elif id(found) not in seen and _is_looked_into(found):
            seen.add(id(found))
            left += gc.get_referents(found)
    return list(locks.values())


PACKAGE = "psycopg2_pool2"
LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition)


def _is_looked_into(found: object) -> bool:
    if isinstance(found, (dict, list, tuple, set, MethodType)):
        return True
    return not isinstance(found, type) and type(found).__module__.startswith(PACKAGE)


def test_a_child_works_though_another_thread_holds_every_lock(make_any_pool: MakePool) -> None:
    pool = make_any_pool(minconn=1, maxconn=3)
    pids = fill(pool, 3)
    locks = locks_of(pool)
    assert len(locks) > 4
    ready, release = threading.Event(), threading.Event()

    def hold() -> None:
        held = [lock for lock in locks if lock.acquire(blocking=False)]
        ready.set()
        release.wait(30)
        for lock in held:
            lock.release()
        assert len(held) > 4

    def child() -> object:
        assert_whole(pool)
        pool.get_stats()
        pool.resize(1, 2)
        pool.check()
        pool.shutdown()
        return "fine"

    holder = in_thread(hold)
    try:
        assert ready.wait(10)
        assert in_child(child) == "fine"
    finally:
        release.set()
        holder.result()
    assert borrowed_pids(pool, 3) == pids


@pytest.mark.parametrize("workers", ["3", "0"])
def test_children_work_though_threads_held_every_lock_when_they_were_forked(
    server: Server, app: str, workers: str
) -> None:
    # GSSAPI's lock is one of those that a child must not copy (psycopg2_pool2.forks).
    dsn = f"{server.dsn} application_name={app} gssencmode=prefer"
    told = run_app("fork_storm", dsn, workers, "50")
    assert told == {"forks": 50, "children": [], "threads": [], "touched": []}
    wait_for_backends(server, app, 0)


# With workers `configure` runs in one of them, and there nobody leaves by sys.exit().
@pytest.mark.parametrize(
    ("callback", "workers"),
    [
        ("configure", "0"),
        *((callback, workers) for callback in ("test_on_borrow", "reset") for workers in "30"),
    ],
)
def test_a_child_may_be_forked_in_a_callback(
    server: Server, app: str, callback: str, workers: str
) -> None:
    told = run_app("fork_in_callback", f"{server.dsn} application_name={app}", workers, callback)
    assert told == {"status": 0, "errors": "", "answer": 1, "lost": 0}


def test_a_child_forked_in_configure_leaves_its_parents_session_alone(
    make_pool: MakePool, statement_log: StatementLog
) -> None:
    """What configure leaves open is committed, by the parent alone."""
    forked: list[int] = []
    reader, writer = os.pipe()

    def configure(conn: Any) -> None:
        if not forked:
            ask(conn)
            forked.append(os.fork())

    pool = make_pool(maxconn=1, num_workers=0, configure=configure)
    told, conn = "", None
    try:
        conn = pool.getconn(timeout=3)
        told = str(pid_of(conn))
    except psycopg2.Error as error:
        told = type(error).__name__
    finally:
        if forked == [0]:
            os.write(writer, told.encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as child:
        of_child = child.read()
    os.waitpid(forked[0], 0)
    assert conn is not None
    pool.putconn(conn)
    assert of_child
    assert of_child != told
    assert statement_log.statements().count("COMMIT") == 1


@pytest.mark.parametrize(
    ("workers", "tests"),
    [("3", "1"), ("3", "0"), ("0", "1")],
    ids=["workers", "untested", "no-workers"],
)
@pytest.mark.parametrize("act", raw_fork.ACTS)
def test_a_fork_that_python_is_not_told_of_is_noticed(
    server: Server, app: str, act: str, workers: str, tests: str
) -> None:
    told = run_app("raw_fork", f"{server.dsn} application_name={app}", workers, tests, act)
    assert (told["status"], told["errors"]) == (0, "")
    assert told["touched"] == []
    assert told["notices"] in (True, None)
    wait_for_backends(server, app, 0)


# -- programs that are started --------------------------------------------------


class Started:
    """A program that reads until its end, and what it inherited."""

    def __init__(self, how: str) -> None:
        self._reader, self._writer = os.pipe()
        self._process: subprocess.Popen[bytes] | None = None
        if how == "posix_spawn":
            actions = [(os.POSIX_SPAWN_DUP2, self._reader, 0)]
            self.pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=actions)
        else:
            # To close all others is subprocess's own habit, and no merit of the pool.
            self._process = subprocess.Popen(["/bin/cat"], stdin=self._reader, close_fds=False)
            self.pid = self._process.pid
        os.close(self._reader)

    def inherited(self) -> set[str]:
        """Return what its descriptors are."""
        mine = os.readlink("/proc/self/exe")
        wait_until(lambda: os.readlink(f"/proc/{self.pid}/exe") != mine)
        folder = f"/proc/{self.pid}/fd"
        found = set()
        for number in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):  # the program has closed it since
                found.add(os.readlink(f"{folder}/{number}"))
        return found

    def end(self) -> None:
        """Let it end."""
        os.close(self._writer)
        if self._process is None:
            os.waitpid(self.pid, 0)
        else:
            self._process.wait(10)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="this system has no /proc")
@pytest.mark.parametrize("how", ["posix_spawn", "subprocess"])
def test_programs_inherit_nothing_of_the_pool(make_any_pool: MakePool, how: str) -> None:
    """Its sockets, those being opened included, and the descriptors of its thread."""
    pool = make_any_pool(maxconn=4)
    conns = borrow(pool, 2)
    sockets = {os.readlink(f"/proc/self/fd/{conn.fileno()}") for conn in conns}
    assert len(sockets) == 2
    stop = threading.Event()

    def open_and_close() -> None:
        while not stop.is_set():
            conn = pool.getconn(timeout=30)
            sockets.add(os.readlink(f"/proc/self/fd/{conn.fileno()}"))
            pool.putconn(conn, close=True)

    opener = in_thread(open_and_close)
    try:
        programs = [running.result() for running in [in_thread(Started, how) for _ in range(6)]]
        inherited = [program.inherited() for program in programs]
        for program in programs:
            program.end()
    finally:
        stop.set()
        opener.result(timeout=30)
    for names in inherited:
        assert not names & sockets
        assert not {name for name in names if "eventpoll" in name}
    give_back(pool, conns)
    assert_whole(pool)
