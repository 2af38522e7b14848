"""Programs that use a pool wrongly, or in ways of their own: what they are told, what they get."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from psycopg2_pool2 import (
    ConnectionPool,
    PoolDeadlock,
    PoolError,
    PoolStats,
    PoolTimeout,
    loans,
)
from psycopg2_pool2.contrib.embedded import Server
from tests.support.fakes import FakeClock, fake_pool
from tests.support.pools import (
    MakePool,
    Park,
    ask,
    assert_whole,
    parked,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_backends,
    wait_for_waiters,
)
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

AT_ONCE = 10.0
"""Seconds; a busy machine is slow, and the timeouts are far longer."""


def told(caplog: pytest.LogCaptureFixture, name: str, level: int) -> list[str]:
    """Return the messages of one level that name the pool."""
    records = [record for record in caplog.records if record.levelno == level]
    return [text for text in map(logging.LogRecord.getMessage, records) if name in text]


def hold(pool: ConnectionPool, release: threading.Event, have: threading.Event) -> None:
    """Borrow, tell, and keep the connection until the release."""
    with pool.conn(timeout=10):
        have.set()
        assert release.wait(30)


class TestLeakTimeout:
    def test_warns_once_of_the_thread_the_age_and_the_stack_and_tells_of_the_return(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without workers it is whoever comes that looks: a scheduler, or another borrower."""
        caplog.set_level(logging.INFO)
        pool = make_any_pool(leak_timeout=0.05, name="leaky")
        have, release = threading.Event(), threading.Event()
        leaking = threading.Thread(target=hold, args=(pool, release, have), name="the culprit")
        leaking.start()
        assert have.wait(10)

        def warned() -> list[str]:
            pool.reap_idle_connections()
            return told(caplog, "leaky", logging.WARNING)

        try:
            wait_until(warned)
            round_trip(pool)
            [warning] = warned()
        finally:
            release.set()
            leaking.join()
        for expected in ("'the culprit'", "in hold", "test_misuse.py"):
            assert expected in warning
        assert re.search(r"in use for \d+\.\d s", warning)
        [note] = told(caplog, "leaky", logging.INFO)
        assert re.search(r"came back after \d+\.\d s", note)
        assert "'the culprit'" in note
        assert len(warned()) == 1

    def test_is_looked_at_by_borrowers_too(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = make_any_pool(maxconn=2, leak_timeout=0.05, name="leaky")
        conn = pool.getconn()
        wait_until(lambda: round_trip(pool) and told(caplog, "leaky", logging.WARNING))
        pool.putconn(conn)

    def test_tells_of_one_that_comes_back_late_though_nobody_looked(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        pool = make_any_pool(maxconn=1, leak_timeout=0.01, name="leaky")
        conn = pool.getconn()
        deadline = time.monotonic() + 0.02
        wait_until(lambda: time.monotonic() > deadline)
        pool.putconn(conn)
        assert [text for text in caplog.messages if "leaky" in text and "in use" in text]

    def test_of_one_that_is_detached_is_over(
        self, statement_log: StatementLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A listener, or a holder of a lock, keeps its connection for as long as it likes."""
        clock = FakeClock()
        params = {**statement_log.params, "leak_timeout": 60, "name": "patient"}
        with fake_pool(clock, 0, 2, **params) as pool:
            with contextlib.closing(pool.detach(pool.getconn())) as own:
                clock.advance(600)
                round_trip(pool)
                pool.reap_idle_connections()
                assert ask(own) == 1
            assert told(caplog, "patient", logging.WARNING) == []

    def test_that_is_off_captures_nothing(
        self, make_any_pool: MakePool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        captured: list[str] = []

        def call_site() -> str:
            captured.append("here")
            return captured[-1]

        monkeypatch.setattr(loans, "call_site", call_site)
        options: list[tuple[dict[str, Any], int]]
        options = [({}, 0), ({"leak_timeout": 60}, 1), ({"debug": True}, 1)]
        for given, expected in options:
            pool = make_any_pool(maxconn=1, **given)
            captured.clear()
            conn: Any = pool.getconn()
            assert len(captured) == expected
            assert (conn.pool_record.loan is None) == (not expected)
            pool.putconn(conn)


class TestDeadlock:
    def test_is_told_to_whoever_waits_last(self, make_any_pool: MakePool) -> None:
        """Ten threads with one connection each, who all want a second."""
        number = 10
        pool = make_any_pool(maxconn=number, debug=True)
        all_have_one = threading.Barrier(number)

        def take_two() -> float:
            with pool.conn(timeout=30):
                all_have_one.wait(10)
                started = time.monotonic()
                with contextlib.suppress(PoolDeadlock), pool.conn(timeout=30):
                    pass
                return time.monotonic() - started

        threads = [in_thread(take_two) for _ in range(number)]
        assert max(thread.result(20) for thread in threads) < AT_ONCE
        assert_whole(pool)

    def test_is_not_seen_while_one_borrower_works(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2, debug=True)
        have, release = threading.Event(), threading.Event()
        worker = in_thread(hold, pool, release, have)
        assert have.wait(10)

        def take_two() -> int:
            with pool.conn(timeout=30):
                return round_trip(pool, timeout=30)

        waiter = in_thread(take_two)
        wait_for_waiters(pool, 1)
        release.set()
        worker.result()
        assert waiter.result()

    def test_is_not_seen_where_a_former_thread_has_handed_its_connection_on(
        self, make_any_pool: MakePool
    ) -> None:
        """The system gives a new thread the identifier of one that has ended."""
        pool = make_any_pool(maxconn=1, debug=True)
        for _ in range(5):
            lender = in_thread(pool.getconn)
            conn = lender.result()
            wait_until(lambda lender=lender: lender.done)  # type: ignore[misc]
            waiter = start_waiter(pool)
            pool.putconn(conn)
            pool.putconn(waiter.result())

    def test_is_seen_for_a_task_that_waits_for_itself(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)

        async def take_two() -> float:
            with pool.conn():
                started = time.monotonic()
                with pytest.raises(PoolDeadlock, match="take_two"):
                    pool.getconn(timeout=30)
                return time.monotonic() - started

        async def main() -> float:
            return await asyncio.create_task(take_two())

        assert in_thread(asyncio.run, main()).result() < AT_ONCE
        assert_whole(pool)

    def test_is_seen_for_tasks_in_loops_of_their_own(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=2, debug=True)
        both_have_one = threading.Barrier(2)

        async def take_two() -> bool:
            with pool.conn():
                both_have_one.wait(10)
                try:
                    pool.putconn(pool.getconn(timeout=30))
                except PoolDeadlock:
                    return True
                return False

        started = time.monotonic()
        loops = [in_thread(asyncio.run, take_two()) for _ in range(2)]
        assert True in {loop.result() for loop in loops}
        assert time.monotonic() - started < AT_ONCE
        assert_whole(pool)

    def test_is_not_seen_for_another_task_of_the_same_thread(self, make_any_pool: MakePool) -> None:
        """What one task has borrowed another, in a thread, may be about to return."""
        pool = make_any_pool(maxconn=1, debug=True)

        async def lend() -> Any:
            return pool.getconn()

        async def main() -> object:
            conn = await asyncio.create_task(lend())
            giving_back = in_thread(_return_to_a_waiter, pool, conn)
            pool.putconn(pool.getconn(timeout=30))
            return giving_back.result()

        in_thread(asyncio.run, main()).result()
        assert_whole(pool)

    def test_is_seen_for_greenlets_of_one_thread(self, make_any_pool: MakePool) -> None:
        greenlet = pytest.importorskip("greenlet")
        pool = make_any_pool(maxconn=1, debug=True)

        def lend() -> Any:
            return pool.getconn()

        def take_two() -> str:
            with pool.conn(), pytest.raises(PoolDeadlock, match="take_two") as caught:
                pool.getconn(timeout=30)
            return str(caught.value)

        assert greenlet.greenlet(take_two).switch()
        conn = greenlet.greenlet(lend).switch()
        # Another greenlet has this one, and does not wait.
        with pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.02)
        pool.putconn(conn)


def _return_to_a_waiter(pool: ConnectionPool, conn: Any) -> None:
    wait_for_waiters(pool, 1)
    pool.putconn(conn)


class TestRefusedReturns:
    def test_of_a_second_time_tell_both_places(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, debug=True)

        def take() -> Any:
            return pool.getconn()

        def give() -> None:
            pool.putconn(conn)

        conn = take()
        give()
        with pytest.raises(PoolError, match="returned before") as caught:
            pool.putconn(conn)
        borrowed, returned = str(caught.value).split("and returned at")
        assert "in take" in borrowed
        assert "in give" in returned

    @pytest.mark.parametrize("debug", [True, False])
    def test_of_anothers_change_nothing_anywhere(
        self, server: Server, make_any_pool: MakePool, debug: bool
    ) -> None:
        pool, other = (make_any_pool(debug=debug, name=name) for name in ("mine", "theirs"))
        conn = other.getconn()
        foreign = psycopg2.connect(**server.params)
        for thing in (conn, foreign):
            for close in (False, True):
                with pytest.raises(PoolError, match=r"belong here.*mine"):
                    pool.putconn(thing, close=close)
            with pytest.raises(PoolError):
                pool.detach(thing)
            assert ask(thing) == 1
        foreign.close()
        assert other.stats() == PoolStats(in_use=1, idle=0)
        other.putconn(conn)
        assert_whole(other)
        assert_whole(pool)

    def test_by_a_name_that_was_kept_are_no_loan(self, make_any_pool: MakePool) -> None:
        """After a return the connection is somebody else's; ending a block twice is refused too."""
        pool = make_any_pool(maxconn=1)
        with pytest.raises(PoolError, match="inside its block"), pool.conn() as conn:
            pool.putconn(conn)
        assert_whole(pool)


class Mine(psycopg2.extras.LoggingConnection):
    """A program's own class, with a `close` of its own."""

    closes = 0

    def close(self) -> None:
        """Count, and close."""
        Mine.closes += 1
        super().close()


def make_mine(*args: Any, **kwargs: Any) -> Mine:
    """Be a factory that is no class."""
    return Mine(*args, **kwargs)


class TestCloseReturns:
    @pytest.mark.parametrize("factory", [Mine, make_mine])
    def test_with_the_programs_own_class(
        self, make_any_pool: MakePool, factory: Callable[..., Any]
    ) -> None:
        Mine.closes = 0
        pool = make_any_pool(
            maxconn=1,
            close_returns=True,
            connection_factory=factory,
            configure=lambda conn: conn.initialize(logging.getLogger("statements")),
        )
        pids = set()
        for _ in range(3):
            with contextlib.closing(pool.getconn()) as conn:
                assert isinstance(conn, Mine)
                pids.add(pid_of(conn))
                ask(conn)
            assert not conn.closed
            assert pool.stats() == PoolStats(in_use=0, idle=1)
        assert len(pids) == 1
        assert Mine.closes == 0
        pool.shutdown()
        assert conn.closed
        assert Mine.closes == 1

    def test_tells_the_truth_about_a_lost_one(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1, close_returns=True)
        conn = pool.getconn()
        server.terminate_backend(pid_of(conn))
        with pytest.raises(psycopg2.OperationalError):
            ask(conn)
        assert conn.closed
        conn.close()
        assert pool.stats().in_use == 0
        assert_whole(pool)

    def test_keeps_no_idle_connection_alive_by_itself(self, make_any_pool: MakePool) -> None:
        """It had a cycle in psycopg 3, and a loop."""
        pool = make_any_pool(maxconn=1, close_returns=True)
        conn = pool.getconn()
        held = weakref.ref(conn)
        conn.close()
        gc.collect()
        gc.disable()
        try:
            del conn
            pool.shutdown()
            wait_until(lambda: held() is None)
        finally:
            gc.enable()

    def test_after_the_pool_has_gone_closes(
        self, server: Server, app: str, statement_log: StatementLog
    ) -> None:
        pool = ConnectionPool(0, 1, close_returns=True, **statement_log.params)
        conn = pool.getconn()
        pool.shutdown()
        conn.close()
        assert conn.closed
        wait_for_backends(server, app, 0)


class TestSqlAlchemy:
    """An engine that pools nothing itself, and whose connections come from a pool of ours."""

    @pytest.mark.parametrize("close_returns", [True, False])
    def test_engine_without_a_pool_borrows_and_gives_back(
        self, make_any_pool: MakePool, close_returns: bool
    ) -> None:
        sqlalchemy = pytest.importorskip("sqlalchemy")
        pool = make_any_pool(maxconn=1, close_returns=close_returns)
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://", creator=pool.getconn, poolclass=sqlalchemy.pool.NullPool
        )
        pids = set()
        for number in range(5):
            with engine.begin() as connection:
                assert pool.stats() == PoolStats(in_use=1, idle=0)
                assert connection.execute(sqlalchemy.text("SELECT 40 + 2")).scalar() == 42
                pids.add(connection.connection.dbapi_connection.info.backend_pid)
            # Without close_returns each is closed, and its slot is free all the same.
            wait_until(lambda: pool.stats().in_use == 0)
            assert len(pids) == (1 if close_returns else number + 1)
        engine.dispose()
        assert_whole(pool)

    def test_engine_rolls_back_and_survives_a_lost_connection(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        sqlalchemy = pytest.importorskip("sqlalchemy")
        pool = make_any_pool(maxconn=1, close_returns=True)
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://", creator=pool.getconn, poolclass=sqlalchemy.pool.NullPool
        )
        question = sqlalchemy.text("SELECT pg_backend_pid()")
        pids: list[int] = []

        def fail() -> None:
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE of_an_engine (n int)"))
                raise LookupError

        def lose() -> None:
            with engine.connect() as connection:
                pids.append(connection.execute(question).scalar())
                server.terminate_backend(pids[0])
                connection.execute(question)

        with pytest.raises(LookupError):
            fail()
        with pytest.raises(sqlalchemy.exc.OperationalError):
            lose()
        with engine.connect() as connection:
            assert connection.execute(question).scalar() not in pids
            table = sqlalchemy.text("SELECT to_regclass('of_an_engine')")
            assert connection.execute(table).scalar() is None
        assert pool.stats() == PoolStats(in_use=0, idle=1)
        assert_whole(pool)


class TestDrain:
    def test_interrupts_no_loan_and_lends_nothing_older_under_load(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=4)
        drained: set[int] = set()
        stop = threading.Event()

        def work() -> int:
            loans = 0
            while not stop.is_set():
                before = set(drained)
                with pool.conn(timeout=10) as conn:
                    assert pid_of(conn) not in before
                    assert ask(conn) == 1
                loans += 1
            return loans

        threads = [in_thread(work) for _ in range(6)]
        for _ in range(10):
            goal = pool.get_stats()["requests_num"] + 30
            wait_until(lambda goal=goal: pool.get_stats()["requests_num"] > goal)  # type: ignore[misc]
            older = server.backends(app)
            pool.drain()
            drained.update(older)
        stop.set()
        assert all(thread.result() > 0 for thread in threads)
        assert_whole(pool)

    def test_concerns_those_that_are_being_opened_too(self, make_any_pool: MakePool) -> None:
        """Opened with what is to be left behind: a password, a certificate, a server."""
        park = Park()
        opened: list[int] = []

        def configure(conn: Any) -> None:
            opened.append(pid_of(conn))
            park()

        pool = make_any_pool(maxconn=1, configure=configure)
        pids: list[int] = []
        with parked(park, lambda: pids.append(round_trip(pool))):
            pool.drain()
        wait_until(lambda: pids)
        # The one who waits for it may have it still; nobody who comes after.
        assert round_trip(pool) != opened[0]
        assert_whole(pool)


class TestClose:
    def test_on_return_replaces_the_connection_and_keeps_the_others(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=2)
        kept = pool.getconn()
        seen = set()
        for _ in range(3):
            conn = pool.getconn("a key", timeout=10)
            seen.add(pid_of(conn))
            pool.putconn(conn, "a key", close=True)
            assert conn.closed
            assert pool.stats() == PoolStats(in_use=1, idle=0)
        assert len(seen) == 3
        wait_for_backends(server, app, 1)
        pool.putconn(kept)
        assert round_trip(pool) == pid_of(kept)

    def test_on_return_of_an_open_transaction_commits_nothing(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        ask(conn, "CREATE TABLE of_a_closed_loan (n int)")
        pool.putconn(conn, close=True)
        with pool.conn(timeout=10) as conn:
            assert ask(conn, "SELECT to_regclass('of_a_closed_loan')") is None
