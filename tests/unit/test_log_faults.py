"""Each log call of a pool without threads raises in its turn: no slot is lost, the pool goes on.

The driver is a fake, and what is raised in a borrower's thread reaches the borrower or nobody.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolStats
from tests.support.fakes import FakeClock, FakeDriver, fake_pool


class Interrupt(BaseException):
    """No Exception, as KeyboardInterrupt is none."""


class Turn(logging.Filter):
    """Raises an error in one log call, by its number; counts all."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._number = number
        self._error = error

    def filter(self, record: logging.LogRecord) -> bool:
        self.texts.append(record.getMessage())
        if len(self.texts) == self._number:
            raise self._error
        return True


@contextmanager
def turn(number: int, error: type[BaseException]) -> Iterator[Turn]:
    log, added = logging.getLogger("psycopg2_pool2"), Turn(number, error)
    log.addFilter(added)
    log.setLevel(logging.DEBUG)
    try:
        yield added
    finally:
        log.removeFilter(added)
        log.setLevel(logging.NOTSET)


class Observer:
    """Fails at everything."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


class World:
    """A pool of two, and what befalls it."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.clock = FakeClock()
        self.resets: list[Any] = []
        self.pool: ConnectionPool = fake_pool(
            self.clock, 0, 2, idle_timeout=60, leak_timeout=30, reset=self._reset
        )

    def _reset(self, conn: Any) -> None:
        if self.resets:
            raise ValueError(self.resets.pop())

    def use(self) -> None:
        self.pool.putconn(self.pool.getconn())

    def a_test_fails(self) -> None:
        self.use()
        self.driver.dead |= self.driver.sockets
        self.use()

    def a_server_is_away(self) -> None:
        self.pool.discard_all_idle()
        self.driver.error = psycopg2.OperationalError("Connection refused")
        try:
            with suppress(psycopg2.Error):
                self.use()
        finally:
            self.driver.error = None
            self.clock.advance(60)
        self.use()

    def a_reset_fails(self) -> None:
        self.resets.append("no")
        self.use()

    def a_connection_is_dropped(self) -> None:
        self.pool.getconn()
        gc.collect()
        self.use()

    def a_loan_lasts(self) -> None:
        with self.pool.conn():
            self.clock.advance(31)
            self.use()

    def a_loan_lasts_and_is_detached(self) -> None:
        conn = self.pool.getconn()
        self.clock.advance(31)
        self.pool.detach(conn)

    def one_is_reaped(self) -> None:
        self.use()
        self.clock.advance(61)
        self.pool.reap_idle_connections()

    def one_dies_while_idle(self) -> None:
        self.use()
        self.driver.dead |= self.driver.sockets
        self.pool.check()

    def an_observer_fails(self) -> None:
        self.pool._observe(Observer())
        self.use()

    def all(self) -> list[Callable[[], None]]:
        return [
            self.a_test_fails,
            self.a_server_is_away,
            self.a_reset_fails,
            self.a_connection_is_dropped,
            self.a_loan_lasts,
            self.a_loan_lasts_and_is_detached,
            self.one_is_reaped,
            self.one_dies_while_idle,
            self.an_observer_fails,
        ]

    def assert_whole(self) -> None:
        gc.collect()
        self.clock.advance(60)
        assert self.pool.stats().in_use == 0
        conns: list[Any] = [self.pool.getconn(), self.pool.getconn()]
        assert len({conn.fd for conn in conns}) == 2
        for conn in conns:
            conn.ask()
            self.pool.putconn(conn)
        assert self.pool.stats() == PoolStats(0, 2)
        assert len(self.driver.sockets) == 2
        assert self.driver.most <= 2


@pytest.mark.parametrize("error", [KeyError, Interrupt])
def test_log_call_that_raises_loses_no_slot(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    texts: set[str] = set()
    reached = number = 0
    while True:
        number += 1
        driver = FakeDriver()
        driver.install(monkeypatch)
        world = World(driver)
        with turn(number, error) as filtered:
            for befall in world.all():
                with suppress(Interrupt):
                    befall()
                    continue
                reached += 1
        world.assert_whole()
        world.pool.shutdown()
        texts |= {text.partition(": ")[2] for text in filtered.texts}
        if len(filtered.texts) < number:
            break
    assert number > 10
    for told in (
        "failed its test",
        "cannot connect",
        "connected again",
        "cleaning a connection failed",
        "dropped without being returned",
        "has been in use for",
        "came back after",
        "reaped 1 idle",
        "lost while idle",
        "failed",
    ):
        assert any(told in text for text in texts), told
    assert reached == (number - 1 if error is Interrupt else 0)
