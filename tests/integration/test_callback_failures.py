"""Callbacks of the program that raise: each error is for the call that it was made for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, balance, upkeep
from psycopg2_pool2 import breaker as breaker_module
from psycopg2_pool2 import endpoints as endpoints_module
from tests.support.pools import MakePool, borrow, give_back, pool_maker, round_trip
from tests.support.rude_server import RudeServer
from tests.support.waiting import in_thread, wait_until

CALLBACKS = ("configure", "test_on_borrow", "connect_params")


@dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no attribute after it was made."""

    why: str


class BareError(Exception):
    """Takes no attribute at all."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class UncopiableError(Exception):
    """Cannot be made anew from its arguments."""

    def __init__(self, why: str, *, code: int) -> None:
        super().__init__(f"{why} ({code})")


ERRORS: dict[str, Callable[[], Exception]] = {
    "RuntimeError": lambda: RuntimeError("hiccup"),
    "OperationalError": lambda: psycopg2.OperationalError("hiccup"),
    "UndefinedTable": lambda: psycopg2.errors.UndefinedTable("hiccup"),
    "TimeoutError": lambda: TimeoutError("hiccup"),
    "frozen": lambda: FrozenError("hiccup"),
    "bare": lambda: BareError("hiccup"),
    "uncopiable": lambda: UncopiableError("hiccup", code=3),
}
EACH_ERROR = pytest.mark.parametrize("make_error", ERRORS.values(), ids=ERRORS)
EACH_CALLBACK = pytest.mark.parametrize("callback", CALLBACKS)


class Failing:
    """A callback that raises for so many calls, where it is not told for which connections."""

    def __init__(
        self,
        make_error: Callable[[], BaseException],
        times: float,
        only_at: int | None = None,
    ) -> None:
        self.calls = 0
        self.failed = 0
        self._make_error = make_error
        self._left = times
        self._only_at = only_at
        self._lock = threading.Lock()

    def __call__(self, conn: Any = None) -> dict[str, Any]:
        with self._lock:
            self.calls += 1
            if self._left <= 0 or (self._only_at and conn.info.port != self._only_at):
                return {}
            self._left -= 1
            self.failed += 1
        raise self._make_error()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "PROMPT_RETRY", 0.02)
    for module in (balance, upkeep):
        monkeypatch.setattr(module, "STEP", 0.1)
    for name in ("SHORTEST_LAG", "LONGEST_LAG", "LONGEST_LAG_OF_THE_UNKNOWN"):
        monkeypatch.setattr(endpoints_module, name, 0.1)


@pytest.fixture(scope="module")
def rude() -> Iterator[RudeServer]:
    with RudeServer() as server:
        yield server


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_pool(rude: RudeServer, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    with pool_maker(**rude.params, num_workers=request.param) as make:
        yield make


def assert_whole(pool: ConnectionPool) -> None:
    """See that nothing is in use or on its way, and that maxconn can be borrowed at a time."""
    wait_until(lambda: not pool.get_stats()["pool_opening"])
    assert pool.stats().in_use == 0
    conns = borrow(pool, int(pool.maxconn))
    assert len({id(conn) for conn in conns}) == pool.maxconn
    give_back(pool, conns)


@EACH_CALLBACK
@EACH_ERROR
class TestOnce:
    def test_costs_a_borrower_with_time_nothing(
        self, make_pool: MakePool, callback: str, make_error: Callable[[], Exception]
    ) -> None:
        failing = Failing(make_error, 1)
        pool = make_pool(0, 5, **{callback: failing})
        assert round_trip(pool)
        assert failing.failed == 1
        assert pool.get_stats()["requests_errors"] == 0
        assert_whole(pool)

    def test_costs_a_crowd_nothing(
        self, make_pool: MakePool, callback: str, make_error: Callable[[], Exception]
    ) -> None:
        failing = Failing(make_error, 3)
        pool = make_pool(0, 4, **{callback: failing})
        threads = [in_thread(round_trip, pool, timeout=15) for _ in range(8)]
        assert all(thread.result() for thread in threads)
        assert_whole(pool)

    def test_costs_those_without_time_one_error_for_each_call(
        self, make_pool: MakePool, callback: str, make_error: Callable[[], Exception]
    ) -> None:
        failing = Failing(make_error, 2)
        pool = make_pool(0, 5, **{callback: failing})
        errors = []
        for _ in range(6):
            try:
                round_trip(pool, timeout=0)
            except Exception as error:
                errors.append(error)
        assert len(errors) == 2
        assert {type(error) for error in errors} == {type(make_error())}
        assert_whole(pool)


@EACH_CALLBACK
@EACH_ERROR
class TestAlways:
    def test_is_told_as_it_is_when_the_time_is_over(
        self, make_pool: MakePool, callback: str, make_error: Callable[[], Exception]
    ) -> None:
        failing = Failing(make_error, float("inf"))
        pool = make_pool(0, 5, **{callback: failing})
        with pytest.raises(type(make_error()), match="hiccup") as caught:
            pool.getconn(timeout=0.15)
        assert type(caught.value) is type(make_error())
        assert failing.failed >= 2, "another was tried"

    def test_is_told_as_it_is_at_once_where_there_is_no_time(
        self, make_pool: MakePool, callback: str, make_error: Callable[[], Exception]
    ) -> None:
        failing = Failing(make_error, float("inf"))
        pool = make_pool(0, 5, **{callback: failing})
        with pytest.raises(type(make_error()), match="hiccup") as caught:
            pool.getconn()
        assert type(caught.value) is type(make_error())
        assert failing.failed == 1


@pytest.mark.parametrize("callback", ["configure", "test_on_borrow"])
@EACH_ERROR
@pytest.mark.parametrize("num_workers", [3, 0])
def test_at_one_server_of_two_the_other_serves(
    callback: str, make_error: Callable[[], Exception], num_workers: int
) -> None:
    with RudeServer() as bad, RudeServer() as good, pool_maker(num_workers=num_workers) as make:
        failing = Failing(make_error, float("inf"), only_at=bad.port)
        places = {"host": "127.0.0.1,127.0.0.1", "port": f"{bad.port},{good.port}"}
        pool = make(0, 6, user="u", dbname="shop", **places, **{callback: failing})
        held = [pool.getconn(timeout=15) for _ in range(6)]
        assert {conn.info.port for conn in held} == {good.port}
        assert pool.get_stats()["requests_errors"] == 0
        states = {e.port: e for e in pool.endpoints()}
        if failing.failed:
            assert states[bad.port].failures or states[bad.port].last_error is None
        for conn in held:
            pool.putconn(conn)


class TestSystemExit:
    @pytest.mark.parametrize("callback", ["configure", "connect_params"])
    def test_of_a_worker_costs_a_borrower_with_time_nothing(
        self, rude: RudeServer, callback: str
    ) -> None:
        failing = Failing(lambda: SystemExit(3), 2)
        with pool_maker(**rude.params) as make:
            pool = make(0, 3, **{callback: failing})
            assert round_trip(pool)
            assert failing.failed == 2
            assert_whole(pool)

    @pytest.mark.parametrize("callback", ["configure", "connect_params"])
    def test_of_a_worker_is_that_of_whoever_cannot_wait(
        self, rude: RudeServer, callback: str
    ) -> None:
        with pool_maker(**rude.params) as make:
            pool = make(0, 3, **{callback: Failing(lambda: SystemExit(3), 1)})
            with pytest.raises(SystemExit):
                pool.getconn()
            assert round_trip(pool)
            assert_whole(pool)

    @EACH_CALLBACK
    def test_in_the_borrower_s_thread_is_its_own(self, rude: RudeServer, callback: str) -> None:
        with pool_maker(**rude.params, num_workers=0) as make:
            pool = make(0, 3, **{callback: Failing(lambda: SystemExit(3), 1)})
            with pytest.raises(SystemExit):
                pool.getconn(timeout=10)
            assert round_trip(pool)
            assert_whole(pool)
