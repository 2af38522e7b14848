"""A primary is lost, or takes no writes any more: the pool finds the new one by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg2
import pytest
from psycopg2 import errors

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    fill,
    give_back,
    pool_maker,
)
from tests.support.servers import ReplicaSet, new_server
from tests.support.waiting import Running, in_thread, wait_until

WRITERS = 8
GENEROUS = 10.0
"""Seconds from a promotion to the first write; the aim is 2, and the figure is told."""


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make_pool(num_workers: int) -> Iterator[MakePool]:
    """Make pools, with the background thread and without it."""
    with pool_maker(num_workers=num_workers) as make:
        yield make


INSERT = "INSERT INTO ledger VALUES (%s)"


@pytest.fixture
def ledger(replica_set: ReplicaSet) -> None:
    """Make a table on all servers."""
    replica_set.primary.execute("CREATE TABLE ledger (id bigint PRIMARY KEY)")
    replica_set.wait_caught_up()


def address_of(conn: Any) -> str:
    """Return the address of the server at the other end."""
    return conn.pool_record.endpoint.address  # type: ignore[no-any-return]


def tell(seconds: float) -> None:
    """Print a figure, which `pytest -rP` shows."""
    print(f"first write {seconds:.2f} s after the promotion")


def switch_read_only(server: Server, value: Literal["on", "off"]) -> None:
    """Have a server take no writes by default, or take them again; no connection is lost."""
    server.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    server.execute("SELECT pg_reload_conf()")
    # A server tells its sessions before it accepts another one.
    wait_until(lambda: server.execute("SHOW default_transaction_read_only") == [(value,)])


class Pair:
    """Two servers of which one takes writes; they know nothing of each other."""

    def __init__(self, active: Server, passive: Server) -> None:
        self.active, self.passive = active, passive
        for server in (active, passive):
            server.execute("CREATE TABLE ledger (id bigint)")
        switch_read_only(passive, "on")

    @property
    def dsn(self) -> str:
        """A connection string that names both, the active one first."""
        both = (self.active, self.passive)
        hosts, ports = (",".join(str(getattr(s, key)) for s in both) for key in ("host", "port"))
        return f"host={hosts} port={ports} user=postgres dbname=postgres"

    def switch_over(self) -> float:
        """Exchange their roles; return when the active one took no writes any more."""
        switch_read_only(self.active, "on")
        moment = time.monotonic()
        switch_read_only(self.passive, "off")
        self.active, self.passive = self.passive, self.active
        return moment


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Share two servers, which change their roles again and again."""
    with new_server("127.0.0.1") as one, new_server("127.0.0.2") as other:
        yield Pair(one, other)


@dataclass
class Write:
    """What became of one write."""

    id: int
    began: float
    borrowed: bool = False
    address: str = ""
    ended: float = 0.0
    error: psycopg2.Error | None = None

    @property
    def is_read_only_error(self) -> bool:
        return isinstance(self.error, errors.ReadOnlySqlTransaction)


@dataclass
class Load:
    """Threads that write through a pool, and all that became of it."""

    pool: ConnectionPool
    writes: list[Write] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[Running[None]] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [in_thread(self._run, 1_000_000 * n) for n in range(WRITERS)]

    def finish(self) -> None:
        """End, and raise what no writer should meet."""
        self._stop.set()
        for thread in self._threads:
            thread.result(timeout=60)

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            number += 1
            write = Write(number, time.monotonic())
            with suppress(psycopg2.Error):
                self._write(write)
            write.ended = time.monotonic()
            self.writes.append(write)

    def _write(self, write: Write) -> None:
        try:
            with self.pool.transaction(timeout=30) as conn:
                write.borrowed = True
                write.address = address_of(conn)
                ask(conn, INSERT, write.id)
        except psycopg2.Error as error:
            write.error = error
            raise

    # -- what became of it -------------------------------------------------

    def done(self, server: Server | None = None) -> list[Write]:
        """Return the writes that were acknowledged, by all servers or by one."""
        hosts = {server.host} if server else None
        return [
            write
            for write in self.writes.copy()
            if write.error is None and (hosts is None or write.address in hosts)
        ]

    def failed(self) -> list[Write]:
        return [write for write in self.writes.copy() if write.error is not None]

    def wait_for_each(self, server: Server) -> None:
        """Wait until every writer has written to a server."""
        wait_until(
            lambda: len({write.id // 1_000_000 for write in self.done(server)}) == WRITERS,
            timeout=20,
            message=f"every writer has written to {server}",
        )

    def seconds_from(self, moment: float, server: Server) -> float:
        """Return how long after a moment a server acknowledged the first write."""
        return min(write.ended for write in self.done(server)) - moment


@contextmanager
def load(pool: ConnectionPool) -> Iterator[Load]:
    """Write with some threads during the block."""
    running = Load(pool)
    running.start()
    try:
        yield running
    finally:
        running.finish()


def ids_at(server: Server) -> set[int]:
    return {number for (number,) in server.execute("SELECT id FROM ledger")}


@pytest.mark.usefixtures("ledger")
class TestFailover:
    @pytest.mark.parametrize(
        ("num_workers", "test_on_borrow"),
        [(3, True), (3, False), (0, True)],
        ids=["workers", "workers-untested", "no-workers"],
    )
    def test_under_load_is_followed_by_writes_to_the_new_primary(
        self,
        replica_set: ReplicaSet,
        make_pool: MakePool,
        test_on_borrow: bool,
    ) -> None:
        old, new = replica_set.primary, replica_set.replicas[0]
        # What is acknowledged is on all servers.
        old.execute("ALTER SYSTEM SET synchronous_standby_names = 'FIRST 2 (*)'")
        old.execute("SELECT pg_reload_conf()")
        pool = make_pool(
            maxconn=WRITERS,
            dsn=replica_set.dsn,
            target_session_attrs="primary",
            test_on_borrow=test_on_borrow,
            options="-c synchronous_commit=on",
        )
        with load(pool) as writers:
            writers.wait_for_each(old)
            old.kill()
            killed = time.monotonic()
            new.promote()
            promoted = time.monotonic()
            writers.wait_for_each(new)
        seconds = writers.seconds_from(promoted, new)
        tell(seconds)
        assert seconds < GENEROUS
        assert [write for write in writers.failed() if not write.borrowed] == []
        assert [write for write in writers.failed() if write.is_read_only_error] == []
        assert len(writers.failed()) <= WRITERS
        assert {write.address for write in writers.done()} == {old.host, new.host}
        assert not [write for write in writers.done(old) if write.began > killed]
        assert {write.id for write in writers.done()} <= ids_at(new)
        assert_whole(pool)

    def test_and_back_again_needs_no_restart(self, replica_set: ReplicaSet) -> None:
        with ConnectionPool(0, 4, dsn=replica_set.dsn, target_session_attrs="read-write") as pool:
            self.fail_over_and_back(pool, replica_set)

    def fail_over_and_back(self, pool: ConnectionPool, replica_set: ReplicaSet) -> None:
        first, second = replica_set.primary, replica_set.replicas[0]
        write(pool, 1)
        replica_set.fail_over()
        write(pool, 2)
        first.close()
        with second.replica(first.host) as rejoined:  # the old primary, now a standby
            assert {write(pool, number) for number in range(3, 9)} == {second.host}
            rejoined.wait_caught_up()
            second.kill()
            rejoined.promote()
            assert write(pool, 9) == rejoined.host
            assert ids_at(rejoined) == set(range(1, 10))
            assert_whole(pool)

    def test_is_found_though_the_old_primary_is_silent(
        self,
        replica_set: ReplicaSet,
        make_pool: MakePool,
    ) -> None:
        pool = make_pool(
            maxconn=4,
            dsn=replica_set.dsn,
            target_session_attrs="primary",
            connect_timeout=30,
        )
        write(pool, 1)
        pool.discard_all_idle()
        replica_set.wait_caught_up()
        replica_set.primary.freeze()
        writer = in_thread(write, pool, 2)
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 1)
        replica_set.replicas[1].promote()
        promoted = time.monotonic()
        assert writer.result(timeout=60) == replica_set.hosts[2]
        seconds = time.monotonic() - promoted
        tell(seconds)
        assert seconds < GENEROUS  # far less than connecting to the old one may take


def write(pool: ConnectionPool, number: int = 1) -> str:
    """Write one row, and tell to which server."""
    with pool.transaction(timeout=60) as conn:
        ask(conn, INSERT, number)
        return address_of(conn)


def addresses(pool: ConnectionPool, number: int) -> set[str]:
    """Borrow so many at a time, and tell where they lead."""
    conns = borrow(pool, number)
    try:
        return {address_of(conn) for conn in conns}
    finally:
        give_back(pool, conns)


TESTING: dict[str, dict[str, Any]] = {
    "tested": {},
    "tested-by-callable": {"test_on_borrow": ask},
    "tested-after-long-idleness": {"test_idle_after": 60},
    "untested": {"test_on_borrow": False},
}
Spoil = Callable[[ConnectionPool, Callable[[], object]], None]


def fail_in_block(pool: ConnectionPool, switch: Callable[[], object]) -> None:
    def use() -> None:
        with pool.conn(timeout=10) as conn:
            switch()
            ask(conn, INSERT, 1)

    with pytest.raises(errors.ReadOnlySqlTransaction):
        use()


def fail_in_transaction(pool: ConnectionPool, switch: Callable[[], object]) -> None:
    def use() -> None:
        with pool.transaction(timeout=10) as conn:
            switch()
            ask(conn, INSERT, 1)

    with pytest.raises(errors.ReadOnlySqlTransaction):
        use()


def fail_and_catch(pool: ConnectionPool, switch: Callable[[], object]) -> None:
    with pool.conn(timeout=10) as conn:
        switch()
        with pytest.raises(errors.ReadOnlySqlTransaction):
            ask(conn, INSERT, 1)


def fail_by_hand(pool: ConnectionPool, switch: Callable[[], object]) -> None:
    conn = pool.getconn(timeout=10)
    switch()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        ask(conn, INSERT, 1)
    pool.putconn(conn)


class TestSwitchover:
    """The old primary takes no writes any more, and no connection is lost."""

    @pytest.fixture(params=list(TESTING))
    def testing(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def pool(self, pair: Pair, make_pool: MakePool, testing: str) -> ConnectionPool:
        made = make_pool(
            maxconn=WRITERS,
            dsn=pair.dsn,
            target_session_attrs="read-write",
            **TESTING[testing],
        )
        fill(made, WRITERS)
        return made

    @pytest.mark.parametrize(
        "spoil", [fail_in_block, fail_in_transaction, fail_and_catch, fail_by_hand]
    )
    def test_costs_one_borrower_an_error_and_nobody_after_him(
        self, pair: Pair, pool: ConnectionPool, spoil: Spoil
    ) -> None:
        late = pool.getconn(timeout=10)
        spoil(pool, pair.switch_over)
        pool.putconn(late)
        assert addresses(pool, WRITERS) == {pair.active.host}
        assert write(pool) == pair.active.host
        assert_whole(pool)

    @pytest.mark.parametrize("testing", ["tested", "tested-by-callable"])
    def test_costs_nobody_an_error_whose_connection_is_tested(
        self, pair: Pair, pool: ConnectionPool
    ) -> None:
        pair.switch_over()
        assert addresses(pool, WRITERS) == {pair.active.host}
        assert write(pool) == pair.active.host
        assert_whole(pool)

    @pytest.mark.parametrize("testing", ["untested"])
    def test_costs_nobody_an_error_whose_connection_comes_back_while_the_idle_ones_are_discarded(
        self, pair: Pair, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        late = pool.getconn(timeout=10)
        discard_idle = pool._upkeep._discard_idle

        def discard_and_return(endpoint: object, since: float) -> int:
            gone = discard_idle(endpoint, since)
            if late in pool.connections_in_use:
                pool.putconn(late)
            return gone

        monkeypatch.setattr(pool._upkeep, "_discard_idle", discard_and_return)
        fail_by_hand(pool, pair.switch_over)
        assert late not in pool.connections_in_use
        assert addresses(pool, WRITERS) == {pair.active.host}
        assert_whole(pool)

    def test_under_load_hands_no_read_only_connection_out_after_the_first_error(
        self, pair: Pair, pool: ConnectionPool, testing: str
    ) -> None:
        with load(pool) as writers:
            writers.wait_for_each(pair.active)
            switched = pair.switch_over()
            promoted = time.monotonic()
            writers.wait_for_each(pair.active)
        seconds = writers.seconds_from(promoted, pair.active)
        tell(seconds)
        failed = writers.failed()
        assert all(failure.is_read_only_error for failure in failed), failed
        told = switched
        if testing not in ("tested", "tested-by-callable"):
            told = min((f.ended for f in failed if f.ended >= switched), default=switched)
        assert [f for f in failed if not f.borrowed or f.began > told] == []
        assert_whole(pool)

    def test_is_noticed_by_a_health_check(self, pair: Pair, make_pool: MakePool) -> None:
        pool = make_pool(4, 4, dsn=pair.dsn, target_session_attrs="read-write")
        pool.wait()
        pair.switch_over()
        assert pool.check() == 4
        pool.wait()
        assert {known.address for known in pool.endpoints() if known.connections} == {
            pair.active.host
        }


class TestReadOnlyTransaction:
    """A write that fails because of the borrower, and not because of the server's role."""

    def test_of_the_borrower_s_own_making_costs_no_connection(
        self, pair: Pair, make_pool: MakePool
    ) -> None:
        pool = make_pool(dsn=pair.dsn, target_session_attrs="read-write")
        pids = fill(pool, 4)
        fail_to_write(pool, readonly=True)
        assert sorted(fill(pool, 4)) == sorted(pids)
        assert write(pool) == pair.active.host

    def test_by_the_server_s_default_is_no_matter_where_any_primary_will_do(
        self, pair: Pair, make_pool: MakePool
    ) -> None:
        pool = make_pool(target_session_attrs="primary", **pair.active.params)
        pids = fill(pool, 4)
        pair.switch_over()
        fail_to_write(pool, readonly=None)
        assert sorted(fill(pool, 4)) == sorted(pids)


def fail_to_write(pool: ConnectionPool, readonly: bool | None) -> None:
    def use() -> None:
        with pool.conn(timeout=10) as conn:
            conn.readonly = readonly
            ask(conn, INSERT, 1)

    with pytest.raises(errors.ReadOnlySqlTransaction):
        use()
