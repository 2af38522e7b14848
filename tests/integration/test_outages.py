"""Outages of every kind: few attempts, clear errors, little noise, and back when it ends."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import (
    CircuitBreaker,
    ConnectionPool,
    PoolStats,
    PoolTimeout,
    PoolUnavailable,
    monitor,
)
from psycopg2_pool2 import breaker as breaker_module
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.text import in_one_line
from tests.support.interrupts import interrupt
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    end_sessions,
    fill,
    give_back,
    pool_maker,
    round_trip,
    start_waiter,
    wait_for_waiters,
)
from tests.support.proxy import Proxy
from tests.support.servers import MakeProxy, MakeServer, StatementLog, new_server
from tests.support.waiting import in_thread, threads_named, wait_until

LOGGER = "psycopg2_pool2"
SHORTEST_PAUSE = 0.2
"""Seconds between two attempts at a server that refuses: a quarter, and a fifth less by jitter."""
SECRET = "correct-horse-9182"
WRONG = "wrong-battery-7364"

OUTAGES = {
    "refused": Proxy.refuse,
    "closed at once": Proxy.accept_and_close,
}


class Attempts:
    """Counts the attempts to connect that are under way; goes into a pool as its callbacks.

    Each lasts for a moment, so that two at once would be seen.
    """

    def __init__(self) -> None:
        self.most = 0
        self.threads: set[str] = set()
        self.entries: list[tuple[int, int]] = []  # how many at once, how many had succeeded
        self._lock = threading.Lock()
        self._running = 0
        self._succeeded = 0

    @property
    def callbacks(self) -> dict[str, Any]:
        return {"connect_params": self._begin, "configure": self._succeed}

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.most = self._succeeded = 0
            self.entries.clear()

    def _begin(self) -> dict[str, Any]:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.entries.append((self._running, self._succeeded))
            self.threads.add(threading.current_thread().name)
        time.sleep(0.01)
        with self._lock:
            self._running -= 1
        return {}

    def _succeed(self, conn: Any) -> None:
        with self._lock:
            self._succeeded += 1


@pytest.fixture
def door(proxy: MakeProxy) -> Proxy:
    """Return the way to the shared server, which a test may shut."""
    return proxy()


@pytest.fixture
def away(door: Proxy) -> dict[str, Any]:
    """Return what leads a pool through that door."""
    return {"host": door.host, "port": door.port, "user": "postgres", "dbname": "postgres"}


@pytest.fixture(params=OUTAGES)
def shut(door: Proxy, request: pytest.FixtureRequest) -> Callable[[], object]:
    """Return how the door is shut; sessions that there are go on."""
    return lambda: OUTAGES[request.param](door)


def failures(pool: ConnectionPool) -> int:
    number: int = pool.get_stats()["connections_errors"]
    return number


def state(pool: ConnectionPool) -> str:
    [endpoint] = pool.endpoints()
    return endpoint.state


def assert_few(attempts: int, seconds: float) -> None:
    """See that the attempts in a time are three at once at first, and at most five a second then.

    One more may just have begun.
    """
    assert attempts <= 3 + seconds / SHORTEST_PAUSE + 1


def fail_until_open(pool: ConnectionPool) -> None:
    """Borrow in vain until the breaker is open."""

    def is_open() -> bool:
        with suppress(psycopg2.OperationalError):
            pool.putconn(pool.getconn())
        return state(pool) == "open"

    wait_until(is_open)


class TestStorm:
    """Two hundred threads and a server that is down."""

    SECONDS = 1.0

    def test_is_a_handful_of_attempts_and_one_at_a_time(
        self,
        door: Proxy,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_pool: MakePool,
    ) -> None:
        attempts = Attempts()
        shut()
        pool = make_pool(0, 200, **away, **attempts.callbacks)
        before, started = door.connects, time.monotonic()
        threads = [in_thread(pool.getconn, timeout=self.SECONDS) for _ in range(200)]
        wait_until(lambda: failures(pool) >= 3)
        attempts.forget()
        errors = [thread.error() for thread in threads]
        assert all(isinstance(error, PoolTimeout) for error in errors)
        assert all(
            isinstance(error.__cause__, psycopg2.OperationalError) for error in errors if error
        )
        assert attempts.most == 1
        seen = max(failures(pool), door.connects - before)
        assert_few(seen, time.monotonic() - started)

    def test_that_ends_is_followed_by_few_and_then_more_connects_at_once(
        self,
        door: Proxy,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_pool: MakePool,
    ) -> None:
        attempts = Attempts()
        shut()
        pool = make_pool(0, 16, num_workers=4, **away, **attempts.callbacks)
        waiters = [start_waiter(pool) for _ in range(16)]
        wait_until(lambda: state(pool) == "open")
        attempts.forget()
        door.forward()
        conns = [waiter.result() for waiter in waiters]
        opened = [entry for entry in attempts.entries if entry[1] or entry[0] > 1]
        assert attempts.most <= 4
        assert all(running <= 2**succeeded for running, succeeded in opened), opened
        assert attempts.entries[0] == (1, 0)
        give_back(pool, conns)

    def test_of_borrowers_without_a_timeout_is_no_more(
        self,
        door: Proxy,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_any_pool: MakePool,
    ) -> None:
        shut()
        pool = make_any_pool(0, 50, **away)
        fail_until_open(pool)
        before = failures(pool)
        started = time.monotonic()
        refused = 0
        for _ in range(500):
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn()
            refused += isinstance(caught.value, PoolUnavailable)
        assert_few(failures(pool) - before, time.monotonic() - started)
        assert refused >= 490 - (failures(pool) - before)

    def test_with_no_thread_of_ours_is_one_attempt_at_a_time_too(
        self, door: Proxy, away: dict[str, Any], make_pool: MakePool
    ) -> None:
        attempts = Attempts()
        door.refuse()
        pool = make_pool(0, 50, num_workers=0, **away, **attempts.callbacks)
        fail_until_open(pool)
        attempts.forget()
        before, started = failures(pool), time.monotonic()
        threads = [in_thread(pool.getconn, timeout=self.SECONDS) for _ in range(50)]
        assert all(isinstance(thread.error(), PoolTimeout) for thread in threads)
        assert attempts.most == 1
        assert_few(failures(pool) - before, time.monotonic() - started)


class TestBorrowers:
    def test_without_a_timeout_get_the_error_and_then_are_refused_in_no_time(
        self,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_any_pool: MakePool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(breaker_module, "PROMPT_RETRY", 20.0)
        shut()
        pool = make_any_pool(0, 5, password=SECRET, name="shop", **away)
        with pytest.raises(psycopg2.OperationalError) as first:
            pool.getconn()
        assert not isinstance(first.value, PoolUnavailable)
        fail_until_open(pool)
        with pytest.raises(PoolUnavailable, match=r"next attempt is due in [12]\d\.") as refused:
            in_thread(pool.getconn).result(5)
        text = str(refused.value)
        assert "shop" in text
        assert in_one_line(str(refused.value.__cause__)) in text
        assert str(away["port"]) in text
        assert SECRET not in f"{first.value!r} {refused.value!r} {refused.value.__cause__!r}"

    def test_with_a_timeout_are_served_when_it_is_over(
        self,
        door: Proxy,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_any_pool: MakePool,
    ) -> None:
        shut()
        pool = make_any_pool(0, 5, **away)
        fail_until_open(pool)
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(10)]
        wait_for_waiters(pool, 10)
        door.forward()
        assert all(waiter.result() for waiter in waiters)
        assert state(pool) == "closed"
        assert_whole(pool)

    def test_without_a_timeout_wait_for_the_probe_that_is_made_for_them(
        self, door: Proxy, away: dict[str, Any], make_any_pool: MakePool
    ) -> None:
        """Connecting takes longer here than a waiter waits before he looks around."""
        door.refuse()
        pool = make_any_pool(0, 5, **away)
        fail_until_open(pool)
        door.forward()
        door.delay(0.2)
        wait_until(lambda: pool._supply.refusal(patient=False) is None)
        conn = pool.getconn()
        pool.putconn(conn)

    def test_are_told_of_a_silent_server_that_it_is_left_alone_for_longer(
        self, door: Proxy, away: dict[str, Any], make_any_pool: MakePool
    ) -> None:
        door.freeze()
        breaker = CircuitBreaker(threshold=1, backoff=20)
        pool = make_any_pool(0, 5, connect_timeout=1, breaker=breaker, **away)
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            pool.getconn()
        with pytest.raises(PoolUnavailable, match=r"next attempt is due in [12]\d\."):
            pool.getconn()

    def test_wait_no_longer_because_many_attempts_were_silent_together(
        self, door: Proxy, away: dict[str, Any], make_pool: MakePool
    ) -> None:
        door.freeze()
        together, attempts = threading.Barrier(10), itertools.count()

        def connect_together() -> dict[str, Any]:
            if next(attempts) < 10:
                together.wait(20)
            return {}

        pool = make_pool(
            *(0, 10),
            num_workers=10,
            connect_timeout=1,
            breaker=CircuitBreaker(backoff=0.1),
            connect_params=connect_together,
            **away,
        )
        waiters = [start_waiter(pool) for _ in range(10)]
        wait_until(lambda: failures(pool) >= 10)
        door.forward()
        # One more attempt may have begun before that, which takes a second; ten doublings make
        # half a minute.
        give_back(pool, [waiter.result(12) for waiter in waiters])


class TestBusyPool:
    """Something is in use or idle, and no more can be opened."""

    @pytest.fixture
    def busy(
        self, away: dict[str, Any], shut: Callable[[], object], make_any_pool: MakePool
    ) -> tuple[ConnectionPool, list[Any]]:
        pool = make_any_pool(0, 5, **away)
        conns = borrow(pool, 2)
        shut()
        fail_until_open(pool)
        return pool, conns

    def test_serves_those_who_wait_from_returns(
        self, busy: tuple[ConnectionPool, list[Any]]
    ) -> None:
        pool, conns = busy
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(10)]
        wait_for_waiters(pool, 10)
        give_back(pool, conns)
        assert all(waiter.result() for waiter in waiters)

    def test_lends_what_is_idle_whatever_the_breaker_says(
        self, busy: tuple[ConnectionPool, list[Any]]
    ) -> None:
        pool, conns = busy
        pool.putconn(conns.pop())
        for _ in range(20):
            assert round_trip(pool, timeout=0)
        assert state(pool) != "closed"
        give_back(pool, conns)

    def test_is_never_called_unavailable(self, busy: tuple[ConnectionPool, list[Any]]) -> None:
        pool, conns = busy
        for _ in range(5):
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn()
            assert not isinstance(caught.value, PoolUnavailable)
        give_back(pool, conns)

    def test_times_out_with_the_reason_for_which_it_does_not_grow(
        self, busy: tuple[ConnectionPool, list[Any]]
    ) -> None:
        pool, conns = busy
        with pytest.raises(PoolTimeout, match="in use 2") as caught:
            pool.getconn(timeout=0.1)
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        give_back(pool, conns)


class TestFirstTest:
    """Servers that let anybody in and then fail, as a proxy before a server that is down does."""

    def test_that_always_fails_is_an_outage(
        self, make_any_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(conn: Any) -> None:
            raise psycopg2.OperationalError("server login has been failing")

        caplog.set_level(logging.INFO, logger=LOGGER)
        pool = make_any_pool(0, 10, test_on_borrow=fail)
        threads = [in_thread(pool.getconn, timeout=0.7) for _ in range(8)]
        errors = [thread.error() for thread in threads]
        assert {str(error) for error in errors} == {"server login has been failing"}
        assert not any(isinstance(error, PoolTimeout) for error in errors), (
            "its own error, as it is"
        )
        assert pool.get_stats()["connections_num"] <= 30
        assert len(caplog.records) <= 2

    def test_of_sessions_that_end_at_once_is_an_outage(
        self, server: Server, make_pool: MakePool
    ) -> None:
        if server.execute("SHOW server_version_num") < [("140000",)]:
            pytest.skip("this server has no idle_session_timeout")
        pool = make_pool(3, 5, options="-c idle_session_timeout=1")
        wait_until(lambda: pool.get_stats()["connections_lost"] >= 3)
        before = pool.get_stats()["connections_num"]
        time.sleep(0.7)
        assert pool.get_stats()["connections_num"] - before <= 20


class TestRecovery:
    """With waiters and without: back at minconn soon after the outage ends."""

    @pytest.mark.parametrize("number", [0, 6], ids=["nobody waits", "some wait"])
    def test_of_a_pool_whose_connections_were_cut(
        self,
        door: Proxy,
        away: dict[str, Any],
        shut: Callable[[], object],
        make_pool: MakePool,
        number: int,
    ) -> None:
        # A server that answers is asked again soon, whatever the pauses for a silent one.
        breaker = CircuitBreaker(backoff=60, max_backoff=60)
        pool = make_pool(3, 5, breaker=breaker, **away)
        pool.wait()
        shut()
        door.cut()
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(number)]
        wait_until(lambda: failures(pool) >= 5, message="longer than several pauses")
        wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=0))
        door.forward()
        wait_until(lambda: pool.stats().idle >= 3)
        assert all(waiter.result() for waiter in waiters)
        assert_whole(pool)

    @pytest.mark.parametrize("number", [0, 6], ids=["nobody waits", "some wait"])
    def test_of_a_pool_before_a_server_that_was_silent(
        self, door: Proxy, away: dict[str, Any], make_pool: MakePool, number: int
    ) -> None:
        breaker = CircuitBreaker(max_backoff=0.5)
        pool = make_pool(3, 5, connect_timeout=1, breaker=breaker, test_timeout=0.3, **away)
        pool.wait()
        door.freeze()
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(number)]
        pool.check()
        wait_until(lambda: failures(pool) >= 3)
        door.cut()
        door.forward()
        wait_until(lambda: pool.stats().idle >= 3)
        assert all(waiter.result() for waiter in waiters)
        assert_whole(pool)

    def test_of_a_crowd_under_a_restart_costs_nobody_an_error(
        self, fresh_server: Server, request: pytest.FixtureRequest
    ) -> None:
        with ConnectionPool(2, 4, **fresh_server.params) as pool:
            restarted = threading.Event()

            def work() -> int:
                borrows = 0
                while not restarted.is_set() or borrows < 5:
                    pool.putconn(pool.getconn(timeout=30))
                    borrows += 1
                return borrows

            threads = [in_thread(work) for _ in range(16)]
            wait_until(lambda: pool.get_stats()["requests_num"] > 50)
            for mode in ("fast", "immediate"):
                fresh_server.restart(mode)
            restarted.set()
            assert all(thread.result(30) >= 5 for thread in threads)
            assert_whole(pool)

    def test_without_a_thread_of_ours_refills_when_somebody_reaps(
        self, door: Proxy, away: dict[str, Any], make_pool: MakePool
    ) -> None:
        pool = make_pool(3, 5, num_workers=0, **away)
        pool.wait()
        door.refuse()
        door.cut()
        pool.check()
        pool.reap_idle_connections()
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        door.forward()

        def reaped() -> bool:
            pool.reap_idle_connections()
            return pool.stats().idle == 3

        wait_until(reaped)

    def test_without_a_thread_of_ours_refills_all_in_one_reap(self, make_pool: MakePool) -> None:
        pool = make_pool(3, 5, num_workers=0)
        pool.reap_idle_connections()
        assert pool.stats().idle == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestAccidents:
    """What breaks in the background is mended there."""

    @pytest.fixture
    def pool(self, make_pool: MakePool) -> ConnectionPool:
        pool = make_pool(3, 5)
        pool.wait()
        return pool

    @pytest.fixture
    def there(self) -> monitor.Monitor:
        return monitor.get_monitor()

    def assert_recovers(self, pool: ConnectionPool, server: Server, app: str) -> None:
        """End the sessions behind the pool's back, and see that they are replaced."""
        old = set(end_sessions(server, app))
        assert old
        wait_until(lambda: len(set(server.backends(app)) - old) >= 3)
        wait_until(lambda: pool.stats().idle == 3)
        assert_whole(pool)

    @pytest.mark.parametrize(
        ("place", "error"),
        [
            ("_pause", RuntimeError),
            ("_pause", MemoryError),
            ("_run_once", SystemExit),
            ("_finished", RuntimeError),
        ],
    )
    def test_an_error_in_the_monitors_loop(
        self,
        pool: ConnectionPool,
        there: monitor.Monitor,
        server: Server,
        app: str,
        place: str,
        error: type[BaseException],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        raised = threading.Event()
        original = getattr(there, place)

        def fail_once(*args: object) -> Any:
            if not raised.is_set():
                raised.set()
                raise error("injected")
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(there, place, fail_once)
            there._sleeper.wake()
            assert raised.wait(20)
            self.assert_recovers(pool, server, app)

    def test_an_interrupted_monitor(
        self, pool: ConnectionPool, there: monitor.Monitor, server: Server, app: str
    ) -> None:
        thread = there._thread
        assert thread is not None
        interrupt(thread, SystemExit)
        there._sleeper.wake()
        self.assert_recovers(pool, server, app)

    def test_interrupted_workers(
        self, pool: ConnectionPool, there: monitor.Monitor, server: Server, app: str
    ) -> None:
        for thread in threads_named("psycopg2_pool2-worker"):
            interrupt(thread, SystemExit)
            there.submit(lambda: None)
        wait_until(lambda: not there.workers._jobs.qsize())
        self.assert_recovers(pool, server, app)

    def test_a_thread_that_cannot_be_started_costs_no_timer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of two timers due at once the second is not lost with the first."""
        here = monitor.Monitor()
        calls: list[str] = []

        class Client:
            def first(self) -> None:
                calls.append("first")

            def second(self) -> None:
                calls.append("second")

        client = Client()
        refused = threading.Event()
        start = threading.Thread.start

        def refuse_once(thread: threading.Thread) -> None:
            if thread.name == "psycopg2_pool2-worker" and not refused.is_set():
                refused.set()
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse_once)
        here.serve(client, 1)
        with here._lock:
            here.call_later(0, client.first)
            here.call_later(0, client.second)
        try:
            wait_until(lambda: sorted(calls) == ["first", "second"])
        finally:
            here.dismiss(client)
            wait_until(lambda: here._thread is None)
            here.abandon()


ROOM, RESERVED = 30, 3


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Server]:
    """Make a server of ours with a role that needs a password, and room for few.

    For the 20 who come at once all the same, though none of them gets a session.
    """
    # Roles that cannot log in: their password would be refused before that is told.
    hba = ["host all nemo,group_only 127.0.0.0/8 trust"]
    with new_server(
        hba=hba, settings={"max_connections": ROOM, "superuser_reserved_connections": RESERVED}
    ) as server:
        server.execute(f"CREATE ROLE careful LOGIN PASSWORD '{SECRET}'")
        server.execute(f"CREATE ROLE plain LOGIN PASSWORD '{server.verifier}'")
        server.execute(f"CREATE ROLE banned LOGIN PASSWORD '{server.verifier}'")
        server.execute("CREATE ROLE group_only NOLOGIN")
        server.execute("CREATE DATABASE private")
        server.execute("REVOKE CONNECT ON DATABASE private FROM public")
        yield server


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_strict_pool(strict_server: Server, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    # There is room for few: what the test before has closed must have ended.
    wait_until(lambda: not strict_server.backends())
    with pool_maker(**strict_server.params, num_workers=request.param) as make:
        yield make


class TestRefusedLogins:
    @pytest.mark.parametrize(
        ("where", "told"),
        [
            ({"user": "careful", "password": WRONG}, "password authentication failed"),
            ({"user": "careful", "passfile": "/nowhere"}, "no password supplied"),
            ({"dbname": "atlantis"}, 'database "atlantis" does not exist'),
            ({"user": "nemo"}, 'role "nemo" does not exist'),
            ({"user": "group_only"}, 'role "group_only" is not permitted to log in'),
            ({"user": "plain", "dbname": "private"}, "permission denied for database"),
        ],
    )
    def test_reach_every_waiter_at_once_and_are_tried_rarely(
        self,
        strict_server: Server,
        make_strict_pool: MakePool,
        where: dict[str, Any],
        told: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG, logger=LOGGER)
        mark = strict_server.mark()
        pool = make_strict_pool(0, 20, **where)
        threads = [in_thread(pool.getconn, timeout=30) for _ in range(20)]
        errors = [thread.error() for thread in threads]
        assert all(isinstance(error, psycopg2.OperationalError) for error in errors)
        assert all(told in str(error) for error in errors)
        assert not any(isinstance(error, PoolUnavailable) for error in errors)
        assert state(pool) == "open"
        if told != "no password supplied":
            fatal = strict_server.log_text(mark).count("FATAL:")
            at_first = 20 if pool._monitor is None else 3
            assert 1 <= fatal <= at_first + 3, "then after 1, 2, 4, ... seconds"
        assert WRONG not in caplog.text + repr(errors) + repr(pool.endpoints())

    def test_that_are_mended_on_the_server_are_over_soon(
        self, strict_server: Server, make_strict_pool: MakePool
    ) -> None:
        new = "changed-staple-5510"
        pool = make_strict_pool(0, 2, user="careful", password=new)
        with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
            pool.getconn(timeout=30)
        strict_server.execute(f"ALTER ROLE careful PASSWORD '{new}'")
        try:

            def works() -> bool:
                with suppress(psycopg2.OperationalError):
                    return bool(round_trip(pool))
                return False

            wait_until(works)
        finally:
            strict_server.execute(f"ALTER ROLE careful PASSWORD '{SECRET}'")

    def test_that_are_mended_have_minconn_opened_though_nobody_borrows(
        self, strict_server: Server
    ) -> None:
        with ConnectionPool(2, 3, **{**strict_server.params, "user": "late"}) as pool:
            wait_until(lambda: failures(pool) >= 2)
            strict_server.execute(f"CREATE ROLE late LOGIN PASSWORD '{strict_server.verifier}'")
            try:
                wait_until(lambda: pool.stats().idle == 2)
            finally:
                pool.shutdown()
                strict_server.execute("DROP ROLE late")


class TestFullServer:
    """Eight connections are allowed, five of them to roles without privileges."""

    @pytest.mark.parametrize(
        ("user", "room", "told"),
        [
            ("postgres", ROOM, "too many clients already"),
            ("plain", ROOM - RESERVED, "remaining connection slots are reserved"),
        ],
    )
    def test_serves_waiters_from_returns_and_pauses_growth(
        self,
        strict_server: Server,
        make_strict_pool: MakePool,
        user: str,
        room: int,
        told: str,
    ) -> None:
        others = [
            psycopg2.connect(**{**strict_server.params, "user": user}) for _ in range(room - 2)
        ]
        try:
            pool = make_strict_pool(0, 10, user=user)
            started = time.monotonic()
            conns = borrow(pool, 2)
            with pytest.raises(psycopg2.OperationalError, match=told) as refused:
                pool.getconn()
            assert not isinstance(refused.value, PoolUnavailable)
            with pytest.raises(PoolTimeout, match="in use 2") as late:
                pool.getconn(timeout=0.1)
            assert told in str(late.value.__cause__)
            waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(8)]
            wait_for_waiters(pool, 8)
            # Three under way at first, then one a second, give or take a fifth.
            assert failures(pool) <= 5 + (time.monotonic() - started) / 0.8
            assert state(pool) == "closed"
            give_back(pool, conns)
            assert all(waiter.result() for waiter in waiters)
            assert pool.stats() == PoolStats(in_use=0, idle=2)
        finally:
            for other in others:
                other.close()

    def test_that_has_room_again_has_the_pool_grow(
        self, strict_server: Server, make_strict_pool: MakePool
    ) -> None:
        params = {**strict_server.params, "user": "plain"}
        others = [psycopg2.connect(**params) for _ in range(ROOM - RESERVED - 2)]
        pool = make_strict_pool(0, 4, user="plain")
        conns = borrow(pool, 2)
        waiters = [start_waiter(pool) for _ in range(2)]
        wait_until(lambda: failures(pool) >= 1)
        for other in others:
            other.close()
        conns += [waiter.result() for waiter in waiters]
        assert [ask(conn) for conn in conns] == [1] * 4
        give_back(pool, conns)


class TestRotationInAnOutage:
    def test_makes_no_attempts_of_its_own(
        self, door: Proxy, away: dict[str, Any], make_pool: MakePool
    ) -> None:
        """Ten connections reach their end while no other can be had."""
        attempts = Attempts()
        pool = make_pool(10, 12, lifetime_timeout=1, **away, **attempts.callbacks)
        pool.wait()
        born = time.monotonic()
        door.accept_and_close()
        pool.putconn(pool.getconn(), close=True)
        wait_until(lambda: state(pool) == "open")
        attempts.forget()
        before, started = failures(pool), time.monotonic()
        # By then all ten would have been replaced.
        wait_until(lambda: time.monotonic() > born + 1.1 + 0.1)
        assert attempts.most <= 1
        assert failures(pool) - before <= (time.monotonic() - started) / 0.2 + 1


class TestLog:
    @pytest.fixture(autouse=True)
    def all_levels(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, logger=LOGGER)

    def loud(self, caplog: pytest.LogCaptureFixture) -> list[str]:
        """Return what a pool said at WARNING and above."""
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith(LOGGER) and record.levelno >= logging.WARNING
        ]

    def test_of_fifty_killed_backends_is_next_to_nothing(
        self,
        server: Server,
        app: str,
        make_any_pool: MakePool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        pool = make_any_pool(0, 50)
        fill(pool, 50)
        assert len(end_sessions(server, app)) == 50
        assert len(set(borrowed_pids(pool, 50))) == 50
        assert len(self.loud(caplog)) <= 2
        assert pool.get_stats()["connections_lost"] == 50

    def test_of_connections_that_come_back_into_a_silence_is_next_to_nothing(
        self,
        door: Proxy,
        away: dict[str, Any],
        make_pool: MakePool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        pool = make_pool(0, 10, test_timeout=0.1, **away)
        conns = borrow(pool, 10)
        for conn in conns:
            ask(conn)  # a transaction is open, which has to be rolled back
        door.freeze()
        give_back(pool, conns)
        assert pool.stats() == PoolStats(in_use=0, idle=0)
        assert len(self.loud(caplog)) <= 2

    def test_of_a_long_outage_names_the_pool_and_the_reason_once(
        self,
        door: Proxy,
        away: dict[str, Any],
        make_any_pool: MakePool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        door.refuse()
        pool = make_any_pool(0, 5, name="shop", sslpassword=SECRET, **away)
        waiters = [in_thread(round_trip, pool, timeout=30) for _ in range(20)]
        wait_until(lambda: failures(pool) >= 6)
        [warning] = self.loud(caplog)
        assert "shop" in warning
        assert "refused" in warning
        door.forward()
        assert all(waiter.result() for waiter in waiters)
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
        assert len(told) == 1
        assert "connected again" in told[0]
        assert len(self.loud(caplog)) == 1
        assert SECRET not in caplog.text


def test_sessions_of_other_pools_are_left_alone(
    make_server: MakeServer, make_pool: MakePool, statement_log: StatementLog
) -> None:
    """One server's outage is no other pool's business."""
    other = make_server()
    down = make_pool(2, 4, **other.params)
    up = make_pool(2, 4)
    down.wait()
    up.wait()
    other.stop("immediate")
    fail_until_open(down)
    assert round_trip(up)
    assert up.get_stats()["connections_errors"] == 0
    assert state(up) == "closed"
