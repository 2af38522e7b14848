"""Where libpq would connect: the rules, each held against libpq itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import make_dsn, parse_dsn

from psycopg2_pool2.targets import Target, effective, is_srv, numeric, read_targets

# Where nobody listens: a refusal names the address, and libpq goes on to the next.
HERE = "127.0.0.251"
THERE = "127.0.0.252"
NAMES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))


class Tried(NamedTuple):
    """What libpq did: the places that it named, and whether it went through all of them."""

    places: list[tuple[str, int]]
    stopped: bool


_AT = re.compile(r'connection to server (?:at "([^"]*)"|on socket "([^"]*)/\.s\.PGSQL[^"]*")')
_PORT = re.compile(r"(?:, port\s+\+?|\.s\.PGSQL\.\s*\+?)(\d+)")


def libpq(parameters: Mapping[str, str]) -> Tried | None:
    """Have libpq connect; return what it tried, None if it refused the parameters."""
    try:
        psycopg2.connect(make_dsn(**parameters), connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        text = str(error)
    else:
        pytest.skip("a server listens here")
    places = [
        (at[1] or at[2], int(port[1]))
        for line in text.splitlines()
        if (at := _AT.search(line)) and (port := _PORT.search(line))
    ]
    return Tried(places, "FATAL" in text) if places else None


def shown(target: Target, default: str | None) -> tuple[str | None, int]:
    return target.hostaddr or target.host or default, target.port


def assert_like_libpq(parameters: Mapping[str, str]) -> None:
    tried = libpq(parameters)
    if tried is None:
        with pytest.raises(psycopg2.ProgrammingError):
            read_targets(parameters)
        return
    # What the default is depends on how libpq was built; anything else is named.
    default = libpq({"host": "", "hostaddr": "", "port": "1"})
    assert default is not None
    found = [shown(target, default.places[0][0]) for target in read_targets(parameters)]
    assert found[: len(tried.places)] == tried.places
    assert tried.stopped or len(found) == len(tried.places)


def write_service(folder: Path, text: str, name: str = "pg_service.conf") -> Path:
    path = folder / name
    path.write_text(text)
    return path


HOSTS = st.lists(st.sampled_from([HERE, THERE, "127.1", "", "/nonexistent", "@none"]), max_size=3)
HOSTADDRS = st.lists(st.sampled_from([HERE, THERE, ""]), max_size=3)
PORTS = st.lists(st.sampled_from(["1", "2", " 3 ", "+4", ""]), max_size=3)
Sources = dict[str, list[str] | None]


def sources() -> st.SearchStrategy[Sources]:
    return st.fixed_dictionaries(
        {
            "host": st.none() | HOSTS,
            "hostaddr": st.none() | HOSTADDRS,
            "port": st.none() | PORTS,
        }
    )


def spelled(source: Sources) -> dict[str, str]:
    return {name: ",".join(value) for name, value in source.items() if value is not None}


@settings(max_examples=300, deadline=None)
@given(dsn=sources(), service=st.none() | sources(), environment=sources())
def test_any_lists_from_anywhere_are_read_as_libpq_reads_them(
    dsn: Sources,
    service: Sources | None,
    environment: Sources,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    parameters = spelled(dsn)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in spelled(environment).items():
            patch.setenv(NAMES[name], value)
        if service is not None:
            lines = [f"{name}={value}" for name, value in spelled(service).items()]
            path = write_service(tmp_path_factory.getbasetemp(), "\n".join(["[db]", *lines]))
            patch.setenv("PGSERVICEFILE", str(path))
            parameters["service"] = "db"
        assert_like_libpq(parameters)


def target(host: str | None = None, hostaddr: str | None = None, port: int = 5432) -> Target:
    return Target(host, hostaddr, port)


URL = parse_dsn("postgresql://u:pw@[::1]:5,h2,%2Ftmp:7/db")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [target()]),
        ({"host": ""}, [target()]),
        ({"host": "db"}, [target("db")]),
        ({"host": "a,b", "port": "1"}, [target("a", port=1), target("b", port=1)]),
        ({"host": "a,,b", "port": "1,,3"}, [target("a", port=1), target(), target("b", port=3)]),
        ({"host": "/tmp,@x"}, [target("/tmp"), target("@x")]),
        ({"hostaddr": "10.0.0.1"}, [target(None, "10.0.0.1")]),
        ({"host": "a,b", "hostaddr": "10.0.0.1,"}, [target("a", "10.0.0.1"), target("b")]),
        (URL, [target("::1", port=5), target("h2"), target("/tmp", port=7)]),
    ],
)
def test_targets(parameters: dict[str, str], expected: list[Target]) -> None:
    assert read_targets(parameters, {}) == tuple(expected)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"host": "a,b", "port": "1,2,3"}, "port"),
        ({"host": "a,b,c", "port": "1,2"}, "port"),
        ({"port": "1,2"}, "port"),
        ({"host": "a,b", "hostaddr": "127.0.0.1"}, "hostaddr"),
        ({"host": "a", "hostaddr": "127.0.0.1,127.0.0.2"}, "hostaddr"),
        ({"host": HERE, "port": "x"}, "port"),
        ({"host": HERE, "port": "0"}, "port"),
        ({"host": HERE, "port": "65536"}, "port"),
        ({"host": HERE, "port": "99999999999"}, "port"),
        ({"host": HERE, "port": "1_0"}, "port"),
        ({"host": HERE, "port": "-1"}, "port"),
        ({"service": "nosuch"}, "service"),
        ({"service": ""}, "service"),
        ({"host": HERE, "service": "nosuch"}, "service"),
    ],
)
def test_what_libpq_refuses_is_refused_by_name(parameters: dict[str, str], name: str) -> None:
    assert libpq(parameters) is None
    with pytest.raises(psycopg2.ProgrammingError, match=name):
        read_targets(parameters)


SERVICES = f"""
# The first of a key counts, blanks around a line do not.
[first]
  host={HERE}\t
host={THERE}
port=7
[empty]
host=
[tail] of the line is ignored
port=8
[tail]
port=9
[blank]
host = {HERE}
[bare]
hunter2
[nested]
service=first
[prefix-longer]
port=6
"""


@pytest.mark.parametrize(
    "service", ["first", "empty", "tail", "blank", "bare", "nested", "prefix", "FIRST"]
)
def test_a_service_file_is_read_as_libpq_reads_it(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_service(tmp_path, SERVICES, "services")
    monkeypatch.setenv("PGSERVICEFILE", str(path))
    monkeypatch.setenv("PGHOST", THERE)
    assert_like_libpq({"service": service})
    monkeypatch.setenv("PGSERVICE", service)
    assert_like_libpq({})


def test_the_bad_line_is_told_by_its_number_and_not_by_what_it_says(tmp_path: Path) -> None:
    path = write_service(tmp_path, SERVICES, "services")
    number = SERVICES.splitlines().index("hunter2") + 1
    with pytest.raises(psycopg2.ProgrammingError, match=f"line {number}$") as caught:
        read_targets({"service": "bare"}, {"PGSERVICEFILE": str(path)})
    assert "hunter2" not in str(caught.value)


def test_a_service_looked_up_in_ldap_is_refused(tmp_path: Path) -> None:
    path = write_service(tmp_path, "[db]\nldap://127.0.0.1:1/a?b?c?(d=e)\n")
    with pytest.raises(psycopg2.ProgrammingError, match="LDAP"):
        read_targets({"service": "db"}, {"PGSERVICEFILE": str(path)})


def test_a_named_service_file_has_to_exist_and_replaces_the_one_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_service(tmp_path, f"[db]\nhost={HERE}\nport=1\n", ".pg_service.conf")
    assert_like_libpq({"service": "db"})
    assert read_targets({"service": "db"}) == (Target(HERE, None, 1),)
    for missing in (str(tmp_path / "missing"), ""):
        monkeypatch.setenv("PGSERVICEFILE", missing)
        assert libpq({"service": "db"}) is None
        with pytest.raises(psycopg2.ProgrammingError, match="service file"):
            read_targets({"service": "db"})


def test_the_system_s_service_file_comes_last(tmp_path: Path) -> None:
    write_service(tmp_path, f"[db]\nhost={THERE}\nport=2\n[other]\nhost={THERE}\nport=3\n")
    write_service(tmp_path, f"[db]\nhost={HERE}\nport=1\n", ".pg_service.conf")
    for service, expected in (("db", Target(HERE, None, 1)), ("other", Target(THERE, None, 3))):
        assert_like_libpq({"service": service})
        assert read_targets({"service": service}) == (expected,)


def test_a_service_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(psycopg2.ProgrammingError, match="cannot be read"):
        read_targets({"service": "db"}, {"PGSERVICEFILE": str(tmp_path)})


def test_one_parameter_comes_from_dsn_then_service_then_environment(tmp_path: Path) -> None:
    path = write_service(tmp_path, "[db]\ntarget_session_attrs=read-write\n")
    environ = {"PGTARGETSESSIONATTRS": "standby", "PGSERVICEFILE": str(path)}
    name = "target_session_attrs"
    assert effective({}, name, {}) is None
    assert effective({}, name, environ) == "standby"
    assert effective({"service": "db"}, name, environ) == "read-write"
    assert effective({"service": "db", name: "any"}, name, environ) == "any"
    assert effective({name: ""}, name, environ) == "", "what is given and empty is given"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("connect_timeout", "PGCONNECT_TIMEOUT"),
        ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
        ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ],
)
def test_the_variables_are_those_that_libpq_reads(
    name: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(psycopg2.OperationalError, match="nonsense"):
        psycopg2.connect(host=HERE, port=1)
    assert effective({}, name) == "nonsense"


def test_a_parameter_without_a_variable_has_none() -> None:
    assert effective({}, "keepalives", {"PGKEEPALIVES": "1"}) is None


KINDS = {
    Target(None, None, 1): ("socket", None),
    Target("/tmp", None, 1): ("socket", None),
    Target("@abstract", None, 1): ("socket", None),
    Target("10.0.0.1", None, 1): ("address", "10.0.0.1"),
    Target("127.1", None, 1): ("address", "127.0.0.1"),
    Target("2001:db8:0::1", None, 1): ("address", "2001:db8::1"),
    Target("fe80::1%eth0", None, 1): ("address", "fe80::1%eth0"),
    Target("db.example.com", "10.0.0.1", 1): ("hostaddr", "10.0.0.1"),
    Target("/tmp", "10.0.0.1", 1): ("hostaddr", "10.0.0.1"),
    Target(None, "10.0.0.1", 1): ("hostaddr", "10.0.0.1"),
    Target("_postgresql._tcp.example.com", None, 1): ("srv", None),
    Target("db.example.com", None, 1): ("name", None),
    Target("localhost", None, 1): ("name", None),
    Target("10.0.0.1.example.com", None, 1): ("name", None),
    Target("1db", None, 1): ("name", None),
    Target(" 10.0.0.1", None, 1): ("name", None),
}


@pytest.mark.parametrize("target", KINDS, ids=str)
def test_kinds(target: Target) -> None:
    assert (target.kind, target.address) == KINDS[target]


@pytest.mark.parametrize("host", ["1.2.3.4.5", "1.2.3.256", "::g", "", "a b", "1\0", "0x"])
def test_what_only_looks_like_an_address_is_none(host: str) -> None:
    assert numeric(host) is None


@pytest.mark.parametrize("host", ["_a.b.c", "a._b.c", "_a._b", "_a._b.", "_._b.c", "._b.c"])
def test_what_only_looks_like_a_service_is_none(host: str) -> None:
    assert not is_srv(host)
