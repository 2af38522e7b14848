"""Borrowing: order, waiting, testing, dead connections, keys."""

from __future__ import annotations

import inspect
import math
import select
import threading
import time
from typing import Any

import psycopg2
import psycopg2.pool
import pytest
from psycopg2 import extensions

from psycopg2_pool2 import (
    ConnectionPool,
    PoolError,
    PoolExhausted,
    PoolStats,
    PoolTimeout,
    TooManyRequests,
)
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import (
    MakePool,
    ask,
    assert_whole,
    borrow,
    borrowed_pids,
    end_sessions,
    fill,
    give_back,
    pid_of,
    round_trip,
    start_waiter,
    wait_for_waiters,
    wait_until_lost,
    waiting,
)
from tests.support.rude_server import Refuse, RudeServer, error_response
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

POSITIONAL: dict[str, object] = {
    "minconn": 1,
    "maxconn": math.inf,
    "idle_timeout": 300,
    "reap_idle_interval": 300,
    "lifetime_timeout": 86400,
}
KEYWORDS: dict[str, object] = {
    "test_on_borrow": True,
    "background_prewarm": True,
    "timeout": 0,
    "max_waiting": None,
    "max_uses": None,
    "test_idle_after": 0,
    "test_timeout": 5,
    "health_check_interval": 30,
    "configure": None,
    "reset": None,
    "connect_params": None,
    "leak_timeout": None,
    "close_returns": False,
    "debug": False,
    "num_workers": 3,
    "address_timeout": 60,
    "resolver": None,
    "breaker": None,
    "name": None,
}


AT_ONCE = 8.0
"""Seconds: far more than a busy machine needs, far less than the 30 that a borrower might wait."""


class TestConstructor:
    def test_takes_its_arguments_in_the_documented_order_with_the_documented_defaults(self) -> None:
        parameters = list(inspect.signature(ConnectionPool).parameters.values())
        by_place = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        by_name = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert list(by_place.items()) == list(POSITIONAL.items())
        assert list(by_name.items()) == list(KEYWORDS.items())
        assert [p.name for p in parameters if p.kind is p.VAR_KEYWORD] == ["connect_kwargs"]

    def test_getconn_and_putconn_take_what_psycopg2_pools_take(self) -> None:
        getconn = inspect.signature(ConnectionPool.getconn).parameters
        putconn = inspect.signature(ConnectionPool.putconn).parameters
        assert list(getconn) == ["self", "key", "timeout"]
        assert getconn["timeout"].kind is inspect.Parameter.KEYWORD_ONLY
        assert list(putconn) == ["self", "conn", "key", "close"]

    def test_the_five_by_place_mean_what_they_are_called(self, statement_log: StatementLog) -> None:
        with ConnectionPool(0, 7, 11, 13, 17, **statement_log.params) as pool:
            assert [getattr(pool, name) for name in POSITIONAL] == [0, 7, 11, 13, 17]


class TestOrder:
    def test_lends_the_one_that_has_been_idle_longest(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        a, b, c = borrow(pool, 3)
        give_back(pool, [b, c, a])
        assert borrow(pool, 3) == [b, c, a]

    def test_lends_every_one_in_turn(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        pids = fill(pool, 3)
        assert [round_trip(pool) for _ in range(6)] == pids * 2

    def test_opens_no_more_than_it_needs(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        assert len({round_trip(pool) for _ in range(5)}) == 1

    def test_keeps_all_up_to_maxconn_rather_than_closing_those_above_minconn(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(minconn=0, maxconn=4)
        pids = fill(pool, 4)
        for _ in range(3):
            assert borrowed_pids(pool, 4) == pids
        assert pool.get_stats()["connections_num"] == 4


class TestTimeouts:
    @pytest.mark.parametrize("how", ["the pool's", "the call's"])
    def test_zero_raises_at_once_when_all_are_in_use(
        self, make_any_pool: MakePool, how: str
    ) -> None:
        by_pool = how == "the pool's"
        pool = make_any_pool(maxconn=1, timeout=0 if by_pool else 30)
        kept = pool.getconn(timeout=10)
        started = time.monotonic()
        with pytest.raises(PoolExhausted):
            _ = pool.getconn() if by_pool else pool.getconn(timeout=0)
        assert time.monotonic() - started < AT_ONCE
        pool.putconn(kept)

    def test_zero_waits_for_the_connection_that_is_opened_for_it(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=3, timeout=0)
        conns = [pool.getconn() for _ in range(3)]
        assert [ask(conn) for conn in conns] == [1, 1, 1]

    @pytest.mark.parametrize("how", ["the pool's", "getconn", "conn", "transaction"])
    def test_a_number_raises_within_so_many_seconds(
        self, make_any_pool: MakePool, how: str
    ) -> None:
        pool = make_any_pool(maxconn=1, timeout=0.1 if how == "the pool's" else 30)
        kept = pool.getconn(timeout=10)

        def borrow_another() -> None:
            if how == "conn":
                with pool.conn(timeout=0.1):
                    pytest.fail("it was lent twice")
            elif how == "transaction":
                with pool.transaction(timeout=0.1):
                    pytest.fail("it was lent twice")
            elif how == "getconn":
                pool.getconn(timeout=0.1)
            else:
                pool.getconn()

        started = time.monotonic()
        with pytest.raises(PoolTimeout):
            borrow_another()
        assert 0.09 <= time.monotonic() - started < AT_ONCE
        pool.putconn(kept)

    def test_none_waits_until_one_comes_back(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, timeout=None)
        conn = pool.getconn()
        waiter = in_thread(pool.getconn)
        wait_until(lambda: waiting(pool) == 1)
        pool.putconn(conn)
        assert waiter.result() is conn

    @pytest.mark.parametrize("timeout", [-1, math.inf, math.nan])
    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_a_senseless_number_is_refused_by_name_and_takes_nothing(
        self, make_pool: MakePool, timeout: float, test_on_borrow: bool
    ) -> None:
        pool = make_pool(1, 1, test_on_borrow=test_on_borrow)
        lent: Any
        with pool.conn(timeout=10) as lent:
            record = lent.pool_record
        record.attention = True  # so that the pool looks at it before it is lent
        with pytest.raises(ValueError, match="timeout"):
            pool.getconn(timeout=timeout)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_is_the_end_of_a_borrow_whose_tests_always_fail(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(test_on_borrow=_refuse_all)
        borrower = in_thread(pool.getconn, timeout=0.2)
        try:
            assert isinstance(borrower.error(), (PoolTimeout, RuntimeError))
        finally:
            pool.shutdown()  # should it go on, this ends it
        assert pool.stats().in_use == 0

    def test_zero_does_not_try_for_ever_when_tests_always_fail(
        self, make_any_pool: MakePool
    ) -> None:
        tests = 0

        def refuse_a_hundred(conn: Any) -> None:
            nonlocal tests
            tests += 1
            if tests < 100:
                raise RuntimeError("no good")

        pool = make_any_pool(test_on_borrow=refuse_a_hundred)
        with pytest.raises((psycopg2.Error, RuntimeError)):
            pool.getconn(timeout=0)


class TestWaiters:
    def test_are_served_first_come_first_served(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        served: list[int] = []

        def wait_in_line(number: int) -> None:
            mine = pool.getconn(timeout=30)
            served.append(number)
            pool.putconn(mine)

        line = []
        for number in range(6):
            line.append(in_thread(wait_in_line, number))
            wait_for_waiters(pool, number + 1)
        pool.putconn(conn)
        for borrower in line:
            borrower.result()
        assert served == list(range(6))

    def test_are_not_overtaken_by_a_newcomer(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool)
        pool.putconn(conn)
        with pytest.raises(PoolExhausted):
            pool.getconn(timeout=0)
        assert waiter.result() is conn

    def test_who_time_out_keep_nothing_and_swallow_nothing(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        late = in_thread(pool.getconn, timeout=0.05)
        patient = start_waiter(pool)
        assert isinstance(late.error(), PoolTimeout)
        pool.putconn(conn)
        assert patient.result() is conn
        assert waiting(pool) == 0
        pool.putconn(conn)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_get_what_is_closed_by_its_borrower_replaced(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn(timeout=10)
        waiter = start_waiter(pool)
        pool.putconn(conn, close=True)
        assert waiter.result() is not conn

    def test_are_at_most_max_waiting(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, max_waiting=2)
        conn = pool.getconn(timeout=10)
        first, second = start_waiter(pool), start_waiter(pool)
        with pytest.raises(TooManyRequests):
            pool.getconn(timeout=30)
        assert waiting(pool) == 2
        pool.putconn(conn)
        pool.putconn(first.result())
        pool.putconn(second.result())
        assert round_trip(pool)


def _refuse_all(conn: Any) -> None:
    raise RuntimeError("no good")


class TestTestOnBorrow:
    def test_sends_one_statement_for_each_borrow(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool()
        fill(pool, 1)

        def borrow_thrice() -> None:
            for _ in range(3):
                pool.putconn(pool.getconn())

        assert statement_log.during(borrow_thrice) == ["SELECT 1"] * 3

    @pytest.mark.parametrize("autocommit", [False, True])
    @pytest.mark.parametrize("readonly", [False, True])
    def test_changes_no_setting_and_leaves_no_transaction(
        self,
        make_any_pool: MakePool,
        statement_log: StatementLog,
        autocommit: bool,
        readonly: bool,
    ) -> None:
        def configure(conn: Any) -> None:
            conn.set_session(
                autocommit=autocommit, readonly=readonly, isolation_level="SERIALIZABLE"
            )

        pool = make_any_pool(configure=configure)
        fill(pool, 1)
        statement_log.clear()
        conn = pool.getconn()
        assert statement_log.statements() == ["SELECT 1"]
        assert conn.status == extensions.STATUS_READY
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE
        assert (conn.autocommit, conn.readonly) == (autocommit, readonly)
        assert conn.isolation_level == extensions.ISOLATION_LEVEL_SERIALIZABLE
        assert ask(conn, "SHOW transaction_isolation") == "serializable"
        assert ask(conn, "SHOW transaction_read_only") == ("on" if readonly else "off")
        pool.putconn(conn)

    def test_false_sends_nothing(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_on_borrow=False)
        fill(pool, 2)

        def borrow_often() -> None:
            for _ in range(20):
                pool.putconn(pool.getconn())

        assert statement_log.during(borrow_often) == []

    def test_a_callable_gets_each_connection_before_it_is_lent(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        tested: list[Any] = []
        pool = make_any_pool(test_on_borrow=tested.append)
        fill(pool, 1)
        tested.clear()
        statement_log.clear()
        conn = pool.getconn()
        assert tested == [conn]
        assert statement_log.statements() == []

    def test_a_callable_may_leave_a_transaction_open(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(test_on_borrow=ask)
        [pid] = fill(pool, 1)
        conn = pool.getconn()
        assert pid_of(conn) == pid
        assert conn.status == extensions.STATUS_READY
        assert conn.get_transaction_status() == extensions.TRANSACTION_STATUS_IDLE

    def test_a_callable_that_raises_has_the_next_one_lent(
        self, server: Server, app: str, make_any_pool: MakePool
    ) -> None:
        bad: set[int] = set()

        def test(conn: Any) -> None:
            if pid_of(conn) in bad:
                raise RuntimeError("no good")

        pool = make_any_pool(maxconn=3, test_on_borrow=test)
        pids = fill(pool, 3)
        bad.update(pids[:2])
        conn = pool.getconn()
        # Not always the third: it may just have been probed, as all idle ones were.
        assert pid_of(conn) not in bad
        wait_until(lambda: pids[0] not in server.backends(app))
        others = borrow(pool, 2)
        assert not bad & {pid_of(other) for other in others}
        wait_until(lambda: not bad & set(server.backends(app)))
        give_back(pool, [conn, *others])
        assert_whole(pool)

    @pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_an_interrupted_callable_reaches_the_borrower_and_loses_no_slot(
        self, make_any_pool: MakePool, raised: type[BaseException]
    ) -> None:
        armed = True

        def test(conn: Any) -> None:
            if armed:
                raise raised

        pool = make_any_pool(maxconn=1, test_on_borrow=test)
        with pytest.raises(raised):
            pool.getconn(timeout=10)
        armed = False
        assert_whole(pool)

    def test_tests_only_what_was_idle_for_test_idle_after(
        self, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        pool = make_any_pool(test_idle_after=100)
        fill(pool, 1)
        assert statement_log.during(lambda: pool.putconn(pool.getconn())) == []
        pool._store.idle[0].pool_record.idle_since -= 100
        assert statement_log.during(lambda: pool.putconn(pool.getconn())) == ["SELECT 1"]
        assert statement_log.during(lambda: pool.putconn(pool.getconn())) == []

    def test_suspects_are_tested_whatever_test_idle_after_says(
        self, server: Server, make_any_pool: MakePool, statement_log: StatementLog
    ) -> None:
        """A connection found dead makes those suspect that were born before."""
        pool = make_any_pool(maxconn=3, test_idle_after=300)
        conns = borrow(pool, 3)
        give_back(pool, list(conns))
        server.terminate_backend(pid_of(conns[0]))
        others = conns[1:]
        wait_until_lost(pool)
        statement_log.clear()
        survivors = borrow(pool, 2)
        assert survivors == others
        assert statement_log.statements() == ["SELECT 1"] * 2


class TestDeadConnections:
    @pytest.mark.parametrize("test_on_borrow", [True, False, ask])
    def test_are_never_lent(
        self, server: Server, app: str, make_any_pool: MakePool, test_on_borrow: Any
    ) -> None:
        pool = make_any_pool(test_on_borrow=test_on_borrow)
        old = fill(pool, 4)
        assert len(end_sessions(server, app)) == 4
        if test_on_borrow is False:
            wait_until_lost(pool, 4)
        assert not set(borrowed_pids(pool, 4)) & set(old)

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_are_never_lent_whatever_test_idle_after_says(
        self, server: Server, app: str, make_any_pool: MakePool, test_on_borrow: bool
    ) -> None:
        pool = make_any_pool(test_on_borrow=test_on_borrow, test_idle_after=300)
        for number in range(5):
            old = fill(pool, 4)
            end_sessions(server, app)
            wait_until_lost(pool, 4 * (number + 1))
            assert not set(borrowed_pids(pool, 4)) & set(old)

    @pytest.mark.parametrize("test_on_borrow", [True, False])
    def test_are_discarded_without_pauses(
        self, server: Server, app: str, make_any_pool: MakePool, test_on_borrow: bool
    ) -> None:
        pool = make_any_pool(maxconn=30, test_on_borrow=test_on_borrow)
        fill(pool, 30)
        end_sessions(server, app)
        if not test_on_borrow:
            wait_until_lost(pool, 30)
        started = time.monotonic()
        round_trip(pool)
        assert time.monotonic() - started < AT_ONCE  # and not a back-off for each

    def test_of_former_borrowers_who_close_them_while_they_are_idle_are_not_lent(
        self, make_any_pool: MakePool
    ) -> None:
        for test_on_borrow in (True, False):
            pool = make_any_pool(maxconn=1, test_on_borrow=test_on_borrow)
            conn = pool.getconn(timeout=10)
            pool.putconn(conn)
            conn.close()
            assert pid_of(conn) != round_trip(pool) if not conn.closed else round_trip(pool)
            assert_whole(pool)

    def test_are_replaced_by_the_monitor_before_anybody_borrows(
        self, server: Server, app: str, make_pool: MakePool
    ) -> None:
        pool = make_pool(minconn=3, test_on_borrow=False)
        pool.wait()
        old = set(server.backends(app))
        end_sessions(server, app)
        wait_until(lambda: len(set(server.backends(app)) - old) == 3)
        wait_until(lambda: pool.stats() == PoolStats(in_use=0, idle=3))

    def test_that_said_farewell_are_not_lent_before_their_streams_end(self) -> None:
        """The end comes a moment later, from a server that is busy shutting down."""
        with (
            RudeServer() as rude,
            ConnectionPool(0, 1, num_workers=0, test_on_borrow=False, **rude.params) as pool,
        ):
            fill(pool, 1)
            [conn] = pool._store.idle
            rude.send(error_response(Refuse("57P01", "terminating connection")))
            wait_until(lambda: select.select([conn.fileno()], [], [], 0)[0])
            assert pool.getconn(timeout=10) is not conn

    def test_do_not_hide_behind_a_notification(
        self, server: Server, make_any_pool: MakePool
    ) -> None:
        """A waiting NOTIFY makes a healthy socket readable: it is no reason to discard it."""
        pool = make_any_pool(test_on_borrow=False)
        with pool.conn() as conn:
            conn.autocommit = True
            ask(conn, "LISTEN news")
            pid = pid_of(conn)
        server.execute("NOTIFY news")
        assert round_trip(pool) == pid
        server.execute("NOTIFY news")
        server.terminate_backend(pid)
        wait_until_lost(pool)
        assert round_trip(pool) != pid


class TestKeys:
    def test_one_key_is_one_connection_while_it_is_in_use(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        first = pool.getconn("a")
        assert pool.getconn("a") is first
        others = [pool.getconn("b"), pool.getconn()]
        assert first not in others
        assert pool.stats().in_use == 3

    def test_a_key_is_free_again_after_the_return(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        first, second = pool.getconn("a"), pool.getconn("b")
        pool.putconn(first, "a")
        pool.putconn(second, "b")
        assert pool.getconn("b") is first
        assert pool.getconn("a") is second

    @pytest.mark.parametrize("key", [0, "", (), False])
    def test_a_key_may_be_false(self, make_any_pool: MakePool, key: Any) -> None:
        pool = make_any_pool()
        conn = pool.getconn(key)
        assert pool.getconn(key) is conn
        pool.putconn(conn, key)
        assert pool.stats() == PoolStats(in_use=0, idle=1)

    def test_the_return_need_not_name_the_key(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        pool.putconn(pool.getconn("a"))
        assert pool.getconn("b") is not None

    def test_a_keyed_connection_is_returned_once(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        conn = pool.getconn("a")
        assert pool.getconn("a") is conn
        pool.putconn(conn, "a")
        with pytest.raises(psycopg2.pool.PoolError):
            pool.putconn(conn, "a")

    def test_threads_that_ask_for_one_key_at_once_get_one_connection(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool()
        barrier = threading.Barrier(8)

        def ask_for_it() -> Any:
            barrier.wait()
            return pool.getconn("same", timeout=10)

        borrowers = [in_thread(ask_for_it) for _ in range(8)]
        assert len({id(borrower.result()) for borrower in borrowers}) == 1
        assert pool.stats().in_use == 1

    def test_a_failed_keyed_borrow_frees_the_key(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with pytest.raises(PoolError):
            pool.getconn("a")
        pool.putconn(conn)
        assert pool.getconn("a") is conn
