"""The watch on sockets: an idle connection that the server closed is replaced before a borrow."""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats, monitor
from psycopg2_pool2 import upkeep as upkeep_module
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.store import Record
from psycopg2_pool2.upkeep import Upkeep
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    end_sessions,
    fill,
    give_back,
    pid_of,
    round_trip,
    wait_for_backends,
    wait_until_at_rest,
    wait_until_lost,
)
from tests.support.processes import in_child
from tests.support.waiting import in_thread, wait_until

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")

MANY = 50


def wait_until_replaced(server: Server, app: str, pool: ConnectionPool, old: set[int]) -> None:
    """Wait until as many others are idle, with nobody borrowing."""
    number = len(old)
    wait_until(lambda: len(set(server.backends(app)) - old) == number, timeout=20)
    wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=number))


def borrow_from_many_threads(pool: ConnectionPool) -> None:
    """Have 16 threads borrow and ask; raise what fails."""

    def several() -> None:
        for _ in range(10):
            round_trip(pool, timeout=20)

    for borrower in [in_thread(several) for _ in range(16)]:
        borrower.result(timeout=30)


class TestInHand:
    """A connection that dies while a thread of the pool has it in hand, too late to be noticed."""

    @pytest.fixture
    def die_after(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[object, str], None]:
        """Return a function that makes the connection given to a method die right after it, once.

        When the method returns, the watch has reported it and the pool has looked for it in vain.
        """

        def patch(owner: object, name: str) -> None:
            method = getattr(owner, name)

            def die_after_it(conn: Any, *args: Any) -> Any:
                result = method(conn, *args)
                monkeypatch.setattr(owner, name, method)
                examined = threading.Event()
                examine = Upkeep.examine

                def look_in_vain(upkeep: Upkeep, record: Record) -> None:
                    examine(upkeep, record)
                    examined.set()

                monkeypatch.setattr(Upkeep, "examine", look_in_vain)
                server.terminate_backend(pid_of(conn))
                assert examined.wait(20)
                return result

            monkeypatch.setattr(owner, name, die_after_it)

        return patch

    def test_in_vain_is_looked_into_once(
        self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mark that nobody takes off would have the connection examined again and again."""
        pool = make_pool(test_on_borrow=False)
        conn: Any = pool.getconn(timeout=10)
        pool.putconn(conn)
        examined: list[Record] = []
        examine = pool._upkeep.examine

        def note(upkeep: Upkeep, record: Record) -> None:
            examined.append(record)
            examine(record)

        monkeypatch.setattr(Upkeep, "examine", note)
        for _ in range(3):
            upkeep_module._hung_up(weakref.ref(pool._upkeep), conn.pool_record)
            wait_until_at_rest()
        assert len(examined) == 3
        assert pool.getconn(timeout=10) is conn
        pool.putconn(conn)

    def test_while_it_is_probed(
        self,
        server: Server,
        app: str,
        make_pool: MakePool,
        die_after: Callable[[object, str], None],
    ) -> None:
        pool = make_pool(minconn=1, test_on_borrow=False)
        old = set(fill(pool, 1))
        die_after(pool._supply._connector, "probe")
        pool._upkeep.sweep()
        wait_until_replaced(server, app, pool, old)

    def test_while_it_comes_back(
        self,
        server: Server,
        app: str,
        make_pool: MakePool,
        die_after: Callable[[object, str], None],
    ) -> None:
        pool = make_pool(minconn=1, test_on_borrow=False)
        conn = pool.getconn(timeout=10)
        ask(conn)
        old = {pid_of(conn)}
        die_after(pool._supply._connector, "tidy")
        pool.putconn(conn)
        wait_until_replaced(server, app, pool, old)

    def test_before_it_is_idle_for_the_first_time(
        self,
        server: Server,
        app: str,
        make_pool: MakePool,
        die_after: Callable[[object, str], None],
    ) -> None:
        pool = make_pool(test_on_borrow=False)
        seen: list[int] = []
        on_opened = pool._upkeep.on_opened

        def note_and_go_on(conn: Any, record: Record) -> None:
            on_opened(conn, record)
            seen.append(pid_of(conn))

        pool._upkeep.on_opened = note_and_go_on  # type: ignore[method-assign]
        die_after(pool._upkeep, "on_opened")
        pool.resize(1, 1)
        wait_until(lambda: seen)
        wait_until_replaced(server, app, pool, set(seen[:1]))


class TestManyDead:
    def test_are_replaced_with_nobody_borrowing_and_hardly_a_word(
        self, server: Server, app: str, make_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, logger="psycopg2_pool2")
        pool = make_pool(minconn=MANY, maxconn=MANY, test_on_borrow=False)
        pool.wait()
        old = set(end_sessions(server, app))
        assert len(old) == MANY
        wait_until_replaced(server, app, pool, old)
        borrow_from_many_threads(pool)
        assert len(caplog.records) <= 2, caplog.text

    def test_are_not_lent_while_they_die(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        """Each has ended for sure before the borrow begins that must not get it."""
        pool = make_pool(minconn=MANY, maxconn=MANY, test_on_borrow=True)
        pool.wait()
        ended: dict[int, float] = {}
        all_ended = threading.Event()

        def end(pid: int) -> None:
            server.execute("SELECT pg_terminate_backend(%s)", [pid])
            wait_until(lambda: not psutil.pid_exists(pid))
            ended[pid] = time.monotonic()

        def end_one_after_the_other() -> None:
            try:
                for pid in server.backends(app):
                    end(pid)
            finally:
                all_ended.set()

        def borrow_on_and_on() -> None:
            while not all_ended.is_set():
                started = time.monotonic()
                with suppress(psycopg2.OperationalError), pool.conn(timeout=20) as conn:
                    assert ended.get(pid_of(conn), started) >= started
                    ask(conn)  # which fails if it is ended now

        killer = in_thread(end_one_after_the_other)
        for borrower in [in_thread(borrow_on_and_on) for _ in range(16)]:
            borrower.result(timeout=60)
        killer.result()
        assert len(ended) == MANY
        assert_whole(pool)

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_do_not_delay_the_next_borrow_where_nothing_is_watched(
        self, server: Server, app: str, make_pool: MakePool, test_on_borrow: bool
    ) -> None:
        pool = make_pool(maxconn=MANY, num_workers=0, test_on_borrow=test_on_borrow)
        old = set(fill(pool, MANY))
        end_sessions(server, app)
        started = time.monotonic()
        assert round_trip(pool) not in old
        assert time.monotonic() - started < 8  # a pause for each would make it many
        assert_whole(pool)


# -- descriptors -------------------------------------------------------------------


@contextmanager
def lowest_descriptor(fd: int) -> Iterator[None]:
    """Have every number below `fd` in use, so that it is the next one to be given out."""
    with ExitStack() as stack:
        while True:
            filler = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, filler)
            if filler > fd:
                yield
                return


@contextmanager
def socket_on(fd: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Have somebody else's socket on a descriptor that has just become free."""
    here, there = socket.socketpair()
    with here, there:
        assert here.fileno() == fd
        yield here, there


def close_it(pool: ConnectionPool, conn: Any) -> None:
    conn.close()


def detach_and_close_it(pool: ConnectionPool, conn: Any) -> None:
    pool.detach(conn).close()


class TestDescriptors:
    """A number that is used again: nothing of the former owner's meets the new one."""

    @pytest.fixture
    def pool(self, make_pool: MakePool) -> ConnectionPool:
        # Nothing of its own opens or tests, and none is lent untested without its watch.
        return make_pool(maxconn=2, test_on_borrow=False, health_check_interval=0)

    @pytest.mark.parametrize("leave", [close_it, detach_and_close_it])
    def test_of_a_connection_the_user_closed_are_the_new_owners(
        self, server: Server, pool: ConnectionPool, leave: Any
    ) -> None:
        conn, other = borrow(pool, 2)
        pool.putconn(other)
        fd = conn.fileno()
        with lowest_descriptor(fd):
            leave(pool, conn)
            with socket_on(fd) as (here, there):
                if leave is close_it:
                    pool.putconn(conn)
                del conn
                assert round_trip(pool) == pid_of(other)
                there.sendall(b"news")
                assert here.recv(10) == b"news"
                here.sendall(b"answer")
                assert there.recv(10) == b"answer"
                there.close()
                assert here.recv(10) == b""
                assert round_trip(pool) == pid_of(other)
            assert pool.get_stats()["pool_size"] == 1
            # The pool's next one gets the number, and is watched under it.
            first, second = borrow(pool, 2)
            new = next(conn for conn in (first, second) if conn is not other)
            assert new.fileno() == fd
            give_back(pool, [first, second])
            server.terminate_backend(pid_of(new))
            wait_until_lost(pool)
            assert round_trip(pool) == pid_of(other)

    def test_of_a_detached_connection_are_not_watched(
        self, server: Server, pool: ConnectionPool
    ) -> None:
        conn, other = borrow(pool, 2)
        pool.putconn(other)
        pool.detach(conn)
        server.terminate_backend(pid_of(conn))
        with pytest.raises(psycopg2.OperationalError):
            ask(conn)
        assert round_trip(pool) == pid_of(other)
        assert pool.get_stats()["connections_lost"] == 0
        conn.close()
        assert_whole(pool)

    def test_that_a_forked_child_has_too_do_not_hide_a_hang_up(
        self, server: Server, pool: ConnectionPool
    ) -> None:
        conns = borrow(pool, 2)
        with child_with_duplicates():
            dead, alive = conns
            give_back(pool, conns)
            server.terminate_backend(pid_of(dead))
            wait_until_lost(pool)
            assert round_trip(pool) == pid_of(alive)

    @pytest.mark.parametrize("how", ["by the pool", "by the user"])
    def test_that_a_forked_child_has_too_and_were_closed_here_hurt_no_successor(
        self, server: Server, app: str, pool: ConnectionPool, how: str
    ) -> None:
        """The child's keep the closed session's socket open: its end is still reported."""
        conn, other = borrow(pool, 2)
        fd, pid = conn.fileno(), pid_of(conn)
        with child_with_duplicates(), lowest_descriptor(fd):
            if how == "by the user":
                conn.close()
            pool.putconn(conn, close=True)
            new = pool.getconn(timeout=10)
            assert new.fileno() == fd
            give_back(pool, [new, other])
            wait_until(lambda: pid not in server.backends(app))
            assert sorted([round_trip(pool), round_trip(pool)]) == sorted(map(pid_of, (new, other)))
            # And the successor's own end is noticed.
            server.terminate_backend(pid_of(new))
            wait_until_lost(pool)
            assert round_trip(pool) == pid_of(other)


@contextmanager
def child_with_duplicates() -> Iterator[None]:
    """Have a forked child that does nothing but keep this process's descriptors open.

    The pool's hook closes those of idle connections there, so have them in use at the fork.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            os.read(reader, 1)  # until its end
        finally:
            os._exit(0)
    os.close(reader)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(child, 0)


# -- without epoll -----------------------------------------------------------------


class TestSweep:
    """Where sockets cannot be watched they are probed once a second."""

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_replaces_dead_connections_with_nobody_borrowing(
        self, server: Server, app: str, test_on_borrow: bool
    ) -> None:
        def child() -> object:
            del select.epoll
            # Pools that nobody has collected yet have made a monitor at the fork.
            monitor._monitor = None
            options: dict[str, Any] = {"application_name": app, "test_on_borrow": test_on_borrow}
            with ConnectionPool(3, 4, **options, **server.params) as pool:
                pool.wait()
                old = set(wait_for_backends(server, app, 3))
                end_sessions(server, app)
                wait_until_replaced(server, app, pool, old)
                # One that died since the last sweep is not lent either.
                end_sessions(server, app)
                borrow_from_many_threads(pool)
                assert_whole(pool)
                return monitor.get_monitor().watches

        assert in_child(child, timeout=30) == "False"
