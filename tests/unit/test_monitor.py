"""The monitor: timers, guards, watched sockets, and when it runs at all."""

from __future__ import annotations

import gc
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from psycopg2_pool2.guards import LocalGuard, SocketGuard
from psycopg2_pool2.monitor import LONGEST_PAUSE, Monitor
from psycopg2_pool2.threads import OwnThread
from psycopg2_pool2.timing import monotonic
from psycopg2_pool2.watch import QueueSleeper
from tests.support.fakes import FakeClock
from tests.support.processes import in_child
from tests.support.shortage import REFUSAL, no_threads
from tests.support.waiting import in_thread, wait_until


class Client:
    """What a monitor serves."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.called = threading.Event()

    def tick(self) -> None:
        self.calls.append("tick")
        self.called.set()


@pytest.fixture(params=["epoll", "queue"])
def monitor(request: pytest.FixtureRequest) -> Iterator[Monitor]:
    made = Monitor()
    if request.param == "queue":
        made._sleeper.close()
        made._sleeper = QueueSleeper()
    elif not made.watches:
        pytest.skip("no epoll here")
    yield made
    for ref in list(made._clients):
        made.dismiss(ref())
    wait_until(lambda: made._thread is None)
    made.abandon()


@pytest.fixture
def client(monitor: Monitor) -> Client:
    made = Client()
    monitor.serve(made, 3)
    return made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


# -- its thread ----------------------------------------------------------------


def test_it_has_no_thread_before_it_has_a_client(monitor: Monitor) -> None:
    assert monitor._thread is None


def test_its_thread_ends_with_the_last_client_and_begins_again(monitor: Monitor) -> None:
    one, two = Client(), Client()
    monitor.serve(one, 1)
    monitor.serve(two, 1)
    thread = monitor._thread
    assert thread is not None
    assert thread.daemon
    monitor.dismiss(one)
    monitor.dismiss(one)
    assert thread.is_alive()
    monitor.dismiss(two)
    wait_until(lambda: not thread.is_alive())
    monitor.serve(one, 1)
    monitor.call_later(0, one.tick)
    assert one.called.wait(10)


def test_a_client_that_is_collected_is_dismissed(monitor: Monitor) -> None:
    client = Client()
    monitor.serve(client, 1)
    thread = monitor._thread
    assert thread is not None
    del client
    gc.collect()
    wait_until(lambda: not thread.is_alive())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_one_that_was_inherited_forgets_clients_whatever_its_thread_was_doing(
    monitor: Monitor,
) -> None:
    """The lock was held when the child was forked; a program's end collects the client."""
    clients = [Client()]
    monitor.serve(clients[0], 3)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with monitor._lock:
            held.set()
            assert release.wait(30)

    def end() -> str:
        monitor.abandon()
        clients.clear()
        gc.collect()
        return "ended"

    holder = in_thread(hold)
    assert held.wait(10)
    try:
        assert in_child(end) == "ended"
    finally:
        release.set()
        holder.result()


def test_a_failure_of_its_own_is_logged_and_it_goes_on(
    monitor: Monitor, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter([ValueError("once"), SystemExit("twice")])
    due = monitor._first_due

    def fail_once(now: float) -> Any:
        for error in calls:
            raise error
        return due(now)

    monitor._first_due = fail_once  # type: ignore[method-assign]
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)
    assert "the monitor failed" in caplog.text


# -- timers --------------------------------------------------------------------


def test_timers_fire_in_their_order_and_not_before_their_time(
    monitor: Monitor, client: Client
) -> None:
    fired: list[tuple[str, float]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def fire(self) -> None:
            fired.append((self.name, time.monotonic()))

    monitor.workers.base = 1
    recorders = [Recorder("late"), Recorder("soon")]
    begun = time.monotonic()
    monitor.call_later(0.1, recorders[0].fire)
    monitor.call_later(0.03, recorders[1].fire)
    wait_until(lambda: len(fired) == 2)
    assert [name for name, _ in fired] == ["soon", "late"]
    assert fired[0][1] - begun >= 0.03
    assert fired[1][1] - begun >= 0.1


def test_a_timer_that_is_due_sooner_ends_the_sleep(monitor: Monitor, client: Client) -> None:
    monitor.call_later(3600, client.tick)
    wait_until(lambda: monitor._wakes_at > time.monotonic() + 3000)
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)


def test_a_cancelled_timer_does_not_fire(monitor: Monitor, client: Client) -> None:
    other = Client()
    monitor.call_later(0.01, other.tick).cancel()
    monitor.call_later(0.02, client.tick)
    assert client.called.wait(10)
    assert not other.calls


def test_a_timer_holds_its_object_weakly(monitor: Monitor, client: Client) -> None:
    gone = Client()
    calls = gone.calls
    monitor.call_later(0.01, gone.tick)
    del gone
    gc.collect()
    monitor.call_later(0.02, client.tick)
    assert client.called.wait(10)
    assert not calls


# -- watched sockets -----------------------------------------------------------


@pytest.mark.parametrize("monitor", ["epoll"], indirect=True)  # the other watches nothing
def test_a_hang_up_is_reported_and_traffic_is_not(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    hung_up = threading.Event()
    monitor.watch(here.fileno(), hung_up.set)
    there.sendall(b"news")
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)
    assert not hung_up.is_set()
    there.close()
    assert hung_up.wait(10)


def test_a_forgotten_socket_is_not_reported(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    hung_up = threading.Event()
    monitor.watch(here.fileno(), hung_up.set)
    monitor.unwatch(here.fileno())
    monitor.unwatch(here.fileno())
    there.close()
    monitor.call_later(0.01, client.tick)
    assert client.called.wait(10)
    assert not hung_up.is_set()


# -- workers -------------------------------------------------------------------


def test_jobs_get_relief_when_all_workers_are_stuck(monitor: Monitor, client: Client) -> None:
    go_on, done = threading.Event(), threading.Event()
    monitor.workers.base = 2
    for _ in range(2):
        monitor.submit(lambda: go_on.wait(30))
    monitor.submit(done.set)
    try:
        assert done.wait(10)
    finally:
        go_on.set()


def test_it_stays_while_a_job_runs(monitor: Monitor) -> None:
    client = Client()
    monitor.serve(client, 1)
    thread, go_on, begun = monitor._thread, threading.Event(), threading.Event()
    assert thread is not None

    def job() -> None:
        begun.set()
        go_on.wait(30)

    monitor.submit(job)
    assert begun.wait(10)
    monitor.dismiss(client)
    thread.join(0.1)
    assert thread.is_alive()
    go_on.set()
    wait_until(lambda: not thread.is_alive())


# -- without a thread ----------------------------------------------------------


def test_thread_that_cannot_start_is_started_by_a_later_call(
    monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    client, other = Client(), Client()
    with no_threads():
        assert not monitor.serve(client, 3)
        ran = monitor.is_running
        monitor.call_later(0, client.tick)  # which tries again
        monitor.submit(lambda: None)
        assert not client.called.wait(0.05)
    assert not ran
    assert len(caplog.records) == 1
    assert REFUSAL in caplog.text
    monitor.call_later(3600, other.tick)
    assert monitor.is_running
    assert client.called.wait(10)


def test_thread_that_cannot_start_leaves_no_timer_behind(monitor: Monitor) -> None:
    client = Client()
    with no_threads():
        monitor.serve(client, 3)
        monitor.call_later(0, client.tick).cancel()
    monitor.serve(client, 3)
    wait_until(lambda: not monitor._timers)


@pytest.mark.parametrize("monitor", ["epoll"], indirect=True)  # the other watches nothing
def test_hang_up_without_a_thread_is_reported_when_there_is_one(
    monitor: Monitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    client, hung_up = Client(), threading.Event()
    with no_threads():
        monitor.serve(client, 3)
        monitor.watch(here.fileno(), hung_up.set)
        there.close()
        assert not hung_up.wait(0.05)
    monitor.serve(client, 3)
    assert hung_up.wait(10)


def test_jobs_and_timers_without_workers_are_done_when_there_are_some(monitor: Monitor) -> None:
    client, done = Client(), threading.Event()
    with no_threads("worker"):
        assert monitor.serve(client, 3)
        monitor.call_later(0, client.tick)
        monitor.submit(done.set)
        assert not monitor.offer(lambda: None)
        assert not done.wait(0.1)
    assert done.wait(10)
    assert client.called.wait(10)


def test_offered_job_is_run_or_refused(monitor: Monitor, client: Client) -> None:
    done = threading.Event()
    assert monitor.offer(done.set)
    assert done.wait(10)


def test_nobody_looks_after_guards_without_a_thread(
    monitor: Monitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    conn = SimpleNamespace(fileno=pair[0].fileno, closed=0)
    with no_threads():
        guard: Any = monitor.guards.guard(conn, 10)
        assert isinstance(guard, LocalGuard)
        assert not guard.lift()
    assert not monitor.guards
    again: Any = monitor.guards.guard(conn, 10)
    assert isinstance(again, SocketGuard)
    assert monitor.is_running
    assert not again.lift()


def test_start_that_is_interrupted_leaves_one_thread(monitor: Monitor) -> None:
    """1. The thread starts. 2. Whoever starts it is interrupted. 3. It is started again."""
    begun: list[threading.Thread] = []
    client = Client()
    start = OwnThread.start

    def interrupted(thread: OwnThread) -> None:
        start(thread)
        begun.append(thread)
        raise KeyboardInterrupt

    with no_threads("monitor", interrupted), pytest.raises(KeyboardInterrupt):
        monitor.serve(client, 3)
    assert monitor.serve(client, 3)
    assert [monitor._thread] == begun
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)


def test_start_that_is_interrupted_before_the_thread_is_seen_leaves_one_thread(
    monitor: Monitor,
) -> None:
    """1. It starts, unseen. 2. Its starter is interrupted. 3. Another starts. 4. The first runs."""
    client = Client()
    late: list[threading.Thread] = []

    def start_later(thread: OwnThread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    with no_threads("monitor", start_later), pytest.raises(KeyboardInterrupt):
        monitor.serve(client, 3)
    assert monitor.serve(client, 3)
    thread = monitor._thread
    late[0].start()
    late[0].join(10)
    assert not late[0].is_alive()
    assert monitor._thread is thread
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)


def test_superseded_thread_passes_the_wake_up_on(monitor: Monitor) -> None:
    """1. Two sleep. 2. A sooner timer rings. 3. The superseded one wakes up, and leaves."""
    client = Client()
    monitor.serve(client, 3)
    first = monitor._thread
    assert first is not None
    wait_until(lambda: monitor._wakes_at > 0)
    second = OwnThread(monitor._run, "monitor")
    monitor._thread = second
    second.start()
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)

    def is_gone() -> bool:
        monitor._sleeper.wake()  # which either of them may take
        return not first.is_alive()

    wait_until(is_gone)
    assert second.is_alive()


# -- its clock and its log -----------------------------------------------------


@pytest.fixture
def timed() -> Iterator[tuple[Monitor, FakeClock, Client]]:
    """Return a monitor that lives by a clock of the test's, and a client of it."""
    clock, client = FakeClock(1000.0), Client()
    made = Monitor(clock)
    made.serve(client, 1)
    yield made, clock, client
    made.dismiss(client)
    wait_until(lambda: made._thread is None)
    made.abandon()


@pytest.mark.parametrize("jump", [-1e9, -10.0, 1e9])
def test_timers_outlast_a_clock_that_jumps(
    timed: tuple[Monitor, FakeClock, Client], jump: float
) -> None:
    monitor, clock, client = timed
    monitor.call_later(5, client.tick)
    clock.now += jump
    if jump < 0:
        monitor._sleeper.wake()
        assert not client.called.wait(0.05)
        clock.now += 5.1
    monitor._sleeper.wake()
    assert client.called.wait(10)
    client.called.clear()
    monitor.call_later(0, client.tick)
    assert client.called.wait(10)


@pytest.mark.parametrize("now", [1000.0, math.nan, math.inf, -math.inf])
def test_clock_that_stands_still_or_talks_nonsense_is_slept_over(
    timed: tuple[Monitor, FakeClock, Client],
    now: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor, clock, client = timed
    pauses: list[float | None] = []
    sleep = monitor._sleeper.sleep

    def note(seconds: float | None) -> list[int]:
        pauses.append(seconds)
        return sleep(seconds)

    monkeypatch.setattr(monitor._sleeper, "sleep", note)
    clock.now = now
    monitor.call_later(30, client.tick)
    monitor.call_later(math.nan, client.tick)
    wait_until(lambda: 30 in pauses)
    threading.Event().wait(0.1)
    assert len(pauses) < 20
    assert not client.calls
    assert not caplog.records
    clock.now = 1031.0
    monitor._sleeper.wake()
    assert client.called.wait(10)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e12])
def test_no_timer_is_further_away_than_an_hour(
    monitor: Monitor, client: Client, seconds: float
) -> None:
    timer = monitor.call_later(seconds, client.tick)
    assert timer.when <= monotonic() + LONGEST_PAUSE
    wait_until(lambda: monotonic() + 3000 < monitor._wakes_at <= timer.when)


def test_timer_that_was_due_before_it_was_set_fires_now(monitor: Monitor, client: Client) -> None:
    monitor.call_later(-1e9, client.tick)
    assert client.called.wait(10)


@pytest.mark.parametrize("error", [KeyError("request_id"), SystemExit(3)])
def test_log_filter_that_raises_does_not_end_it(
    monitor: Monitor, client: Client, error: BaseException
) -> None:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise error

    calls = iter([ValueError("once"), SystemExit("twice")])
    due = monitor._first_due

    def fail_at_first(now: float) -> Any:
        for failure in calls:
            raise failure
        return due(now)

    log, added = logging.getLogger("psycopg2_pool2"), Filter()
    log.addFilter(added)
    try:
        monitor._first_due = fail_at_first  # type: ignore[method-assign]
        monitor.call_later(0, client.tick)
        assert client.called.wait(10)
    finally:
        log.removeFilter(added)


def test_failure_that_goes_on_is_logged_seldom(
    monitor: Monitor, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0

    def fail(now: float) -> Any:
        nonlocal failures
        failures += 1
        monitor._sleeper.wake()
        if failures < 4:
            raise OSError("no such descriptor")
        return due(now)

    due = monitor._first_due
    monitor._first_due = fail  # type: ignore[method-assign]
    monitor._sleeper.wake()
    wait_until(lambda: failures >= 4)
    monitor._first_due = due  # type: ignore[method-assign]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
