"""Programs at their end: exit handlers borrow, nothing hangs, nothing is written that alarms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import wait_for_backends
from tests.support.processes import run_program

AT_ONCE = 10.0
"""Seconds; a busy machine is slow, and whatever a process might wait for takes a minute here."""

HEAD = """
import atexit, concurrent.futures, logging, logging.handlers, sys, threading, time
program, workers, app, dsn = sys.argv
def last():
    pass
atexit.register(lambda: last())  # before any of ours
"""
START = """
from psycopg2_pool2 import *
def make(minconn=2, maxconn=4, **kwargs):
    given = {"timeout": 60, "num_workers": int(workers), "application_name": app, "dsn": dsn}
    return ConnectionPool(minconn, maxconn, **{**given, **kwargs})
def rows(number, within=None):
    for n in range(number):
        with (within or pool).transaction() as conn:
            conn.cursor().execute("INSERT INTO rows_at_exit VALUES (%s, %s)", (app, n))
"""
NO_THREADS = """
# As in Python 3.12, which starts no thread any more from the end of the main thread on.
exec('''
import concurrent.futures.thread, psycopg2_pool2.workers, threading, time
psycopg2_pool2.workers.LINGER = 0.01
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
def end():
    time.sleep(0.3)  # until none of the workers is left
    threading.Thread.start = refuse
threading._register_atexit(end)
''', {})  # which holds nothing of the program
"""


@pytest.fixture(scope="module", autouse=True)
def table(server: Server) -> Iterator[None]:
    server.execute("CREATE TABLE rows_at_exit (app text, n int)")
    yield
    server.execute("DROP TABLE rows_at_exit")


class Programs:
    """Runs programs that keep rows under their application's name."""

    def __init__(self, server: Server, app: str, workers: str, before: str) -> None:
        self._server = server
        self._app = app
        self._workers = workers
        self._before = before

    def run(
        self, program: str, *, rows: int = 0, output: str | None = None, unfinished: bool = False
    ) -> None:
        """Run one, which ends by itself, at once, well, and silently, and leaves so many rows.

        Unless it leaves a transaction unfinished the server has nothing to complain of either.
        """
        mark = self._server.mark()
        program = f"{HEAD}{self._before}{START}{program}"
        ended = run_program(program, self._workers, self._app, self._server.dsn)
        assert (ended.errors, ended.status) == ("", 0)
        assert ended.exit_seconds < AT_ONCE
        assert self._rows() == rows
        assert output in (None, ended.output)
        wait_for_backends(self._server, self._app, 0)
        told = self._server.log_text(mark).splitlines()
        lines = [line for line in told if f"app={self._app} " in line]
        assert not [line for line in lines if "unexpected EOF" in line and not unfinished]

    def _rows(self) -> int:
        sql = f"DELETE FROM rows_at_exit WHERE app = '{self._app}' RETURNING n"
        return len(self._server.execute(sql))


@pytest.fixture(params=["workers", "no-workers", "no-threads"])
def programs(server: Server, app: str, request: pytest.FixtureRequest) -> Programs:
    workers = "0" if request.param == "no-workers" else "3"
    before = NO_THREADS if request.param == "no-threads" else ""
    return Programs(server, app, workers, before)


class TestHandlers:
    def test_may_borrow_whenever_they_were_registered(self, programs: Programs) -> None:
        programs.run(
            """
pool = make()
rows(1)
atexit.register(rows, 2)
print("last words")
""",
            rows=3,
        )

    def test_may_borrow_if_they_were_there_before_us(self, programs: Programs) -> None:
        programs.run(
            """
pool = make()
rows(1)
def last():
    rows(2)
print("last words")
""",
            rows=3,
        )

    def test_of_logging_write_what_they_have_buffered(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=1)
class Rows(logging.Handler):
    def emit(self, record):
        rows(1)
log = logging.getLogger("app")
log.setLevel(logging.INFO)
log.addHandler(logging.handlers.MemoryHandler(100, target=Rows()))
for n in range(5):
    log.info("row %d", n)
print("last words")
""",
            rows=5,
        )

    def test_may_use_a_pool_for_the_first_time(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=0)
atexit.register(rows, 2)
print("last words")
""",
            rows=2,
        )

    @pytest.mark.parametrize("arguments", ["", "background_prewarm=False", "minconn=0, maxconn=1"])
    def test_may_make_pools(self, programs: Programs, arguments: str) -> None:
        programs.run(
            f"""
def handler():
    made = make({arguments})
    made.wait(10)
    rows(2, made)
    print(made.stats().idle > 0)
atexit.register(handler)
print("last words")
""",
            rows=2,
        )

    def test_may_replace_what_the_server_has_closed(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=0)
rows(2)
def handler():
    with make(minconn=0).conn() as conn:
        conn.cursor().execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND pid != pg_backend_pid()", (app,)
        )
    rows(2)
atexit.register(handler)
print("last words")
""",
            rows=4,
        )

    def test_may_wait_for_one_that_a_daemon_has(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=0, maxconn=1)
borrowed = threading.Event()
ends = threading.Event()
def use():
    with pool.conn() as conn:
        borrowed.set()
        ends.wait(30)
thread = threading.Thread(target=use, daemon=True)
thread.start()
borrowed.wait(30)
def handler():
    ends.set()
    rows(2)
atexit.register(handler)
print("last words")
""",
            rows=2,
        )

    def test_may_close_the_pool(self, programs: Programs) -> None:
        programs.run(
            """
pool = make()
rows(1)
atexit.register(pool.close)
atexit.register(pool.drain)
print("last words")
""",
            rows=1,
        )

    def test_may_use_the_managers_pools(self, programs: Programs) -> None:
        programs.run(
            """
config = {"dsn": dsn, "application_name": app, "num_workers": int(workers), "timeout": 60}
rows(1, get_pool(config))
atexit.register(lambda: rows(2, get_pool(config)))
print("last words")
""",
            rows=3,
        )

    def test_may_run_an_event_loop_after_another(self, programs: Programs) -> None:
        programs.run(
            """
import asyncio
pool = AsyncConnectionPool(
    1, 4, dsn=dsn, application_name=app, num_workers=int(workers), timeout=60
)
def insert(conn):
    conn.cursor().execute("INSERT INTO rows_at_exit VALUES (%s, 1)", (app,))
async def main():
    await pool.run(insert)
    async with pool.transaction() as conn:
        await pool.run_on(conn, insert)
asyncio.run(main())
atexit.register(lambda: asyncio.run(main()))
print("last words")
""",
            rows=4,
        )


class TestOtherThreads:
    def test_of_an_executor_finish_their_tasks(self, programs: Programs) -> None:
        programs.run(
            """
pool = make()
executor = concurrent.futures.ThreadPoolExecutor(3)
def task():
    time.sleep(0.5)
    rows(2)
for n in range(6):
    executor.submit(task)
print("last words")
""",
            rows=12,
        )

    def test_that_are_no_daemons_go_on_after_the_main_thread(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=1, maxconn=2)
def work():
    time.sleep(0.5)
    rows(3)
for n in range(4):
    threading.Thread(target=work).start()
print("last words")
""",
            rows=12,
        )

    def test_that_wait_for_a_connection_keep_no_process(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=0, maxconn=1)
conn = pool.getconn()
for timeout in (None, 60):
    threading.Thread(target=pool.getconn, kwargs={"timeout": timeout}, daemon=True).start()
while not pool.get_stats()["requests_waiting"]:
    time.sleep(0.01)
print("last words")
"""
        )

    def test_that_wait_for_the_server_keep_no_process(self, programs: Programs) -> None:
        programs.run(
            """
pool = make(minconn=0)
def use():
    with pool.conn() as conn:
        conn.cursor().execute("SELECT pg_sleep(3)")
for n in range(2):
    threading.Thread(target=use, daemon=True).start()
while pool.stats().in_use < 2:
    time.sleep(0.01)
print("last words")
""",
            unfinished=True,
        )

    def test_of_ours_that_connect_keep_no_process(self, programs: Programs) -> None:
        programs.run(
            """
import socket
silent = socket.create_server(("127.0.0.1", 0))
where = {"dsn": "", "host": "127.0.0.1", "port": silent.getsockname()[1]}
pool = make(minconn=3, **where)
threading.Thread(target=pool.getconn, kwargs={"timeout": 60}, daemon=True).start()
peer = silent.accept()
print("last words")
"""
        )


class TestPools:
    def test_that_were_never_used_are_no_matter(self, programs: Programs) -> None:
        programs.run("pool = make(minconn=0); print('last words')")

    def test_that_are_being_filled_are_no_matter(self, programs: Programs) -> None:
        programs.run("pool = make(minconn=4); print('last words')")

    def test_with_open_transactions_are_no_matter(self, programs: Programs) -> None:
        programs.run(
            """
pool = make()
conn = pool.getconn()
conn.cursor().execute("INSERT INTO rows_at_exit VALUES (%s, 1)", (app,))
print("last words")
""",
            unfinished=True,
        )

    def test_that_cannot_connect_are_no_matter(self, programs: Programs) -> None:
        programs.run(
            """
logging.disable()
pool = make(minconn=2, dsn="host=127.0.0.1 port=1")
def handler():
    try:
        pool.getconn(timeout=0.5)
    except PoolTimeout:
        print("timeout")
atexit.register(handler)
print("last words")
"""
        )


class TestFinalizers:
    """They run when all other threads have stopped, and psycopg2 can do nothing any more."""

    def test_may_return_and_close(self, programs: Programs) -> None:
        programs.run(
            """
import os
pool = make(minconn=1)
rows(1)
class Late:
    def __del__(self, write=os.write):
        self.pool.putconn(self.conn)
        self.pool.close()
        self.pool.close()
        write(1, b"ended\\n")
late = Late()
late.pool, late.conn = pool, pool.getconn()
print("last words")
""",
            rows=1,
            output="last words\nended\n",
        )

    def test_may_leave_blocks(self, programs: Programs) -> None:
        programs.run(
            """
import os
pool = make(minconn=1)
def use(write=os.write):
    try:
        with pool.conn() as conn:
            conn.cursor().execute("SELECT 1")  # leaves a transaction open
            yield
    finally:
        write(1, b"ended\\n")
late = use()
next(late)
print("last words")
""",
            output="last words\nended\n",
        )

    @pytest.mark.parametrize("maxconn", [1, 2])
    def test_that_want_a_connection_are_told(self, programs: Programs, maxconn: int) -> None:
        programs.run(
            f"""
import os
pool = make(minconn=0, maxconn={maxconn})
conn = pool.getconn()
class Late:
    def __del__(self, pool=pool, conn=conn, closed=PoolClosed, write=os.write):
        try:
            pool.getconn(timeout=None)
        except closed:
            write(1, b"told\\n")
late = Late()
print("last words")
""",
            output="last words\ntold\n",
        )
