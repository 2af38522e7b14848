"""PoolManager: one pool per configuration, whatever the threads, forks and failures do."""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import psycopg2
import pytest

import psycopg2_pool2
from psycopg2_pool2 import ConnectionPool, PoolClosed, PoolError, PoolManager, manager
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.pools import (
    ask,
    fill,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
)
from tests.support.processes import in_child, run_program
from tests.support.servers import StatementLog
from tests.support.waiting import Running, count_threads, frame_of, in_thread, wait_until

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Interrupted(BaseException):
    """What a signal handler may raise anywhere."""


class Making:
    """The `connect_params` of a configuration: how often its pool was made, and a hand on it.

    With `background_prewarm=False` it is called by the thread that makes the
    pool, which stops there as long as the gate is shut.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.before: Callable[[int], object] | None = None
        self._gates: dict[int, threading.Event] = {}

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        number = self.calls
        if number in self._gates:
            assert self._gates[number].wait(30)
        if self.before is not None:
            self.before(number)
        return {}

    def stop_at(self, *numbers: int) -> None:
        """Stop these calls, the first being 1, until they are let go."""
        self._gates.update({number: threading.Event() for number in numbers})

    def wait_for(self, number: int) -> None:
        """Wait until it has been called so often."""
        wait_until(lambda: self.calls == number, message=f"call {number}, made: {self.calls}")

    def let_go(self, number: int) -> None:
        """Let a stopped call go on."""
        self._gates[number].set()


def fail_at(*numbers: int, error: BaseException) -> Callable[[int], object]:
    """Return what raises in these calls."""

    def fail(number: int) -> None:
        if number in numbers:
            raise error

    return fail


@pytest.fixture
def pools() -> Iterator[PoolManager]:
    """Make a manager, and close its pools at the end."""
    made = PoolManager()
    yield made
    made.clear_cache()


@pytest.fixture
def config(statement_log: StatementLog) -> dict[str, Any]:
    """Return a configuration for the shared server."""
    return {"dsn": statement_log.dsn, "minconn": 0, "maxconn": 2}


@pytest.fixture
def making() -> Making:
    """Make the hand on the making of `slow_config`'s pool."""
    return Making()


@pytest.fixture
def slow_config(config: dict[str, Any], making: Making) -> dict[str, Any]:
    """Return a configuration whose pool is made when it is connected."""
    eager = {"minconn": 1, "background_prewarm": False, "num_workers": 0}
    return {**config, **eager, "connect_params": making}


def wait_until_at(thread: threading.Thread, line: str) -> None:
    """Wait until a thread stands at a line of the manager."""

    def stands_there() -> bool:
        frame = frame_of(thread)
        return (
            frame is not None
            and frame.f_code.co_filename == manager.__file__
            and line in linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        )

    wait_until(stands_there, message=f"{thread.name} at {line!r}")


def start_asking(pools: PoolManager, config: Any, reload: bool = False) -> Running[ConnectionPool]:
    """Have a thread ask for a pool that another one makes; return when it waits for that."""
    asking = in_thread(pools.get_pool, config, reload)
    wait_until_at(asking.thread, "with making.turn")
    return asking


# -- one pool --------------------------------------------------------------


def test_the_same_configuration_is_the_same_pool(
    pools: PoolManager, config: dict[str, Any], server: Server
) -> None:
    pool = pools.get_pool(config)
    assert pools.get_pool({**config, "port": str(server.port)}) is pool
    assert pools.get_pool({**config, "timeout": 5}) is not pool
    round_trip(pool)


def test_a_dsn_is_a_configuration(pools: PoolManager, app: str, dsn: str) -> None:
    pool = pools.get_pool(f"{dsn} application_name={app}")
    assert pools.get_pool({"dsn": dsn, "application_name": app}) is pool
    round_trip(pool)


def test_the_environment_is_part_of_it(
    pools: PoolManager, config: dict[str, Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["dsn"] = server.dsn
    for tenant in ("tenant-a", "tenant-b"):
        monkeypatch.setenv("PGAPPNAME", tenant)
        pools.get_pool(config)
    monkeypatch.setenv("PGAPPNAME", "tenant-a")
    pool = pools.get_pool(config)
    monkeypatch.setenv("PGAPPNAME", "tenant-b")
    with pool.conn(timeout=10) as conn:  # opened only now
        assert ask(conn, "SHOW application_name") == "tenant-a"


def test_what_is_told_of_the_pools(pools: PoolManager, config: dict[str, Any]) -> None:
    first = pools.get_pool({**config, "name": "first"})
    pools.get_pool({**config, "name": "second"})
    pools.get_pool({**config, "name": "first"})
    fill(first, 2)
    conn = first.getconn()
    told = pools.cache_info
    assert (told["size"], told["max_pools"]) == (2, None)
    assert list(told["pools"].values()) == [
        {"name": "second", "in_use": 0, "idle": 0},
        {"name": "first", "in_use": 1, "idle": 1},
    ]
    first.putconn(conn)


def test_a_pool_that_somebody_closed_is_replaced(
    pools: PoolManager, config: dict[str, Any]
) -> None:
    pool = pools.get_pool(config)
    pool.shutdown()
    assert pools.cache_info["size"] == 0
    another = pools.get_pool(config)
    assert another is not pool
    assert pools.get_pool(config) is another
    round_trip(another)


def test_the_process_has_one(config: dict[str, Any]) -> None:
    try:
        pool = psycopg2_pool2.get_pool(config)
        assert manager.default_manager.get_pool(config) is pool
        assert psycopg2_pool2.get_pool(config, force_reload=True) is not pool
    finally:
        manager.default_manager.clear_cache()


# -- two threads at once ---------------------------------------------------


def test_who_asks_while_it_is_made_gets_the_same(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    making.stop_at(1)
    first = in_thread(pools.get_pool, slow_config)
    making.wait_for(1)
    others = [start_asking(pools, slow_config) for _ in range(3)]
    making.let_go(1)
    assert {first.result(), *(other.result() for other in others)} == {pools.get_pool(slow_config)}
    assert making.calls == 1
    assert not pools._making


def test_others_are_served_while_one_is_made(
    pools: PoolManager, slow_config: dict[str, Any], config: dict[str, Any], making: Making
) -> None:
    kept = pools.get_pool({**config, "name": "kept"})
    making.stop_at(1)
    first = in_thread(pools.get_pool, slow_config)
    making.wait_for(1)
    assert in_thread(pools.get_pool, {**config, "name": "kept"}).result() is kept
    round_trip(in_thread(pools.get_pool, config).result())
    assert in_thread(lambda: pools.cache_info).result()["size"] == 2
    in_thread(pools.clear_cache).result()
    making.let_go(1)
    assert first.result() is pools.get_pool(slow_config)


def test_those_who_waited_get_the_error(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    making.stop_at(1)
    making.before = fail_at(1, error=ValueError("no token"))
    first = in_thread(pools.get_pool, slow_config)
    making.wait_for(1)
    others = [start_asking(pools, slow_config) for _ in range(3)]
    making.let_go(1)
    errors = [running.error() for running in (first, *others)]
    assert {(type(error), str(error)) for error in errors} == {(ValueError, "no token")}
    assert len(set(map(id, errors))) == 4  # each has a traceback of its own
    assert making.calls == 1
    assert pools.cache_info["size"] == 0
    round_trip(pools.get_pool(slow_config))  # who comes later tries himself


def test_one_who_was_interrupted_leaves_it_to_the_next(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    making.stop_at(1)
    making.before = fail_at(1, error=Interrupted())
    first = in_thread(pools.get_pool, slow_config)
    making.wait_for(1)
    other = start_asking(pools, slow_config)
    making.let_go(1)
    assert isinstance(first.error(), Interrupted)
    round_trip(other.result())
    assert making.calls == 2


@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_two_that_are_made_after_an_interruption_become_one(
    pools: PoolManager, slow_config: dict[str, Any], making: Making, order: tuple[int, int]
) -> None:
    making.stop_at(1, 2, 3)
    making.before = fail_at(1, error=Interrupted())
    first = in_thread(pools.get_pool, slow_config)
    making.wait_for(1)
    waited = start_asking(pools, slow_config)
    making.let_go(1)
    assert isinstance(first.error(), Interrupted)
    making.wait_for(2)
    late = in_thread(pools.get_pool, slow_config)  # who knows nothing of the interruption
    making.wait_for(3)
    early, later = {2: waited, 3: late}[order[0]], {2: waited, 3: late}[order[1]]
    making.let_go(order[0])
    early.result()
    making.let_go(order[1])
    assert later.result() is early.result()
    round_trip(early.result())
    assert early.result().stats().idle == 1


def test_the_maker_asks_for_what_he_makes(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    making.before = lambda number: pools.get_pool(slow_config)
    asking = in_thread(pools.get_pool, slow_config)
    with pytest.raises(PoolError, match="asked for by what is called to make it"):
        asking.result()
    making.before = None
    round_trip(pools.get_pool(slow_config))


def test_an_interruption_anywhere_leaves_the_manager_usable(config: dict[str, Any]) -> None:
    plain = {**config, "num_workers": 0}
    for moment in range(1, 1000):
        pools = PoolManager(max_pools=1)
        pools.get_pool({**plain, "name": "other"})
        interruption = Interruption(moment)
        told = in_thread(interruption.during, partial(pools.get_pool, plain)).error()
        if told is None:
            break
        assert isinstance(told, Interrupted)
        pool = in_thread(pools.get_pool, plain).result()
        assert in_thread(pools.get_pool, plain).result() is pool
        assert in_thread(pools.get_pool, plain, True).result() is not pool
        assert pool.closed
        pools.clear_cache()
    assert moment > 30


class Interruption:
    """Raises at one of the moments when Python looks for signals, in the manager's own code."""

    def __init__(self, moment: int) -> None:
        self._left = moment

    def during(self, call: Callable[[], object]) -> None:
        """Make the call."""
        sys.setprofile(self._moment)
        try:
            call()
        finally:
            sys.setprofile(None)

    def _moment(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)  # since 3.11
        if code.co_filename != manager.__file__ or event == "c_call":
            return
        if not name.startswith(("PoolManager.", "_Making", "_Entry")) and name not in METHODS:
            return
        self._left -= 1
        if not self._left:
            raise Interrupted


METHODS = {name for name in vars(PoolManager) if name.startswith(("_", "get_pool"))}


# -- reloading -------------------------------------------------------------


def test_reloading_gives_a_new_pool_and_closes_the_old(
    pools: PoolManager, config: dict[str, Any]
) -> None:
    old = pools.get_pool(config)
    fill(old, 2)
    conn = old.getconn()
    new = pools.get_pool(config, force_reload=True)
    assert new is not old
    assert pools.get_pool(config) is new
    assert old.closed
    assert old.stats().idle == 0
    assert ask(conn) == 1  # it is its borrower's until he gives it back
    old.putconn(conn)
    assert conn.closed
    round_trip(new)


def test_reloading_what_is_not_there_makes_it(pools: PoolManager, config: dict[str, Any]) -> None:
    pool = pools.get_pool(config, force_reload=True)
    assert pools.get_pool(config) is pool


def test_the_old_pool_stays_when_there_can_be_no_new_one(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    old = pools.get_pool(slow_config)
    making.before = fail_at(2, error=ValueError("no token"))
    with pytest.raises(ValueError, match="no token"):
        pools.get_pool(slow_config, force_reload=True)
    assert pools.get_pool(slow_config) is old
    round_trip(old)


def test_the_old_pool_serves_until_the_new_one_is_there(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    old = pools.get_pool(slow_config)
    making.stop_at(2)
    reloading = in_thread(pools.get_pool, slow_config, True)
    making.wait_for(2)
    assert in_thread(pools.get_pool, slow_config).result() is old
    round_trip(old)
    making.let_go(2)
    assert reloading.result() is pools.get_pool(slow_config)
    assert old.closed


def test_of_many_who_reload_one_makes_it_for_all(
    pools: PoolManager, slow_config: dict[str, Any], making: Making
) -> None:
    making.stop_at(1)
    first = in_thread(pools.get_pool, slow_config, True)
    making.wait_for(1)
    # What is being made may be older than the reason for which these reload.
    others = [start_asking(pools, slow_config, reload=True) for _ in range(4)]
    making.let_go(1)
    assert {other.result() for other in others} == {pools.get_pool(slow_config)}
    assert first.result().closed
    assert making.calls == 2


# -- no more than max_pools ------------------------------------------------


def named(config: dict[str, Any], name: str) -> dict[str, Any]:
    return {**config, "name": name}


def names(pools: PoolManager) -> list[str]:
    return [told["name"] for told in pools.cache_info["pools"].values()]


def test_the_idle_pool_that_was_asked_for_least_recently_goes(config: dict[str, Any]) -> None:
    pools = PoolManager(max_pools=2)
    first = pools.get_pool(named(config, "a"))
    fill(first, 2)
    second = pools.get_pool(named(config, "b"))
    assert pools.get_pool(named(config, "a")) is first
    pools.get_pool(named(config, "c"))
    assert names(pools) == ["a", "c"]
    assert second.closed
    with pytest.raises(PoolClosed):
        second.getconn()
    pools.get_pool(named(config, "b"))
    assert names(pools) == ["c", "b"]
    assert first.stats() == psycopg2_pool2.PoolStats(0, 0)
    pools.clear_cache()


def test_a_pool_in_use_stays(config: dict[str, Any]) -> None:
    pools = PoolManager(max_pools=2)
    used = pools.get_pool(named(config, "a"))
    conn = used.getconn(timeout=10)
    pools.get_pool(named(config, "b"))
    pools.get_pool(named(config, "c"))
    assert names(pools) == ["a", "c"]
    used.putconn(conn)
    pools.clear_cache()


def test_a_pool_that_somebody_waits_for_stays() -> None:
    nowhere = f"host=127.0.0.1 port={free_port('127.0.0.1')}"
    pools = PoolManager(max_pools=1)
    wanted = pools.get_pool({"dsn": nowhere, "minconn": 0, "name": "a"})
    waiter = start_waiter(wanted)
    pools.get_pool({"dsn": nowhere, "minconn": 0, "name": "b"})
    assert names(pools) == ["a", "b"]
    pools.clear_cache()
    assert isinstance(waiter.error(), PoolClosed)


def test_while_all_are_in_use_the_limit_is_exceeded_with_one_warning(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pools = PoolManager(max_pools=1)
    caplog.set_level(logging.WARNING, "psycopg2_pool2")
    borrowed = []
    for name in "abc":
        pool = pools.get_pool(named(config, name))
        borrowed.append((pool, pool.getconn(timeout=10)))
    assert names(pools) == ["a", "b", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        "2 pools are in use, more than max_pools=1"
    ]
    for pool, conn in borrowed:
        pool.putconn(conn)
    pools.get_pool(named(config, "d"))
    assert names(pools) == ["d"]
    assert all(pool.closed for pool, _ in borrowed)
    conn = pools.get_pool(named(config, "d")).getconn(timeout=10)
    pools.get_pool(named(config, "e"))
    assert len(caplog.records) == 2  # it had been kept meanwhile
    pools.clear_cache()
    del conn


def test_a_closed_pool_goes_first(config: dict[str, Any]) -> None:
    pools = PoolManager(max_pools=2)
    pools.get_pool(named(config, "a"))
    pools.get_pool(named(config, "b")).shutdown()
    pools.get_pool(named(config, "c"))
    assert names(pools) == ["a", "c"]
    pools.clear_cache()


def test_pools_that_others_close_do_not_pile_up(pools: PoolManager, config: dict[str, Any]) -> None:
    kept = [pools.get_pool(named(config, str(number))) for number in range(3)]
    for number in range(100):
        pools.get_pool({**named(config, f"closed-{number}"), "num_workers": 0}).shutdown()
    assert len(pools._entries) < 40
    assert [pools.get_pool(named(config, str(number))) for number in range(3)] == kept


def test_a_pool_that_is_asked_for_at_the_last_moment_stays(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = PoolManager(max_pools=2)
    wanted = pools.get_pool(named(config, "a"))
    pools.get_pool(named(config, "b"))
    is_idle = manager._Entry.is_idle

    def asked_meanwhile(entry: Any) -> bool:
        idle = is_idle(entry)
        if entry.pool is wanted:
            assert in_thread(pools.get_pool, named(config, "a")).result() is wanted
        return idle

    monkeypatch.setattr(manager._Entry, "is_idle", asked_meanwhile)
    pools.get_pool(named(config, "c"))
    assert not wanted.closed
    assert names(pools) == ["a", "c"] or names(pools) == ["c", "a"]
    pools.clear_cache()


# -- clearing --------------------------------------------------------------


def test_clearing_closes_all(pools: PoolManager, config: dict[str, Any]) -> None:
    cleared = [pools.get_pool(named(config, name)) for name in "abc"]
    fill(cleared[0], 2)
    conn = cleared[1].getconn(timeout=10)
    pools.clear_cache()
    assert pools.cache_info == {"size": 0, "max_pools": None, "pools": {}}
    assert all(pool.closed for pool in cleared)
    assert cleared[0].stats().idle == 0
    cleared[1].putconn(conn)
    assert conn.closed
    round_trip(pools.get_pool(named(config, "a")))


def test_clearing_is_awaited_and_the_loop_goes_on(
    pools: PoolManager, config: dict[str, Any]
) -> None:
    cleared = [pools.get_pool(named(config, name)) for name in "abcde"]
    fill(cleared[0], 2)
    open_pools = []

    async def watch() -> None:
        while True:
            open_pools.append(sum(not pool.closed for pool in cleared))
            await asyncio.sleep(0)

    async def clear() -> None:
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        await pools.clear_cache_async()
        watching.cancel()

    asyncio.run(clear())
    assert list(OrderedDict.fromkeys(open_pools)) == [5, 4, 3, 2, 1, 0]
    assert cleared[0].stats().idle == 0
    assert pools.cache_info["size"] == 0


def test_an_interrupted_clearing_forgets_nothing(
    pools: PoolManager, config: dict[str, Any]
) -> None:
    cleared = [pools.get_pool(named(config, name)) for name in "abc"]

    async def begin() -> None:
        task = asyncio.create_task(pools.clear_cache_async())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(begin())
    assert [pool.closed for pool in cleared] == [True, False, False]
    assert pools.cache_info["size"] == 2


# -- failures --------------------------------------------------------------


def test_a_server_that_is_not_there_is_told_and_nothing_is_kept(pools: PoolManager) -> None:
    config = {
        "dsn": f"host=127.0.0.1 port={free_port('127.0.0.1')}",
        "background_prewarm": False,
        "password": "s3kr1t",
    }
    with pytest.raises(psycopg2.OperationalError) as raised:
        pools.get_pool(config)
    assert "s3kr1t" not in str(raised.value)
    assert pools.cache_info["size"] == 0
    assert not pools._making


# -- processes -------------------------------------------------------------


@needs_fork
class TestFork:
    def test_the_child_has_the_same_pools_and_they_are_empty(
        self, pools: PoolManager, config: dict[str, Any]
    ) -> None:
        pool = pools.get_pool(config)
        [pid] = fill(pool, 1)

        def child() -> int:
            assert pools.get_pool(dict(config)) is pool
            assert pool.stats().idle == 0
            return round_trip(pool)

        assert int(in_child(child)) != pid
        assert round_trip(pool) == pid

    def test_a_child_of_the_making_makes_its_own(
        self, pools: PoolManager, slow_config: dict[str, Any], making: Making
    ) -> None:
        making.stop_at(1)
        first = in_thread(pools.get_pool, slow_config)
        making.wait_for(1)
        assert int(in_child(lambda: round_trip(pools.get_pool(slow_config))))
        making.let_go(1)
        round_trip(first.result())

    @pytest.mark.parametrize("told", [True, False], ids=["Python's fork", "another's"])
    def test_a_child_of_a_thread_that_decides_decides_itself(
        self,
        pools: PoolManager,
        config: dict[str, Any],
        told: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if not told:
            monkeypatch.setattr(manager, "_managers", [])
        with another_decides(pools):
            assert int(in_child(lambda: round_trip(pools.get_pool(config))))

    def test_a_child_that_comes_of_the_making_itself_goes_on(
        self, pools: PoolManager, slow_config: dict[str, Any], making: Making
    ) -> None:
        parent = os.getpid()

        def fork(number: int) -> None:
            with another_decides(pools):
                child = os.fork()
                if not child:
                    raise ChildError
            assert ended_well(child)

        making.before = fork
        try:
            pool = pools.get_pool(slow_config)
        finally:
            if os.getpid() != parent:  # after all that get_pool had to do
                os._exit(0 if sys.exc_info()[0] is ChildError and not pools._making else 1)
        round_trip(pool)


class ChildError(Exception):
    """Ends the making of a pool in a forked child."""


def ended_well(child: int) -> bool:
    """Wait for the end of a child, and tell; kill it if it hangs."""
    status = None

    def ended() -> bool:
        nonlocal status
        pid, status = os.waitpid(child, os.WNOHANG)
        return pid != 0

    try:
        wait_until(ended)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    return status == 0


@contextmanager
def another_decides(pools: PoolManager) -> Iterator[None]:
    """Have another thread hold the manager's lock."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with pools._lock:
            held.set()
            release.wait(30)

    holding = in_thread(hold)
    try:
        assert held.wait(10)
        yield
    finally:
        release.set()
    holding.result()


def test_the_pools_are_closed_when_the_process_ends(server: Server, app: str) -> None:
    program = """
import sys
import psycopg2_pool2
used = psycopg2_pool2.get_pool(sys.argv[1])
idle = psycopg2_pool2.get_pool({"dsn": sys.argv[1], "maxconn": 2, "minconn": 2})
idle.wait()
conn = used.getconn(timeout=10)
print(psycopg2_pool2.manager.default_manager.cache_info["size"])
"""
    ended = run_program(program, f"{server.dsn} application_name={app}")
    assert (ended.status, ended.output.strip(), ended.errors) == (0, "2", "")
    assert ended.exit_seconds < 5
    wait_for_backends(server, app, 0)


# -- many tenants ----------------------------------------------------------

TENANTS = 300
AT_A_TIME = 100
A_HANDFUL = 20


def test_tenants_touched_once_cost_no_thread_and_later_no_connection(
    pools: PoolManager, statement_log: StatementLog, server: Server
) -> None:
    app = statement_log.application_name

    def tenant(number: int) -> dict[str, Any]:
        return {
            "dsn": statement_log.dsn,
            "options": f"-c pool.tenant={number}",
            "minconn": 0,
            "idle_timeout": 0.2,
            "reap_idle_interval": 0.2,
        }

    made = []
    for number in range(TENANTS):
        pool = pools.get_pool(tenant(number))
        with pool.conn(timeout=10) as conn:
            assert ask(conn, "SHOW pool.tenant") == str(number)
        made.append(pool)
        if len(made) % AT_A_TIME == 0:  # the server has no room for all
            wait_until(lambda: not any(one.stats().idle for one in made), timeout=30)
            # A busy machine makes more workers for a while; none stays for its tenant.
            wait_until(lambda: count_threads("psycopg2_pool2") <= A_HANDFUL, timeout=30)
    assert len(set(made)) == TENANTS
    assert pools.cache_info["size"] == TENANTS
    wait_until(lambda: not server.backends(app), timeout=30)
    wait_until(lambda: count_threads("psycopg2_pool2") <= A_HANDFUL, timeout=30)
    assert all(told["idle"] == 0 for told in pools.cache_info["pools"].values())
    assert pools.get_pool(tenant(0)) is made[0]
    assert pid_of(made[0].getconn(timeout=10))
