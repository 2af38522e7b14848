"""Connections that do not come back, and borrowers that wait for themselves."""

from __future__ import annotations

import gc
import inspect
import logging
import threading
import time
from functools import partial
from typing import Any

import pytest

from psycopg2_pool2 import PoolDeadlock, PoolError, PoolExhausted, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.store import ThreadWaiter
from tests.support.fakes import FakeClock, fake_pool
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
)
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

AT_ONCE = 10.0
"""Seconds; a busy machine is slow, and the timeouts are far longer."""


def warnings(caplog: pytest.LogCaptureFixture, pool_name: str) -> list[str]:
    """Return the warnings that name the pool."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [text for text in map(logging.LogRecord.getMessage, records) if pool_name in text]


class TestDroppedConnections:
    def test_give_their_slot_back_with_a_warning_that_names_the_pool(
        self,
        server: Server,
        app: str,
        make_any_pool: MakePool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        pool = make_any_pool(maxconn=1, name="forgetful")
        conn = pool.getconn()
        pid = pid_of(conn)
        ask(conn)
        del conn
        gc.collect()
        assert round_trip(pool) != pid
        wait_until(lambda: pid not in server.backends(app))
        assert len(warnings(caplog, "forgetful")) == 1
        assert_whole(pool)

    def test_wake_the_one_who_waits(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conns = [pool.getconn()]
        waiter = start_waiter(pool)
        conns.clear()
        gc.collect()
        assert ask(waiter.result()) == 1
        pool.putconn(waiter.result())

    def test_in_reference_cycles_give_their_slot_back_too(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)

        class Holder:
            def __init__(self) -> None:
                self.conn = pool.getconn()
                self.me = self

        Holder()
        gc.collect()
        assert_whole(pool)

    def test_tell_in_debug_mode_where_they_were_borrowed(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_pool(maxconn=1, name="forgetful", debug=True)
        conn = pool.getconn()
        here = _this_function()
        del conn
        gc.collect()
        assert_whole(pool)
        [warning] = warnings(caplog, "forgetful")
        assert here in warning

    def test_while_they_were_idle_are_nobodys_fault(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_pool(maxconn=1, name="careful")
        round_trip(pool)
        pool.shutdown()
        gc.collect()
        assert warnings(caplog, "careful") == []


class TestLeakTimeout:
    def test_warns_once_and_shows_the_place(
        self, make_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_pool(leak_timeout=0.05, name="leaky")
        conn = pool.getconn()
        here = _this_function()
        wait_until(lambda: warnings(caplog, "leaky"))
        for _ in range(3):
            pool._upkeep.warn_of_leaks()
        [warning] = warnings(caplog, "leaky")
        assert here in warning
        assert ask(conn) == 1
        pool.putconn(conn)

    def test_warns_of_each_loan_anew(
        self, make_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_pool(maxconn=1, leak_timeout=0.05, name="leaky")
        for number in (1, 2):
            conn = pool.getconn()
            wait_until(partial(_warned, caplog, "leaky", number))
            pool.putconn(conn)

    def test_says_nothing_of_what_comes_back_in_time(
        self, statement_log: StatementLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = FakeClock()
        params = {**statement_log.params, "leak_timeout": 60, "name": "tidy"}
        with fake_pool(clock, 0, 1, **params) as pool:
            for _ in range(3):
                with pool.conn():
                    clock.advance(59)
                    pool.reap_idle_connections()
            assert warnings(caplog, "tidy") == []
            with pool.conn():
                clock.advance(60)
                pool.reap_idle_connections()
            assert warnings(caplog, "tidy") != []


class TestDebug:
    def test_a_thread_that_waits_for_itself_is_told_before_it_pauses(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn()
        here = _this_function()
        with monkeypatch.context() as patch:
            patch.delattr(ThreadWaiter, "wait")
            with pytest.raises(PoolDeadlock) as caught:
                pool.getconn(timeout=30)
        assert here in str(caught.value)
        pool.putconn(conn)
        assert_whole(pool)

    def test_threads_that_wait_for_each_other_are_told_at_once(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2, debug=True)
        both_have_one = threading.Barrier(2)

        def take_two() -> None:
            with pool.conn(timeout=30):
                both_have_one.wait()
                with pool.conn(timeout=30):
                    pass

        started = time.monotonic()
        errors = [borrower.error() for borrower in [in_thread(take_two) for _ in range(2)]]
        assert time.monotonic() - started < AT_ONCE
        # When one has given up, the other can be served.
        assert [type(error) for error in errors if error] in (
            [PoolDeadlock],
            [PoolDeadlock, PoolDeadlock],
        )
        assert_whole(pool)

    def test_whoever_waits_for_a_busy_thread_just_waits(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn()
        waiter = start_waiter(pool)
        pool.putconn(conn)
        pool.putconn(waiter.result())

    def test_without_it_a_deadlock_is_a_timeout(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.05)
        pool.putconn(conn)

    @pytest.mark.parametrize(("timeout", "raised"), [(0, PoolExhausted), (0.1, PoolTimeout)])
    def test_tells_in_errors_who_has_the_connections(
        self, make_any_pool: MakePool, timeout: float, raised: type[PoolError]
    ) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        borrowed: list[Any] = []

        def borrow_for_a_while() -> None:
            borrowed.append(pool.getconn())

        in_thread(borrow_for_a_while).result()
        with pytest.raises(raised, match="borrow_for_a_while"):
            pool.getconn(timeout=timeout)
        pool.putconn(borrowed[0])

    def test_tells_where_a_connection_was_returned_before(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)
        conn = pool.getconn()

        def return_the_first_time() -> None:
            pool.putconn(conn)

        return_the_first_time()
        with pytest.raises(PoolError, match="return_the_first_time"):
            pool.putconn(conn)


class TestBlocks:
    def test_that_raise_leak_nothing(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)

        def fail(raised: type[BaseException]) -> None:
            with pool.conn() as conn:
                ask(conn)
                raise raised

        for raised in (ValueError, KeyboardInterrupt, GeneratorExit, SystemExit):
            with pytest.raises(raised):
                fail(raised)
        assert_whole(pool)
        wait_for_backends(server, app, 1)


def _warned(caplog: pytest.LogCaptureFixture, pool_name: str, times: int) -> bool:
    return len(warnings(caplog, pool_name)) == times


def _this_function() -> str:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_code.co_name
