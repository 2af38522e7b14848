"""Networks that swallow what they are given: nothing of the pool's lasts longer than test_timeout.

Two kinds of silence are made. In a *black hole* the other machine acknowledges nothing, so that
the kernel gives up in the end. A *stopped backend* has its machine acknowledge all and answers
nothing, for ever. The kernel's limit, where it is one, is that of the pool's default: 30 s.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import psutil
import psycopg2
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import ConnectionPool, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from tests.support.droppable import Droppable, droppable
from tests.support.pools import (
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    fill,
    give_back,
    pid_of,
    round_trip,
)
from tests.support.processes import in_child
from tests.support.proxy import Proxy
from tests.support.tls import TlsServer
from tests.support.waiting import Running, in_thread, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="packets are dropped as Linux can")

TEST_TIMEOUT = 0.3
LONG = 12.0
"""Seconds that nothing lasts; far from test_timeout, and from the kernel's 30."""


@dataclass
class Network:
    """A way to a server on which one connection can be swallowed."""

    name: str
    params: dict[str, Any]
    swallow: Callable[[Any], object]
    restore: Callable[[int], object] = lambda pid: None


@pytest.fixture
def servers(server: Server, tls_server: TlsServer) -> dict[str, Server]:
    """Return one server without TLS and one with."""
    return {"plain": server, "TLS": tls_server}


@pytest.fixture
def black_holes(servers: dict[str, Server]) -> Iterator[list[Network]]:
    """Make networks that drop packets."""
    with ExitStack() as stack:
        networks = []
        for name, server in servers.items():
            proxy = stack.enter_context(droppable(server))
            params = {**server.params, "host": proxy.host, "port": proxy.port}
            networks.append(Network(f"black hole, {name}", params, proxy.drop))
        yield networks


@pytest.fixture
def stopped_backends(servers: dict[str, Server]) -> list[Network]:
    """Return servers whose backends can be stopped."""
    return [
        Network(f"stopped backend, {name}", server.params, _freezer(server), server.thaw_backend)
        for name, server in servers.items()
    ]


def _freezer(server: Server) -> Callable[[Any], None]:
    return lambda conn: server.freeze_backend(pid_of(conn))


# -- what must end ----------------------------------------------------------------


@dataclass
class Scene:
    """A pool with room for two, and one connection borrowed from it."""

    network: Network
    pool: ConnectionPool
    conn: Any
    swallow_in_configure: bool = False

    def swallow(self) -> None:
        self.network.swallow(self.conn)

    def configure(self, conn: Any) -> None:
        if self.swallow_in_configure and conn is self.conn:
            self.swallow_in_configure = False
            self.network.swallow(conn)
        ask(conn)


@dataclass
class Operation:
    """What meets the silence, in a pool with these options."""

    act: Callable[[Scene], object]
    options: dict[str, Any] = field(default_factory=dict)


def borrow_it(scene: Scene) -> None:
    scene.swallow()
    scene.pool.putconn(scene.conn)
    assert round_trip(scene.pool, timeout=20)


def check_it(scene: Scene) -> None:
    scene.swallow()
    scene.pool.putconn(scene.conn)
    assert scene.pool.check() == 1


def leave_it_idle(scene: Scene) -> None:
    scene.swallow()
    scene.pool.putconn(scene.conn)
    wait_until(lambda: scene.pool.get_stats()["pool_size"] == 0, timeout=40)


def return_it(scene: Scene) -> None:
    scene.swallow()
    scene.pool.putconn(scene.conn)


def return_it_in_a_transaction(scene: Scene) -> None:
    ask(scene.conn)
    return_it(scene)


def return_it_and_swallow_in_configure(scene: Scene) -> None:
    scene.swallow_in_configure = True
    scene.pool.putconn(scene.conn)


OPERATIONS = {
    "the test on borrow": Operation(borrow_it),
    "a test of the user's on borrow": Operation(borrow_it, {"test_on_borrow": ask}),
    "check": Operation(check_it),
    "the health check": Operation(leave_it_idle, {"health_check_interval": 0.05}),
    "the rollback": Operation(return_it_in_a_transaction),
    "the reset of the session": Operation(return_it, {"reset": "session"}),
    "a reset of the user's": Operation(return_it, {"reset": ask}),
    "configure after a reset": Operation(return_it_and_swallow_in_configure, {"reset": "session"}),
}


def live_through(network: Network, operation: Operation, num_workers: int) -> None:
    """Do it in the silence; see that it ends, that the connection is gone and its slot is not."""
    scenes: list[Scene] = []

    def configure(conn: Any) -> None:
        for scene in scenes:
            scene.configure(conn)

    options = {"test_timeout": TEST_TIMEOUT, "num_workers": num_workers, **operation.options}
    with ConnectionPool(0, 2, configure=configure, **options, **network.params) as pool:
        scene = Scene(network, pool, pool.getconn(timeout=10))
        scenes.append(scene)
        lost = pid_of(scene.conn)
        try:
            started = time.monotonic()
            operation.act(scene)
            seconds = time.monotonic() - started
            assert TEST_TIMEOUT / 2 < seconds < LONG, network.name
            assert lost not in borrowed_pids(pool, 2), network.name
            stats = pool.get_stats()
            assert (stats["pool_size"], stats["pool_in_use"]) == (2, 0), network.name
        finally:
            network.restore(lost)


def all_at_once(calls: dict[str, Callable[[], object]]) -> None:
    """Make the calls in threads of their own; fail with the names of those that failed."""
    runs = {name: in_thread(call) for name, call in calls.items()}
    errors = {name: run.error(timeout=60) for name, run in runs.items()}
    failed = {name: error for name, error in errors.items() if error is not None}
    assert not failed, "\n".join(f"{name}: {error!r}" for name, error in failed.items())


class TestWithWorkers:
    @pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
    def test_this_ends_in_time(
        self,
        operation: Operation,
        black_holes: list[Network],
        stopped_backends: list[Network],
    ) -> None:
        networks = [*black_holes, *stopped_backends]
        all_at_once({net.name: partial(live_through, net, operation, 3) for net in networks})


class TestWithoutWorkers:
    """There is no health check then."""

    OPERATIONS: ClassVar = {
        name: OPERATIONS[name] for name in OPERATIONS if name != "the health check"
    }

    def test_all_of_it_ends_in_time_in_a_black_hole(self, black_holes: list[Network]) -> None:
        all_at_once(
            {
                f"{name} in a {net.name}": partial(live_through, net, operation, 0)
                for name, operation in self.OPERATIONS.items()
                for net in black_holes
            }
        )

    def test_all_of_it_ends_in_time_with_a_stopped_backend_where_there_is_one_thread(
        self, stopped_backends: list[Network]
    ) -> None:
        all_at_once(
            {
                f"{name} with a {net.name}": partial(
                    in_child, partial(live_through, net, operation, 0)
                )
                for name, operation in self.OPERATIONS.items()
                for net in stopped_backends
            }
        )


# -- silence ------------------------------------------------------------------------


@pytest.fixture
def network(server: Server) -> Iterator[Droppable]:
    """Make a network before the shared server."""
    with droppable(server) as made:
        yield made


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def pool_through(network: Proxy, server: Server, *sizes: int, **kwargs: Any) -> ConnectionPool:
    """Make a pool whose connections go through the network."""
    through = {"host": network.host, "port": network.port}
    return ConnectionPool(*sizes, **{**server.params, **through, **kwargs})


class TestSilence:
    """One connection that does not answer has those discarded that nobody has heard from since."""

    NUMBER = 24
    SECONDS = 0.5

    def idle_in_a_black_hole(self, network: Droppable, pool: ConnectionPool) -> set[int]:
        conns = borrow(pool, self.NUMBER)
        pids = {pid_of(conn) for conn in conns}
        give_back(pool, conns)
        network.drop()
        return pids

    def test_costs_a_borrower_one_test_timeout_however_many_are_idle(
        self, server: Server, network: Droppable, num_workers: int
    ) -> None:
        options = {"test_timeout": self.SECONDS, "num_workers": num_workers}
        with pool_through(network, server, 0, self.NUMBER, **options) as pool:
            lost = self.idle_in_a_black_hole(network, pool)
            started = time.monotonic()
            assert round_trip(pool, timeout=30)
            seconds = time.monotonic() - started
            assert self.SECONDS / 2 < seconds < self.SECONDS * self.NUMBER / 2
            assert not lost & set(borrowed_pids(pool, self.NUMBER))

    def test_costs_a_check_one_test_timeout_however_many_are_idle(
        self, server: Server, network: Droppable, num_workers: int
    ) -> None:
        options = {"test_timeout": self.SECONDS, "num_workers": num_workers}
        with pool_through(network, server, 0, self.NUMBER, **options) as pool:
            lost = self.idle_in_a_black_hole(network, pool)
            started = time.monotonic()
            assert pool.check() == self.NUMBER
            seconds = time.monotonic() - started
            assert self.SECONDS / 2 < seconds < self.SECONDS * self.NUMBER / 2
            assert not lost & set(borrowed_pids(pool, self.NUMBER))

    def test_costs_nobody_a_connection_that_was_used_since(
        self, server: Server, network: Droppable, num_workers: int
    ) -> None:
        # Time enough to use the other one, and to return it.
        options = {"test_timeout": 2, "num_workers": num_workers}
        with pool_through(network, server, 0, 2, **options) as pool:
            silent, good = borrow(pool, 2)
            network.drop(silent)
            pid = pid_of(good)
            pool.putconn(silent)
            borrower = in_thread(round_trip, pool, timeout=30)
            wait_until(lambda: pool.stats().idle == 0)
            ask(good)
            pool.putconn(good)
            assert borrower.result() == pid

    def test_never_has_more_opened_than_maxconn(
        self, server: Server, network: Droppable, num_workers: int
    ) -> None:
        options = {"test_timeout": TEST_TIMEOUT, "num_workers": num_workers}
        with pool_through(network, server, 2, 3, **options, tcp_user_timeout=300) as pool:
            borrowers = [in_thread(borrow_on_and_on, pool) for _ in range(6)]
            peak = 0

            def gone(ports: set[int]) -> bool:
                nonlocal peak
                present = ports_towards(network)
                peak = max(peak, len(present))
                return not present & ports

            try:
                for _ in range(2):
                    wait_until(lambda: network.connections > 1)
                    wait_until(partial(gone, network.drop()), timeout=30)
            finally:
                pool.shutdown()
                for borrower in borrowers:
                    borrower.result(timeout=20)
            assert 2 <= peak <= 3


def borrow_on_and_on(pool: ConnectionPool) -> None:
    """Borrow, ask and return until the pool is closed; the network may fail the question."""
    while not pool.closed:
        with suppress(psycopg2.Error):
            round_trip(pool, timeout=20)


def ports_towards(network: Proxy) -> set[int]:
    """Return the ports of this process's sockets that are open towards the network."""
    found = psutil.Process().net_connections("tcp")
    return {sock.laddr.port for sock in found if sock.raddr and sock.raddr.port == network.port}


# -- deadlines ----------------------------------------------------------------------


class TestDeadlines:
    def test_hold_where_connects_are_swallowed_and_the_error_tells_why(
        self, server: Server
    ) -> None:
        def wait_in_vain(swallow: Callable[[Droppable], object], num_workers: int) -> None:
            options = {"num_workers": num_workers, "connect_timeout": 1}
            with droppable(server) as network:
                swallow(network)
                with pool_through(network, server, 0, 2, **options) as pool:
                    started = time.monotonic()
                    with pytest.raises(PoolTimeout, match="timeout expired") as raised:
                        pool.getconn(timeout=2.5)
                    assert time.monotonic() - started < 2.5 + LONG
                    assert isinstance(raised.value.__cause__, psycopg2.OperationalError)
                    assert pool.stats().in_use == 0

        all_at_once(
            {
                f"{swallow.__name__}, {num_workers} workers": partial(
                    wait_in_vain, swallow, num_workers
                )
                for swallow in (Droppable.drop_connects, Droppable.freeze)
                for num_workers in (3, 0)
            }
        )

    def test_that_end_with_the_guard_are_a_pool_timeout(self, server: Server) -> None:
        def coincide(difference: float, num_workers: int) -> None:
            options = {"test_timeout": TEST_TIMEOUT, "num_workers": num_workers}
            with (
                droppable(server) as network,
                pool_through(network, server, 0, 1, **options) as pool,
            ):
                conn = pool.getconn(timeout=10)
                network.drop()
                pool.putconn(conn)
                with pytest.raises(PoolTimeout):
                    pool.getconn(timeout=TEST_TIMEOUT + difference)
                assert_whole(pool)

        all_at_once(
            {
                f"{difference} s later, {num_workers} workers": partial(
                    coincide, difference, num_workers
                )
                for difference in (-0.05, 0.0)
                for num_workers in (3, 0)
            }
        )

    def test_bound_the_test_of_a_connection_that_does_not_answer(self, server: Server) -> None:
        def borrow_for_a_moment(num_workers: int) -> None:
            options = {"test_timeout": 60, "num_workers": num_workers}
            with (
                droppable(server) as network,
                pool_through(network, server, 0, 1, **options) as pool,
            ):
                fill(pool, 1)
                network.drop()
                borrower = in_thread(pool.getconn, timeout=TEST_TIMEOUT)
                assert isinstance(borrower.error(timeout=LONG), PoolTimeout)

        all_at_once(
            {f"{number} workers": partial(borrow_for_a_moment, number) for number in (3, 0)}
        )

    def test_without_workers_bound_a_connect_that_libpq_would_not_bound(
        self, server: Server
    ) -> None:
        """connect_timeout=0 is libpq's word for ever."""
        options = {"num_workers": 0, "connect_timeout": 0}
        with droppable(server) as network:
            network.freeze()
            with pool_through(network, server, 0, 1, **options) as pool:
                borrower = in_thread(pool.getconn, timeout=1)
                try:
                    assert isinstance(borrower.error(timeout=LONG), PoolTimeout)
                finally:
                    network.cut()


# -- others -------------------------------------------------------------------------


class TestOthers:
    def test_with_another_pool_are_unaffected(self, server: Server, network: Droppable) -> None:
        """Tests hang, and more connects hang than there are workers for."""
        with ExitStack() as stack:
            slow: dict[str, Any] = {"test_timeout": 60, "connect_timeout": 60}
            tested = stack.enter_context(ConnectionPool(0, 3, **slow, **server.params))
            frozen = stop_all_idle(server, tested, 3)
            stack.callback(thaw, server, frozen)
            network.freeze()
            stack.callback(network.cut)
            opening = [pool_through(network, server, 0, 3, **slow) for _ in range(3)]
            for pool in opening:
                stack.enter_context(pool)
            hanging: list[Running[Any]] = [in_thread(tested.check)]
            for pool in opening:
                hanging.extend(in_thread(pool.getconn, timeout=60) for _ in range(3))
            wait_until(lambda: network.connections == 9)
            good = stack.enter_context(ConnectionPool(0, 3, **server.params))
            for _ in range(20):
                in_thread(borrowed_pids, good, 3).result()
            assert not any(run.done for run in hanging)
            for pool in opening:
                pool.shutdown()
            thaw(server, frozen)
            assert hanging[0].result() == 0
            for run in hanging[1:]:
                assert isinstance(run.error(), psycopg2.Error)


def thaw(server: Server, pids: list[int]) -> None:
    """Let stopped backends go on; harmless when repeated."""
    for pid in pids:
        server.thaw_backend(pid)


def stop_all_idle(server: Server, pool: ConnectionPool, number: int) -> list[int]:
    """Have so many idle connections whose backends are stopped; return these."""
    conns = borrow(pool, number)
    pids = [pid_of(conn) for conn in conns]
    for pid in pids:
        server.freeze_backend(pid)
    give_back(pool, conns)
    return pids


# -- statements that run --------------------------------------------------------------


class TestRunningStatements:
    SECONDS = 0.5

    def test_are_given_up_with_their_connection_though_the_cancel_blocks_too(
        self, server: Server, network: Droppable, app: str, num_workers: int
    ) -> None:
        """In a child, as psycopg2 lets nothing else run in a process while it cancels."""
        frozen = Signal()

        def child() -> str:
            options = {"test_timeout": self.SECONDS, "num_workers": num_workers}
            pool = pool_through(network, server, 0, 1, application_name=app, **options)
            abort, threads = pool._connector.abort, []

            def note_thread(conn: Any, seconds: float) -> None:
                threads.append(threading.current_thread().name)
                abort(conn, seconds)

            pytest.MonkeyPatch().setattr(pool._connector, "abort", note_thread)
            conn = pool.getconn(timeout=10)
            statement = in_thread(ask, conn, "SELECT pg_sleep(60)")
            frozen.wait()
            assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_ACTIVE
            started = time.monotonic()
            pool.putconn(conn)
            seconds = time.monotonic() - started
            wait_until(lambda: pool.get_stats()["pool_size"] == 0, timeout=LONG)
            assert isinstance(statement.error(), psycopg2.Error)
            assert seconds < LONG
            [thread] = threads
            return thread

        running = in_thread(in_child, child)
        wait_until(lambda: running.done or running_statements(server, app))
        if running.done:
            running.result()
        [pid] = running_statements(server, app)
        try:
            network.freeze()
            frozen.give()
            # Without workers it is closed on the way.
            assert (running.result(40) == "psycopg2_pool2-worker") == bool(num_workers)
        finally:
            server.terminate_backend(pid)


class Signal:
    """What a process and its forked child tell each other once."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()

    def give(self) -> None:
        os.write(self._writer, b"!")

    def wait(self) -> None:
        os.read(self._reader, 1)

    def __del__(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


def running_statements(server: Server, app: str) -> list[int]:
    """Return the backends that are at a statement."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
    return [pid for (pid,) in server.execute(query, [app])]
