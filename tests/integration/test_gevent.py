"""Pools in processes whose threads are greenlets: gevent's, and eventlet's where it is there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions, extras

from psycopg2_pool2 import ConnectionPool, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from tests.support.droppable import Droppable, droppable
from tests.support.pools import end_sessions, watched_sessions
from tests.support.processes import in_child, run_program
from tests.support.programs import skip_without
from tests.support.servers import MakeServer, StatementLog
from tests.support.waiting import in_thread, wait_until
from tests.support.withholding import withholding

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="packets are dropped as Linux can")

SECONDS = 60
"""Enough for any scenario; their own limits are much shorter."""
Commands = dict[str, Callable[[], object]]


@pytest.fixture(params=["gevent", "eventlet"])
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    skip_without(name)
    return name


@contextmanager
def started(library: str, scenario: str, dsn: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process of greenlets; end it after the block, or when it hangs."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.support.apps.green"]
    with subprocess.Popen(
        [*program, library, scenario, dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            process.kill()
            watchdog.cancel()


def serve(process: subprocess.Popen[str], commands: Commands) -> dict[str, Any]:
    """Do what it asks for until it tells its results; it must have nothing to complain of."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    result: dict[str, Any] = {}
    for line in process.stdout:
        if line.startswith("{"):
            result = json.loads(line)
        else:
            commands[line.strip()]()
            process.stdin.write("done\n")
            process.stdin.flush()
    errors = process.stderr.read()
    assert process.wait(SECONDS) == 0, errors
    return {**result, "stderr": errors}


def run(library: str, scenario: str, dsn: str, **commands: Callable[[], object]) -> dict[str, Any]:
    """Run one scenario to its end; return what it told, and what it wrote to stderr."""
    with started(library, scenario, dsn) as process:
        return serve(process, commands)


def through(network: Droppable) -> str:
    """Return the dsn of the server behind a network."""
    return f"host={network.host} port={network.port} user=postgres dbname=postgres"


class TestBorrowing:
    def test_in_a_crowd_stops_no_other_greenlet_and_needs_no_thread(
        self, server: Server, statement_log: StatementLog, library: str
    ) -> None:
        with started(library, "crowd", statement_log.dsn) as process:
            app = statement_log.application_name
            with watched_sessions(server, app, limit=5, process=process.pid) as watch:
                told = serve(process, {})
        assert 0 < watch.peak <= 5
        assert told["ticks"] > 20
        assert told["threads"] == 1

    def test_waits_in_turn_and_no_longer_than_its_timeout(self, dsn: str, library: str) -> None:
        told = run(library, "waiting", dsn)
        assert told["served"] == list(range(5))
        assert told["ticks"] > 10

    def test_ends_in_time_in_a_black_hole(self, server: Server, library: str) -> None:
        with droppable(server) as silent, droppable(server) as lost:

            def swallow() -> None:
                silent.freeze()
                lost.drop_connects()

            def restore() -> None:
                silent.forward()
                lost.serve_connects()

            dsns = f"{through(silent)}; {through(lost)}"
            told = run(library, "black_hole", dsns, swallow=swallow, restore=restore)
        assert told["longest"] < 10
        assert told["ticks"] > 50


class TestInterruptions:
    def test_lose_nothing_wherever_they_strike(
        self, server: Server, statement_log: StatementLog, library: str
    ) -> None:
        app = statement_log.application_name
        with (
            droppable(server) as network,
            watched_sessions(server, app, limit=3) as watch,
        ):
            told = run(
                library,
                "interruptions",
                f"{through(network)} application_name={app}",
                freeze=network.freeze,
                forward=network.forward,
            )
        assert told["phases"] == 20
        # The network may not have passed on yet that the one that was struck was closed.
        assert 0 < watch.peak <= 3

    def test_of_a_query_cost_its_connection_and_end_it_at_the_server_too(
        self, server: Server, statement_log: StatementLog, library: str
    ) -> None:
        app = statement_log.application_name

        def sleeping() -> list[tuple[int]]:
            return server.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
                " AND state = 'active' AND query LIKE '%%pg_sleep%%'",
                [app],
            )

        told = run(
            library,
            "timeouts_in_queries",
            statement_log.dsn,
            wait_for_the_end_of_pg_sleep=lambda: wait_until(lambda: not sleeping()),
        )
        assert told["returns_bad"] == 51

    def test_of_a_query_stop_no_other_greenlet_while_the_server_takes_no_request(
        self, server: Server, library: str
    ) -> None:
        with withholding(server) as network:
            where = f"host={network.host} port={network.port} user=postgres dbname=postgres"
            told = run(library, "unanswered_requests", where)
            assert network.held == 2
        assert told["longest"] < 5

    def test_a_return_while_another_greenlet_uses_the_connection_stops_neither(
        self, dsn: str, library: str
    ) -> None:
        told = run(library, "returns_in_use", dsn)
        assert told["errors"] == [True, True]


class TestServer:
    def test_restarts_are_survived_by_all(self, make_server: MakeServer, library: str) -> None:
        server = make_server()
        told = run(library, "restart", server.dsn, restart=server.restart)
        assert told["errors"] == 2, "of those whose statements it interrupted"

    def test_sessions_that_it_ends_while_they_are_idle_are_found(
        self, server: Server, statement_log: StatementLog, library: str
    ) -> None:
        def end() -> None:
            end_sessions(server, statement_log.application_name)

        told = run(library, "sweep", statement_log.dsn, end_sessions=end)
        assert not told["watches"]


class TestForks:
    """gevent's: eventlet itself does not survive one."""

    def test_leave_the_sessions_alone_that_inherited_greenlets_were_using(
        self, server: Server
    ) -> None:
        skip_without("gevent")
        with droppable(server) as network:
            told = run(
                "gevent",
                "fork",
                through(network),
                freeze=network.freeze,
                forward=network.forward,
            )
        assert told["status"] == 0
        assert told["stderr"] == ""

    def test_may_come_before_the_process_is_patched(self, dsn: str) -> None:
        skip_without("gevent")
        ended = run_program(PATCHED_IN_A_CHILD, dsn)
        assert ended.output == "[0, 1, 2, 3]\n", ended.errors
        assert ended.status == 0


PATCHED_IN_A_CHILD = """
import os, sys
from psycopg2_pool2 import ConnectionPool

pool = ConnectionPool(1, 2, dsn=sys.argv[1], timeout=10, background_prewarm=False)
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))

from tests.support.apps.greenlets import Gevent

def answer(number):
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT %s FROM pg_sleep(0.01)", (number,))
        return cursor.fetchone()[0]

gevent = Gevent()
greenlets = [gevent.spawn(answer, number) for number in range(4)]
print([gevent.result(greenlet) for greenlet in greenlets])
"""


def test_limits_hold_where_threads_wait_in_python_too(server: Server) -> None:
    """As psycopg2's documentation has it, so that Ctrl-C ends a statement."""

    def borrow_in_vain(num_workers: int) -> str:
        options = {"num_workers": num_workers, "connect_timeout": 1}
        with ConnectionPool(0, 1, dsn=through(network), **options) as pool:  # type: ignore[arg-type]
            with pytest.raises(PoolTimeout) as raised:
                pool.getconn(timeout=3)
            assert isinstance(raised.value.__cause__, psycopg2.OperationalError)
            return str(raised.value.__cause__)

    def borrow_in_both_ways() -> list[str]:
        extensions.set_wait_callback(extras.wait_select)
        borrowers = [in_thread(borrow_in_vain, number) for number in (3, 0)]
        return [borrower.result() for borrower in borrowers]

    with droppable(server) as network:
        network.freeze()
        assert in_child(borrow_in_both_ways).count("timeout expired") == 2
