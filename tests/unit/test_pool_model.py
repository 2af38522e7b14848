"""A pool without threads against a model, on a driver and a clock that the test moves."""

from __future__ import annotations

import gc
import math
from typing import Any

import psycopg2
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from psycopg2 import extensions as ext

from psycopg2_pool2 import PoolError, PoolExhausted
from tests.support.fakes import FakeClock, FakeDriver, fake_pool

pick = st.integers(0, 100)
LIFETIME = 1000.0
IDLE = 100.0


class PoolModel(RuleBasedStateMachine):
    """A program, a server and time itself, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.driver = FakeDriver()
        self.driver.install(self.patch)
        self.driver.on_close = self.check_slot
        self.clock = FakeClock()
        self.held: list[Any] = []
        self.loans = self.detached = 0
        self.trouble_until = -math.inf
        self.freed_too_soon: list[int] = []
        self.peak_limit: float = 3

    @initialize(
        max_uses=st.sampled_from([None, None, 3]),
        idle_timeout=st.sampled_from([None, 0, IDLE]),
        reset=st.sampled_from([None, "raises"]),
        debug=st.booleans(),
    )
    def begin(self, max_uses: int | None, idle_timeout: Any, reset: Any, debug: bool) -> None:
        def failing_reset(conn: Any) -> None:
            if conn.fd % 5 == 0:
                raise ValueError("reset failed")

        self.max_uses = max_uses
        self.idle_timeout = idle_timeout
        self.pool = fake_pool(
            self.clock,
            1,
            3,
            idle_timeout=idle_timeout,
            lifetime_timeout=LIFETIME,
            max_uses=max_uses,
            reset=reset and failing_reset,
            debug=debug,
        )

    def teardown(self) -> None:
        pool = getattr(self, "pool", None)
        if pool is not None:
            self.held_back()
            pool.shutdown()
            gc.collect()
            assert not self.driver.sockets, "closing leaves nothing open"
        self.patch.undo()

    def held_back(self) -> None:
        while self.held:
            self.pool.putconn(self.held.pop())

    def check_slot(self, conn: Any) -> None:
        """See that the slot is free only when its socket is closed."""
        record = getattr(conn, "pool_record", None)
        if record is not None and record not in self.pool._store.records:
            if conn.fd not in self.own:
                self.freed_too_soon.append(conn.fd)

    own: frozenset[int] = frozenset()  # detached ones

    # -- the program -------------------------------------------------------

    @rule()
    def borrow(self) -> None:
        full = len(self.held) >= self.pool.maxconn
        try:
            conn: Any = self.pool.getconn()
        except PoolExhausted:
            assert full
        except psycopg2.Error:
            assert self.driver.error is not None or self.clock() < self.trouble_until
            if self.driver.error is not None:
                self.trouble_until = self.clock() + 100
        else:
            assert not full
            assert conn not in self.held
            assert not conn.closed
            assert not conn.is_dead
            assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_IDLE
            assert conn.pool_record.expires_at > self.clock()
            assert self.max_uses is None or conn.pool_record.uses < self.max_uses
            self.held.append(conn)
            self.loans += 1

    @precondition(lambda self: self.held)
    @rule(which=pick, close=st.booleans())
    def give_back(self, which: int, close: bool) -> None:
        conn = self.held.pop(which % len(self.held))
        dead, busy = conn.is_dead, conn.transaction == ext.TRANSACTION_STATUS_ACTIVE
        record = conn.pool_record  # which leads nowhere from a former borrower's in debug mode
        self.pool.putconn(conn, close=close)
        idle = conn in self.pool._store.idle
        if close or busy or record.expires_at <= self.clock():
            assert not idle
        if idle:
            assert conn.get_transaction_status() == ext.TRANSACTION_STATUS_IDLE
        else:
            assert conn.closed
        assert dead or not conn.closed or not idle
        with pytest.raises(PoolError, match="unkeyed"):
            self.pool.putconn(conn)

    @precondition(lambda self: self.held)
    @rule(
        which=pick,
        status=st.sampled_from(
            [
                ext.TRANSACTION_STATUS_INTRANS,
                ext.TRANSACTION_STATUS_INERROR,
                ext.TRANSACTION_STATUS_ACTIVE,
            ]
        ),
    )
    def work(self, which: int, status: int) -> None:
        self.held[which % len(self.held)].begin(status)

    @precondition(lambda self: self.held)
    @rule(which=pick)
    def close_it(self, which: int) -> None:
        self.held[which % len(self.held)].close()

    @precondition(lambda self: self.held)
    @rule(which=pick)
    def drop(self, which: int) -> None:
        del self.held[which % len(self.held)]

    @precondition(lambda self: self.held)
    @rule(which=pick)
    def detach(self, which: int) -> None:
        conn: Any = self.pool.detach(self.held.pop(which % len(self.held)))
        self.own |= {conn.fd}
        self.detached += 1
        conn.close()

    @rule(minconn=st.integers(0, 2), more=st.integers(0, 3))
    def resize(self, minconn: int, more: int) -> None:
        maxconn = max(1, minconn + more)
        self.peak_limit = max(self.peak_limit, maxconn)
        self.pool.resize(minconn, maxconn)

    @rule(how=st.sampled_from(["discard_all_idle", "drain", "check", "reap_idle_connections"]))
    def look_after(self, how: str) -> None:
        getattr(self.pool, how)()
        if how in ("discard_all_idle", "drain"):
            assert self.pool.stats().idle == 0
        if how == "check":
            assert not any(conn.is_dead for conn in self.pool._store.idle)
        if how == "reap_idle_connections":
            if self.driver.error is not None:
                self.trouble_until = self.clock() + 100
            assert all(conn.pool_record.expires_at > self.clock() for conn in self.pool._store.idle)
            limit = self.clock() - IDLE
            old = [c for c in self.pool._store.idle if c.pool_record.idle_since <= limit]
            floor = self.pool._store.size <= self.pool.minconn
            assert self.idle_timeout is None or floor or not old

    # -- the world ---------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1, 30, IDLE, LIFETIME / 2, 2 * LIFETIME]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(text=st.sampled_from([None, None, "Connection refused", "timeout expired", "too many"]))
    def change_server(self, text: str | None) -> None:
        self.driver.error = None if text is None else psycopg2.OperationalError(text)

    @precondition(lambda self: self.driver.sockets)
    @rule(which=pick)
    def kill(self, which: int) -> None:
        self.clock.advance(1)  # what dies as soon as it is open is another matter
        sockets = sorted(self.driver.sockets)
        self.driver.dead.add(sockets[which % len(sockets)])

    # -- what holds after each step ----------------------------------------

    @invariant()
    def nothing_is_lost_and_nothing_shared(self) -> None:
        if not hasattr(self, "pool"):
            return
        stats = self.pool.get_stats()  # collects what was dropped
        store = self.pool._store
        assert stats["pool_in_use"] == len(self.held)
        assert not {id(conn) for conn in self.held} & {id(conn) for conn in store.idle}
        assert stats["pool_size"] == stats["pool_available"] + stats["pool_in_use"]
        assert stats["pool_opening"] == stats["requests_waiting"] == 0
        known = {conn.fd for conn in [*self.held, *store.idle]}
        assert self.driver.sockets <= known
        assert {conn.fd for conn in store.idle} <= self.driver.sockets
        assert self.driver.most <= self.peak_limit
        assert len(store.idle) == 0 or stats["pool_size"] <= self.pool.maxconn
        assert stats["requests_num"] == self.loans
        assert not self.freed_too_soon
        assert stats["connections_detached"] == self.detached


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    # Without the phase that explains: it takes minutes.
    phases=[Phase.generate, Phase.shrink],
)
