"""The harness itself: servers, proxies and logs do what other tests rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import extensions

from psycopg2_pool2.contrib.embedded import Server, StopMode
from tests.support.proxy import Mode, Proxy
from tests.support.servers import MakeProxy, MakeServer, ReplicaSet, StatementLog
from tests.support.waiting import count_threads, in_thread, wait_until


def query(connection: extensions.connection, sql: str = "SELECT 1") -> object:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone()
    return row and row[0]


def lost(connection: extensions.connection) -> bool:
    """Ask whether a query shows that the connection is dead."""
    try:
        query(connection)
    except psycopg2.Error:
        return bool(connection.closed)
    return False


class TestServer:
    def test_answers_over_tcp_and_over_its_unix_socket(self, server: Server) -> None:
        for dsn in (server.dsn, server.unix_dsn):
            with contextlib.closing(psycopg2.connect(dsn)) as connection:
                assert query(connection) == 1

    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_restarts_under_its_address(self, fresh_server: Server, mode: StopMode) -> None:
        before = psycopg2.connect(fresh_server.dsn)
        fresh_server.restart(mode)
        assert lost(before)
        assert fresh_server.execute("SELECT 1") == [(1,)]

    def test_refuses_while_it_is_stopped(self, fresh_server: Server) -> None:
        fresh_server.stop()
        assert not fresh_server.running
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            psycopg2.connect(fresh_server.dsn)

    def test_starts_again_after_it_was_killed(self, fresh_server: Server) -> None:
        connection = psycopg2.connect(fresh_server.dsn)
        fresh_server.kill()
        assert lost(connection)
        fresh_server.start()
        assert fresh_server.execute("SELECT 1") == [(1,)]

    def test_several_share_a_port_on_addresses_of_their_own(self, make_server: MakeServer) -> None:
        first = make_server(max_connections=17)
        second = make_server("127.0.0.2", first.port, max_connections=18)
        assert first.execute("SHOW max_connections") == [("17",)]
        assert second.execute("SHOW max_connections") == [("18",)]

    def test_names_and_ends_the_backends_of_an_application(self, server: Server) -> None:
        mine, other = (psycopg2.connect(server.dsn, application_name=n) for n in ("mine", "other"))
        assert server.backends("mine") == [mine.get_backend_pid()]
        assert server.terminate_all("mine") == 1
        assert lost(mine)
        server.terminate_backend(other.get_backend_pid())
        assert lost(other)

    def test_freezes_one_backend_while_others_answer(self, server: Server) -> None:
        frozen, other = psycopg2.connect(server.dsn), psycopg2.connect(server.dsn)
        server.freeze_backend(frozen.get_backend_pid())
        answer = in_thread(query, frozen)
        assert query(other) == 1
        assert not answer.done
        server.thaw_backend(frozen.get_backend_pid())
        assert answer.result() == 1
        frozen.close()
        other.close()

    def test_freezes_as_a_whole(self, fresh_server: Server) -> None:
        fresh_server.freeze()
        answer = in_thread(fresh_server.execute, "SELECT 1")
        assert not answer.done
        fresh_server.thaw()
        assert answer.result() == [(1,)]

    def test_stops_though_it_is_frozen(self, fresh_server: Server) -> None:
        fresh_server.freeze()
        fresh_server.stop()
        assert not fresh_server.running

    def test_leaves_no_folder_and_no_process(self) -> None:
        server = Server.create()
        folder, pid = Path(server.socket_dir), server.pid
        assert pid is not None
        server.close()
        server.close()
        assert not folder.exists()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    @pytest.mark.parametrize("ending", ["sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
    def test_ends_with_its_process(self, ending: str) -> None:
        program = (
            "import os, signal, sys; from psycopg2_pool2.contrib.embedded import Server;"
            "server = Server.create(); print(server.socket_dir, server.dsn, flush=True);"
        )
        done = subprocess.run(
            [sys.executable, "-c", program + ending], capture_output=True, text=True, check=False
        )
        folder, dsn = done.stdout.strip().split(maxsplit=1)
        passfile = Path(extensions.parse_dsn(dsn)["passfile"])
        wait_until(lambda: not Path(folder).exists() and not passfile.parent.exists())
        assert done.stderr == ""
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            psycopg2.connect(dsn)

    def test_starts_again_after_it_ended_by_itself(self, fresh_server: Server) -> None:
        assert fresh_server.pid is not None
        os.kill(fresh_server.pid, signal.SIGQUIT)
        wait_until(lambda: not fresh_server.running)
        fresh_server.start()
        assert fresh_server.execute("SELECT 1") == [(1,)]

    def test_a_forked_child_does_not_stop_it(self, fresh_server: Server) -> None:
        child = os.fork()
        if child == 0:
            fresh_server.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert fresh_server.execute("SELECT 1") == [(1,)]


class TestReplicas:
    def test_stream_and_are_promoted(self, replica_set: ReplicaSet) -> None:
        replica_set.primary.execute("CREATE TABLE t AS SELECT 42 AS n")
        replica_set.wait_caught_up()
        for replica in replica_set.replicas:
            assert replica.execute("SELECT n, pg_is_in_recovery() FROM t") == [(42, True)]
        promoted = replica_set.fail_over()
        assert promoted.execute("INSERT INTO t VALUES (43) RETURNING n") == [(43,)]
        with contextlib.closing(
            psycopg2.connect(replica_set.dsn, target_session_attrs="read-write")
        ) as connection:
            assert connection.info.host == promoted.host


class TestStatementLog:
    def test_has_the_statements_of_its_application_only(
        self, server: Server, statement_log: StatementLog
    ) -> None:
        connection, other = psycopg2.connect(statement_log.dsn), psycopg2.connect(server.dsn)
        query(other, "SELECT 'somebody else'")
        query(connection, "SELECT 1,\n\t2")
        assert statement_log.statements() == ["BEGIN", "SELECT 1,\n\t2"]
        assert statement_log.during(connection.rollback) == ["ROLLBACK"]
        connection.close()
        other.close()


class TestProxy:
    @pytest.fixture
    def through(self, proxy: MakeProxy) -> Proxy:
        return proxy()

    @pytest.fixture
    def connection(self, through: Proxy) -> extensions.connection:
        return psycopg2.connect(through.dsn)

    def test_forwards(self, through: Proxy, connection: extensions.connection) -> None:
        assert query(connection, "SELECT length(repeat('x', 5000000))") == 5_000_000
        text = query(connection, "SELECT repeat('x', 5000000)")
        assert isinstance(text, str)
        assert len(text) == 5_000_000
        assert (through.connects, through.connections) == (1, 1)
        connection.close()
        wait_until(lambda: through.connections == 0)

    def test_refuses_new_connections_and_keeps_old_ones(
        self, through: Proxy, connection: extensions.connection
    ) -> None:
        through.refuse()
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            psycopg2.connect(through.dsn)
        assert query(connection) == 1
        through.forward()
        assert query(psycopg2.connect(through.dsn)) == 1

    def test_accepts_and_closes(self, through: Proxy, connection: extensions.connection) -> None:
        through.accept_and_close()
        assert through.mode is Mode.ACCEPT_AND_CLOSE
        with pytest.raises(psycopg2.OperationalError, match=r"closed the connection|reset"):
            psycopg2.connect(through.dsn)
        assert query(connection) == 1
        assert through.connects == 2

    def test_freezes_old_and_new_connections_until_it_forwards_again(
        self, through: Proxy, connection: extensions.connection
    ) -> None:
        through.freeze()
        answer = in_thread(query, connection)
        opened = in_thread(psycopg2.connect, through.dsn)
        wait_until(lambda: through.connects == 2)
        assert not answer.done
        assert not opened.done
        through.forward()
        assert answer.result() == 1
        assert query(opened.result()) == 1

    def test_freezes_one_connection(
        self, through: Proxy, connection: extensions.connection
    ) -> None:
        other = psycopg2.connect(through.dsn)
        through.freeze(only=connection)
        answer = in_thread(query, connection)
        assert query(other) == 1
        assert not answer.done
        through.forward()
        assert answer.result() == 1

    @pytest.mark.parametrize("reset", [True, False])
    def test_cuts_one_or_all(
        self, through: Proxy, connection: extensions.connection, reset: bool
    ) -> None:
        others = [psycopg2.connect(through.dsn) for _ in range(2)]
        assert through.cut(connection, reset=reset) == 1
        assert lost(connection)
        assert [query(other) for other in others] == [1, 1]
        assert through.cut(reset=reset) == 2
        assert all(lost(other) for other in others)

    def test_cuts_after_the_server_did_it_and_before_the_client_hears(
        self, server: Server, through: Proxy, connection: extensions.connection
    ) -> None:
        query(connection, "CREATE TABLE cut_after AS SELECT 1 AS n; SELECT 1")
        through.cut_after(to_client=0)
        with pytest.raises(psycopg2.OperationalError):
            connection.commit()
        wait_until(lambda: server.execute("SELECT to_regclass('cut_after') IS NOT NULL")[0][0])
        server.execute("DROP TABLE cut_after")

    def test_cuts_before_the_server_hears(
        self, server: Server, through: Proxy, connection: extensions.connection
    ) -> None:
        query(connection, "CREATE TABLE never_made AS SELECT 1 AS n; SELECT 1")
        pid = connection.get_backend_pid()
        through.cut_after(to_server=3)
        with pytest.raises(psycopg2.OperationalError):
            connection.commit()
        wait_until(lambda: pid not in server.backends())
        assert server.execute("SELECT to_regclass('never_made')") == [(None,)]

    def test_delays_each_direction(self, through: Proxy, connection: extensions.connection) -> None:
        connection.autocommit = True
        through.delay(0.05)
        started = time.monotonic()
        assert query(connection) == 1
        assert time.monotonic() - started >= 0.1

    def test_closes_what_it_accepted_when_the_server_is_down(
        self, fresh_server: Server, proxy: MakeProxy
    ) -> None:
        before = proxy(fresh_server)
        fresh_server.stop()
        with pytest.raises(psycopg2.OperationalError, match=r"closed the connection|reset"):
            psycopg2.connect(before.dsn)

    def test_leaves_no_thread_and_no_socket(self, server: Server) -> None:
        with Proxy((server.host, server.port)) as through:
            assert count_threads("proxy-") == 1
            connection = psycopg2.connect(through.dsn)
        assert count_threads("proxy-") == 0
        assert lost(connection)


class TestWaiting:
    def test_wait_until_says_what_it_waited_for(self) -> None:
        found: list[int] = []
        with pytest.raises(AssertionError, match=r"not within 0 s: .*in found.* \(last: False\)"):
            wait_until(lambda: 42 in found, timeout=0)

    def test_a_call_that_hangs_shows_where(self) -> None:
        release = threading.Event()
        waiting = in_thread(release.wait)
        with pytest.raises(AssertionError, match=r"in wait"):
            waiting.result(timeout=0.1)
        release.set()
        assert waiting.result() is True

    def test_a_call_that_raises_raises_again(self) -> None:
        assert isinstance(in_thread(int, "x").error(), ValueError)
