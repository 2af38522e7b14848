"""An exception at every moment of an SQLAlchemy engine's borrow and return loses nothing.

At the moments of SQLAlchemy's own pool module, too.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy.pool.base

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib import sqlalchemy as contrib
from psycopg2_pool2.contrib.sqlalchemy import EnginePool
from tests.support.fakes import FakeClock, FakeDriver, fake_pool
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of

pytestmark = pytest.mark.skipif(not HAS_BYTECODES, reason="this Python cannot trace bytecodes")


@pytest.fixture(scope="module")
def runner() -> Iterator[Interleaver]:
    modules = (contrib, sqlalchemy.pool.base)
    classes = [cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)]
    with Interleaver(code_of(*classes), threads=1) as made:
        made.by_bytecode = True
        gc.collect()
        gc.freeze()
        yield made
        gc.unfreeze()


def _use(engine_pool: EnginePool) -> None:
    engine_pool.connect().close()


def _invalidate(engine_pool: EnginePool) -> None:
    engine_pool.connect().invalidate()


def _invalidate_softly(engine_pool: EnginePool) -> None:
    conn = engine_pool.connect()
    conn.invalidate(soft=True)
    conn.close()


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
@pytest.mark.parametrize("program", [_use, _invalidate, _invalidate_softly])
def test_an_exception_after_any_bytecode_loses_no_slot(
    runner: Interleaver,
    monkeypatch: pytest.MonkeyPatch,
    program: Callable[[EnginePool], None],
    is_new: bool,
) -> None:
    driver = FakeDriver()
    driver.install(monkeypatch)
    pool = fake_pool(FakeClock(), 0, 1)
    engine_pool = EnginePool(pool, reset_on_return=None)
    moment = 1
    while _interrupted(runner, engine_pool, pool, program, is_new, moment):
        moment += 1
    assert moment > 30, "the program has had moments"
    pool.shutdown()
    assert not driver.sockets


def _interrupted(
    runner: Interleaver,
    engine_pool: EnginePool,
    pool: ConnectionPool,
    program: Callable[[EnginePool], None],
    is_new: bool,
    moment: int,
) -> bool:
    engine_pool.connect().close()
    if is_new:
        pool.discard_all_idle()
    run = runner.run([lambda: program(engine_pool)], Plan(fault=(0, moment)))
    assert run.errors == [None]
    gc.collect()
    assert pool.stats().in_use == 0, f"after moment {moment}"
    engine_pool.connect().close()
    assert pool.stats() == PoolStats(0, 1), f"after moment {moment}"
    return run.faulted
