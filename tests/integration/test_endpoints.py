"""Pools for names and lists of hosts, on real servers and a real name server."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import (
    ConnectionPool,
    HostResolutionError,
    PoolTimeout,
    addresses,
    balance,
    dialer,
    system_names,
    upkeep,
)
from psycopg2_pool2 import endpoints as endpoints_module
from psycopg2_pool2 import pool as pool_module
from psycopg2_pool2 import resolver as resolver_module
from psycopg2_pool2.hosts_file import HostsFile
from psycopg2_pool2.monitor import get_monitor
from tests.support.dns import DnsServer, Mode, a, cname, srv
from tests.support.places import (
    HOSTS,
    NAME,
    Customers,
    Places,
    counted,
    four_servers,
    places,
    real_shares,
    server_of,
    shares,
    spread,
    wait_for_spread,
    wait_until_even,
)
from tests.support.pools import ask, borrow, borrowed_pids, fill, give_back, round_trip
from tests.support.processes import in_child, run_program
from tests.support.proxy import Proxy
from tests.support.tls import TlsServer
from tests.support.waiting import in_thread, threads_named, wait_until

__all__ = ["four_servers", "places"]

WORKERS = pytest.mark.parametrize("num_workers", [3, 0], ids=["workers", "no-workers"])
ONE, TWO, THREE, FOUR = HOSTS
# What nobody should ever wait; far more than it takes, and less than any limit of time: a
# lookup's is 5 s, and so is a customer's patience.
AT_ONCE = 4.0
SHARE_AIM = 20.0
"""Seconds within which a fourth address has its share, as the design promises."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pool ask and move ten times as often, where nothing depends on the pace."""
    monkeypatch.setattr(addresses, "SHORTEST_REFRESH", 0.1)
    monkeypatch.setattr(addresses, "LONGEST_BACKOFF", 0.2)
    for module in (balance, upkeep):
        monkeypatch.setattr(module, "STEP", 0.1)
    for name in ("SHORTEST_LAG", "LONGEST_LAG", "LOOKUP_PAUSE"):
        monkeypatch.setattr(endpoints_module, name, 0.1)
    for module in (balance, dialer):
        monkeypatch.setattr(module, "LOOKUP_TIMEOUT", 0.3)
    monkeypatch.setattr(resolver_module.NoSuchHost, "answer", addresses.Answer((), 0.1))


def records_at(pool: ConnectionPool, address: str) -> int:
    """Return how many connections lead to an address, those that are to go included."""
    return sum(r.endpoint.address == address for r in pool._store.all_records())


def has_failed(pool: ConnectionPool, address: str) -> bool:
    """Tell whether the last attempt at an address failed."""
    return bool(endpoint(pool, address).failures)


def endpoint(pool: ConnectionPool, address: str) -> Any:
    """Return what the pool tells of an address."""
    [found] = [e for e in pool.endpoints() if e.address == address]
    return found


# -- where libpq would connect -------------------------------------------------


class TestWhere:
    @pytest.fixture
    def pool_from(
        self, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., ConnectionPool]:
        """Make a pool that is told where to in one of libpq's ways."""

        def make(source: str, host: str, port: str, hostaddr: str | None = None) -> ConnectionPool:
            said = {"host": host, "port": port, "user": "postgres", "dbname": "postgres"}
            said |= {"hostaddr": hostaddr} if hostaddr is not None else {}
            nothing: dict[str, Any] = {"host": None, "port": None, "user": None, "dbname": None}
            if source == "keywords":
                return places.pool(0, 40, **said)
            if source == "dsn":
                dsn = " ".join(f"{key}='{value}'" for key, value in said.items())
                return places.pool(0, 40, dsn=dsn, **{**nothing, "user": None})
            if source == "URL":
                pairs = "&".join(f"{key}={value}" for key, value in said.items())
                return places.pool(0, 40, dsn=f"postgresql://?{pairs}", **nothing)
            if source == "service":
                lines = [f"{key}={value}" for key, value in said.items()]
                (tmp_path / "services").write_text("\n".join(["[here]", *lines, ""]))
                monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
                return places.pool(0, 40, dsn="service=here", **nothing)
            for key, value in said.items():
                variable = "PGDATABASE" if key == "dbname" else f"PG{key.upper()}"
                monkeypatch.setenv(variable, value)
            return places.pool(0, 40, **nothing)

        return make

    @pytest.mark.parametrize("source", ["keywords", "dsn", "URL", "service", "environment"])
    def test_lists_names_and_sockets_are_read_as_libpq_reads_them(
        self, places: Places, pool_from: Callable[..., ConnectionPool], source: str
    ) -> None:
        places.name(2, 3)
        hosts = f"{ONE},{NAME},{places.servers[3].socket_dir}"
        pool = pool_from(source, hosts, ",".join([str(places.port)] * 3))
        fill(pool, 1)  # which does not wait for the name's addresses
        wait_until(lambda: len(pool.endpoints()) == 4)
        assert real_shares(pool, 8) == {ONE: 2, TWO: 2, THREE: 2, "socket": 2}
        told = {(e.host, e.address): e.connections for e in pool.endpoints()}
        socket_dir = places.servers[3].socket_dir
        assert told == {(ONE, ONE): 2, (NAME, TWO): 2, (NAME, THREE): 2, (socket_dir, None): 2}

    @pytest.mark.parametrize("source", ["keywords", "dsn", "URL", "service", "environment"])
    def test_hostaddrs_are_taken_as_they_are_and_no_name_is_asked_for(
        self, places: Places, pool_from: Callable[..., ConnectionPool], source: str
    ) -> None:
        pool = pool_from(source, "a.test,b.test", str(places.port), f"{ONE},{TWO}")
        assert real_shares(pool, 4) == {ONE: 2, TWO: 2}
        assert {(e.host, e.address) for e in pool.endpoints()} == {("a.test", ONE), ("b.test", TWO)}
        assert places.dns.queries == []

    @pytest.mark.parametrize(
        ("where", "told"),
        [
            ({"host": "a,b", "hostaddr": ONE}, "host"),
            ({"host": "a,b,c", "port": "1,2"}, "port"),
            ({"host": "a", "port": "70000"}, "port"),
            ({"host": "a", "port": "some"}, "port"),
            ({"dsn": "service=nowhere"}, "nowhere"),
            ({"dsn": "host=a,b port=1,2,3"}, "port"),
        ],
    )
    def test_a_bad_list_is_the_constructor_s_error_and_nothing_is_started(
        self, places: Places, where: dict[str, Any], told: str
    ) -> None:
        threads, pools = set(threads_named("psycopg2_pool2")), set(pool_module._pools)
        with pytest.raises(psycopg2.ProgrammingError, match=told):
            places.pool(3, 5, **where)
        assert set(threads_named("psycopg2_pool2")) <= threads
        assert set(pool_module._pools) <= pools
        assert places.dns.queries == []

    def test_the_name_is_kept_beside_the_address(self, places: Places) -> None:
        places.name(2)
        with places.pool().conn(timeout=10) as conn:
            parameters = conn.get_dsn_parameters()
            assert (parameters["host"], parameters["hostaddr"]) == (NAME, TWO)
            assert conn.info.host == NAME

    def test_a_password_file_that_goes_by_the_name_works(
        self, places: Places, tmp_path: Path
    ) -> None:
        passwords = tmp_path / "passwords"
        passwords.write_text(f"{NAME}:{places.port}:postgres:careful:secret\n")
        passwords.chmod(0o600)
        pool = places.pool(user="careful", passfile=str(passwords))
        assert set(real_shares(pool, 3)) == {ONE, TWO, THREE}

    def test_a_certificate_is_verified_by_the_name(
        self, dns_server: DnsServer, tls_server: TlsServer
    ) -> None:
        """`db.test` is on the certificate, `other.test`, which leads there too, is not."""
        for name in (NAME, "other.test"):
            dns_server.zone[name] = [a(tls_server.host)]
        params = {**tls_server.params, "resolver": dns_server.resolver()}
        with ConnectionPool(0, 2, **{**params, "host": NAME}) as pool, pool.conn(10) as conn:
            assert ask(conn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        with (
            ConnectionPool(0, 2, **{**params, "host": "other.test"}) as pool,
            pytest.raises(psycopg2.OperationalError, match=r"other\.test"),
        ):
            pool.getconn(timeout=10)

    def test_connect_params_may_say_where_to(self, places: Places) -> None:
        """Then the address that the pool has found for its own host is not mixed with it."""
        places.name(1)
        pool = places.pool(connect_params=lambda: {"host": TWO})
        with pool.conn(timeout=10) as conn:
            assert server_of(conn) == TWO
            assert conn.get_dsn_parameters()["host"] == TWO

    @pytest.mark.parametrize("kind", ["Resolver", "callable"])
    def test_a_resolver_of_the_program_s_own_is_asked(self, places: Places, kind: str) -> None:
        asked: list[str] = []

        def ask_me(name: str) -> list[str]:
            asked.append(name)
            return [ONE, TWO]

        places.name(1, 2)
        pool = places.pool(resolver=ask_me if kind == "callable" else places.dns.resolver())
        assert real_shares(pool, 4) == {ONE: 2, TWO: 2}
        assert (asked or [places.dns.queries[0].name])[0] == NAME
        assert bool(asked) != bool(places.dns.queries)

    def test_an_alias_is_followed_and_the_search_list_gone_through(self, places: Places) -> None:
        places.dns.zone["reader.corp.test"] = [cname(NAME, ttl=1)]
        pool = places.pool(host="reader", resolver=places.dns.resolver("corp.test", ndots=1))
        assert real_shares(pool, 3) == {ONE: 1, TWO: 1, THREE: 1}
        assert {e.host for e in pool.endpoints()} == {"reader"}

    def test_a_pool_for_an_address_or_a_socket_needs_no_dns(self, places: Places) -> None:
        program = (
            "import sys\n"
            "from psycopg2_pool2 import ConnectionPool\n"
            "for host in sys.argv[2:]:\n"
            "    with ConnectionPool(1, 2, host=host, port=sys.argv[1], user='postgres') as pool:\n"
            "        pool.putconn(pool.getconn(timeout=10))\n"
            "        print(pool._upkeep._balance.is_needed)\n"
            "print([name for name in sys.modules if name.split('.')[0] == 'dns'])\n"
        )
        ended = run_program(program, str(places.port), ONE, places.servers[0].socket_dir)
        assert ended.output.splitlines() == ["False", "False", "[]"], ended.errors


# -- names that nobody knows, and name servers that do not answer ---------------


class TestUnknownName:
    @WORKERS
    @pytest.mark.parametrize("timeout", [0, 5, None])
    def test_is_told_to_every_borrower_at_once(
        self, places: Places, num_workers: int, timeout: float | None
    ) -> None:
        pool = places.pool(host="nowhere.test", num_workers=num_workers)
        for _ in range(2):  # the second may be told what the first has found out
            started = time.monotonic()
            with pytest.raises(HostResolutionError, match=r"nowhere\.test") as caught:
                in_thread(pool.getconn, timeout=timeout).result(20)
            assert isinstance(caught.value, psycopg2.OperationalError)
            assert time.monotonic() - started < AT_ONCE

    def test_is_told_at_once_after_the_pool_has_asked_by_itself(self, places: Places) -> None:
        pool = places.pool(1, 4, host="nowhere.test")
        wait_until(lambda: pool.get_stats()["connections_errors"])
        started = time.monotonic()
        with pytest.raises(HostResolutionError, match=r"nowhere\.test"):
            in_thread(pool.getconn).result(20)
        assert time.monotonic() - started < AT_ONCE

    def test_is_served_as_soon_as_it_is_known(self, places: Places, quick: None) -> None:
        pool = places.pool(host="later.test")
        with pytest.raises(HostResolutionError):
            pool.getconn()
        places.name(1, name="later.test")
        wait_until(lambda: served(pool), 15)

    @WORKERS
    def test_in_a_list_costs_next_to_nothing(self, places: Places, num_workers: int) -> None:
        pool = places.pool(host=f"nowhere.test,{NAME}", num_workers=num_workers)
        assert real_shares(pool, 3) == {ONE: 1, TWO: 1, THREE: 1}


def served(pool: ConnectionPool) -> bool:
    """Tell whether a borrower who does not wait is served."""
    try:
        round_trip(pool, timeout=0)
    except psycopg2.OperationalError:
        return False
    return True


class TestSilentNameServer:
    LIMIT = 1.0

    @pytest.fixture(autouse=True)
    def _quick_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dialer, "LOOKUP_TIMEOUT", self.LIMIT)

    def test_is_told_within_the_borrower_s_time_or_the_lookup_s(self, places: Places) -> None:
        places.dns.behave(Mode.SILENCE)
        borrowers = {
            (num_workers, timeout): (
                in_thread(timed_error, places.pool(num_workers=num_workers), timeout)
            )
            for num_workers in (3, 0)
            for timeout in (0.5, 0)
        }
        for (_, timeout), borrower in borrowers.items():
            error, seconds = borrower.result(20)
            if timeout:
                assert isinstance(error, PoolTimeout)
                assert isinstance(error.__cause__, HostResolutionError)
                assert NAME in str(error.__cause__)
            else:
                assert isinstance(error, HostResolutionError)
                assert NAME in str(error)
            assert (timeout or self.LIMIT) * 0.9 < seconds < (timeout or self.LIMIT) + AT_ONCE

    @WORKERS
    def test_on_one_of_two_names_costs_next_to_nothing(
        self, places: Places, num_workers: int
    ) -> None:
        places.dns.behave(Mode.SILENCE, "silent.test")
        pool = places.pool(0, 10, host=f"silent.test,{NAME}", num_workers=num_workers)
        conns = borrow(pool, 1)  # which may have to wait for the answers
        started = time.monotonic()
        conns += borrow(pool, 5)
        assert time.monotonic() - started < AT_ONCE
        assert Counter(map(server_of, conns)) == {ONE: 2, TWO: 2, THREE: 2}
        give_back(pool, conns)


def timed_error(pool: ConnectionPool, timeout: float) -> tuple[BaseException | None, float]:
    """Borrow in vain; return the error, and after how many seconds it came."""
    started = time.monotonic()
    try:
        pool.getconn(timeout=timeout)
    except Exception as error:
        return error, time.monotonic() - started
    return None, 0.0


# -- even shares -----------------------------------------------------------------


class TestSpread:
    @WORKERS
    def test_of_nine_is_even_and_of_ten_as_even_as_can_be(
        self, places: Places, num_workers: int
    ) -> None:
        nine = places.warm_pool(9, 20, num_workers=num_workers)
        assert spread(nine) == [3, 3, 3]
        assert real_shares(nine, 9) == {ONE: 3, TWO: 3, THREE: 3}
        ten = places.warm_pool(10, 20, num_workers=num_workers)
        assert spread(ten) == [4, 3, 3]
        # Growth in between goes where there are fewest.
        assert sorted(real_shares(ten, 15).values()) == [5, 5, 5]

    def test_of_many_small_pools_is_by_chance(self, places: Places) -> None:
        found: Counter[str | None] = Counter()
        for _ in range(60):
            with places.pool(1, 1, num_workers=0) as pool:
                pool.wait(10)
                found.update(shares(pool))
        # Fewer than 6 of 60 is as likely as one in a hundred thousand.
        assert min(found[host] for host in (ONE, TWO, THREE)) >= 6

    def test_is_told_in_full(self, places: Places) -> None:
        places.name(1, 4)
        with Proxy((ONE, places.port), FOUR) as gate:
            gate.refuse()
            pool = places.pool(host=f"{NAME},{FOUR}", port=f"{places.port},{gate.port}")
            places.name(1)
            conns = borrow(pool, 3)
            wait_until(lambda: endpoint_at(pool, gate.port).failures > 0 or more(pool, conns), 15)
            lame, good = endpoint_at(pool, gate.port), endpoint_at(pool, places.port)
            give_back(pool, conns)
        assert (lame.host, lame.address, lame.connections) == (FOUR, FOUR, 0)
        assert lame.last_error is not None
        assert "refused" in lame.last_error
        assert lame.connect_seconds is None
        assert (good.host, good.address, good.state) == (NAME, ONE, "closed")
        assert good.failures == 0
        assert good.last_error is None
        assert 0 < good.connect_seconds < AT_ONCE

    @WORKERS
    def test_goes_by_priority_weight_and_port_of_a_service(
        self, places: Places, quick: None, num_workers: int
    ) -> None:
        with contextlib.ExitStack() as stack:
            gates = [
                stack.enter_context(Proxy((server.host, places.port)))
                for server in places.servers[:3]
            ]
            first, second, spare = gates
            places.dns.zone["_pg._tcp.test"] = [
                srv("a.test", first.port, 1, 30, ttl=1),
                srv("a.test", second.port, 1, 10, ttl=1),
                srv("a.test", spare.port, 2, 0, ttl=1),
            ]
            places.dns.zone["a.test"] = [a(ONE, ttl=1)]
            pool = places.warm_pool(8, 12, host="_pg._tcp.test", port=None, num_workers=num_workers)

            def at_gates() -> tuple[int, ...]:
                if not num_workers:
                    pool.reap_idle_connections()
                return tuple(endpoint_at(pool, gate.port).connections for gate in gates)

            def in_order() -> bool:
                heavy, light, spared = at_gates()
                return spared == 0 and abs(heavy - 0.75 * (heavy + light)) < 1

            assert at_gates() == (6, 2, 0)
            assert {e.host for e in pool.endpoints()} == {"a.test"}
            for gate in (first, second):
                gate.refuse()
                gate.cut()
            wait_until(lambda: refilled(pool) and at_gates()[:2] == (0, 0), 15, "all at the spare")
            for gate in (first, second):
                gate.forward()
            wait_until(in_order, 30, message="back to the first")


def refilled(pool: ConnectionPool) -> bool:
    """Have dead connections found by borrowing; tell whether one could be borrowed."""
    with contextlib.suppress(psycopg2.Error):
        return bool(borrowed_pids(pool, 8))
    return False


def endpoint_at(pool: ConnectionPool, port: int) -> Any:
    """Return what the pool tells of the endpoint with a port."""
    [found] = [e for e in pool.endpoints() if e.port == port]
    return found


def more(pool: ConnectionPool, conns: list[Any]) -> bool:
    """Have one more opened, so that each endpoint is tried in the end; return False."""
    if len(conns) < pool.maxconn:
        conns.append(pool.getconn(timeout=10))
    return False


# -- deadlines ---------------------------------------------------------------------


class TestDeadlines:
    @pytest.fixture
    def silent(self, places: Places) -> Iterator[list[Proxy]]:
        """Make three places that accept and never answer."""
        with contextlib.ExitStack() as stack:
            holes = [stack.enter_context(Proxy((ONE, places.port), host)) for host in HOSTS[:3]]
            for hole in holes:
                hole.freeze()
            yield holes

    @WORKERS
    def test_of_a_borrower_covers_all_attempts_together(
        self, places: Places, silent: list[Proxy], num_workers: int
    ) -> None:
        ports = ",".join(str(hole.port) for hole in silent)
        pool = places.pool(host=",".join(HOSTS[:3]), port=ports, num_workers=num_workers)
        error, seconds = timed_error(pool, 2)
        assert isinstance(error, PoolTimeout)
        assert seconds < 3 * 2 - 1  # as long as it might take three times

    def test_without_workers_leaves_time_for_the_one_that_serves(
        self, places: Places, silent: list[Proxy]
    ) -> None:
        """Whichever is first: two of the three are silent."""
        ports = f"{places.port},{silent[1].port},{silent[2].port}"
        pools = [places.pool(host=",".join(HOSTS[:3]), port=ports, num_workers=0) for _ in range(4)]
        for borrower in [in_thread(round_trip, pool, timeout=4) for pool in pools]:
            assert borrower.result()


# -- replicas that die and come back --------------------------------------------------


class TestReplicaThatDies:
    def test_costs_nobody_an_error_and_has_its_share_again(self, places: Places) -> None:
        """In pools with and without room, and in one that is never at rest."""
        tallies, pools = [], {}
        for kind, maxconn in (("with room", 12), ("full", 6), ("a list", 6), ("saturated", 6)):
            tally, kwargs = counted({"host": ",".join(HOSTS[:3])} if kind == "a list" else {})
            tallies.append((tally, maxconn))
            pools[kind] = places.warm_pool(6, maxconn, **kwargs)
            assert spread(pools[kind]) == [2, 2, 2]
        dying = places.servers[2]
        with contextlib.ExitStack() as stack:
            crowds = [
                stack.enter_context(Customers(pool, 10 if kind == "saturated" else 1))
                for kind, pool in pools.items()
            ]
            dying.stop("immediate")
            stack.callback(dying.start)
            for pool in pools.values():
                wait_until(partial(has_failed, pool, THREE), 15)
                wait_for_spread(pool, 3, 3, 0)
            began = time.monotonic()
            for crowd in crowds:
                crowd.begin_anew()
            for crowd in crowds:
                crowd.wait_served(100)
            for pool in pools.values():
                dead = endpoint(pool, THREE)
                assert dead.last_error
                # One attempt after another, further and further apart.
                assert dead.failures <= 5 + 2 * (time.monotonic() - began)
            slowest = max(crowd.slowest for crowd in crowds)
            dying.start()
            for kind, pool in pools.items():
                seconds = wait_until_even(pool)
                print(f"{kind}: even again {seconds:.1f} s later")
        assert slowest < AT_ONCE
        assert [crowd.errors for crowd in crowds] == [[]] * 4
        for tally, most in tallies:
            assert tally.most <= most
        assert endpoint(pools["full"], THREE).last_error is None

    def test_without_workers_the_borrower_goes_on_to_the_next(
        self, places: Places, quick: None
    ) -> None:
        pool = places.warm_pool(6, 6, num_workers=0)
        dying = places.servers[2]
        dying.stop("immediate")
        try:
            with Customers(pool, 2) as crowd:
                crowd.wait_served(100)
            # What died idle was found by borrowing, and replaced at the others.
            pool.check()
            wait_until(lambda: bool(borrowed_pids(pool, 6)) and spread(pool) == [3, 3, 0])
        finally:
            dying.start()
        assert crowd.errors == []
        wait_until(lambda: pool.reap_idle_connections() or spread(pool) == [2, 2, 2], 20)
        assert real_shares(pool, 6) == {ONE: 2, TWO: 2, THREE: 2}


class TestReplicaThatIsSilent:
    def test_costs_nobody_an_error_and_after_the_first_attempt_no_time(
        self, places: Places, quick: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor a slot: who wants the last one does not wait for an attempt in the dark."""
        with Proxy((THREE, places.port), FOUR) as gate:
            pool = places.warm_pool(
                *(6, 9),
                host=f"{ONE},{TWO},{FOUR}",
                port=f"{places.port},{places.port},{gate.port}",
                test_timeout=0.3,
            )
            # Its test_timeout is that of a busy machine: if the other place seemed silent too, an
            # attempt in the dark would be right.
            tight = places.pool(
                0, 2, host=f"{ONE},{FOUR}", port=f"{places.port},{gate.port}", test_timeout=5
            )
            assert spread(pool) == [2, 2, 2]
            gate.freeze()
            with Customers(pool, 2) as crowd:
                wait_until(lambda: endpoint(pool, FOUR).failures > 0, 20)
                crowd.wait_served(1)
                crowd.begin_anew()
                held = tight.getconn(timeout=10)
                with Customers(tight, close=True) as guests:
                    wait_until(lambda: endpoint(tight, FOUR).failures > 0, 20)
                    guests.wait_served(1)
                    # Who waited for another attempt would wait for too long.
                    monkeypatch.setattr(dialer, "NEXT_TRY", 60.0)
                    guests.begin_anew()
                    crowd.begin_anew()
                    before, began = gate.connects, time.monotonic()
                    wait_until(lambda: gate.connects > before, 30, message="another look")
                    looks, seconds = gate.connects - before, time.monotonic() - began
                    guests.wait_served(10)
                crowd.wait_served(100)
                slowest = crowd.slowest, guests.slowest
                tight.putconn(held)
                gate.forward()
                print(f"even again {wait_until_even(pool):.1f} s later")
        assert crowd.errors == guests.errors == []
        assert max(slowest) < AT_ONCE
        assert looks <= 4 + 2 * seconds


class TestReplicaThatFailsItsTests:
    def test_is_trusted_again_though_nobody_borrows_and_the_pool_does_not_grow(
        self, places: Places, quick: None
    ) -> None:
        lame = threading.Event()

        def test(conn: Any) -> None:
            if lame.is_set() and server_of(conn) == THREE:
                raise psycopg2.OperationalError("no use")

        pool = places.warm_pool(6, 60, test_on_borrow=test, health_check_interval=0)
        lame.set()
        pool.check()
        wait_until(lambda: fill(pool, 6) and endpoint(pool, THREE).failures > 0, 15)
        lame.clear()
        wait_until(lambda: endpoint(pool, THREE).failures == 0, 15)
        wait_until_even(pool)
        assert pool.get_stats()["pool_size"] <= 8


# -- what the name server says meanwhile ------------------------------------------------


class TestAddressBook:
    def test_a_fourth_address_has_its_share_and_one_that_leaves_has_none(
        self, places: Places
    ) -> None:
        """At the pool's real pace, with 20 of at most 24 connections, and nobody notices."""
        tally, kwargs = counted()
        pool = places.warm_pool(20, 24, address_timeout=1, **kwargs)
        assert spread(pool) == [7, 7, 6]
        with Customers(pool) as customer:
            places.name(1, 2, 3, 4)
            seconds = wait_for_spread(pool, 5, 5, 5, 5)
            print(f"a fourth address has its share after {seconds:.1f} s")
            assert seconds < SHARE_AIM
            borrowed = borrow(pool, 15)
            held = [conn for conn in borrowed if server_of(conn) == FOUR]
            assert held
            give_back(pool, [conn for conn in borrowed if conn not in held])
            places.name(1, 2, 3)
            wait_until(lambda: FOUR not in shares(pool), 15)
            wait_until(lambda: records_at(pool, FOUR) == len(held), 15)
            fewest = customer.fewest
            # Those in use go on until they come back.
            assert all(server_of(conn) == FOUR for conn in held)
            give_back(pool, held)
            wait_until(lambda: records_at(pool, FOUR) == 0, 15)
            wait_until(lambda: len(spread(pool)) == 3 and sum(spread(pool)) >= 20, 15)
        assert customer.errors == []
        assert customer.lost == 0
        assert fewest >= 20
        assert customer.slowest < AT_ONCE
        assert tally.most <= 24

    def test_a_full_pool_moves_over_too(self, places: Places, quick: None) -> None:
        """All of maxconn are kept warm, and most of them are in use."""
        tally, kwargs = counted()
        pool = places.warm_pool(9, 9, **kwargs)
        with Customers(pool, 8, sql="SELECT pg_sleep(0.001)") as crowd:
            places.name(1, 2, 3, 4)
            wait_for_spread(pool, 3, 2, 2, 2)
            places.name(4)
        assert crowd.errors == []
        assert crowd.lost == 0
        assert tally.most <= 9

    def test_a_busy_pool_with_room_does_not_grow_for_it(self, places: Places, quick: None) -> None:
        places.name(1)
        pool = places.pool(0, 60)
        conns = borrow(pool, 6)
        places.name(1, 2, 3)

        def used_and_spread() -> bool:
            # One after the other comes back and is borrowed again: never are two idle.
            pool.putconn(conns.pop(0))
            conns.append(pool.getconn(timeout=10))
            return spread(pool) == [2, 2, 2]

        wait_until(used_and_spread, 20, message="2, 2, 2")
        assert pool.get_stats()["pool_size"] <= 7
        give_back(pool, conns)

    @WORKERS
    def test_answers_with_one_address_at_a_time_are_taken_together(
        self, places: Places, quick: None, num_workers: int
    ) -> None:
        """As Amazon Aurora's reader endpoint gives them: all are used, within 2 of even."""
        places.name(1, 2, 3, ttl=0)
        places.dns.one_at_a_time(NAME)
        pool = places.warm_pool(9, 12, num_workers=num_workers)
        with Customers(pool) as customer:

            def even() -> bool:
                if not num_workers:
                    pool.reap_idle_connections()
                return len(spread(pool)) == 3 and max(spread(pool)) - min(spread(pool)) <= 2

            wait_until(even, 20)
            # It stays so, whatever the next answers name.
            asked = len(places.dns.queries)
            wait_until(lambda: even() and len(places.dns.queries) > asked + 6, 20)
            assert even()
        assert customer.errors == []
        assert customer.lost == 0

    @pytest.mark.parametrize("mode", [Mode.SERVFAIL, Mode.SILENCE])
    def test_nothing_is_forgotten_while_nobody_answers(
        self, places: Places, quick: None, mode: Mode
    ) -> None:
        timeout = 0.5
        places.name(1, 2, 3, ttl=0)
        pool = places.warm_pool(3, 6, address_timeout=timeout)
        places.dns.behave(mode)
        places.dns.clear()
        began = time.monotonic()
        with Customers(pool, close=True) as customer:
            wait_until(lambda: len(places.dns.asked(NAME)) >= 4, 20)
            wait_until(lambda: time.monotonic() - began > 3 * timeout)
            assert len(pool.endpoints()) == 3
            # Not at any moment: the customer closes its connections.
            wait_until(lambda: real_shares(pool, 5).keys() == {ONE, TWO, THREE})
            # An answer that names others ends it.
            places.dns.behave(Mode.ANSWER)
            places.name(2, 4, ttl=0)
            wait_until(lambda: shares(pool).keys() == {TWO, FOUR}, 30)
        assert customer.errors == []
        assert customer.slowest < AT_ONCE

    def test_a_name_that_vanishes_for_a_while_costs_no_connection(
        self, places: Places, quick: None
    ) -> None:
        places.name(1, 2, 3, ttl=0)
        pool = places.warm_pool(6, 6, address_timeout=0.5)
        before = set(fill(pool, 6))
        places.dns.clear()
        places.dns.behave(Mode.NXDOMAIN)
        began = time.monotonic()
        wait_until(lambda: places.dns.asked(NAME), 20)
        wait_until(lambda: time.monotonic() - began > 1.5)
        assert set(borrowed_pids(pool, 6)) == before
        places.dns.clear()
        places.dns.behave(Mode.ANSWER)
        # NXDOMAIN is believed for a few seconds.
        wait_until(lambda: len(places.dns.asked(NAME)) >= 6, 20)
        assert set(borrowed_pids(pool, 6)) == before
        assert spread(pool) == [2, 2, 2]


# -- without workers -----------------------------------------------------------------------


class TestWithoutWorkers:
    def test_the_name_is_looked_up_again_on_the_way_of_an_opening(self, places: Places) -> None:
        places.name(1, ttl=0)
        pool = places.pool(0, 6, num_workers=0)
        assert real_shares(pool, 2) == {ONE: 2}
        places.name(1, 2, ttl=0)
        asked = len(places.dns.queries)
        conns = borrow(pool, 3)  # at most once a second
        wait_until(lambda: renewed(pool) and len(places.dns.queries) > asked, 10)
        give_back(pool, conns)
        assert shares(pool).keys() == {ONE, TWO}

    def test_a_call_from_outside_evens_out_and_lets_go_of_what_left(
        self, places: Places, quick: None
    ) -> None:
        places.name(1, 2, ttl=0)
        pool = places.pool(6, 8, num_workers=0, address_timeout=0.2)
        pool.wait(20)
        assert spread(pool) == [3, 3]
        [held, *others] = sorted(borrow(pool, 6), key=lambda conn: server_of(conn) != TWO)
        give_back(pool, others)
        places.name(1, 3, 4, ttl=0)

        def settled() -> bool:
            pool.reap_idle_connections()
            return records_at(pool, TWO) == 1 and TWO not in shares(pool)

        wait_until(settled, 20, message="only the one in use is left of the address that left")
        assert server_of(held) == TWO
        pool.putconn(held)
        assert records_at(pool, TWO) == 0
        wait_until(lambda: pool.reap_idle_connections() or spread(pool) == [2, 2, 2], 20)
        assert real_shares(pool, 6) == {ONE: 2, THREE: 2, FOUR: 2}

    def test_a_pool_where_nobody_reaps_uses_new_addresses_as_it_grows(self, places: Places) -> None:
        places.name(1, ttl=0)
        pool = places.pool(0, 9, num_workers=0)
        fill(pool, 3)
        places.name(1, 2, 3, ttl=0)
        wait_until(lambda: renewed(pool) and len(shares(pool)) == 3, 10)
        assert set(real_shares(pool, 9)) == {ONE, TWO, THREE}


def renewed(pool: ConnectionPool) -> bool:
    """Have a new connection opened."""
    with pool.conn(timeout=10) as conn:
        conn.close()
    return True


# -- many pools, other processes ------------------------------------------------------------


class TestManyPools:
    MOST_THREADS = 40

    @pytest.fixture
    def hosts_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have a thousand names in the hosts file, and in the system's own resolver."""
        path = tmp_path / "hosts"
        path.write_text("".join(f"{ONE} tenant{number}.test\n" for number in range(1000)))
        monkeypatch.setattr(system_names, "HostsFile", lambda _: HostsFile(str(path)))
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda *args, **hints: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ONE, 0))],
        )

    @pytest.mark.parametrize("kind", ["DNS", "callable", "hosts file"])
    def test_are_a_handful_of_threads_that_do_little(
        self, places: Places, hosts_file: None, kind: str
    ) -> None:
        places.dns.zone |= {f"db{number}.test": [a(ONE, ttl=60)] for number in range(1000)}
        resolvers: dict[str, Any] = {
            "DNS": places.dns.resolver(),
            "callable": lambda name: [ONE],
            "hosts file": None,
        }
        name = "tenant{}.test" if kind == "hosts file" else "db{}.test"
        others = threading.active_count()
        pools = []
        most = 0
        for number in range(1000):
            pools.append(places.pool(0, 4, host=name.format(number), resolver=resolvers[kind]))
            most = max(most, threading.active_count() - others)
        workers = get_monitor().workers
        begun = workers._finished

        def looked_up() -> bool:
            nonlocal most
            most = max(most, threading.active_count() - others)
            return not workers._jobs.qsize()

        wait_until(looked_up, 60, message="all have been looked up")
        assert most <= self.MOST_THREADS
        # Idle now: nothing is asked again before its time.
        began, begun = time.monotonic(), workers._finished
        wait_until(lambda: time.monotonic() - began > 0.3)
        assert (workers._finished - begun) / (time.monotonic() - began) < 300
        with pools[500].conn(timeout=10) as conn:
            assert ask(conn) == 1


@WORKERS
def test_a_forked_child_looks_up_anew_and_works(places: Places, num_workers: int) -> None:
    places.name(1, 2, ttl=60)
    pool = places.pool(2, 6, num_workers=num_workers)
    pool.wait(20)
    places.name(3, 4, ttl=60)
    places.dns.clear()

    def child() -> Any:
        found = real_shares(pool, 4)
        told = {e.address: e.connections for e in pool.endpoints()}
        return os.getpid(), sorted(found.items()), sorted(told.items())

    text = in_child(child)
    assert str([(THREE, 2), (FOUR, 2)]) in text
    assert text.count(str([(THREE, 2), (FOUR, 2)])) == 2
    assert real_shares(pool, 2).keys() == {ONE, TWO}
