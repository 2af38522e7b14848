"""An exception at every moment of a whole borrow and return, and in every callback, loses nothing.

The pool has no threads here and the driver is a fake; `tests.support.interleave`
raises the exception wherever CPython could.
"""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from psycopg2_pool2 import (
    ConnectionPool,
    PoolStats,
    blocks,
    care,
    connection,
    cursors,
    desk,
    guards,
    handles,
    keyed,
    pool,
    steps,
    store,
    supply,
    upkeep,
    weak_list,
)
from psycopg2_pool2.store import ThreadWaiter
from tests.support.fakes import FakeClock, FakeDriver, fake_pool
from tests.support.interleave import (
    HAS_BYTECODES,
    Injected,
    InjectedError,
    Interleaver,
    Plan,
    code_of,
)

MODULES = [pool, desk, supply, store, upkeep, care, guards, keyed, blocks, handles]


@pytest.fixture(scope="module")
def runner() -> Iterator[Interleaver]:
    if not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    traced = [code for module in MODULES for code in code_of(*_classes(module))]
    traced += code_of(steps.run_blocking, steps.take, weak_list.WeakList, connection.Tracked.cursor)
    traced += code_of(cursors.note, cursors.end, cursors._is_ended, cursors._has_class)
    # The standard library's are written in Python too, and no safer than that.
    traced += code_of(threading.Event, threading.Condition)
    with Interleaver(traced, threads=1) as made:
        made.by_bytecode = True
        gc.collect()
        gc.freeze()
        yield made
        gc.unfreeze()


def _classes(module: ModuleType) -> list[type]:
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
    ]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    driver.install(monkeypatch)
    return driver


def _use(pool: ConnectionPool) -> None:
    conn: Any
    with pool.conn() as conn:
        conn.begin()


def _borrow_and_return(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn())


def _make_cursors(pool: ConnectionPool) -> None:
    with pool.conn() as conn:
        kept: list[Any] = [conn.cursor(), conn.cursor(cursors.NamedCursor)]  # type: ignore[call-overload]
    assert all(cursor.closed for cursor in kept)
    conn = pool.getconn()
    kept.append(conn.cursor())
    pool.putconn(conn)
    assert kept[-1].closed


def _borrow_and_close(pool: ConnectionPool) -> None:
    pool.putconn(pool.getconn(), close=True)


def _borrow_two(pool: ConnectionPool) -> None:
    with pool.conn(), pool.conn():
        pass


def _use_key(pool: ConnectionPool) -> None:
    conn = pool.getconn("key")
    assert pool.getconn("key") is conn
    pool.putconn(conn, "key")


def _detach(pool: ConnectionPool) -> None:
    pool.detach(pool.getconn()).close()


def _wait_for_one(pool: ConnectionPool) -> None:
    """Wait in steps while all are lent, until one comes back: at the second look."""
    conns = [pool.getconn(), pool.getconn()]
    conns.append(steps.run_blocking(pool._lending(5, _waiter_that_looks_twice(pool, conns))))
    while conns:
        pool.putconn(conns.pop())


def _wait_in_the_thread(pool: ConnectionPool) -> None:
    """Do the same as a thread does where there are workers."""
    conns = [pool.getconn(), pool.getconn()]
    try:
        pool._desk._pauses_first = True
        pool._desk._waiter = _waiter_that_looks_twice(pool, conns)
        conns.append(pool.getconn(timeout=5))
    finally:
        pool._desk._pauses_first = False
        pool._desk._waiter = ThreadWaiter  # the other keeps what it will give back
    while conns:
        pool.putconn(conns.pop())


def _waiter_that_looks_twice(pool: ConnectionPool, conns: list[Any]) -> type[ThreadWaiter[Any]]:
    class Waiter(ThreadWaiter[Any]):
        looks = 0

        def wait(self, seconds: float) -> bool:
            self.looks += 1
            if self.looks == 2:
                pool.putconn(conns.pop())
            return self.item is not None

    return Waiter


def _look_after(pool: ConnectionPool) -> None:
    pool.check()
    pool.drain()
    pool.reap_idle_connections()
    pool.resize(0, 2)


@pytest.mark.parametrize("error", [Injected, InjectedError])
@pytest.mark.parametrize(
    "program",
    [
        _use,
        _borrow_and_return,
        _make_cursors,
        _borrow_and_close,
        _borrow_two,
        _use_key,
        _detach,
        _wait_for_one,
        _wait_in_the_thread,
        _look_after,
    ],
)
def test_an_exception_after_any_bytecode_loses_no_slot_and_reaches_the_program(
    runner: Interleaver,
    driver: FakeDriver,
    program: Callable[[ConnectionPool], None],
    error: type[Injected | InjectedError],
) -> None:
    moment = 1
    while _interrupted(runner, driver, program, moment, error):
        moment += 1
    assert moment > 30, "the program has had moments"


def _interrupted(
    runner: Interleaver,
    driver: FakeDriver,
    program: Callable[[ConnectionPool], None],
    moment: int,
    error: type[Injected | InjectedError],
) -> bool:
    clock = FakeClock()
    pool = fake_pool(clock, 0, 2)
    pool.putconn(pool.getconn())
    clock.advance(1)
    run = runner.run([lambda: program(pool)], Plan(fault=(0, moment), error=error))
    assert run.errors == [None]
    assert run.arrived is run.faulted, f"swallowed at moment {moment}"
    assert not _held_locks(pool), f"after moment {moment}"
    if program is _use_key:  # what is known by a key alone stays in use
        pool.putconn(pool.getconn("key", timeout=5), "key")
    gc.collect()
    assert pool.stats() == PoolStats(0, len(driver.sockets)), f"after moment {moment}"
    # A key that nothing will settle would be waited for.
    assert all(loan.settled for loan in pool._desk._keyed._loans.values())
    conns: list[Any] = [pool.getconn(timeout=5), pool.getconn("key", timeout=5)]
    assert len({conn.fd for conn in conns}) == 2
    for conn in conns:
        conn.ask()
        assert conn.get_transaction_status() == 0
        pool.putconn(conn)
    pool.shutdown()
    assert not driver.sockets, f"after moment {moment}"
    assert driver.most <= 2, f"after moment {moment}"
    return run.faulted


def _held_locks(pool: ConnectionPool) -> list[str]:
    """Return the events whose locks an exception has left behind locked."""
    parts = [pool._supply, *pool._desk._keyed._loans.values()]
    events = [
        (name, getattr(part, name))
        for part in parts
        for name in (*vars(type(part)).get("__slots__", ()), *getattr(part, "__dict__", ()))
    ]
    return [
        name
        for name, event in events
        if isinstance(event, threading.Event) and event._cond._lock.locked()  # type: ignore[attr-defined]
    ]


class Interrupt(BaseException):
    """Raised in callbacks: not an Exception, as KeyboardInterrupt is not."""


def _pool_with(driver: FakeDriver, **kwargs: Any) -> tuple[ConnectionPool, list[Any], list[bool]]:
    """Make a pool whose callbacks raise when told so, and keep the connection all the same."""
    seen: list[Any] = []
    armed = [False]

    def callback(conn: Any) -> None:
        seen.append(conn)
        if armed[0]:
            raise Interrupt

    callbacks = {name: callback for name, value in kwargs.items() if value is callable}
    return fake_pool(FakeClock(), 0, 1, **{**kwargs, **callbacks}), seen, armed


def test_a_test_that_is_interrupted_closes_the_connection(driver: FakeDriver) -> None:
    pool, seen, armed = _pool_with(driver, test_on_borrow=callable)
    armed[0] = True
    with pytest.raises(Interrupt):
        pool.getconn()
    assert pool.stats() == PoolStats(0, 0)
    assert seen[0].closed
    assert pool.get_stats()["pool_size"] == 0


def test_a_clean_up_that_is_interrupted_closes_the_connection(driver: FakeDriver) -> None:
    pool, seen, armed = _pool_with(driver, reset=callable)
    conn = pool.getconn()
    armed[0] = True
    with pytest.raises(Interrupt):
        pool.putconn(conn)
    assert seen == [conn]
    assert conn.closed
    assert pool.get_stats()["pool_size"] == 0


def test_a_configure_that_is_interrupted_closes_the_connection(driver: FakeDriver) -> None:
    pool, seen, armed = _pool_with(driver, configure=callable)
    armed[0] = True
    with pytest.raises(Interrupt):
        pool.getconn()
    assert seen[0].closed
    assert pool.get_stats()["pool_size"] == 0
    armed[0] = False
    pool.putconn(pool.getconn())


def test_a_waiter_that_is_interrupted_leaves_the_queue(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = fake_pool(FakeClock(), 0, 1)
    conn = pool.getconn()

    def interrupt(waiter: Any, seconds: float) -> bool:
        raise Interrupt

    monkeypatch.setattr(ThreadWaiter, "wait", interrupt)
    with pytest.raises(Interrupt):
        pool.getconn(timeout=5)
    assert pool.get_stats()["requests_waiting"] == 0
    pool.putconn(conn)
    assert pool.stats() == PoolStats(0, 1)


def test_a_waiter_that_is_interrupted_when_served_gives_back(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = fake_pool(FakeClock(), 0, 1)
    conn = pool.getconn()

    def serve_and_interrupt(waiter: Any, seconds: float) -> bool:
        pool.putconn(conn)
        raise Interrupt

    monkeypatch.setattr(ThreadWaiter, "wait", serve_and_interrupt)
    with pytest.raises(Interrupt):
        pool.getconn(timeout=5)
    assert pool.stats() == PoolStats(0, 1)
    assert not conn.closed
    assert pool.getconn() is conn


def test_a_slot_is_free_only_when_its_socket_is_closed(driver: FakeDriver) -> None:
    pool = fake_pool(FakeClock(), 0, 1)
    sizes: list[int] = []
    driver.on_close = lambda conn: sizes.append(pool.get_stats()["pool_size"])
    pool.putconn(pool.getconn(), close=True)
    pool.putconn(pool.getconn())
    pool.discard_all_idle()
    busy: Any = pool.getconn()
    busy.begin(1)
    pool.putconn(busy)
    assert sizes == [1, 1, 1]
    assert driver.cancelled == 1
    assert pool.get_stats()["pool_size"] == 0
