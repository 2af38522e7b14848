"""Reading resolv.conf as the C library does."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.resolv_conf import Configuration, NameServer, SystemConfiguration, parse


@pytest.fixture(autouse=True)
def _host_without_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 10.0.0.1\nnameserver\tfd00::1\n", ["10.0.0.1", "fd00::1"]),
        ("nameserver 10.0.0.1 # the first\n", ["10.0.0.1"]),
        ("nameserver dns.test\nnameserver 10.0.0.1\n", ["10.0.0.1"]),
        ("nameserver 10.0.0.999\nnameserver\nnameserver 10.0.0.1", ["10.0.0.1"]),
        ("nameserver https://10.0.0.1/dns-query\n", ["127.0.0.1"]),
        ("#nameserver 10.0.0.1\n;nameserver 10.0.0.1\n nameserver 10.0.0.1\n", ["127.0.0.1"]),
        ("nameserver10.0.0.1\nnameservers 10.0.0.1\n", ["127.0.0.1"]),
        ("nameserver 0.0.0.0\nnameserver ::\n", ["127.0.0.1", "::1"]),
        ("nameserver fe80::1%lo\n", ["fe80::1%lo"]),
        (
            "".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 6)),
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ),
        ("", ["127.0.0.1"]),
        ("\x00\ufffd\r\n\n=\nsearch\noptions\n", ["127.0.0.1"]),
    ],
)
def test_name_servers_are_those_that_are_addresses(text: str, servers: list[str]) -> None:
    assert [server.address for server in parse(text).servers] == servers


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("search one.test two.test\n", ("one.test", "two.test")),
        ("search one.test\nsearch two.test\n", ("two.test",)),
        ("search one.test\ndomain two.test three.test\n", ("two.test",)),
        ("domain one.test\nsearch two.test\n", ("two.test",)),
        ("search\tone.test\t \n", ("one.test",)),
        ("", ()),
    ],
)
def test_last_of_search_and_domain_counts(text: str, search: tuple[str, ...]) -> None:
    assert parse(text).search == search


def test_without_either_the_host_s_own_domain_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "host.shop.test")
    assert parse("").search == ("shop.test",)
    assert parse("search\n").search == ("shop.test",)
    assert parse("search other.test").search == ("other.test",)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("ndots:3 timeout:7 attempts:4", {"ndots": 3, "timeout": 7, "attempts": 4}),
        ("ndots:99 timeout:99 attempts:99", {"ndots": 15, "timeout": 30, "attempts": 5}),
        ("ndots:x timeout: attempts:0", {"ndots": 0, "timeout": 1, "attempts": 1}),
        ("ndots:2s", {"ndots": 2}),
        ("rotate use-vc edns0", {"rotate": True, "use_tcp": True, "use_edns": True}),
        ("no-aaaa no-tld-query", {"use_ipv6": False, "ask_bare": False}),
        ("debug trust-ad single-request rotatex :3", {}),
    ],
)
def test_options(options: str, changed: dict[str, Any]) -> None:
    assert parse(f"options {options}\n") == Configuration()._replace(**changed)
    told = Configuration().with_environment({"RES_OPTIONS": options})
    assert told == Configuration()._replace(**changed)


def test_options_of_several_lines_add_up_and_the_last_counts() -> None:
    made = parse("options ndots:2 rotate\noptions ndots:4\n")
    assert (made.ndots, made.rotate) == (4, True)


def test_environment_overrides_the_search_list() -> None:
    made = Configuration(search=("one.test",))
    assert made.with_environment({}) == made
    told = made.with_environment({"LOCALDOMAIN": "two.test three.test"})
    assert told.search == ("two.test", "three.test")


@pytest.mark.parametrize(
    ("configuration", "name", "candidates"),
    [
        ({}, "db", ["db."]),
        ({"search": ("x.test", "y.test.")}, "db", ["db.x.test.", "db.y.test.", "db."]),
        ({"search": ("x.test",)}, "db.", ["db."]),
        ({"search": ("x.test",)}, "a.db", ["a.db.", "a.db.x.test."]),
        ({"search": ("x.test",), "ndots": 2}, "a.db", ["a.db.x.test.", "a.db."]),
        ({"search": ("x.test",), "ndots": 0}, "db", ["db.", "db.x.test."]),
        ({"search": (".", "x.test")}, "db", ["db.", "db.x.test."]),
        ({"search": ("x.test",), "ask_bare": False}, "db", ["db.x.test."]),
        ({"search": ("x.test",), "ask_bare": False}, "a.db", ["a.db.", "a.db.x.test."]),
    ],
)
def test_candidates_are_in_the_order_of_the_c_library(
    configuration: dict[str, Any], name: str, candidates: list[str]
) -> None:
    assert Configuration(**configuration).candidates(name) == candidates


def test_file_of_any_bytes_is_read_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    system = SystemConfiguration(str(path))
    assert system.read().servers == (NameServer("127.0.0.1"),)
    path.write_bytes(b"# f\xfcr alle \xff\nnameserver 10.0.0.1\n")
    assert system.read().servers == (NameServer("10.0.0.1"),)
    path.unlink()
    path.mkdir()
    assert system.read().servers == (NameServer("127.0.0.1"),)


def test_name_server_is_told_with_its_port_if_that_is_unusual() -> None:
    assert str(NameServer("10.0.0.1")) == "10.0.0.1"
    assert str(NameServer("10.0.0.1", 5353)) == "10.0.0.1 port 5353"
