"""Clocks: a machine that was suspended, and a pool that has the clock but no thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    ask,
    borrow,
    end_sessions,
    fill,
    give_back,
    pid_of,
    round_trip,
)
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until

HOUR = 3600.0


class Machine:
    """Clocks that can jump: `suspended` passes on the wakeful one only, `later` on both."""

    def __init__(self) -> None:
        self.suspended = 0.0
        self.later = 0.0

    def clock(self) -> float:
        return time.monotonic() + self.later

    def wakeful(self) -> float:
        return time.monotonic() + self.later + self.suspended


@pytest.fixture
def machine() -> Machine:
    return Machine()


class MakeMachinePool:
    """Makes pools on the shared server that live by the machine's clocks."""

    def __init__(self, machine: Machine, params: dict[str, Any]) -> None:
        self._params = params
        self._class = type(
            "MachinePool",
            (ConnectionPool,),
            {
                "_clock": staticmethod(machine.clock),
                "_wakeful_clock": staticmethod(machine.wakeful),
            },
        )
        self.made: list[ConnectionPool] = []

    def __call__(self, minconn: int = 0, maxconn: float = 4, **kwargs: Any) -> ConnectionPool:
        pool: ConnectionPool = self._class(minconn, maxconn, **{**self._params, **kwargs})
        self.made.append(pool)
        return pool


@pytest.fixture
def make_pool(machine: Machine, statement_log: StatementLog) -> Iterator[MakeMachinePool]:
    maker = MakeMachinePool(machine, {**statement_log.params, "health_check_interval": 0})
    yield maker
    for pool in maker.made:
        pool.shutdown()


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def lend(pool: ConnectionPool, number: int) -> None:
    """Borrow so many at a time, send nothing, and return all.

    Where these are all that the pool may have, it does not matter which are being probed.
    """
    give_back(pool, borrow(pool, number))


class TestSuspension:
    """One clock went on and the other did not: what is idle may be dead, however young it is."""

    @pytest.fixture
    def pool(self, make_pool: MakeMachinePool, num_workers: int) -> ConnectionPool:
        pool = make_pool(0, 3, test_idle_after=60, num_workers=num_workers)
        fill(pool, 3)
        return pool

    def test_has_each_idle_connection_tested_at_its_next_borrow_and_only_then(
        self, pool: ConnectionPool, machine: Machine, statement_log: StatementLog
    ) -> None:
        machine.suspended += HOUR
        assert statement_log.during(lambda: lend(pool, 3)) == ["SELECT 1"] * 3
        assert statement_log.during(lambda: lend(pool, 3)) == []

    def test_that_was_none_has_nothing_tested(
        self, pool: ConnectionPool, machine: Machine, statement_log: StatementLog
    ) -> None:
        machine.suspended += 0.5
        machine.later += 30
        assert statement_log.during(lambda: lend(pool, 3)) == []

    def test_that_is_over_has_nothing_more_tested(
        self, pool: ConnectionPool, machine: Machine, statement_log: StatementLog
    ) -> None:
        machine.suspended += HOUR
        lend(pool, 3)
        pool.putconn(pool.getconn(), close=True)
        lend(pool, 3)  # a new one among them
        assert statement_log.during(lambda: lend(pool, 3)) == []
        machine.suspended += HOUR
        assert statement_log.during(lambda: lend(pool, 3)) == ["SELECT 1"] * 3

    def test_is_noticed_where_a_clock_was_set_back_too(
        self, pool: ConnectionPool, machine: Machine, statement_log: StatementLog
    ) -> None:
        machine.suspended -= HOUR
        assert statement_log.during(lambda: lend(pool, 3)) == ["SELECT 1"] * 3

    def test_after_which_all_are_dead_lends_living_ones(
        self, server: Server, pool: ConnectionPool, machine: Machine, app: str
    ) -> None:
        old = set(end_sessions(server, app))
        machine.suspended += HOUR
        conns = borrow(pool, 3)
        assert [ask(conn) for conn in conns] == [1] * 3
        assert not {pid_of(conn) for conn in conns} & old
        give_back(pool, conns)

    def test_is_noticed_by_the_background_duties_too(
        self, make_pool: MakeMachinePool, machine: Machine, statement_log: StatementLog
    ) -> None:
        pool = make_pool(0, 3, test_idle_after=60, reap_idle_interval=0.02)
        fill(pool, 3)
        machine.suspended += HOUR
        wait_until(lambda: all(record.suspect for record in pool._store.all_records()))
        assert statement_log.during(lambda: lend(pool, 3)) == ["SELECT 1"] * 3

    def test_has_the_idle_ones_probed_by_the_background_duties(
        self, make_pool: MakeMachinePool, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make_pool(0, 4, test_idle_after=60, reap_idle_interval=0.02)
        pids = set(fill(pool, 3))
        probed: set[int] = set()
        probe = pool._connector.probe

        def note(conn: Any) -> bool:
            probed.add(pid_of(conn))
            return probe(conn)

        monkeypatch.setattr(pool._connector, "probe", note)
        machine.suspended += HOUR
        wait_until(lambda: probed == pids)

    def test_sends_nothing_where_nothing_is_to_be_sent(
        self,
        make_pool: MakeMachinePool,
        machine: Machine,
        statement_log: StatementLog,
        num_workers: int,
    ) -> None:
        pool = make_pool(0, 2, test_on_borrow=False, num_workers=num_workers)
        fill(pool, 2)
        machine.suspended += HOUR
        for _ in range(2):
            assert statement_log.during(lambda: lend(pool, 2)) == []

    def test_ends_no_connections_life(
        self, make_pool: MakeMachinePool, machine: Machine, num_workers: int
    ) -> None:
        """A laptop that slept over night opens nothing anew that still works."""
        pool = make_pool(0, 2, test_idle_after=60, lifetime_timeout=HOUR, num_workers=num_workers)
        pids = fill(pool, 2)
        machine.suspended += 2 * HOUR
        assert sorted(fill(pool, 2)) == sorted(pids)


class TestWithoutAThread:
    """num_workers=0: what the clock brings is done at borrow, at return, and from outside."""

    def make(self, make_pool: MakeMachinePool, *args: Any, **kwargs: Any) -> ConnectionPool:
        return make_pool(*args, num_workers=0, **kwargs)

    def test_one_too_old_is_not_lent(self, make_pool: MakeMachinePool, machine: Machine) -> None:
        pool = self.make(make_pool, 0, 2, lifetime_timeout=100)
        pids = fill(pool, 2)
        machine.later += 80
        assert [round_trip(pool), round_trip(pool)] == pids
        machine.later += 40
        assert round_trip(pool) not in pids

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_one_too_old_is_closed_when_it_comes_back(
        self, make_pool: MakeMachinePool, machine: Machine, test_on_borrow: bool
    ) -> None:
        pool = self.make(make_pool, 0, 2, lifetime_timeout=100, test_on_borrow=test_on_borrow)
        conn = pool.getconn(timeout=10)
        machine.later += 120
        assert ask(conn) == 1
        pool.putconn(conn)
        assert conn.closed
        assert pool.stats() == PoolStats(in_use=0, idle=0)

    def test_one_too_old_that_stays_idle_is_closed_by_a_return(
        self, make_pool: MakeMachinePool, machine: Machine
    ) -> None:
        pool = self.make(make_pool, 0, 3, lifetime_timeout=100)
        held = pool.getconn(timeout=10)
        fill(pool, 1)
        machine.later += 120
        fresh = pool.getconn(timeout=10)
        assert pool.get_stats()["pool_size"] == 2, "the old one was closed by that borrow"
        give_back(pool, [held, fresh])
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_a_loop_outlives_no_lifetime(
        self, make_pool: MakeMachinePool, machine: Machine
    ) -> None:
        pool = self.make(make_pool, 0, 3, lifetime_timeout=100)
        born: dict[int, float] = {}
        for _ in range(60):
            conn = pool.getconn(timeout=10)
            now = machine.clock()
            assert now - born.setdefault(pid_of(conn), now) <= 110
            machine.later += 10
            pool.putconn(conn)
        assert 5 <= len(born) <= 10

    def test_what_is_idle_too_long_is_closed_by_returns(
        self, make_pool: MakeMachinePool, machine: Machine
    ) -> None:
        pool = self.make(make_pool, 1, 5, idle_timeout=300)
        fill(pool, 5)
        for _ in range(8):
            machine.later += 301
            conn = pool.getconn(timeout=10)
            pool.putconn(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_what_is_idle_for_long_is_tested_when_it_is_borrowed(
        self, make_pool: MakeMachinePool, machine: Machine, statement_log: StatementLog
    ) -> None:
        pool = self.make(make_pool, 0, 3, test_idle_after=60)
        fill(pool, 2)
        assert statement_log.during(lambda: lend(pool, 2)) == []
        machine.later += 61
        assert statement_log.during(lambda: lend(pool, 2)) == ["SELECT 1"] * 2
        assert statement_log.during(lambda: lend(pool, 2)) == []

    def test_whoever_reaps_replaces_what_is_too_old(
        self, make_pool: MakeMachinePool, machine: Machine
    ) -> None:
        pool = self.make(make_pool, 2, 5, lifetime_timeout=100, idle_timeout=1000)
        pids = set(fill(pool, 2))
        machine.later += 120
        pool.reap_idle_connections()
        assert pool.stats() == PoolStats(in_use=0, idle=2)
        assert not {round_trip(pool), round_trip(pool)} & pids

    def test_one_dead_connection_makes_the_others_suspect(
        self,
        server: Server,
        app: str,
        make_pool: MakeMachinePool,
        statement_log: StatementLog,
    ) -> None:
        pool = self.make(make_pool, 0, 4, test_idle_after=60)
        first, *others = fill(pool, 4)
        server.terminate_backend(first)
        wait_until(lambda: first not in server.backends(app))
        statement_log.clear()
        conns = borrow(pool, 3)
        assert [pid_of(conn) for conn in conns] == others
        assert statement_log.statements() == ["SELECT 1"] * 3
        give_back(pool, conns)

    def test_no_thread_is_ever_there(
        self, make_pool: MakeMachinePool, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started: list[str] = []
        monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self.name))
        pool = self.make(make_pool, 2, 4, lifetime_timeout=100, leak_timeout=10)
        pool.wait()
        machine.later += 120
        machine.suspended += HOUR
        conns = borrow(pool, 3)
        pool.putconn(conns.pop(), close=True)
        give_back(pool, conns)
        pool.check()
        pool.reap_idle_connections()
        pool.shutdown(timeout=1)
        assert started == []
