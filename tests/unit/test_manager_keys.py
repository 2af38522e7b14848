"""Which configurations are the same to a PoolManager, and what a key tells of a password."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2.extensions import connection, make_dsn

from psycopg2_pool2 import CircuitBreaker, ConnectionPool, PoolManager, configuration
from psycopg2_pool2.configuration import Config, read_configuration

SECRET = "s3kr1t/ü@ '"
PARAMETERS = {
    "host": "db.test,127.0.0.1",
    "port": "5433,5434",
    "user": "us er",
    "dbname": "d'b",
    "password": SECRET,
    "application_name": "a\\b",
    "sslmode": "disable",
    "connect_timeout": "7",
}
VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "password": "PGPASSWORD",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}


class Number(IntEnum):
    TEN = 10


class Worker:
    def configure(self, conn: Any) -> None: ...

    def other(self, conn: Any) -> None: ...


class OwnBreaker(CircuitBreaker):
    pass


def hook(conn: Any) -> None: ...


def token() -> dict[str, str]:
    return {}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have nothing of libpq's in the environment."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))


@pytest.fixture
def made() -> Iterator[PoolManager]:
    """Make a manager, and close its pools at the end."""
    pools = PoolManager()
    yield pools
    pools.clear_cache()


def key(config: Config) -> str:
    return read_configuration(config).key


def write_service(folder: Path, name: str, said: Mapping[str, str]) -> None:
    lines = [f"[{name}]", *(f"{parameter}={value}" for parameter, value in said.items())]
    (folder / "pg_service.conf").write_text("\n".join(lines))


SAME: dict[str, tuple[Config, Config]] = {
    "dsn and mapping": ("host=h", {"dsn": "host=h"}),
    "dsn and keywords": ("host=h port=1 dbname=d", {"host": "h", "port": 1, "dbname": "d"}),
    "dsn and URL": ("host=h port=1 dbname=d user=u", "postgresql://u@h:1/d"),
    "both schemes": ("postgres://h/d", "postgresql://h/d"),
    "escapes of a URL": (
        {"host": "h", "user": "u", "password": "p@s%s"},
        "postgresql://u:p%40s%25s@h",
    ),
    "a URL's parameters": ("postgresql://h/?sslmode=require", "postgresql://h/?ssl=true"),
    "order of a dsn": ("host=h dbname=d", "dbname=d host=h"),
    "order of a mapping": ({"host": "h", "minconn": 2}, {"minconn": 2, "host": "h"}),
    "database": ({"database": "d"}, {"dbname": "d"}),
    "what a keyword replaces": ({"dsn": "host=x port=1", "host": "h"}, "host=h port=1"),
    "None": ({"host": "h", "user": None, "dsn": None}, "host=h"),
    "number and text": ({"port": 5433}, {"port": "5433"}),
    "a path": ({"sslrootcert": Path("/ca.pem")}, {"sslrootcert": "/ca.pem"}),
    "libpq's port": ("host=h", "host=h port=5432"),
    "one port for all": ("host=a,b port=1", "host=a,b port=1,1"),
    "an empty port": ("host=a,b port=1,", "host=a,b port=1,5432"),
    "libpq's database": ("user=u", "user=u dbname=u"),
    "no password": ("host=h", {"host": "h", "password": ""}),
    "the pool's own connect_timeout": ("host=h", "host=h connect_timeout=5"),
    "the pool's own keepalives": ("host=h", "host=h keepalives_idle=30 tcp_user_timeout=30000"),
    "defaults": ("", {"minconn": 1, "maxconn": math.inf, "test_on_borrow": True, "reset": None}),
    "whole seconds": ({"idle_timeout": 10}, {"idle_timeout": 10.0}),
    "numbers of another class": ({"maxconn": 10}, {"maxconn": Number.TEN}),
    "limits of breakers": ({"breaker": CircuitBreaker(2)}, {"breaker": CircuitBreaker(2)}),
    "async": ({"async_": False, "async": 0}, {}),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_what_means_the_same_has_one_key(one: Config, other: Config) -> None:
    assert key(one) == key(other)


WORKER = Worker()
DIFFERENT: dict[str, tuple[Config, Config]] = {
    "hosts": ("host=a", "host=b"),
    "order of hosts": ("host=a,b", "host=b,a"),
    "host and address": ("host=127.0.0.1", "hostaddr=127.0.0.1"),
    "ports": ("port=5433", "port=5434"),
    "which host has the port": ("host=a,b port=1,2", "host=a,b port=2,1"),
    "users": ("user=a", "user=b"),
    "databases": ("dbname=a", "dbname=b"),
    "passwords": ("password=a", "password=b"),
    "sslpasswords": ("sslpassword=a", "sslpassword=b"),
    "which of them": ("password=a sslpassword=b", "password=b sslpassword=a"),
    "options": ("options=-csearch_path=a", "options=-csearch_path=b"),
    "names": ({"name": "a"}, {"name": "b"}),
    "a name and none": ({"name": "None"}, {"name": None}),
    "an option and a parameter": ({"name": "x"}, {"application_name": "x"}),
    "sizes": ({"minconn": 2}, {"minconn": 3}),
    "seconds": ({"timeout": 1}, {"timeout": 1.5}),
    "none and zero": ({"timeout": 0}, {"timeout": None}),
    "large numbers": ({"idle_timeout": 2**53}, {"idle_timeout": 2**53 + 1}),
    "flags": ({"debug": True}, {"debug": False}),
    "callables": ({"configure": hook}, {"configure": lambda conn: None}),
    "what a callable is for": ({"configure": hook}, {"reset": hook}),
    "partials": (
        {"configure": functools.partial(hook)},
        {"configure": functools.partial(hook)},
    ),
    "methods": ({"configure": WORKER.configure}, {"configure": WORKER.other}),
    "objects of a method": ({"configure": Worker().configure}, {"configure": WORKER.configure}),
    "callable and test": ({"test_on_borrow": hook}, {"test_on_borrow": False}),
    "limits of breakers": ({"breaker": CircuitBreaker(2)}, {"breaker": CircuitBreaker(3)}),
    "other breakers": ({"breaker": OwnBreaker()}, {"breaker": OwnBreaker()}),
    "factories": ({"connection_factory": connection}, {}),
    "cursors": ({"cursor_factory": hook}, {"cursor_factory": token}),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_differs_has_two_keys(one: Config, other: Config) -> None:
    assert key(one) != key(other)


def test_a_bound_method_is_the_same_each_time_it_is_looked_up() -> None:
    assert WORKER.configure is not WORKER.configure
    assert key({"configure": WORKER.configure}) == key({"configure": WORKER.configure})


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.sampled_from(["dsn", "keyword", "environment", "service"]), min_size=8))
def test_it_does_not_matter_which_source_says_what(
    places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, dict[str, str]] = {"dsn": {}, "keyword": {}, "environment": {}, "service": {}}
    for place, (name, value) in zip(places, PARAMETERS.items(), strict=False):
        said[place][name] = value
    expected = key(PARAMETERS)
    write_service(tmp_path, "db", said["service"])
    with monkeypatch.context() as patch:
        for name, value in said["environment"].items():
            patch.setenv(VARIABLES[name], value)
        dsn = make_dsn(**said["dsn"], service="db")
        assert key({"dsn": dsn, **said["keyword"]}) == expected
        patch.setenv("PGSERVICE", "db")
        assert key({"dsn": make_dsn(**said["dsn"]), **said["keyword"]}) == expected
        patch.setenv("PGAPPNAME", "another")
        replaced = said["environment"].get("application_name") or (
            "application_name" not in {**said["dsn"], **said["keyword"], **said["service"]}
        )
        assert (key({"dsn": dsn, **said["keyword"]}) == expected) is not bool(replaced)


def test_the_system_s_user_is_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")
    name = pwd.getpwuid(os.geteuid()).pw_name
    assert key("host=h") == key({"host": "h", "user": name, "dbname": name})


def test_an_empty_variable_for_the_time_to_connect_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = key("")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "")
    assert key("") == expected
    assert "connect_timeout" not in read_configuration("").arguments["dsn"]


# -- secrets ---------------------------------------------------------------


def test_a_key_is_a_sha256() -> None:
    assert len(bytes.fromhex(key(PARAMETERS))) == 32


def key_elsewhere(config: Config) -> str:
    program = (
        "import sys; from psycopg2_pool2.configuration import read_configuration as r;"
        "print(r(eval(sys.argv[1])).key)"
    )
    command = [sys.executable, "-c", program, repr(config)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return told.stdout.strip()


def test_only_this_process_can_tell_a_password_from_a_key() -> None:
    open_config = {"host": "h", "minconn": 2}
    assert key_elsewhere(open_config) == key(open_config)
    assert key_elsewhere({"host": "h", "password": "guess"}) != key("host=h password=guess")


@pytest.mark.parametrize("name", ["password", "sslpassword"])
def test_every_secret_is_disguised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key({name: SECRET})
    monkeypatch.setattr(configuration, "_process_secret", b"another")
    assert key({name: SECRET}) != before


def test_no_password_is_shown(made: PoolManager) -> None:
    config = {"host": "h", "password": SECRET, "minconn": 0, "num_workers": 0}
    made.get_pool(config)
    shown = f"{read_configuration(config)!r} {made!r} {made.cache_info} {made._entries}"
    assert SECRET not in shown
    assert "s3kr1t" not in shown


# -- bad input -------------------------------------------------------------

BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no mapping": (["host=h"], TypeError, "config .* not a list"),
    "None": (None, TypeError, "config .* not a NoneType"),
    "a key that is no text": ({1: 2}, TypeError, "key .* 1"),
    "unknown": ({"maxcon": 2}, psycopg2.ProgrammingError, "maxcon"),
    "unknown in a dsn": ("maxcon=2", psycopg2.ProgrammingError, "invalid"),
    "self": ({"self": 2}, psycopg2.ProgrammingError, "self"),
    "unreadable": ("host=h oops", psycopg2.ProgrammingError, "missing"),
    "an object": ({"host": object()}, TypeError, "host .* not a object"),
    "a list": ({"port": [1, 2]}, TypeError, "port .* not a list"),
    "bytes": ({"user": b"u"}, TypeError, "user .* not a bytes"),
    "a null character": ({"host": "a\0b"}, ValueError, "host .* null"),
    "one in a dsn": ("host=a\0b", ValueError, "dsn .* null"),
    "half a character": ({"password": f"{SECRET}\udcff"}, ValueError, "password .* UTF-8"),
    "a dsn that is no text": ({"dsn": 1}, TypeError, "dsn"),
    "a port": ("host=h port=x", psycopg2.ProgrammingError, "port"),
    "no such service": ("service=nosuch", psycopg2.ProgrammingError, "service"),
    "async": ({"async": True}, ValueError, "async"),
    "a cursor factory": ({"cursor_factory": 1}, TypeError, "cursor_factory"),
    "a connection factory": ({"connection_factory": 1}, TypeError, "connection_factory"),
    "sizes": ({"minconn": 3, "maxconn": 2}, ValueError, "minconn"),
    "a flag for a number": ({"minconn": True}, TypeError, "minconn"),
    "a fraction of uses": ({"max_uses": 1.0}, TypeError, "max_uses"),
    "not a number": ({"timeout": math.nan}, ValueError, "timeout"),
    "a number for a flag": ({"test_on_borrow": 1}, TypeError, "test_on_borrow"),
    "connect_params": ({"connect_params": {}}, TypeError, "connect_params"),
    "a name": ({"name": 1}, TypeError, "name"),
    "a breaker": ({"breaker": 3}, TypeError, "breaker"),
}


@pytest.mark.parametrize(("config", "error", "told"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_told_and_nothing_is_kept(
    config: Any, error: type[Exception], told: str, made: PoolManager
) -> None:
    for reload in (False, True):
        with pytest.raises(error, match=told) as raised:
            made.get_pool(config, force_reload=reload)
        assert "s3kr1t" not in str(raised.value)
    assert made.cache_info == {"size": 0, "max_pools": None, "pools": {}}
    assert not made._making


def test_what_a_pool_refuses_does_not_find_a_pool_of_equal_numbers(made: PoolManager) -> None:
    made.get_pool({"max_uses": 1, "minconn": 0, "num_workers": 0})
    with pytest.raises(TypeError, match="max_uses"):
        made.get_pool({"max_uses": 1.0, "minconn": 0, "num_workers": 0})


def test_the_name_of_a_bad_argument_is_shown_without_control_characters() -> None:
    for value in (object(), "a\0b", "\udcff"):
        with pytest.raises((TypeError, ValueError), match=r"^a\\x1b\\nb ") as raised:
            read_configuration({"a\x1b\nb": value})
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_no_manager_of_no_pools(number: int) -> None:
    with pytest.raises(ValueError, match="max_pools"):
        PoolManager(max_pools=number)


@pytest.mark.parametrize("number", [True, 1.0, "1"])
def test_max_pools_is_a_number(number: Any) -> None:
    with pytest.raises(TypeError, match="max_pools"):
        PoolManager(max_pools=number)


# -- what the pool is made of ----------------------------------------------


def told_to_libpq(pool: ConnectionPool) -> dict[str, str]:
    parameters: dict[str, str] = pool._connector.parameters
    return parameters


def test_a_pool_has_what_its_configuration_says(made: PoolManager) -> None:
    pool = made.get_pool(
        {"dsn": "host=h", "port": 1, "minconn": 0, "maxconn": 3, "num_workers": 0, "name": "n"}
    )
    told = told_to_libpq(pool)
    assert (told["host"], told["port"]) == ("h", "1")
    assert (pool.minconn, pool.maxconn, pool.name) == (0, 3, "n")


def test_a_pool_stays_where_it_was_when_the_environment_changes(
    made: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"minconn": 0, "num_workers": 0}
    for name, value in PARAMETERS.items():
        monkeypatch.setenv(VARIABLES[name], value)
    pool = made.get_pool(config)
    for name in PARAMETERS:
        monkeypatch.setenv(VARIABLES[name], "9")
    assert made.get_pool(config) is not pool
    assert told_to_libpq(pool).items() >= PARAMETERS.items()


def test_nor_does_it_follow_what_comes_into_the_environment(made: PoolManager) -> None:
    pool = made.get_pool({"minconn": 0, "num_workers": 0})
    assert {"host", "port", "user", "dbname", "options"} <= told_to_libpq(pool).keys()


def test_a_service_is_read_once(made: PoolManager, tmp_path: Path) -> None:
    write_service(tmp_path, "db", {"host": "h", "user": "u"})
    pool = made.get_pool({"service": "db", "minconn": 0, "num_workers": 0})
    told = told_to_libpq(pool)
    assert (told["host"], told["user"]) == ("h", "u")
    assert "service" not in told


def test_with_connect_params_the_dsn_stays_a_dsn(made: PoolManager) -> None:
    # What is called may return another one.
    pool = made.get_pool({"dsn": "host=h", "connect_params": token, "minconn": 0, "num_workers": 0})
    assert pool.connect_kwargs["dsn"] == "host=h"
    assert told_to_libpq(pool) == {"host": "h"}


def test_a_breaker_that_is_changed_later_changes_no_pool(made: PoolManager) -> None:
    breaker = CircuitBreaker(threshold=2)
    config = {"breaker": breaker, "minconn": 0, "num_workers": 0}
    pool = made.get_pool(config)
    breaker.threshold = 5
    assert made.get_pool(config) is not pool
    assert pool._options.breaker is not None
    assert pool._options.breaker.threshold == 2


def test_an_identity_is_not_used_again_while_its_pool_is_kept(made: PoolManager) -> None:
    def resolver() -> Any:
        return lambda name: ["127.0.0.1"]

    configs = [{"resolver": resolver(), "minconn": 0, "num_workers": 0} for _ in range(20)]
    pools = {id(made.get_pool(configs.pop())) for _ in range(20)}
    assert len(pools) == 20
    assert made.cache_info["size"] == 20
    assert all(entry.config.held for entry in made._entries.values())
