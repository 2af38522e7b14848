"""Descriptors that were closed by somebody else, whose numbers are files of the program's now."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from psycopg2_pool2 import sockets
from psycopg2_pool2.descriptors import identity
from psycopg2_pool2.guards import Guards
from psycopg2_pool2.monitor import Monitor
from psycopg2_pool2.sockets import cut_off, owns_socket, shut_down, socket_of, twin_of
from psycopg2_pool2.watch import EpollSleeper, MakeshiftSleeper, can_watch, make_sleeper
from tests.support.processes import run_program
from tests.support.waiting import in_thread, wait_until

needs_epoll = pytest.mark.skipif(not can_watch(), reason="this system has no epoll")


class Intruder:
    """A file of the program's that takes the number of another one."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        os.dup2(self._file.fileno(), number, inheritable=False)
        self._identity = identity(number)

    @property
    def is_untouched(self) -> bool:
        """Whether it is still there, and nobody has written to it."""
        return (
            identity(self.number) == self._identity and os.fstat(self._file.fileno()).st_size == 0
        )

    def end(self) -> None:
        """Give the number back."""
        os.close(self.number)
        self._file.close()


@pytest.fixture
def take() -> Iterator[Callable[[int], Intruder]]:
    """Give a number that something else has to a file of the program's."""
    made: list[Intruder] = []

    def make(number: int) -> Intruder:
        made.append(Intruder(number))
        return made[-1]

    yield make
    for intruder in made:
        assert intruder.is_untouched
        intruder.end()


@pytest.fixture
def sleeper() -> Iterator[EpollSleeper]:
    made = EpollSleeper()
    yield made
    made.close()


@pytest.fixture
def conn() -> Iterator[Any]:
    """Stand for a connection, with its socket; `peer` is the server's end."""
    here, there = socket.socketpair()
    fd = here.detach()
    yield SimpleNamespace(closed=0, fileno=lambda: fd, pool_socket=identity(fd), peer=there)
    there.close()
    gone = identity(fd) is None
    if not gone:
        os.close(fd)


def numbers(sleeper: EpollSleeper) -> dict[str, int]:
    return {
        "hear": sleeper._hear,
        "ring": sleeper._ring,
        "epoll": sleeper._epoll.fileno(),
    }


def is_asleep(thread: threading.Thread) -> bool:
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return "State:\tS" in status


@needs_epoll
class TestSleeper:
    @pytest.mark.parametrize("which", ["hear", "ring", "epoll"])
    def test_knows_each_number_that_is_another_files(
        self, sleeper: EpollSleeper, take: Callable[[int], Intruder], which: str
    ) -> None:
        assert sleeper.is_whole()
        take(numbers(sleeper)[which])
        assert not sleeper.is_whole()
        assert sleeper.sleep(None) == []
        assert sleeper.wake() is (which == "epoll")
        sleeper.close()

    @pytest.mark.parametrize("which", ["hear", "ring", "epoll"])
    def test_knows_each_number_that_is_closed(self, sleeper: EpollSleeper, which: str) -> None:
        os.close(numbers(sleeper)[which])
        assert not sleeper.is_whole()
        assert sleeper.sleep(None) == []

    def test_takes_no_event_from_an_epoll_of_the_programs(self, sleeper: EpollSleeper) -> None:
        reader, writer = os.pipe()
        number = sleeper._epoll.fileno()
        with select.epoll() as programs:
            programs.register(reader, select.EPOLLIN | select.EPOLLET)
            os.dup2(programs.fileno(), number, inheritable=False)
            os.write(writer, b"x")
            assert not sleeper.is_whole()
            assert sleeper.sleep(0) == []
            assert programs.poll(0) == [(reader, select.EPOLLIN)]
            assert not sleeper.is_whole()
            sleeper.close()
            os.write(writer, b"x")
            assert select.select([number], [], [], 0)[0], "it is still open"
            assert programs.poll(0) == [(reader, select.EPOLLIN)]
        for fd in (number, reader, writer):
            os.close(fd)

    def test_ends_its_sleep_when_all_are_closed(self, sleeper: EpollSleeper) -> None:
        sleeping = in_thread(sleeper.sleep, None)
        wait_until(lambda: is_asleep(sleeping.thread))
        for fd in sorted(numbers(sleeper).values()):
            os.close(fd)
        assert sleeping.result() == []

    def test_ends_its_sleep_when_all_are_replaced(
        self, sleeper: EpollSleeper, take: Callable[[int], Intruder]
    ) -> None:
        sleeping = in_thread(sleeper.sleep, None)
        wait_until(lambda: is_asleep(sleeping.thread))
        for fd in sorted(numbers(sleeper).values()):
            take(fd)
        assert sleeping.result() == []

    def test_frees_nothing_that_is_another_files(self, take: Callable[[int], Intruder]) -> None:
        sleeper = EpollSleeper()
        taken = [take(fd) for fd in numbers(sleeper).values()]
        sleeper.close()
        del sleeper
        gc.collect()
        assert all(intruder.is_untouched for intruder in taken)

    def test_frees_its_own(self) -> None:
        sleeper = EpollSleeper()
        fds = numbers(sleeper).values()
        sleeper.close()
        assert [identity(fd) for fd in fds] == [None] * 3

    def test_is_made_again_and_again_where_no_descriptor_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(flags: int) -> tuple[int, int]:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(os, "pipe2", refuse)
        made = make_sleeper()
        assert isinstance(made, MakeshiftSleeper)
        assert made.is_whole()
        assert made.sleep(None) == []
        assert not made.is_whole()
        assert made.wake()
        assert made.sleep(None) == []

    def test_is_not_made_anew_without_end_where_it_cannot_be_known(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(EpollSleeper, "is_whole", lambda sleeper: False)
        client, monitor = Client(), Monitor()
        monitor.serve(client, 1)
        monitor.call_later(0, client.tick)
        assert client.called.wait(10)
        assert isinstance(monitor._sleeper, MakeshiftSleeper)
        monitor.dismiss(client)
        wait_until(lambda: monitor._thread is None)
        monitor.abandon()


class Client:
    """What a monitor serves, and what is told of a socket."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.doubted: list[str] = []

    def tick(self) -> None:
        self.called.set()

    def doubt(self, name: str) -> Callable[[], object]:
        return lambda: self.doubted.append(name)


@needs_epoll
class TestMonitor:
    @pytest.fixture
    def client(self) -> Client:
        return Client()

    @pytest.fixture
    def monitor(self, client: Client) -> Iterator[Monitor]:
        made = Monitor()
        made.serve(client, 1)
        yield made
        made.dismiss(client)
        wait_until(lambda: made._thread is None)
        made.abandon()

    def lose(self, monitor: Monitor, take: Callable[[int], Intruder]) -> EpollSleeper:
        """Give the numbers of a monitor's descriptors to files of the program's."""
        sleeper = monitor._sleeper
        assert isinstance(sleeper, EpollSleeper)
        for fd in numbers(sleeper).values():
            take(fd)
        return sleeper

    def test_goes_on_with_new_descriptors(
        self, monitor: Monitor, client: Client, take: Callable[[int], Intruder]
    ) -> None:
        self.lose(monitor, take)
        monitor.call_later(0, client.tick)
        assert client.called.wait(10)
        assert monitor._sleeper.is_whole()

    def test_notices_by_itself(self, monitor: Monitor, take: Callable[[int], Intruder]) -> None:
        lost = self.lose(monitor, take)
        wait_until(lambda: monitor._sleeper is not lost)
        wait_until(lambda: monitor.is_running)

    def test_replaces_a_thread_whose_sleep_does_not_end(
        self, monitor: Monitor, client: Client, take: Callable[[int], Intruder]
    ) -> None:
        """Another copy of what wakes it is open, as it is in a child of a fork in C."""
        sleeper = monitor._sleeper
        assert isinstance(sleeper, EpollSleeper)
        copy, before = os.dup(sleeper._ring), monitor._thread
        assert before is not None
        wait_until(lambda: is_asleep(before))
        self.lose(monitor, take)
        assert monitor._sleeper is sleeper
        monitor.call_later(0, client.tick)
        assert client.called.wait(10)
        assert monitor._thread is not before
        os.close(copy)
        wait_until(lambda: not before.is_alive())
        assert monitor.is_running

    def test_doubts_every_socket_and_watches_its_own_again(
        self, monitor: Monitor, client: Client, take: Callable[[int], Intruder]
    ) -> None:
        ours, peer = socket.socketpair()
        gone, far = socket.socketpair()
        with ours, peer, far:
            monitor.watch(ours.fileno(), client.doubt("ours"))
            monitor.watch(gone.fileno(), client.doubt("gone"))
            take(gone.detach())
            self.lose(monitor, take)
            wait_until(lambda: len(client.doubted) == 2)
            assert sorted(client.doubted) == ["gone", "ours"]
            client.doubted.clear()
            peer.close()
            wait_until(lambda: client.doubted == ["ours"])
            monitor.unwatch(ours.fileno())

    def test_registers_nothing_with_an_epoll_of_the_programs(
        self, monitor: Monitor, client: Client
    ) -> None:
        sleeper = monitor._sleeper
        assert isinstance(sleeper, EpollSleeper)
        number = sleeper._epoll.fileno()
        ours, peer = socket.socketpair()
        with ours, select.epoll() as programs:
            os.dup2(programs.fileno(), number, inheritable=False)
            monitor.watch(ours.fileno(), client.doubt("ours"))
            monitor.unwatch(ours.fileno())
            monitor.watch(ours.fileno(), client.doubt("ours"))
            peer.close()
            wait_until(lambda: "ours" in client.doubted)
            assert programs.poll(0) == []
            monitor.unwatch(ours.fileno())
        os.close(number)

    def test_leaves_files_of_the_program_alone_when_it_is_abandoned(
        self, take: Callable[[int], Intruder]
    ) -> None:
        monitor = Monitor()
        taken = [
            take(fd)
            for fd in numbers(monitor._sleeper).values()  # type: ignore[arg-type]
        ]
        monitor.abandon()
        del monitor
        gc.collect()
        assert all(intruder.is_untouched for intruder in taken)


class TestSocket:
    def test_is_not_asked_for_at_the_cost_of_a_files_lock(
        self, conn: Any, take: Callable[[int], Intruder]
    ) -> None:
        """To close any copy of a file gives up this process's locks on it."""
        taken = take(conn.fileno())
        fcntl.lockf(taken.number, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="non-socket"):
            twin_of(conn)
        name = f"/proc/{os.getpid()}/fd/{taken.number}"
        program = (
            "import fcntl, sys\n"
            "file = open(sys.argv[1], 'r+b')\n"
            "try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except OSError: print('locked')\n"
            "else: print('free')"
        )
        assert run_program(program, name).output == "locked\n"

    def test_is_known_until_its_number_is_another_files(
        self, conn: Any, take: Callable[[int], Intruder]
    ) -> None:
        assert owns_socket(conn)
        twin_of(conn).close()
        take(conn.fileno())
        assert not owns_socket(conn)
        with pytest.raises(OSError):  # noqa: PT011  # whichever it is
            twin_of(conn)

    def test_is_not_taken_for_another_socket(self, conn: Any) -> None:
        other, far = socket.socketpair()
        with other, far:
            os.dup2(other.fileno(), conn.fileno(), inheritable=False)
            assert not owns_socket(conn)
            with pytest.raises(OSError, match="another socket"):
                shut_down(conn)
            cut_off(conn)
            far.settimeout(0)
            other.send(b"x")
            assert far.recv(1) == b"x"
            assert identity(conn.fileno()) == identity(other.fileno())

    def test_that_was_cut_off_is_dead_and_its_copies_are_not(self, conn: Any) -> None:
        twin = twin_of(conn)
        cut_off(conn)
        assert not owns_socket(conn)
        with twin, socket.socket(fileno=os.dup(conn.fileno())) as dead:
            with pytest.raises(BrokenPipeError):
                dead.send(b"x")
            twin.send(b"y")
            assert conn.peer.recv(1) == b"y"

    def test_that_was_cut_off_is_left_alone_afterwards(
        self, conn: Any, take: Callable[[int], Intruder]
    ) -> None:
        cut_off(conn)
        take(conn.fileno())
        cut_off(conn)

    def test_that_is_closed_or_of_unknown_identity_is_not_asked_for(self, conn: Any) -> None:
        assert owns_socket(SimpleNamespace())
        assert owns_socket(SimpleNamespace(closed=1, pool_socket=(1, 2)))
        assert owns_socket(SimpleNamespace(closed=0, pool_socket=(1, 2), fileno=lambda: -1))


WITHOUT_DESCRIPTORS = """
import errno, os, resource, socket, sys, threading, time
from types import SimpleNamespace
from psycopg2_pool2.descriptors import identity, none_left
from psycopg2_pool2.sockets import cut_off, owns_socket, shut_down, socket_of

here, peer = socket.socketpair()
fd = here.fileno()
conn = SimpleNamespace(closed=0, fileno=lambda: fd, pool_socket=identity(fd))
assert not none_left()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    while True:
        os.dup(0)
except OSError as error:
    assert error.errno == errno.EMFILE
assert none_left()
"""


@pytest.mark.skipif(os.name != "posix", reason="this system has no limit of open files")
class TestWithoutFreeDescriptor:
    def run(self, code: str) -> None:
        ended = run_program(WITHOUT_DESCRIPTORS + code + "\nprint('fine')")
        assert (ended.status, ended.output) == (0, "fine\n"), ended.errors

    def test_a_socket_is_shut_down_and_stays_open(self) -> None:
        self.run("shut_down(conn); assert owns_socket(conn); assert peer.recv(1) == b''")

    def test_a_socket_is_lent_and_stays_open(self) -> None:
        self.run(
            "with socket_of(conn) as sock: sock.send(b'x')\n"
            "assert owns_socket(conn); assert peer.recv(1) == b'x'"
        )

    def test_a_child_is_cut_off(self) -> None:
        self.run(
            "child = os.fork()\n"
            "if child == 0:\n"
            "    cut_off(conn)\n"
            "    assert not owns_socket(conn) and identity(fd) is not None\n"
            "    try: here.send(b'x')\n"
            "    except OSError: os._exit(0)\n"
            "    os._exit(1)\n"
            "assert os.waitpid(child, 0)[1] == 0\n"
            "here.send(b'y'); assert peer.recv(2) == b'y'"
        )


def test_a_guard_that_could_not_be_enforced_is_tried_again(
    conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Its time is over, and no descriptor is left. 2. At the next look there is one."""
    looks = iter([OSError(errno.EMFILE, "Too many open files"), ImportError("too many open files")])

    def fail_twice(conn: Any) -> None:
        for error in looks:
            raise error
        sockets.shut_down(conn)

    guards = Guards(lambda: True)
    guard = guards.guard(conn, 0.001)
    over = time.monotonic() + 1
    with monkeypatch.context() as patch:
        patch.setattr("psycopg2_pool2.guards.shut_down", fail_twice)
        for left in (1, 1, 0):
            guards.enforce(over)
            assert len(guards) == left
    assert guard.lift()
    assert conn.peer.recv(1) == b""


def test_a_socket_is_not_lent_once_it_is_another_files_and_none_is_free(
    conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    other, far = socket.socketpair()
    with other, far:
        os.dup2(other.fileno(), conn.fileno(), inheritable=False)
        monkeypatch.setattr(os, "dup", refuse)
        with pytest.raises(OSError, match="Too many open files"), socket_of(conn):
            pass
