"""A name that leads elsewhere: after `drain()` nobody is led to the old server any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, addresses, balance, upkeep
from tests.support.dns import DnsServer, Mode, a
from tests.support.pools import borrow, give_back, round_trip
from tests.support.rude_server import RudeServer
from tests.support.waiting import in_thread, wait_until

NAME = "db.test"
OLD, NEW = "127.0.0.1", "127.0.0.2"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pool ask and move ten times as often."""
    monkeypatch.setattr(addresses, "SHORTEST_REFRESH", 0.1)
    for module in (balance, upkeep):
        monkeypatch.setattr(module, "STEP", 0.1)


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def servers() -> Iterator[tuple[RudeServer, RudeServer]]:
    with RudeServer(host=OLD) as old, RudeServer(host=NEW, port=old.port) as new:
        yield old, new


@pytest.fixture
def where(
    servers: tuple[RudeServer, RudeServer], dns_server: DnsServer, num_workers: int
) -> dict[str, Any]:
    """Return what leads a pool to the old server, by name."""
    dns_server.zone[NAME] = [a(OLD, ttl=1)]
    return {
        "host": NAME,
        "port": servers[0].port,
        "user": "u",
        "dbname": "shop",
        "resolver": dns_server.resolver(),
        "num_workers": num_workers,
    }


def addresses_of(conns: list[Any]) -> set[str]:
    """Return where connections lead, as libpq knows it."""
    return {conn.info.dsn_parameters["hostaddr"] for conn in conns}


def loans(pool: ConnectionPool, number: int = 8) -> set[str]:
    """Borrow all that there may be at a time; return where they lead."""
    conns = borrow(pool, number)
    try:
        return addresses_of(conns)
    finally:
        give_back(pool, conns)


def test_no_loan_after_drain_leads_to_the_old_server(
    servers: tuple[RudeServer, RudeServer], where: dict[str, Any], dns_server: DnsServer
) -> None:
    """`address_timeout` has its default, by which the old address stays for a minute."""
    old, new = servers
    with ConnectionPool(4, 8, **where) as pool:
        assert loans(pool) == {OLD}
        dns_server.zone[NAME] = [a(NEW, ttl=1)]
        pool.drain()
        for _ in range(3):
            assert loans(pool) == {NEW}
        wait_until(lambda: old.connections == 0)
        assert {endpoint.address for endpoint in pool.endpoints()} == {NEW}
        assert new.connections <= 8


def test_no_borrower_after_drain_is_led_to_the_old_server_while_others_look_the_name_up(
    where: dict[str, Any], dns_server: DnsServer
) -> None:
    with ConnectionPool(0, 8, **where) as pool:
        assert loans(pool) == {OLD}
        dns_server.zone[NAME] = [a(NEW, ttl=1)]
        dns_server.delay = 0.2
        pool.drain()
        borrowers = [in_thread(pool.getconn, timeout=15) for _ in range(8)]
        conns = [borrower.result() for borrower in borrowers]
        assert addresses_of(conns) == {NEW}
        give_back(pool, conns)


def test_no_loan_after_drain_is_of_what_was_in_use_meanwhile(
    where: dict[str, Any], dns_server: DnsServer
) -> None:
    with ConnectionPool(0, 4, **where) as pool:
        held = borrow(pool, 4)
        dns_server.zone[NAME] = [a(NEW, ttl=1)]
        pool.drain()
        give_back(pool, held)
        assert loans(pool, 4) == {NEW}


def test_both_serve_after_drain_where_the_record_names_both(
    where: dict[str, Any], dns_server: DnsServer
) -> None:
    with ConnectionPool(0, 8, **where) as pool:
        assert loans(pool) == {OLD}
        dns_server.zone[NAME] = [a(OLD, ttl=1), a(NEW, ttl=1)]
        pool.drain()
        assert loans(pool) == {OLD, NEW}


def test_the_old_server_serves_on_after_drain_while_no_name_server_answers(
    where: dict[str, Any], dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (balance, upkeep):
        monkeypatch.setattr(module, "STEP", 10.0)
    with ConnectionPool(0, 2, **where) as pool:
        assert loans(pool, 2) == {OLD}
        dns_server.behave(Mode.SERVFAIL)
        pool.drain()
        assert loans(pool, 2) == {OLD}


def test_without_drain_the_old_server_is_left_within_the_bound(
    servers: tuple[RudeServer, RudeServer], where: dict[str, Any], dns_server: DnsServer
) -> None:
    """That is twice the TTL, or `address_timeout` if that is longer."""
    old, _ = servers
    with ConnectionPool(2, 4, address_timeout=0.5, **where) as pool:
        assert loans(pool, 4) == {OLD}
        dns_server.zone[NAME] = [a(NEW, ttl=1)]

        def has_moved() -> bool:
            round_trip(pool)
            pool.reap_idle_connections()  # without workers it is this that looks the name up
            return loans(pool, 4) == {NEW}

        wait_until(has_moved)
        wait_until(lambda: old.connections == 0)
        assert pool.get_stats()["requests_errors"] == 0
