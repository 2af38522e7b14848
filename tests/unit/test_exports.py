"""The public names: exported once, documented, and at home in one place."""

from __future__ import annotations

import inspect
import types

import pytest

import psycopg2_pool2
from psycopg2_pool2 import ConnectionPool, PoolError, errors

NAMES = psycopg2_pool2.__all__


def test_names_are_exported_once_and_in_order() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(NAMES) == NAMES


def test_whatever_is_public_in_the_package_is_exported() -> None:
    public = {
        name
        for name, value in vars(psycopg2_pool2).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public <= set(NAMES)  # the others come when they are asked for


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(psycopg2_pool2, name)
    assert inspect.getdoc(value), name
    if not inspect.isclass(value):
        return
    for member, found in vars(value).items():
        if not member.startswith("_") and (callable(found) or isinstance(found, property)):
            assert inspect.getdoc(found), f"{name}.{member}"


def test_every_exception_is_exported_and_is_a_pool_error() -> None:
    own = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__ and name[0] != "_"
    }
    assert set(own) <= set(NAMES)
    assert all(issubclass(value, PoolError) for value in own.values())


def test_every_option_is_documented() -> None:
    text = inspect.getdoc(ConnectionPool) or ""
    for name, parameter in inspect.signature(ConnectionPool).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert f"``{name}``" in text, name


def test_the_version_is_told() -> None:
    assert psycopg2_pool2.__version__[0].isdigit()
