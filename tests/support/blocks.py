"""A database whose blocks are tested, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from psycopg2_pool2 import PooledDatabase, scopes
from tests.support.pools import MakePool, assert_whole


@pytest.fixture
def db(make_pool: MakePool) -> Iterator[PooledDatabase]:
    pool = make_pool(maxconn=5, timeout=20)
    yield PooledDatabase(pool)
    assert_whole(pool)


@pytest.fixture
def told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[[], list[str]]:
    """Return what was told of blocks."""
    monkeypatch.setattr(scopes, "_told", set())
    caplog.set_level(logging.WARNING, "psycopg2_pool2")
    return lambda: [text for text in caplog.messages if "block that began at" in text]
