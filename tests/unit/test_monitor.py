"""The monitor: timers, guards, watched sockets, and when it runs at all."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from psycopg2_pool2 import connector
from psycopg2_pool2 import monitor as monitor_module
from psycopg2_pool2.monitor import Monitor
from psycopg2_pool2.watch import QueueSleeper
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
        made.abandon()
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


def test_a_failure_of_its_own_is_logged_and_it_goes_on(
    monitor: Monitor, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter([ValueError("once")])
    due = monitor._due

    def fail_once(now: float) -> Any:
        for error in calls:
            raise error
        return due(now)

    monitor._due = fail_once  # type: ignore[method-assign]
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


# -- guards --------------------------------------------------------------------


def is_shut(here: socket.socket) -> bool:
    """Tell whether the socket was shut down; ours sends nothing."""
    here.settimeout(0)
    try:
        return here.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_guard_shuts_the_socket_down_when_its_time_is_over(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, _ = pair
    with monitor.guard(here.fileno(), 0.05):
        here.settimeout(10)
        assert here.recv(1) == b""
    assert not monitor._guarded


def test_what_ends_in_time_is_not_disturbed(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, _ = pair
    with monitor.guard(here.fileno(), 10):
        pass
    monitor._enforce_guards(time.monotonic() + 1000)
    assert not is_shut(here)


def test_an_exception_inside_ends_the_guard(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, _ = pair
    with pytest.raises(KeyboardInterrupt), monitor.guard(here.fileno(), 10):
        raise KeyboardInterrupt
    assert not monitor._guarded


def test_the_descriptor_cannot_be_closed_while_the_monitor_shuts_it_down(
    monitor: Monitor,
    client: Client,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. The monitor takes the operation out. 2. The thread ends it. 3. The monitor shuts down."""
    here, _ = pair
    shutting, go_on = threading.Event(), threading.Event()

    def slowly(fd: int) -> None:
        shutting.set()
        assert go_on.wait(10)
        connector.shut_down(fd)

    monkeypatch.setattr(monitor_module, "shut_down", slowly)

    def guarded() -> None:
        with monitor.guard(here.fileno(), 0.02):
            assert shutting.wait(10)

    running = in_thread(guarded)
    assert shutting.wait(10)
    running.thread.join(0.05)
    assert not running.done, "it waits for the monitor"
    go_on.set()
    running.result()
    assert is_shut(here)


def test_a_socket_that_cannot_be_shut_down_holds_nobody_up(
    monitor: Monitor, client: Client
) -> None:
    here, there = socket.socketpair()
    fd = here.fileno()
    with here, there, monitor.guard(fd, 0.02):
        here.close()
        wait_until(lambda: not monitor._guarded)


def test_a_guard_that_its_thread_was_interrupted_over_shuts_nothing_down(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    """1. A guard is made. 2. Its thread is interrupted before the block. 3. Its time is over."""
    here, _ = pair
    monitor.guard(here.fileno(), 0.01)
    gc.collect()
    wait_until(lambda: not monitor._guarded)
    assert not is_shut(here)


def test_a_guard_that_begins_as_the_monitor_stops_looking_is_seen(
    monitor: Monitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    """1. The monitor finds none. 2. One begins, and sees it look. 3. It must not stop looking."""
    here, _ = pair

    class Guarded(dict[int, Any]):
        emptied = False

        def __bool__(self) -> bool:
            # The first look finds nothing, and in that moment one begins.
            if not self.emptied:
                self.emptied = True
                self[0] = weakref.ref(operation)
                return False
            return bool(len(self))

    operation = monitor_module.Guard({}, here.fileno(), 0.01)
    monitor._guarded = Guarded()
    monitor._guard_tick = 0.01
    monitor._enforce_guards(time.monotonic())
    assert monitor._guard_tick is not None, "it goes on looking"
    monitor._enforce_guards(time.monotonic() + 1)
    assert is_shut(here)


def test_a_shorter_guard_makes_it_look_more_often(
    monitor: Monitor, client: Client, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    with monitor.guard(there.fileno(), 3600), monitor.guard(here.fileno(), 0.05):
        here.settimeout(10)
        assert here.recv(1) == b""
        assert len(monitor._guarded) == 1


def test_guards_work_without_a_client(
    monitor: Monitor, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, _ = pair
    with monitor.guard(here.fileno(), 0.05):
        here.settimeout(10)
        assert here.recv(1) == b""


def test_many_guards_at_once_each_end_by_themselves(monitor: Monitor, client: Client) -> None:
    def one(number: int) -> bool:
        here, there = socket.socketpair()
        with here, there:
            with monitor.guard(here.fileno(), 0.02 if number % 2 else 30):
                if number % 2:
                    here.settimeout(10)
                    return here.recv(1) == b""
            return not is_shut(here)

    runs = [in_thread(one, number) for number in range(20)]
    assert all(run.result() for run in runs)
    assert not monitor._guarded


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
