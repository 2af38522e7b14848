"""Proxies of connections as tracers make them, and how ``psycopg2.connect`` comes to make them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest


class Counting:
    """What all these proxies do: count the cursors that the program makes."""

    __slots__ = ()
    cursors = 0

    @classmethod
    def counted(cls) -> int:
        """Return how many cursors were made since the last call."""
        number, cls.cursors = cls.cursors, 0
        return number


class Forwarding(Counting):
    """Forwards every attribute, both ways; equal to nothing but itself."""

    def __init__(self, conn: Any) -> None:
        object.__setattr__(self, "_conn", conn)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        type(self).cursors += 1
        return self._conn.cursor(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_conn"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._conn, name, value)


class Slotted(Counting):
    """The same, and it cannot be referred to weakly."""

    __slots__ = ("_conn",)

    def __init__(self, conn: Any) -> None:
        object.__setattr__(self, "_conn", conn)

    cursor = Forwarding.cursor
    __getattr__ = Forwarding.__getattr__
    __setattr__ = Forwarding.__setattr__


class Opaque(Counting):
    """Has the methods of PEP 249 and nothing else."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    cursor = Forwarding.cursor

    def commit(self) -> None:
        self._conn.commit()

    def rollback(self) -> None:
        self._conn.rollback()

    def close(self) -> None:
        self._conn.close()

    def __enter__(self) -> Opaque:
        self._conn.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> Any:
        return self._conn.__exit__(*exc_info)


def wrapt_proxy() -> Any:
    """Return a class of the kind that most tracers use."""
    wrapt = pytest.importorskip("wrapt")

    class Wrapt(wrapt.ObjectProxy, Counting):  # type: ignore[misc,name-defined]
        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            type(self).cursors += 1
            return self.__wrapped__.cursor(*args, **kwargs)

        @classmethod
        def counted(cls) -> int:
            number, cls.cursors = cls.cursors, 0
            return number

    return Wrapt


def fresh(kind: type) -> Any:
    """Return a class of this kind with a count of its own."""
    if kind is object:
        return wrapt_proxy()
    body = {"cursors": 0, **({"__slots__": ()} if kind is Slotted else {})}
    return type(kind.__name__, (kind,), body)


def trace(patch: pytest.MonkeyPatch, wrap: Callable[[Any], Any]) -> None:
    """Have ``psycopg2.connect`` return ``wrap(conn)``."""
    connect = psycopg2.connect

    @functools.wraps(connect)
    def traced(*args: Any, **kwargs: Any) -> Any:
        return wrap(connect(*args, **kwargs))

    patch.setattr(psycopg2, "connect", traced)
