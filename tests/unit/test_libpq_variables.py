"""The environment variables that libpq reads, as it lists them itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psycopg2._psycopg
import pytest

from psycopg2_pool2.configuration import read_configuration
from psycopg2_pool2.contrib.embedded import EmbeddedServerMissing
from psycopg2_pool2.contrib.embedded.binaries import binary
from psycopg2_pool2.targets import _VARIABLES, SESSION_VARIABLES, _is_known

# Where "x" would be refused.
_VALUES = {"connect_timeout": "7", "hostaddr": "127.0.0.9", "port": "9"}
# Names a section of a file: its contents enter the key.
_READ = {name for name in _VARIABLES if name != "service"}


class Option(ctypes.Structure):
    """PQconninfoOption of libpq-fe.h."""

    _fields_ = (
        ("keyword", ctypes.c_char_p),
        ("envvar", ctypes.c_char_p),
        ("compiled", ctypes.c_char_p),
        ("val", ctypes.c_char_p),
        ("label", ctypes.c_char_p),
        ("dispchar", ctypes.c_char_p),
        ("dispsize", ctypes.c_int),
    )


class Default(NamedTuple):
    """The variable of a parameter, and the value it has without being given."""

    variable: str | None
    value: str | None


def defaults_of(library: str) -> dict[str, Default]:
    """Return all parameters of a libpq."""
    libpq = ctypes.CDLL(library)
    libpq.PQconndefaults.restype = ctypes.POINTER(Option)
    libpq.PQconninfoFree.argtypes = [ctypes.POINTER(Option)]
    options = libpq.PQconndefaults()
    found: dict[str, Default] = {}
    while options[len(found)].keyword:
        option = options[len(found)]
        texts = [text and text.decode() for text in (option.envvar, option.val)]
        found[option.keyword.decode()] = Default(*texts)
    libpq.PQconninfoFree(options)
    return found


def variables_of(library: str) -> dict[str, str]:
    """Return the parameters that have a variable, and its name."""
    return {name: at.variable for name, at in defaults_of(library).items() if at.variable}


def of_psycopg2() -> str:
    path = psycopg2._psycopg.__file__
    assert path is not None
    return path


def of_the_embedded_servers() -> str:
    """Return the libpq beside PostgreSQL's programs, which may be newer."""
    try:
        return str(Path(binary("postgres")).parents[1] / "lib" / "libpq.so")
    except EmbeddedServerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))


@pytest.mark.parametrize("library", [of_psycopg2, of_the_embedded_servers])
def test_every_variable_of_libpq_is_known(library: Callable[[], str]) -> None:
    assert variables_of(library()).items() <= _VARIABLES.items()


def test_variables_of_newer_versions_are_postgresql_18s() -> None:
    """Remove a name that no libpq has; this fails when the list is ahead of both libraries."""
    both: Mapping[str, str] = {
        **variables_of(of_psycopg2()),
        **variables_of(of_the_embedded_servers()),
    }
    assert _VARIABLES.items() <= both.items()


@pytest.mark.parametrize("name", sorted(_READ))
def test_each_variable_gives_another_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_configuration("host=h dbname=d")
    monkeypatch.setenv(_VARIABLES[name], _VALUES.get(name, "x"))
    after = read_configuration("" if name in ("host", "dbname") else "host=h dbname=d")
    if _is_known(name):
        assert after.key != before.key
        assert f"{name}=" in after.arguments["dsn"]
    else:  # as this libpq ignores it
        assert after.key == before.key


@pytest.mark.parametrize("variable", SESSION_VARIABLES)
def test_what_libpq_sends_for_the_session_gives_another_key(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_configuration("host=h").key
    monkeypatch.setenv(variable, "x")
    assert read_configuration("host=h").key != before


def test_a_variable_of_a_newer_libpq_is_not_told_to_an_older_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(_VARIABLES, "parameter_of_tomorrow", "PGTOMORROW")
    monkeypatch.setenv("PGTOMORROW", "x")
    assert "tomorrow" not in read_configuration("host=h").arguments["dsn"]


def test_the_deprecated_variable_for_tls_counts_where_no_other_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for value, required in {"1": True, "10": True, "0": False, "": False}.items():
        monkeypatch.setenv("PGREQUIRESSL", value)
        dsn = read_configuration("host=h").arguments["dsn"]
        assert ("sslmode=require" in dsn) is required
    monkeypatch.setenv("PGREQUIRESSL", "1")
    assert "sslmode=allow" in read_configuration("host=h sslmode=allow").arguments["dsn"]
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert "sslmode=prefer" in read_configuration("host=h").arguments["dsn"]


def test_libpq_reads_the_deprecated_variable_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGREQUIRESSL", "1")
    assert defaults_of(of_psycopg2())["sslmode"].value == "require"
    monkeypatch.setenv("PGSSLMODE", "prefer")
    assert defaults_of(of_psycopg2())["sslmode"].value == "prefer"
