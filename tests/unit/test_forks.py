"""The gate between connects and forks: who waits for whom, and for how long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, forks
from psycopg2_pool2.forks import Connecting, Gate
from tests.support.processes import in_child
from tests.support.waiting import Running, in_thread, wait_until


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody be served because his time is over."""
    monkeypatch.setattr(forks, "LONGEST", 1000.0)


class Connect:
    """A connect in a thread of its own, which goes on until it is told to end."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._end = threading.Event()
        self.begun = threading.Event()
        self._running = in_thread(self._connect)

    def _connect(self) -> None:
        connecting = self._gate.enter()
        self.begun.set()
        assert self._end.wait(30)
        self._gate.leave(connecting)

    def end(self) -> None:
        self._end.set()
        self._running.result()


def still_waits(running: Running[Any]) -> bool:
    running.thread.join(0.05)
    return not running.done


@pytest.mark.usefixtures("patient")
class TestFork:
    def test_waits_until_connects_have_ended(self, gate: Gate) -> None:
        connects = [Connect(gate) for _ in range(2)]
        for connect in connects:
            assert connect.begun.wait(10)
        fork = in_thread(gate.close)
        for connect in connects:
            assert still_waits(fork)
            connect.end()
        fork.result()

    def test_waits_for_one_that_began_before_it_looked(self, gate: Gate) -> None:
        """1. A connect enters. 2. The fork closes the gate, and looks. 3. The connect looks."""
        forked: list[Running[None]] = []
        enter = gate._enter

        def enter_and_let_fork() -> Connecting:
            connecting = enter()
            if not forked:
                forked.append(in_thread(gate.close))
                wait_until(lambda: gate._left._gates)
            return connecting

        gate._enter = enter_and_let_fork  # type: ignore[method-assign]
        connect = Connect(gate)
        wait_until(lambda: forked)
        forked[0].result()  # the connect has left again
        assert not connect.begun.is_set()
        gate.open()
        assert connect.begun.wait(10)
        connect.end()

    def test_does_not_wait_for_its_own_thread(self, gate: Gate) -> None:
        gate.enter()
        gate.close()

    def test_does_not_wait_for_a_thread_that_was_interrupted(self, gate: Gate) -> None:
        in_thread(gate._enter).result()
        in_thread(gate.close).result()
        assert not gate._connecting

    def test_does_not_wait_for_one_that_has_taken_longer(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connect = Connect(gate)
        assert connect.begun.wait(10)
        fork = in_thread(gate.close)
        assert still_waits(fork)
        fork_again = in_thread(gate.close)
        monkeypatch.setattr(forks, "LONGEST", 0.0)
        in_thread(gate.close).result()
        connect.end()
        fork.result()
        fork_again.result()


@pytest.mark.usefixtures("patient")
class TestConnect:
    def test_waits_until_the_fork_is_over(self, gate: Gate) -> None:
        gate.close()
        connect = Connect(gate)
        assert not connect.begun.wait(0.05)
        gate.open()
        assert connect.begun.wait(10)
        connect.end()

    def test_waits_no_longer_than_it_would_be_waited_for(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forks, "LONGEST", 0.01)
        gate.close()
        gate.leave(gate.enter())

    def test_in_a_child_begins_at_once(self, gate: Gate) -> None:
        Connect(gate)
        gate.begin_anew()
        gate.leave(gate.enter())
        gate.close()


@pytest.mark.usefixtures("patient")
class TestPool:
    @pytest.fixture
    def held(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
        """Have psycopg2's connect take as long as the test wants."""
        self.connecting, go = threading.Event(), threading.Event()

        def connect(**kwargs: object) -> None:
            self.connecting.set()
            assert go.wait(30)
            raise psycopg2.OperationalError("not now")

        monkeypatch.setattr(psycopg2, "connect", connect)
        yield go
        go.set()

    def test_is_not_forked_while_it_connects(self, held: threading.Event) -> None:
        with ConnectionPool(0, 1, dsn="host=127.0.0.1 port=1", num_workers=0) as pool:
            borrower = in_thread(pool.getconn, timeout=0)
            assert self.connecting.wait(10)
            child = in_thread(in_child, lambda: forks.gate._closed)
            assert still_waits(child)
            held.set()
            assert child.result() == "False"
            assert isinstance(borrower.error(), psycopg2.OperationalError)
