"""target_session_attrs: which servers each value leads to, and what becomes of the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolTimeout, PoolUnavailable
from psycopg2_pool2.contrib.embedded import Server
from tests.support.dns import DnsServer, a
from tests.support.fakes import FakeClock, fake_pool
from tests.support.pools import (
    MakePool,
    assert_whole,
    borrow,
    fill,
    give_back,
    pool_maker,
    round_trip,
    start_waiter,
)
from tests.support.servers import ReplicaSet, new_replica_set
from tests.support.waiting import wait_until

ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
TO_PRIMARY = ("read-write", "primary")
TO_STANDBYS = ("read-only", "standby", "prefer-standby")
NAME = "cluster.test"
SHORTEST_PAUSE = 0.2
"""Seconds between two questions for a server's role: a quarter, and a fifth less by jitter."""


@pytest.fixture(scope="module")
def settled() -> Iterator[ReplicaSet]:
    """Share a replica set in which nothing changes."""
    with new_replica_set(standbys=2) as replicas:
        yield replicas


@pytest.fixture(scope="module")
def read_only() -> Iterator[ReplicaSet]:
    """Share a primary and a standby that take no writes by default."""
    with new_replica_set(standbys=1) as replicas:
        for server in replicas.servers:
            switch_on(server, "default_transaction_read_only")
        yield replicas


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make_pool(num_workers: int) -> Iterator[MakePool]:
    """Make pools, with the background thread and without it."""
    with pool_maker(num_workers=num_workers) as make:
        yield make


def servers_for(attrs: str, replicas: ReplicaSet) -> set[str]:
    """Return where a value leads while all are up."""
    if attrs in TO_PRIMARY:
        return {replicas.primary.host}
    return set(replicas.hosts[1:] if attrs in TO_STANDBYS else replicas.hosts)


def address_of(conn: Any) -> str:
    """Return the address of the server at the other end."""
    return conn.pool_record.endpoint.address  # type: ignore[no-any-return]


def spread(pool: ConnectionPool, number: int) -> Counter[str]:
    """Borrow so many at a time; tell how many each server has."""
    conns = borrow(pool, number)
    try:
        return Counter(address_of(conn) for conn in conns)
    finally:
        give_back(pool, conns)


def open_at(pool: ConnectionPool) -> dict[str | None, int]:
    """Return how many connections each server has, those that have none left out."""
    return {known.address: known.connections for known in pool.endpoints() if known.connections}


def switch_on(server: Server, setting: str) -> None:
    """Change a server's configuration, and wait until new sessions have it."""
    server.execute(f"ALTER SYSTEM SET {setting} = on")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: server.execute(f"SHOW {setting}") == [("on",)], message=setting)


class Connects:
    """Counts the logins at each server."""

    def __init__(self, replicas: ReplicaSet) -> None:
        self._servers = replicas.servers
        for server in self._servers:
            switch_on(server, "log_connections")

    def of(self, application_name: str) -> Counter[str]:
        """Return how often an application has logged in, by the servers' addresses."""
        line = f"connection authorized: user=postgres database=postgres {application_name=!s}"
        return Counter(
            {server.host: server.log_text().count(f"{line}\n") for server in self._servers}
        )


@pytest.fixture(scope="module")
def connects(settled: ReplicaSet) -> Connects:
    return Connects(settled)


@pytest.mark.parametrize("attrs", ATTRS)
class TestEachValue:
    def test_leads_over_a_list_of_hosts_where_it_should(
        self, settled: ReplicaSet, make_pool: MakePool, attrs: str
    ) -> None:
        pool = make_pool(maxconn=6, dsn=settled.dsn, target_session_attrs=attrs)
        assert_even(spread(pool, 6), servers_for(attrs, settled))
        assert_even(spread(pool, 6), servers_for(attrs, settled))  # tested, and lent again
        assert pool.get_stats()["connections_lost"] == 0

    def test_leads_over_the_addresses_of_a_name_where_it_should(
        self, settled: ReplicaSet, make_pool: MakePool, dns_server: DnsServer, attrs: str
    ) -> None:
        dns_server.zone[NAME] = [a(host) for host in settled.hosts]
        pool = make_pool(
            maxconn=6,
            dsn=f"host={NAME} port={settled.port} user=postgres dbname=postgres",
            target_session_attrs=attrs,
            resolver=dns_server.resolver(),
        )
        assert_even(spread(pool, 6), servers_for(attrs, settled))

    @pytest.mark.parametrize("num_workers", [0])
    @pytest.mark.parametrize("source", ["dsn", "environment"])
    def test_may_come_from_elsewhere(
        self,
        settled: ReplicaSet,
        make_pool: MakePool,
        monkeypatch: pytest.MonkeyPatch,
        attrs: str,
        source: str,
    ) -> None:
        dsn = settled.dsn
        if source == "dsn":
            dsn += f" target_session_attrs={attrs}"
            monkeypatch.setenv("PGTARGETSESSIONATTRS", "nonsense")
        else:
            monkeypatch.setenv("PGTARGETSESSIONATTRS", attrs)
        pool = make_pool(maxconn=6, dsn=dsn)
        assert_even(spread(pool, 6), servers_for(attrs, settled))


def assert_even(shares: Counter[str], hosts: set[str]) -> None:
    """See that these servers and no others have connections, and equally many."""
    assert set(shares) == hosts
    assert max(shares.values()) - min(shares.values()) <= 1


class TestRules:
    """Which server is in which role: what libpq says when it connects, the test says later."""

    @pytest.fixture(params=["primary", "standby", "read-only primary", "read-only standby"])
    def server(
        self, request: pytest.FixtureRequest, settled: ReplicaSet, read_only: ReplicaSet
    ) -> Server:
        replicas = read_only if request.param.startswith("read-only") else settled
        return replicas.primary if request.param.endswith("primary") else replicas.replicas[0]

    @pytest.mark.parametrize("attrs", ATTRS)
    @pytest.mark.parametrize("hosts", [1, 2])
    @pytest.mark.parametrize("num_workers", [0])
    def test_are_libpq_s(self, server: Server, make_pool: MakePool, attrs: str, hosts: int) -> None:
        params = {
            **server.params,
            "host": ",".join([server.host] * hosts),
            "target_session_attrs": attrs,
        }
        suits = libpq_takes(params)
        pool = make_pool(maxconn=2, **params)
        for _ in range(2):  # a new connection, and one that was idle
            if suits:
                round_trip(pool, timeout=0)
            else:
                with pytest.raises(psycopg2.OperationalError):
                    pool.getconn()
        assert pool.get_stats()["connections_lost"] == 0


def libpq_takes(params: dict[str, Any]) -> bool:
    """Tell whether libpq connects there by itself."""
    try:
        psycopg2.connect(**params).close()
    except psycopg2.OperationalError:
        return False
    return True


class TestKnownPrimary:
    def test_is_where_all_are_opened_and_the_others_are_not_asked_again(
        self, settled: ReplicaSet, connects: Connects, make_pool: MakePool, num_workers: int
    ) -> None:
        app = f"known-{num_workers}"
        pool = make_pool(
            maxconn=12, dsn=settled.dsn, application_name=app, target_session_attrs="primary"
        )
        fill(pool, 12)
        logins = connects.of(app)
        assert logins.pop(settled.primary.host) == 12
        assert max(logins.values()) <= 1


class TestNoneInTheRole:
    """A pool for writing that knows only standbys."""

    @pytest.fixture
    def where(self, settled: ReplicaSet) -> dict[str, Any]:
        return {"dsn": standbys_dsn(settled), "target_session_attrs": "primary"}

    def test_is_told_at_once_to_a_borrower_who_does_not_wait(
        self, where: dict[str, Any], make_pool: MakePool
    ) -> None:
        pool = make_pool(**where)
        for _ in range(8):  # more than a breaker would bear
            with pytest.raises(psycopg2.OperationalError, match="hot standby mode") as caught:
                pool.getconn()
            assert not isinstance(caught.value, (PoolUnavailable, PoolTimeout))
        assert_no_failures(pool)

    def test_is_told_to_one_whose_time_runs_out(
        self, where: dict[str, Any], make_pool: MakePool
    ) -> None:
        pool = make_pool(**where)
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn()  # so that all have been asked
        with pytest.raises(PoolTimeout, match="hot standby mode"):
            pool.getconn(timeout=0.1)
        assert_no_failures(pool)

    def test_costs_each_server_a_few_logins_a_second_however_many_wait(
        self,
        where: dict[str, Any],
        settled: ReplicaSet,
        connects: Connects,
        make_pool: MakePool,
        num_workers: int,
    ) -> None:
        app = f"waiting-{num_workers}"
        pool = make_pool(maxconn=8, application_name=app, **where)
        started = time.monotonic()
        waiters = [start_waiter(pool) for _ in range(3)]
        wait_until(lambda: min(connects.of(app)[host] for host in settled.hosts[1:]) >= 6)
        logins, elapsed = connects.of(app), time.monotonic() - started
        # Each may have begun before there was an answer to the first.
        assert max(logins.values()) <= 3 + elapsed / SHORTEST_PAUSE
        assert_no_failures(pool)
        pool.shutdown()
        for waiter in waiters:
            assert isinstance(waiter.error(), psycopg2.Error)

    def test_ends_for_those_who_wait_as_soon_as_one_is_promoted(
        self,
        replica_set: ReplicaSet,
        make_pool: MakePool,
    ) -> None:
        pool = make_pool(maxconn=4, dsn=standbys_dsn(replica_set), target_session_attrs="primary")
        waiters = [start_waiter(pool) for _ in range(4)]
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 2)
        promoted = replica_set.replicas[1]
        promoted.promote()
        since = time.monotonic()
        conns = [waiter.result() for waiter in waiters]
        print(f"served {time.monotonic() - since:.2f} s after the promotion")
        assert [address_of(conn) for conn in conns] == [promoted.host] * 4
        give_back(pool, conns)
        assert_whole(pool)
        assert_no_failures(pool)


def standbys_dsn(replicas: ReplicaSet) -> str:
    hosts = ",".join(replicas.hosts[1:])
    return f"host={hosts} port={replicas.port} user=postgres dbname=postgres"


def assert_no_failures(pool: ConnectionPool) -> None:
    """See that the wrong role counted nowhere as a failure."""
    states = {(known.state, known.failures) for known in pool.endpoints()}
    assert states == {("closed", 0)}


class TestPreferStandby:
    ATTRS = "prefer-standby"

    def test_is_content_with_the_primary_until_a_standby_is_back(
        self, replica_set: ReplicaSet, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=4, dsn=replica_set.dsn, target_session_attrs=self.ATTRS)
        assert_even(spread(pool, 4), set(replica_set.hosts[1:]))
        for standby in replica_set.replicas:
            standby.stop()
        assert spread(pool, 4) == {replica_set.primary.host: 4}
        returned = replica_set.replicas[0]
        returned.start()
        wait_until(lambda: has_moved_to(returned, pool), timeout=20)
        assert_whole(pool)

    def test_takes_the_primary_when_there_is_nothing_else(
        self, settled: ReplicaSet, make_pool: MakePool
    ) -> None:
        pool = make_pool(maxconn=2, target_session_attrs=self.ATTRS, **settled.primary.params)
        assert len(fill(pool, 2)) == 2

    def test_does_not_open_at_the_primary_in_health(
        self, settled: ReplicaSet, connects: Connects, make_pool: MakePool, num_workers: int
    ) -> None:
        app = f"standbys-{num_workers}"
        pool = make_pool(
            maxconn=9,
            dsn=settled.dsn,
            application_name=app,
            target_session_attrs=self.ATTRS,
        )
        fill(pool, 3)
        first = connects.of(app)
        fill(pool, 9)
        # Asked at most once, before its role was known.
        assert connects.of(app)[settled.primary.host] <= 1
        assert sum((connects.of(app) - first).values()) >= 6

    def test_costs_a_full_pool_no_connection_in_health(self, settled: ReplicaSet) -> None:
        clock = FakeClock()
        with fake_pool(clock, 3, 3, dsn=settled.dsn, target_session_attrs=self.ATTRS) as pool:
            pool.wait()
            settle(pool, clock)
            before = set(fill(pool, 3))
            for _ in range(60):
                clock.advance(1.0)
                pool.reap_idle_connections()
            assert set(fill(pool, 3)) == before

    def test_does_not_wait_for_a_silent_standby_again_and_again(self) -> None:
        with (
            new_replica_set(standbys=1) as replicas,
            ConnectionPool(
                0,
                12,
                dsn=replicas.dsn,
                target_session_attrs=self.ATTRS,
                connect_timeout=30,
            ) as pool,
        ):
            replicas.replicas[0].freeze()
            conns = [pool.getconn(timeout=30)]
            since = time.monotonic()
            conns += borrow(pool, 8)
            # One attempt there takes two seconds at least.
            assert time.monotonic() - since < 8 * 2.0 - 1.0
            assert {address_of(conn) for conn in conns} == {replicas.primary.host}
            give_back(pool, conns)


def has_moved_to(server: Server, pool: ConnectionPool) -> bool:
    """Do from outside what a pool without workers leaves to others; tell whether all are there."""
    pool.reap_idle_connections()
    return set(open_at(pool)) == {server.host}


def settle(pool: ConnectionPool, clock: FakeClock) -> None:
    """Let all servers be asked, and the shares become even."""
    for _ in range(10):
        clock.advance(10.0)
        pool.reap_idle_connections()


class TestFullPool:
    """All of maxconn is idle: whoever is to be asked takes the room of another."""

    def test_uses_a_server_again_that_was_away(self, replica_set: ReplicaSet) -> None:
        clock = FakeClock()
        with fake_pool(clock, 3, 3, dsn=replica_set.dsn, target_session_attrs="any") as pool:
            pool.wait()
            away = replica_set.replicas[0]
            away.stop()
            assert len(spread(pool, 3)) == 2
            away.start()
            settle(pool, clock)
            assert_even(spread(pool, 3), set(replica_set.hosts))

    def test_has_it_back_in_the_background(self, replica_set: ReplicaSet) -> None:
        with ConnectionPool(3, 3, dsn=replica_set.dsn) as pool:
            pool.wait()
            away = replica_set.replicas[0]
            away.stop()
            wait_until(lambda: sum(open_at(pool).values()) == 3 and away.host not in open_at(pool))
            away.start()
            wait_until(lambda: len(open_at(pool)) == 3, timeout=20)


class TestLostRole:
    """A standby that becomes a primary keeps its sessions."""

    def test_is_noticed_when_a_connection_is_borrowed_by_those_to_whom_it_matters(
        self, replica_set: ReplicaSet, make_pool: MakePool
    ) -> None:
        promoted, other = replica_set.replicas
        picky = [
            make_pool(dsn=replica_set.dsn, target_session_attrs=attrs)
            for attrs in ("standby", "read-only")
        ]
        others = [
            make_pool(target_session_attrs=attrs, **promoted.params)
            for attrs in ("any", "prefer-standby")
        ]
        before = {pool.name: sorted(fill(pool, 4)) for pool in picky + others}
        promoted.promote()
        for pool in picky:
            assert spread(pool, 4) == {other.host: 4}
        for pool in others:
            assert sorted(fill(pool, 4)) == before[pool.name]


class TestWrongValue:
    def test_is_told_as_libpq_tells_it(self, settled: ReplicaSet, make_pool: MakePool) -> None:
        pool = make_pool(dsn=settled.dsn, target_session_attrs="readwrite")
        with pytest.raises(psycopg2.OperationalError, match="target_session_attrs"):
            pool.getconn(timeout=10)
