"""Pools that the program lets go of: they go at once, without a garbage collection.

In a notebook the cell that makes a pool is run again and again, and a collection may be long in
coming.  So no reference cycle may hold a pool, its parts, or an error of its.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import (
    AdaptiveConnectionPool,
    AsyncConnectionPool,
    ConnectionPool,
    PoolManager,
    ThreadedConnectionPool,
)
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.session import execute
from psycopg2_pool2.monitor import get_monitor
from tests.support.pools import ask, fill, wait_for_backends, wait_until_at_rest
from tests.support.servers import StatementLog
from tests.support.waiting import wait_until

Params = Mapping[str, Any]
REFUSED: Params = {"host": "127.0.0.1", "port": 1}


class Observer:
    def waited(self, seconds: float) -> None: ...
    def used(self, seconds: float) -> None: ...
    def connected(self, seconds: float) -> None: ...
    def forked(self) -> None: ...


def observed(*args: Any, **kwargs: Any) -> ConnectionPool:
    pool = ConnectionPool(*args, **kwargs)
    pool._observe(Observer())
    return pool


POOLS: dict[str, tuple[Callable[..., Any], Params]] = {
    "plain": (ConnectionPool, {}),
    "filled in the foreground": (ConnectionPool, {"background_prewarm": False}),
    "without workers": (ConnectionPool, {"num_workers": 0}),
    "without tests": (ConnectionPool, {"test_on_borrow": False}),
    "in debug mode": (ConnectionPool, {"debug": True, "leak_timeout": 60, "close_returns": True}),
    "without workers in debug mode": (ConnectionPool, {"debug": True, "num_workers": 0}),
    "observed": (observed, {}),
    "adaptive": (AdaptiveConnectionPool, {}),
    "adaptive without workers": (AdaptiveConnectionPool, {"num_workers": 0}),
    "of two hosts": (ConnectionPool, {"host": "127.0.0.1,127.0.0.2"}),
}
MAKERS = list(POOLS.values())


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def use(pool: ConnectionPool) -> None:
    fill(pool, 3)
    with pool.conn() as conn:
        ask(conn)
    with pytest.raises(psycopg2.Error), pool.transaction() as conn:
        ask(conn, "nonsense")
    conn = pool.getconn("key")
    pool.putconn(conn, "key")
    pool.check()
    pool.reap_idle_connections()
    pool.get_stats()
    pool.endpoints()
    repr(pool)


def is_gone(pool: ConnectionPool) -> Callable[[], bool]:
    """Return what tells that a pool, its parts and its idle connections are gone."""
    supply = pool._supply
    parts = [pool, pool._desk, pool._upkeep, pool._report, pool._connector, supply]
    parts += [supply._dialer, supply._endpoints, pool._desk._care, *pool._store.idle]
    refs = [weakref.ref(part) for part in parts]
    return lambda: not [ref() for ref in refs if ref() is not None]


def serves(pool: weakref.ref[Any]) -> bool:
    return any(client is pool or client == pool for client in get_monitor()._clients)


@pytest.mark.usefixtures("no_collector")
class TestLastReference:
    @pytest.mark.parametrize(("make", "options"), MAKERS, ids=list(POOLS))
    @pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
    def test_takes_the_pool_and_its_sessions_along(
        self,
        server: Server,
        app: str,
        statement_log: StatementLog,
        make: Callable[..., ConnectionPool],
        options: Params,
        used: bool,
    ) -> None:
        pool = make(2, 4, **{**statement_log.params, "timeout": 30, **options})
        if used:
            use(pool)
        ref, gone = weakref.ref(pool), is_gone(pool)
        assert serves(ref) == (pool._monitor is not None)
        del pool
        wait_until(gone)
        assert not serves(ref)
        wait_for_backends(server, app, 0)

    def test_takes_psycopg2s_pool_along(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ThreadedConnectionPool(2, 4, **statement_log.params)
        pool.putconn(pool.getconn())
        gone = is_gone(pool)
        del pool
        wait_until(gone)
        wait_for_backends(server, app, 0)

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_takes_the_pool_of_event_loops_along(
        self, server: Server, app: str, statement_log: StatementLog, num_workers: int
    ) -> None:
        pool = AsyncConnectionPool(2, 4, num_workers=num_workers, **statement_log.params)

        async def work(pool: AsyncConnectionPool) -> None:
            async with pool.conn() as conn:
                await pool.run_on(conn, ask)
                await asyncio.gather(pool.run(ask), pool.run(ask))
            await pool.putconn(await pool.getconn())
            await pool.check()

        asyncio.run(work(pool))
        gone = is_gone(pool.pool)
        del pool
        wait_until(gone)
        wait_for_backends(server, app, 0)

    @pytest.mark.parametrize("num_workers", [3, 0])
    def test_takes_a_pool_along_that_cannot_connect(self, num_workers: int) -> None:
        pool = ConnectionPool(1, 4, timeout=0.2, num_workers=num_workers, **REFUSED)
        for timeout in (0.2, 0, 0):
            with pytest.raises(psycopg2.Error):
                pool.getconn(timeout=timeout)
        ref, gone = weakref.ref(pool), is_gone(pool)
        del pool
        wait_until(gone)
        assert not serves(ref)

    def test_leaves_what_is_borrowed_to_its_borrower(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ConnectionPool(0, 4, **statement_log.params)
        fill(pool, 3)
        conn = pool.getconn(timeout=30)
        del pool
        wait_for_backends(server, app, 1)
        assert ask(conn) == 1
        conn.close()
        wait_for_backends(server, app, 0)

    def test_is_gone_when_a_name_is_given_to_another_pool(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        for _ in range(10):
            pool = ConnectionPool(2, 4, **statement_log.params)
            with pool.conn(timeout=30) as conn:
                ask(conn)
            del conn
        pool.wait()
        wait_for_backends(server, app, 2)
        pool.shutdown()


# -- errors ------------------------------------------------------------------


def fails(act: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """See that it raises, and keep nothing of it."""
    try:
        act(*args, **kwargs)
    except Exception:
        return
    raise AssertionError(f"{act} did not fail")


def boom(*args: object) -> None:
    raise ZeroDivisionError from KeyError("why")


def borrow_in_vain(params: Params, **options: Any) -> None:
    pool = ConnectionPool(0, 2, **{**params, "timeout": 0.3, **options})
    for timeout in (0.3, 0, 0):
        fails(pool.getconn, timeout=timeout)
    fails(pool.getconn, "key")
    pool.shutdown()
    fails(pool.getconn)


def refused(params: Params, **options: Any) -> None:
    borrow_in_vain(params, **REFUSED, **options)


def refused_everywhere(params: Params, **options: Any) -> None:
    borrow_in_vain(params, host="127.0.0.1,127.0.0.2", port="1,2", **options)


def no_such_user(params: Params, **options: Any) -> None:
    borrow_in_vain(params, user="nobody", **options)


def no_such_host(params: Params, **options: Any) -> None:
    borrow_in_vain(params, host="nowhere.invalid", **options)


def unreadable(params: Params, **options: Any) -> None:
    borrow_in_vain(params, sslmode="nonsense", **options)


def configure_fails(params: Params, **options: Any) -> None:
    borrow_in_vain(params, configure=boom, **options)


def connect_params_fail(params: Params, **options: Any) -> None:
    borrow_in_vain(params, connect_params=boom, **options)


def the_test_fails(params: Params, **options: Any) -> None:
    borrow_in_vain(params, test_on_borrow=boom, **options)


def wrong_factory(params: Params, **options: Any) -> None:
    borrow_in_vain(params, connection_factory=lambda *a, **k: psycopg2.connect(*a), **options)


def prewarming_fails(params: Params, **options: Any) -> None:
    fails(ConnectionPool, 1, 2, background_prewarm=False, **{**params, **REFUSED, **options})


def reset_fails(params: Params, **options: Any) -> None:
    pool = ConnectionPool(0, 2, reset=boom, **params, **options)
    for _ in range(3):
        pool.putconn(pool.getconn(timeout=30))
    pool.shutdown()


def exhausted(params: Params, **options: Any) -> None:
    for debug in (True, False):
        pool = ConnectionPool(0, 1, timeout=0.3, debug=debug, max_waiting=1, **params, **options)
        conn = pool.getconn(timeout=30)
        fails(pool.getconn)
        fails(pool.getconn, timeout=0)
        pool.putconn(conn)
        fails(pool.putconn, conn)
        fails(pool.detach, conn)
        pool.shutdown()


def blocks_fail(params: Params, **options: Any) -> None:
    pool = ConnectionPool(0, 1, timeout=30, **params, **options)

    def work(act: Callable[[Any], object]) -> None:
        with pool.transaction() as conn:
            act(conn)

    fails(work, boom)
    fails(work, lambda conn: conn.close())
    fails(work, pool.putconn)
    fails(work, lambda conn: ask(conn, "SELECT pg_terminate_backend(pg_backend_pid())"))
    fails(work, lambda conn: ask(conn, "nonsense"))
    pool.shutdown()


def sessions_are_ended(params: Params, **options: Any) -> None:
    pool = ConnectionPool(0, 2, timeout=30, **params, **options)
    for _ in range(2):
        pids = fill(pool, 2)
        execute(
            {**params, "application_name": "administrator"},
            "SELECT pg_terminate_backend(pid) FROM unnest(%s) pid",
            [pids],
        )
        pool.check()
    pool.shutdown()


def tasks_fail(params: Params, **options: Any) -> None:
    async def failing(call: Any) -> None:
        try:
            await call
        except Exception:
            return
        raise AssertionError("it did not fail")

    async def work() -> None:
        pool = AsyncConnectionPool(0, 1, timeout=0.3, **params, **options)
        async with pool.conn(timeout=30) as conn:
            await failing(pool.getconn())
            await failing(pool.getconn(timeout=0))
            await failing(pool.run_on(conn, boom))
        await failing(pool.putconn(conn))
        await failing(pool.run(boom))
        await failing(pool.run(ask, "nonsense"))
        await failing(pool.run(ask, "SELECT pg_terminate_backend(pg_backend_pid())"))
        await pool.shutdown()
        await failing(pool.getconn())

    async def work_in_vain() -> None:
        pool = AsyncConnectionPool(0, 1, timeout=0.3, **{**params, **REFUSED}, **options)
        for timeout in (0.3, 0):
            await failing(pool.getconn(timeout=timeout))
        await failing(pool.run(ask))
        await pool.shutdown()
        await failing(pool.wait(0))

    asyncio.run(work())
    asyncio.run(work_in_vain())


def tasks_are_cancelled(params: Params, **options: Any) -> None:
    async def cancelled(task: asyncio.Task[Any]) -> None:
        await asyncio.sleep(0.1)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            return
        raise AssertionError("it was not cancelled")

    async def work() -> None:
        pool = AsyncConnectionPool(0, 1, **params, **options)
        await pool.run(ask)
        await cancelled(asyncio.create_task(pool.run(ask, "SELECT pg_sleep(30)")))
        async with pool.conn() as conn:
            await cancelled(asyncio.create_task(pool.getconn()))
            await cancelled(asyncio.create_task(pool.run_on(conn, ask, "SELECT pg_sleep(30)")))
        await pool.shutdown()

    asyncio.run(work())


def manager_fails(params: Params, **options: Any) -> None:
    manager = PoolManager()
    config = {**params, **REFUSED, **options, "minconn": 1, "background_prewarm": False}
    fails(manager.get_pool, config)
    fails(manager.get_pool, {**config, "minconn": -1})
    manager.clear_cache()


SCENES = [
    *(refused, refused_everywhere, no_such_user, no_such_host, unreadable),
    *(configure_fails, connect_params_fail, the_test_fails, wrong_factory, prewarming_fails),
    *(reset_fails, exhausted, blocks_fail, sessions_are_ended),
    *(tasks_fail, manager_fails),
]
if sys.version_info >= (3, 11):
    SCENES.append(tasks_are_cancelled)  # before that asyncio itself makes a cycle of it


def of_ours(thing: object) -> bool:
    """Tell whether it is an object or a frame of the package, or an error with such frames."""
    if isinstance(thing, FrameType):
        return str(thing.f_globals.get("__name__")).startswith("psycopg2_pool2")
    if isinstance(thing, BaseException):
        return any(of_ours(frame) for frame, _ in traceback.walk_tb(thing.__traceback__))
    return not isinstance(thing, type) and type(thing).__module__.startswith("psycopg2_pool2")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("num_workers", [3, 0])
@pytest.mark.parametrize("scene", SCENES)
def test_an_error_leaves_no_cycle(
    statement_log: StatementLog, scene: Callable[..., None], num_workers: int
) -> None:
    scene(statement_log.params, num_workers=num_workers)
    wait_until_at_rest()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = [repr(thing)[:300] for thing in gc.garbage if of_ours(thing)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert found == []
