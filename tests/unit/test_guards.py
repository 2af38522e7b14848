"""Guards: what takes too long on a socket is ended, what does not is left alone."""

from __future__ import annotations

import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from psycopg2_pool2 import guards as guards_module
from psycopg2_pool2 import sockets
from psycopg2_pool2.guards import Guards, SocketGuard
from psycopg2_pool2.monitor import Monitor
from tests.support.processes import run_program
from tests.support.waiting import in_thread, wait_until


@pytest.fixture
def guards() -> Iterator[Guards]:
    """Guards with a monitor that enforces them; it has no client, and ends by itself."""
    monitor = Monitor()
    yield monitor.guards
    wait_until(lambda: monitor._thread is None)
    monitor.abandon()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.fixture
def here(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[0]


@contextmanager
def limit(guards: Guards, sock: socket.socket, seconds: float) -> Iterator[None]:
    """Guard what is done in the block."""
    guard = guards.guard(sock, seconds)
    try:
        yield
    finally:
        guard.lift()


def is_shut(here: socket.socket) -> bool:
    """Tell whether the socket was shut down; ours sends nothing."""
    here.settimeout(0)
    try:
        return here.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_socket_is_shut_down_when_the_time_is_over(guards: Guards, here: socket.socket) -> None:
    guard = guards.guard(here, 0.05)
    here.settimeout(10)
    assert here.recv(1) == b""
    assert guard.lift()
    assert not guards


def test_what_ends_in_time_is_not_disturbed(guards: Guards, here: socket.socket) -> None:
    guard = guards.guard(here, 10)
    assert not guard.lift()
    guards.enforce(time.monotonic() + 1000)
    assert not is_shut(here)


def test_the_descriptor_cannot_be_closed_while_it_is_shut_down(
    guards: Guards, here: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The monitor takes the guard out. 2. The thread lifts it. 3. The monitor shuts down."""
    shutting, go_on = threading.Event(), threading.Event()

    def slowly(conn: Any) -> None:
        shutting.set()
        assert go_on.wait(10)
        sockets.shut_down(conn)

    monkeypatch.setattr(guards_module, "shut_down", slowly)

    def guarded() -> None:
        with limit(guards, here, 0.02):
            assert shutting.wait(10)

    running = in_thread(guarded)
    assert shutting.wait(10)
    running.thread.join(0.05)
    assert not running.done, "it waits for the monitor"
    go_on.set()
    running.result()
    assert is_shut(here)


def test_a_guard_that_is_lifted_as_its_time_ends_shuts_nothing_down(here: socket.socket) -> None:
    """1. The monitor finds the time over. 2. The thread lifts it. 3. The monitor is too late."""
    guards = Guards(lambda: True)
    guard = guards.guard(here, 0.01)

    class Gate:
        def acquire(self) -> None:
            assert not guard.lift()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "Lock", Gate)
        guards.enforce(time.monotonic() + 1)
    assert not is_shut(here)


def test_a_socket_that_cannot_be_shut_down_holds_nobody_up(guards: Guards) -> None:
    here, there = socket.socketpair()
    with here, there, limit(guards, here, 0.02):
        here.close()
        wait_until(lambda: not guards)


def test_a_descriptor_that_is_another_connections_by_now_is_left_alone() -> None:
    """1. A guard is made. 2. libpq closes the socket. 3. Another gets its number. 4. It is over."""
    guards = Guards(lambda: True)
    guarded, there = socket.socketpair()
    number = guarded.fileno()
    guard = guards.guard(guarded, 0.01)
    guarded.close()
    other, far = socket.socketpair()
    with there, far, other:
        assert other.fileno() == number
        guards.enforce(time.monotonic() + 1)
        assert guard.lift()
        assert not is_shut(other)


def test_a_guard_that_its_thread_was_interrupted_over_shuts_nothing_down(
    guards: Guards, here: socket.socket
) -> None:
    """1. A guard is made. 2. Its thread is interrupted before the block. 3. Its time is over."""
    guards.guard(here, 0.01)
    gc.collect()
    wait_until(lambda: not guards)
    assert not is_shut(here)


def test_a_guard_that_begins_as_the_monitor_stops_looking_is_seen(here: socket.socket) -> None:
    """1. The monitor finds none. 2. One begins, and sees it look. 3. It must not stop looking."""

    class Guarded(set[Any]):
        emptied = False

        def __bool__(self) -> bool:
            # The first look finds nothing, and in that moment one begins.
            if not self.emptied:
                self.emptied = True
                self.add(late.ref)
                return False
            return bool(len(self))

    guards = Guards(lambda: True)
    late = SocketGuard()
    late.conn, late.deadline, late.seconds = here, time.monotonic(), 0.0
    late.ref = weakref.ref(late)
    guards._guarded = late.guarded = Guarded()
    guards.tick = 0.01
    guards.enforce(time.monotonic())
    assert guards.tick is not None, "it goes on looking"
    guards.enforce(time.monotonic() + 1)
    assert is_shut(here)


def test_the_monitor_finds_how_often_to_look_when_it_is_woken(here: socket.socket) -> None:
    found: list[float | None] = []

    def look() -> bool:
        found.append(made.tick)
        return True

    made = Guards(look)
    with limit(made, here, 3600), limit(made, here, 1):
        assert len(found) == 2
        assert found[-1] == made.tick
        assert None not in found


def test_a_shorter_guard_makes_it_look_more_often(
    guards: Guards, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    with limit(guards, there, 3600), limit(guards, here, 0.05):
        here.settimeout(10)
        assert here.recv(1) == b""
        assert len(guards) == 1


def test_many_at_once_each_end_by_themselves(guards: Guards) -> None:
    def one(number: int) -> bool:
        here, there = socket.socketpair()
        with here, there:
            with limit(guards, here, 0.02 if number % 2 else 30):
                if number % 2:
                    here.settimeout(10)
                    return here.recv(1) == b""
            return not is_shut(here)

    runs = [in_thread(one, number) for number in range(20)]
    assert all(run.result() for run in runs)
    assert not guards


class TestWithoutMonitor:
    """Guards that the guarded thread keeps itself."""

    def test_are_safe_when_garbage_is_collected_in_them(self) -> None:
        """Up to Python 3.11 a thread's own data, collected in `sys._current_frames`, hangs it."""
        program = """
import gc, threading
from types import SimpleNamespace
from psycopg2_pool2.guards import LocalGuard

def leave_garbage():
    cycle = [threading.local()]
    cycle.append(cycle)

threading.Thread(target=threading.Event().wait, daemon=True).start()
conn = SimpleNamespace(closed=1)
for allocations in range(1, 60):
    gc.set_threshold(0)
    gc.collect()
    leave_garbage()
    gc.set_threshold(allocations)
    LocalGuard(conn, 5).lift()
print("done")
"""
        ended = run_program(program, timeout=20)
        assert (ended.status, ended.output) == (0, "done\n"), ended.errors

    def test_know_whether_other_threads_are_there(self) -> None:
        program = """
import _thread, threading
from psycopg2_pool2.guards import _is_alone

print(_is_alone())
come, go = threading.Event(), threading.Event()
told = []

def look():
    told.append(_is_alone())
    come.set()
    go.wait()

_thread.start_new_thread(look, ())
come.wait()
print(told[0], _is_alone())
"""
        ended = run_program(program)
        assert (ended.status, ended.output) == (0, "True\nFalse False\n"), ended.errors
