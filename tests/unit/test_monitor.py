"""The monitor: timers, guards, watched sockets, and when it runs at all."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from psycopg2_pool2.monitor import Monitor
from psycopg2_pool2.watch import QueueSleeper
from tests.support.processes import in_child
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
