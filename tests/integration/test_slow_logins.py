"""Servers with slow logins, and black holes beside good servers: the one is waited for only."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from psycopg2_pool2 import ConnectionPool, PoolTimeout, dialer, silence, supply
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import MakePool, borrow, give_back, pool_maker, round_trip, start_waiter
from tests.support.rude_server import Accept, Hang, Login, Reply, RudeServer, Wait
from tests.support.servers import new_server
from tests.support.waiting import in_thread, wait_until

LOGIN_TAKES = 0.6
FIRST_TRY = 0.3

WAYS = pytest.mark.parametrize(
    ("num_workers", "can_look"),
    [(3, True), (3, False), (0, True)],
    ids=["workers", "workers-not-on-Linux", "no-workers"],
)


@pytest.fixture(autouse=True)
def short_first_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "FIRST_TRY", FIRST_TRY)
    monkeypatch.setattr(dialer, "NEXT_TRY", FIRST_TRY)
    monkeypatch.setattr(silence, "_SIDE_QUESTION_TIMEOUT", FIRST_TRY)


@pytest.fixture
def make_pool(
    num_workers: int, can_look: bool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakePool]:
    monkeypatch.setattr(dialer, "CAN_LOOK", can_look and sys.platform == "linux")
    with pool_maker(num_workers=num_workers, user="u", dbname="shop") as make:
        yield make


def places(*ports: int) -> dict[str, str]:
    return {
        "host": ",".join(["127.0.0.1"] * len(ports)),
        "port": ",".join(str(port) for port in ports),
    }


@pytest.fixture
def slow_servers() -> Iterator[list[RudeServer]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(RudeServer(lambda login: Wait(LOGIN_TAKES, Accept())))
            for _ in range(3)
        ]


@WAYS
@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_slow_logins_are_begun_once_each_and_spread_evenly(
    slow_servers: list[RudeServer], make_pool: MakePool, sslmode: str
) -> None:
    ports = [server.port for server in slow_servers]
    pool = make_pool(0, 6, sslmode=sslmode, **places(*ports))
    borrowers = [in_thread(pool.getconn, timeout=15) for _ in range(6)]
    conns = [borrower.result() for borrower in borrowers]
    assert Counter(conn.info.port for conn in conns) == dict.fromkeys(ports, 2)
    assert [server.logins for server in slow_servers] == [2, 2, 2]
    assert pool.get_stats()["connections_errors"] == 0
    assert [endpoint.failures for endpoint in pool.endpoints()] == [0, 0, 0]
    give_back(pool, conns)


@WAYS
def test_a_slow_login_at_the_only_server_is_begun_once(
    slow_servers: list[RudeServer], make_pool: MakePool
) -> None:
    [server, *_] = slow_servers
    pool = make_pool(0, 3, **places(server.port))
    round_trip(pool)
    assert server.logins == 1


# -- black holes ---------------------------------------------------------------


class Hole:
    """A place where connections are begun and nobody answers."""

    def __init__(self, port: int, own: frozenset[int] = frozenset()) -> None:
        self.port = port
        self._own = own  # ports of sockets that are not the pool's

    def attempts(self) -> list[Any]:
        """Return the sockets of this process that lead here, but for those of the test's own."""
        return [
            found
            for found in psutil.Process().net_connections("tcp")
            if found.raddr and found.raddr.port == self.port and found.laddr.port not in self._own
        ]


@contextlib.contextmanager
def mute_listener() -> Iterator[Hole]:
    """Accept, in the kernel, and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Hole(listener.getsockname()[1])


@contextlib.contextmanager
def full_backlog() -> Iterator[Hole]:
    """Answer no SYN, since the backlog is full."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        contextlib.ExitStack() as stack,
    ):
        port = listener.getsockname()[1]
        own: list[int] = []
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(("127.0.0.1", port))
            except TimeoutError:
                own.append(filler.getsockname()[1])
                break
            own.append(filler.getsockname()[1])
        else:
            pytest.skip("this kernel does not drop SYNs when a backlog is full")
        yield Hole(port, frozenset(own))


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Server]:
    with new_server() as server:
        yield server


@pytest.fixture(params=["accepts and is mute", "full backlog", "stopped server"])
def hole(request: pytest.FixtureRequest) -> Iterator[Hole]:
    if request.param == "accepts and is mute":
        with mute_listener() as made:
            yield made
    elif request.param == "full backlog":
        with full_backlog() as made:
            yield made
    else:
        server: Server = request.getfixturevalue("stoppable")
        server.freeze()
        try:
            yield Hole(server.port)
        finally:
            server.thaw()


def try_first(pool: ConnectionPool, port: int) -> None:
    """Have the endpoint at this port tried before the others."""
    for endpoint in pool._supply._endpoints.current():
        endpoint.lot = 1.0 if endpoint.port == port else endpoint.lot / 2


@WAYS
@pytest.mark.parametrize("sslmode", ["prefer", "disable"])
def test_a_black_hole_costs_the_first_try_and_its_attempt_is_ended(
    hole: Hole, make_pool: MakePool, sslmode: str
) -> None:
    with RudeServer() as one, RudeServer() as other:
        ports = (hole.port, one.port, other.port)
        pool = make_pool(0, 1, sslmode=sslmode, connect_timeout=60, **places(*ports))
        try_first(pool, hole.port)
        conn = pool.getconn(timeout=15)
        assert conn.info.port in (one.port, other.port)
        pool.putconn(conn)
        [silent] = [e for e in pool.endpoints() if e.port == hole.port]
        assert silent.failures == 1
        assert "no answer within 0.3 s" in str(silent.last_error)
        wait_until(lambda: not hole.attempts())
        assert pool.get_stats()["pool_opening"] == 0
        pool.putconn(pool.getconn(timeout=15), close=True)
        round_trip(pool)
        assert pool.get_stats()["requests_errors"] == 0


@WAYS
def test_nothing_but_holes_is_a_timeout(make_pool: MakePool) -> None:
    with mute_listener() as one, mute_listener() as other:
        pool = make_pool(0, 2, connect_timeout=2, **places(one.port, other.port))
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.7)
        pool.shutdown()
        wait_until(lambda: not one.attempts() + other.attempts())


# -- one opening that hangs ----------------------------------------------------


class HangsOnce:
    """`connect_params` that hangs the first time, until it is released."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.release = threading.Event()
        self._lock = threading.Lock()

    def __call__(self) -> dict[str, Any]:
        with self._lock:
            is_first = not self.hangs.is_set()
            self.hangs.set()
        if is_first:
            assert self.release.wait(30)
        return {}


@pytest.fixture
def hangs_once() -> Iterator[HangsOnce]:
    made = HangsOnce()
    yield made
    made.release.set()


@contextlib.contextmanager
def hanging_server() -> Iterator[tuple[RudeServer, Callable[[], None]]]:
    """Make a server that answers nothing to its first login until it is released, then accepts."""
    release = threading.Event()

    def decide(login: Login) -> Reply:
        if login.number == 1:
            release.wait(30)
        return Accept()

    with RudeServer(decide) as server:
        try:
            yield server, release.set
        finally:
            release.set()


@WAYS
class TestOneThatHangs:
    @pytest.fixture(autouse=True)
    def short_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supply, "FIRST_PATIENCE", FIRST_TRY)

    def test_in_a_callback_keeps_nobody_else_waiting(
        self, make_pool: MakePool, hangs_once: HangsOnce
    ) -> None:
        """The first in the queue gets what is opened for the next one, which gets another."""
        with RudeServer() as rude:
            pool = make_pool(0, 4, connect_params=hangs_once, **places(rude.port))
            first = start_waiter(pool)
            assert hangs_once.hangs.wait(10)
            conns = borrow(pool, 2)
            assert pool.get_stats()["pool_size"] == 4
            hangs_once.release.set()
            pool.putconn(first.result())
            give_back(pool, conns)
            assert_at_most(pool, rude, 4)

    def test_in_a_callback_is_overtaken_though_its_borrower_has_left(
        self, make_pool: MakePool, hangs_once: HangsOnce, num_workers: int
    ) -> None:
        with RudeServer() as rude:
            pool = make_pool(0, 3, connect_params=hangs_once, **places(rude.port))
            first = start_waiter(pool, timeout=0.2)
            assert hangs_once.hangs.wait(10)
            if num_workers:
                assert isinstance(first.error(), PoolTimeout)
            pool.putconn(pool.getconn(timeout=15))
            hangs_once.release.set()
            if first.error() is None:
                pool.putconn(first.result())
            assert_at_most(pool, rude, 3)

    def test_counts_for_maxconn(self, make_pool: MakePool, hangs_once: HangsOnce) -> None:
        with RudeServer() as rude:
            pool = make_pool(0, 2, connect_params=hangs_once, **places(rude.port))
            waiters = [start_waiter(pool)]
            assert hangs_once.hangs.wait(10)
            waiters.append(start_waiter(pool))
            wait_until(lambda: rude.logins == 1)
            with pytest.raises(PoolTimeout):
                pool.getconn(timeout=0.7)
            assert rude.logins == 1
            assert pool.get_stats()["pool_size"] == 2
            hangs_once.release.set()
            for waiter in waiters:
                pool.putconn(waiter.result())
            assert_at_most(pool, rude, 2)

    def test_is_closed_in_a_pool_that_is_closed_meanwhile(
        self, make_pool: MakePool, hangs_once: HangsOnce
    ) -> None:
        with RudeServer() as rude:
            pool = make_pool(0, 2, connect_params=hangs_once, **places(rude.port))
            first = start_waiter(pool)
            assert hangs_once.hangs.wait(10)
            pool.shutdown()
            hangs_once.release.set()
            first.error()
            wait_until(lambda: pool.get_stats()["pool_size"] == 0)
            wait_until(lambda: rude.connections == 0)

    def test_at_one_server_keeps_nobody_else_waiting(self, make_pool: MakePool) -> None:
        with hanging_server() as (bad, release), RudeServer() as good:
            pool = make_pool(0, 4, connect_timeout=60, **places(bad.port, good.port))
            try_first(pool, bad.port)
            first = start_waiter(pool)
            wait_until(lambda: bad.logins == 1)
            conns = borrow(pool, 2)
            assert pool.get_stats()["pool_size"] <= 4
            release()
            pool.putconn(first.result())
            give_back(pool, conns)
            wait_until(lambda: not pool.get_stats()["pool_opening"])
            assert bad.connections + good.connections <= 4


def assert_at_most(pool: ConnectionPool, rude: RudeServer, number: int) -> None:
    """See that what was opened late is kept or closed, and counted."""
    wait_until(lambda: not pool.get_stats()["pool_opening"])
    wait_until(lambda: rude.connections == pool.get_stats()["pool_size"])
    assert rude.connections <= number
    assert pool.stats().in_use == 0
    conns = borrow(pool, number)
    assert rude.connections == number
    give_back(pool, conns)


def test_a_hung_server_is_cut_when_the_time_to_connect_is_over() -> None:
    with RudeServer(lambda login: Hang()) as rude, pool_maker(user="u", dbname="shop") as make:
        pool = make(0, 2, connect_timeout=2, **places(rude.port))
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.5)
        wait_until(lambda: rude.connections == 0)
        wait_until(lambda: not pool.get_stats()["pool_opening"])
