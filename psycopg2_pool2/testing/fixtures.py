"""The pytest fixture; pytest is imported only where one is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..pool import ConnectionPool
from .pool import rolled_back

if TYPE_CHECKING:
    import pytest

Source = ConnectionPool | str | Mapping[str, Any]


def pool_fixture(
    source: Callable[[], Source] | str, *, name: str | None = None, scope: Any = "function"
) -> Any:
    """Return a pytest fixture: a pool with which a test does nothing that lasts.

    ``source``
        A function that returns the pool, a dsn, or the arguments of a pool to
        make for the test; or the name of a fixture that gives one of these.  A
        pool that is given stays open.
    ``name``
        The fixture's name, if it is not that of the variable.
    ``scope``
        As pytest's; what a fixture of a wider scope did is undone at its end.
    """
    import pytest

    if isinstance(source, str) and not source.isidentifier():
        raise ValueError("pool_fixture() takes a function, or the name of a fixture, not a dsn")

    @pytest.fixture(name=name, scope=scope)
    def pool(request: pytest.FixtureRequest) -> Iterator[ConnectionPool]:
        given = request.getfixturevalue(source) if isinstance(source, str) else source()
        with contextlib.ExitStack() as stack:
            if not isinstance(given, ConnectionPool):
                given = stack.enter_context(_new_pool(given))
            yield stack.enter_context(rolled_back(given))

    return pool


def _new_pool(given: str | Mapping[str, Any]) -> ConnectionPool:
    arguments = {"dsn": given} if isinstance(given, str) else given
    return ConnectionPool(**{"minconn": 0, **arguments})
