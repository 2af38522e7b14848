"""When uWSGI lets the pool run threads; by a stand-in for the module that uWSGI makes.

tests/integration/test_uwsgi.py does the same with the real one, which has threads always since
its newer versions.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool, under_uwsgi
from psycopg2_pool2.under_uwsgi import may_run_threads
from tests.support.fakes import FakeDriver

MASTER = os.getpid()
WORKER = {"masterpid": MASTER + 1, "worker_id": 1}
LOADING = {"masterpid": MASTER, "worker_id": 0}


class StandIn(ModuleType):
    """The part of uWSGI's module that is asked."""

    def __init__(
        self,
        masterpid: int = 0,
        worker_id: int = 0,
        has_threads: int = 1,
        numproc: int = 4,
        **options: bytes,
    ) -> None:
        super().__init__("uwsgi")
        self.masterpid = lambda: masterpid
        self.worker_id = lambda: worker_id
        self.has_threads = has_threads
        self.numproc = numproc
        self.opt = options


def embed(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    monkeypatch.setitem(sys.modules, "uwsgi", StandIn(**facts))
    monkeypatch.setattr(under_uwsgi, "_has_warned", False)


@pytest.mark.parametrize(
    ("facts", "allowed"),
    [
        (LOADING, False),
        (WORKER, True),
        # Its hooks run before the worker has its number.
        ({**WORKER, "worker_id": 0}, True),
        ({"numproc": 1}, True),
        ({"numproc": 4}, False),
        ({"numproc": 4, "worker_id": 1}, True),
        ({"numproc": 1, "spooler": b"folder"}, False),
        ({**WORKER, "has_threads": 0}, False),
    ],
)
def test_threads_run_where_no_fork_follows_and_uwsgi_has_them(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], allowed: bool
) -> None:
    embed(monkeypatch, **facts)
    assert may_run_threads() == allowed


def test_threads_run_without_uwsgi(monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_run_threads()
    # A module of this name that is not uWSGI's, as tests of applications make it.
    monkeypatch.setitem(sys.modules, "uwsgi", ModuleType("uwsgi"))
    assert may_run_threads()


def test_greenlets_need_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkey: Any = ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda name: name == "threading"
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    embed(monkeypatch, **WORKER, has_threads=0)
    assert may_run_threads()


def test_a_pool_in_the_master_starts_nothing_and_lends_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeDriver().install(monkeypatch)
    embed(monkeypatch, **LOADING)
    with ConnectionPool(2, 2, dsn="") as pool:
        assert pool.stats().idle == 0
        with pool.conn():
            assert pool.stats().in_use == 1
        assert pool._monitor is None
    assert caplog.records == []


def test_missing_threads_are_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeDriver().install(monkeypatch)
    embed(monkeypatch, **WORKER, has_threads=0)
    for _ in range(2):
        with ConnectionPool(2, 2, dsn="") as pool, pool.conn():
            assert pool._monitor is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--enable-threads" in caplog.text


def test_a_pool_that_wants_no_threads_misses_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeDriver().install(monkeypatch)
    embed(monkeypatch, **WORKER, has_threads=0)
    with ConnectionPool(0, 2, dsn="", num_workers=0), caplog.at_level("DEBUG"):
        assert caplog.records == []
