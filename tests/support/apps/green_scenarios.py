"""What greenlets do to a pool; imported when the process is patched.

Each scenario gets the library of the greenlets and a dsn, sees to it itself that
all goes well, and returns what only others can judge.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import psycopg2
from psycopg2 import extensions as ext

from psycopg2_pool2 import ConnectionPool, PoolExhausted, PoolTimeout, waits

ALL_NUM_WORKERS = (3, 0)
SHORT = 2.5
"""Seconds that a borrower waits in vain, and more than ``connect_timeout``."""
LONG = 20


def request(command: str) -> None:
    """Have a command done by the process that started this one; other greenlets run meanwhile."""
    print(command, flush=True)
    select.select([sys.stdin], [], [])
    assert sys.stdin.readline() == "done\n"


def wait_until(predicate: Callable[[], object]) -> None:
    """Wait for a state; others run meanwhile."""
    deadline = time.monotonic() + LONG
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def ask(conn: Any, sql: str, *params: object) -> Any:
    """Return the first value of a statement's answer."""
    with conn.cursor() as cursor:
        cursor.execute(sql, params or None)
        return cursor.fetchone()[0]


def raised_by(call: Callable[[], object]) -> Exception | None:
    """Return what a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


def assert_whole(pool: ConnectionPool) -> None:
    """See that all of ``maxconn`` can be borrowed at a time, answer, and come back."""
    conns = [pool.getconn(timeout=LONG) for _ in range(int(pool.maxconn))]
    assert [ask(conn, "SELECT 1") for conn in conns] == [1] * len(conns)
    assert len({conn.info.backend_pid for conn in conns}) == len(conns)
    for conn in conns:
        pool.putconn(conn)
    assert pool.stats().in_use == 0


@contextmanager
def ticking(green: Any) -> Iterator[list[float]]:
    """Note the time every 5 ms, as far as others let this greenlet run."""
    times: list[float] = []
    done: list[bool] = []

    def tick() -> None:
        while not done:
            times.append(time.monotonic())
            time.sleep(0.005)

    ticker = green.spawn(tick)
    try:
        yield times
    finally:
        done.append(True)
        green.result(ticker)


# -- borrowing --------------------------------------------------------------------


def crowd(green: Any, dsn: str) -> dict[str, Any]:
    """Share 5 connections among 200 greenlets."""

    def one(number: int) -> int:
        with pool.conn() as conn:
            return int(ask(conn, "SELECT %s FROM pg_sleep(0.01)", number))

    with ConnectionPool(0, 5, dsn=dsn, timeout=LONG) as pool, ticking(green) as ticks:
        greenlets = [green.spawn(one, number) for number in range(200)]
        assert [green.result(greenlet) for greenlet in greenlets] == list(range(200))
        assert_whole(pool)
        return {"ticks": len(ticks), "threads": len(os.listdir("/proc/self/task"))}


def waiting(green: Any, dsn: str) -> dict[str, Any]:
    """Wait in vain, and in a queue."""
    with ConnectionPool(0, 1, dsn=dsn) as pool, ticking(green) as ticks:
        conn = pool.getconn(timeout=LONG)
        assert isinstance(raised_by(pool.getconn), PoolExhausted)
        assert isinstance(raised_by(partial(pool.getconn, timeout=0.2)), PoolTimeout)
        served: list[int] = []

        def wait_in_line(number: int) -> None:
            with pool.conn(timeout=LONG):
                served.append(number)

        greenlets = []
        for number in range(5):
            greenlets.append(green.spawn(wait_in_line, number))
            wait_until(lambda: pool.get_stats()["requests_waiting"] == len(greenlets))
        pool.putconn(conn)
        for greenlet in greenlets:
            green.result(greenlet)
        assert_whole(pool)
        return {"served": served, "ticks": len(ticks)}


def black_hole(green: Any, dsns: str) -> dict[str, Any]:
    """Connect where nobody answers, and where nobody sees the packets, until time is over."""
    longest = []

    def borrow_in_vain(pool: ConnectionPool) -> None:
        started = time.monotonic()
        error = raised_by(partial(pool.getconn, timeout=SHORT))
        longest.append(time.monotonic() - started)
        assert isinstance(error, PoolTimeout)
        assert "timeout expired" in str(error.__cause__)

    pools = [
        ConnectionPool(0, 2, dsn=dsn, num_workers=number, connect_timeout=1)
        for dsn in dsns.split("; ")
        for number in ALL_NUM_WORKERS
    ]
    request("swallow")
    with ticking(green) as ticks:
        for greenlet in [green.spawn(borrow_in_vain, pool) for pool in pools]:
            green.result(greenlet)
    request("restore")
    for pool in pools:
        assert_whole(pool)
        pool.shutdown()
    return {"longest": max(longest), "ticks": len(ticks)}


# -- interruptions ----------------------------------------------------------------

Phase = Callable[[Any, ConnectionPool, BaseException], None]
FROZEN = 5.0
"""Seconds after which the pool itself would give a frozen connection up."""


def in_waiting(green: Any, pool: ConnectionPool, error: BaseException) -> None:
    """Interrupt a greenlet that waits for a connection."""
    conns = [pool.getconn(timeout=LONG) for _ in range(int(pool.maxconn))]
    greenlet = green.spawn(partial(pool.getconn, timeout=LONG))
    wait_until(lambda: pool.get_stats()["requests_waiting"])
    green.interrupt(greenlet, error)
    assert pool.get_stats()["requests_waiting"] == 0
    for conn in conns:
        pool.putconn(conn)


def in_connecting(green: Any, pool: ConnectionPool, error: BaseException) -> None:
    """Interrupt one that opens a connection, or waits for that."""
    pool.discard_all_idle()
    request("freeze")
    greenlet = green.spawn(partial(pool.getconn, timeout=LONG))
    wait_until(lambda: pool.get_stats()["pool_opening"])
    green.interrupt(greenlet, error)
    request("forward")


def in_testing(green: Any, pool: ConnectionPool, error: BaseException) -> None:
    """Interrupt one that tests the connection that it is about to be lent."""
    assert_whole(pool)
    request("freeze")
    greenlet = green.spawn(partial(pool.getconn, timeout=LONG))
    wait_until(lambda: pool.stats().in_use)
    green.interrupt(greenlet, error)
    request("forward")


def in_a_query(green: Any, pool: ConnectionPool, error: BaseException) -> None:
    """Interrupt one that waits for the answer to a statement."""

    def query() -> None:
        with pool.conn(timeout=LONG) as conn:
            ask(conn, "SELECT pg_sleep(600)")

    greenlet = green.spawn(query)
    wait_until(lambda: any(conn.info.transaction_status == 1 for conn in pool.connections_in_use))
    green.interrupt(greenlet, error)


def in_returning(green: Any, pool: ConnectionPool, error: BaseException) -> None:
    """Interrupt one that rolls back what it has left open."""
    conn = pool.getconn(timeout=LONG)
    ask(conn, "SELECT 1")
    request("freeze")
    greenlet = green.spawn(pool.putconn, conn)
    wait_until(lambda: pool.stats().in_use == 0)
    green.interrupt(greenlet, error)
    request("forward")


PHASES: list[Phase] = [in_waiting, in_connecting, in_testing, in_a_query, in_returning]


def interruptions(green: Any, dsn: str) -> dict[str, Any]:
    """Raise a timeout, or end a greenlet, in every phase of a loan."""
    phases = 0
    for num_workers in ALL_NUM_WORKERS:
        options = {"num_workers": num_workers, "test_timeout": FROZEN, "health_check_interval": 0}
        with ConnectionPool(0, 2, dsn=dsn, **options) as pool:  # type: ignore[arg-type]
            for phase in PHASES:
                for error in (green.Timeout(), green.GreenletExit()):
                    phase(green, pool, error)
                    assert_whole(pool)
                    phases += 1
    return {"phases": phases}


def timeouts_in_queries(green: Any, dsn: str) -> dict[str, Any]:
    """Let long statements run into timeouts; look at the connections of others."""

    def query() -> None:
        with suppress(green.Timeout), pool.conn() as conn, green.Timeout(0.05):
            ask(conn, "SELECT pg_sleep(600)")

    # A busy machine may need longer than a program is to be held up.
    waits._STOP_TIMEOUT = float(LONG)
    with ConnectionPool(0, 5, dsn=dsn, timeout=LONG) as pool:
        assert_whole(pool)
        before = {conn.info.backend_pid for conn in list(pool._store.idle)}
        query()
        after = {conn.info.backend_pid for conn in list(pool._store.idle)}
        assert len(after) == 4
        assert after < before
        for greenlet in [green.spawn(query) for _ in range(50)]:
            green.result(greenlet)
        request("wait_for_the_end_of_pg_sleep")
        assert_whole(pool)
        return {"returns_bad": pool.get_stats()["returns_bad"]}


def unanswered_requests(green: Any, dsn: str) -> dict[str, Any]:
    """End greenlets in statements that the server takes no request to stop."""

    def query() -> None:
        with pool.conn() as conn:
            conns.append(conn)
            try:
                ask(conn, "SELECT pg_sleep(600)")
            finally:
                conns.clear()

    conns: list[Any] = []
    with ConnectionPool(0, 1, dsn=dsn, timeout=LONG) as pool, ticking(green) as ticks:
        for error in (green.Timeout(), green.GreenletExit()):
            greenlet = green.spawn(query)
            wait_until(lambda: conns and _is_executing(conns[0]))
            before = len(ticks)
            with suppress(type(error)):
                green.interrupt(greenlet, error)
            # The greenlet was held up until the request was given up, and no other was.
            assert len(ticks) > before + 3
        longest = max(after - before for before, after in pairwise(ticks))
    return {"longest": longest}


def returns_in_use(green: Any, dsn: str) -> dict[str, Any]:
    """Return a connection while another greenlet waits for an answer on it."""

    def query(conn: Any) -> Exception | None:
        return raised_by(partial(ask, conn, "SELECT pg_sleep(600)"))

    errors = []
    with ticking(green) as ticks:
        for num_workers in ALL_NUM_WORKERS:
            with ConnectionPool(0, 1, dsn=dsn, timeout=LONG, num_workers=num_workers) as pool:
                conn = pool.getconn()
                greenlet = green.spawn(query, conn)
                wait_until(partial(_is_executing, conn))
                pool.putconn(conn)
                errors.append(isinstance(green.result(greenlet), psycopg2.Error))
                assert_whole(pool)
    return {"errors": errors, "ticks": len(ticks)}


def _is_executing(conn: Any) -> bool:
    """Tell whether it executes something, and not just the BEGIN that psycopg2 sends first."""
    active = conn.get_transaction_status() == ext.TRANSACTION_STATUS_ACTIVE
    return bool(active and conn.status == ext.STATUS_BEGIN)


# -- the server -------------------------------------------------------------------


def restart(green: Any, dsn: str) -> dict[str, Any]:
    """Go on with 20 greenlets while the server restarts."""
    rounds = dict.fromkeys(range(20), 0)
    errors: list[str] = []
    done: list[bool] = []

    def work(number: int) -> None:
        while not done:
            with suppress(psycopg2.OperationalError, psycopg2.InterfaceError):
                with pools[number % 2].conn() as conn:
                    assert ask(conn, "SELECT %s FROM pg_sleep(0.002)", number) == number
                rounds[number] += 1

    def be_at_work(pool: ConnectionPool) -> None:
        try:
            with pool.conn() as conn:
                at_work.append(pool)
                ask(conn, "SELECT pg_sleep(600)")
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            errors.append(type(error).__name__)

    at_work: list[ConnectionPool] = []
    pools = [
        ConnectionPool(0, 3, dsn=dsn, timeout=LONG, num_workers=number)
        for number in ALL_NUM_WORKERS
    ]
    greenlets = [green.spawn(work, number) for number in rounds]
    wait_until(lambda: all(rounds.values()))
    greenlets += [green.spawn(be_at_work, pool) for pool in pools]
    wait_until(lambda: len(at_work) == 2)
    request("restart")
    before = rounds.copy()
    wait_until(lambda: all(rounds[number] > before[number] + 3 for number in rounds))
    done.append(True)
    for greenlet in greenlets:
        green.result(greenlet)
    for pool in pools:
        assert_whole(pool)
        pool.shutdown()
    return {"errors": len(errors)}


def sweep(green: Any, dsn: str) -> dict[str, Any]:
    """Have idle sessions ended; wait until that is noticed, without a borrow."""
    with ConnectionPool(0, 3, dsn=dsn, test_on_borrow=False, health_check_interval=0) as pool:
        assert_whole(pool)
        request("end_sessions")
        wait_until(lambda: pool.get_stats()["connections_lost"] == 3)
        assert_whole(pool)
        return {"watches": pool._supply.watches}


# -- forks ------------------------------------------------------------------------


def fork(green: Any, dsn: str) -> dict[str, Any]:
    """Fork a child, which inherits greenlets that wait for answers, and use both pools."""

    def query_slowly() -> Any:
        with suppress(psycopg2.InterfaceError):  # the child's copy of this greenlet
            return ask(conn, "SELECT 'mine' FROM pg_sleep(0.5)")

    with ConnectionPool(0, 3, dsn=dsn, timeout=LONG) as pool:
        conn = pool.getconn()
        before = conn.info.backend_pid
        query = green.spawn(query_slowly)
        wait_until(lambda: conn.info.transaction_status == 1)
        request("freeze")
        opening = green.spawn(pool.getconn)
        wait_until(lambda: pool.get_stats()["pool_opening"])
        child = os.fork()
        if child == 0:
            time.sleep(0.1)  # gives the greenlets of the parent time to do harm here
            assert_whole(pool)
            sys.exit()
        request("forward")
        assert green.result(query) == "mine"
        assert ask(conn, "SELECT pg_backend_pid()") == before
        assert ask(green.result(opening), "SELECT 1") == 1
        _, status = os.waitpid(child, 0)
        return {"status": status}
