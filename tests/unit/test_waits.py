"""Limits where psycopg2 waits in Python, and what becomes of an interrupted statement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2 import waits
from psycopg2_pool2.waits import Limit, WaitCallback, ask_to_stop, keeps_limits
from tests.support.fakes import FakeConnection, FakeDriver


class Slot:
    """The place in psycopg2 where the process's wait callback is."""

    def __init__(self, callback: Any) -> None:
        self.callback = callback

    def get(self) -> Any:
        return self.callback

    def put(self, callback: Any) -> None:
        self.callback = callback


class Program:
    """A program's wait callback."""

    def __init__(self) -> None:
        self.waited: list[Any] = []
        self.error: BaseException | None = None

    def __call__(self, conn: Any) -> None:
        self.waited.append(conn)
        if self.error is not None:
            raise self.error


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver()
    made.install(monkeypatch)
    monkeypatch.setattr(FakeConnection, "poll", lambda conn: ext.POLL_READ)
    monkeypatch.setattr(waits, "wait_ready", lambda read, write, seconds: time.sleep(0.001))
    monkeypatch.setattr(waits, "_place", lambda conn: "the server")
    return made


@pytest.fixture
def conn(driver: FakeDriver) -> FakeConnection:
    return driver.connect()


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.fixture
def slot(program: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slot]:
    made = Slot(program)
    monkeypatch.setattr(ext, "get_wait_callback", made.get)
    monkeypatch.setattr(ext, "set_wait_callback", made.put)
    yield made
    assert not [ref for ref in waits._limits.values() if ref() is not None]


def soon() -> float:
    return time.monotonic() + 0.01


def test_without_a_wait_callback_there_is_nothing_to_do(slot: Slot) -> None:
    slot.callback = None
    assert not keeps_limits()
    assert slot.callback is None


def test_the_programs_callback_is_wrapped_once(
    slot: Slot, program: Program, conn: FakeConnection
) -> None:
    assert keeps_limits()
    wrapped = slot.callback
    assert keeps_limits()
    assert slot.callback is wrapped
    wrapped(conn)
    assert program.waited == [conn]


def test_a_limit_ends_the_wait(slot: Slot, program: Program, conn: FakeConnection) -> None:
    callback = WaitCallback(program)
    for covered in (conn, None):  # None: the one that is being opened
        limit = Limit(soon(), covered)
        with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
            callback(conn)
        limit.end()
    assert program.waited == []
    callback(conn)
    assert program.waited == [conn]


def test_a_limit_is_for_one_connection(
    slot: Slot, program: Program, conn: FakeConnection, driver: FakeDriver
) -> None:
    limit = Limit(soon(), driver.connect())
    WaitCallback(program)(conn)
    assert program.waited == [conn]
    limit.end()


def test_an_inner_limit_gives_way_to_the_outer(
    slot: Slot, program: Program, conn: FakeConnection, driver: FakeDriver
) -> None:
    outer = Limit(soon(), conn)
    Limit(None, driver.connect()).end()
    with pytest.raises(psycopg2.OperationalError, match="timeout expired"):
        WaitCallback(program)(conn)
    outer.end()


def test_a_limit_that_a_thread_was_interrupted_over_ends_with_its_frame(
    slot: Slot, program: Program, conn: FakeConnection
) -> None:
    limit = Limit(soon(), conn)
    del limit
    WaitCallback(program)(conn)
    assert program.waited == [conn]


def test_a_callback_of_our_own_that_was_left_behind_takes_itself_out(
    slot: Slot, conn: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeConnection, "poll", lambda conn: ext.POLL_OK)
    slot.callback = WaitCallback(None)
    slot.callback(conn)
    assert slot.callback is None


@pytest.mark.parametrize(
    ("status", "cancelled"),
    [(ext.TRANSACTION_STATUS_ACTIVE, 1), (ext.TRANSACTION_STATUS_IDLE, 0)],
)
def test_the_server_is_asked_to_stop_an_interrupted_statement(
    program: Program, conn: FakeConnection, driver: FakeDriver, status: int, cancelled: int
) -> None:
    conn.begin(status)
    program.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        WaitCallback(program)(conn)
    assert driver.cancelled == cancelled


def test_a_forked_child_does_not_stop_what_its_parent_executes(
    conn: FakeConnection, driver: FakeDriver
) -> None:
    conn.begin(ext.TRANSACTION_STATUS_ACTIVE)
    conn.pool_pid = 0  # another process opened it
    ask_to_stop(conn, 1)
    assert driver.cancelled == 0


def test_a_server_that_cannot_be_asked_holds_nothing_up(conn: FakeConnection) -> None:
    conn.begin(ext.TRANSACTION_STATUS_ACTIVE)
    conn.pool_cancel_request = None
    ask_to_stop(conn, 1)
