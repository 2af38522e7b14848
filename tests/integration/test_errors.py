"""Errors: their classes, what they tell, and what they must not tell."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from typing import Any

import psycopg2
import psycopg2.pool
import pytest

import psycopg2_pool2
from psycopg2_pool2 import (
    ConnectionPool,
    HostResolutionError,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolExhausted,
    PoolTimeout,
    PoolUnavailable,
    TooManyRequests,
)
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.dns import DnsServer
from tests.support.pools import MakePool, assert_whole, pool_maker, round_trip, start_waiter
from tests.support.servers import MakeServer, new_server
from tests.support.waiting import in_thread, wait_until

SECRET = "correct-horse-9182"
WRONG = "wrong-battery-7364"


class TestClasses:
    def test_are_all_what_psycopg2_code_catches(self) -> None:
        assert issubclass(PoolError, psycopg2.pool.PoolError)
        assert issubclass(PoolError, psycopg2.Error)
        for error in (
            *(PoolExhausted, PoolTimeout, TooManyRequests, PoolClosed, PoolDeadlock),
            *(PoolUnavailable, HostResolutionError),
        ):
            assert issubclass(error, PoolError)
            assert getattr(psycopg2_pool2, error.__name__) is error
            assert error.__name__ in psycopg2_pool2.__all__

    def test_of_the_server_are_operational_errors_and_those_of_the_pool_are_not(self) -> None:
        for error in (PoolUnavailable, HostResolutionError):
            assert issubclass(error, psycopg2.OperationalError)
        for other in (PoolExhausted, PoolTimeout, TooManyRequests, PoolClosed, PoolDeadlock):
            assert not issubclass(other, psycopg2.OperationalError)

    def test_public_names_are_exported_once(self) -> None:
        names = psycopg2_pool2.__all__
        assert len(names) == len(set(names))
        assert all(hasattr(psycopg2_pool2, name) for name in names)


@pytest.fixture
def nowhere() -> dict[str, Any]:
    """Return where nobody listens."""
    return {"host": "127.0.0.1", "port": free_port(), "user": "postgres", "dbname": "postgres"}


class TestRefusedPort:
    def test_reaches_a_borrower_without_timeout_at_once(
        self, make_any_pool: MakePool, nowhere: dict[str, Any]
    ) -> None:
        pool = make_any_pool(**nowhere)
        started = time.monotonic()
        with pytest.raises(psycopg2.OperationalError, match="refused") as caught:
            pool.getconn()
        assert time.monotonic() - started < 10
        assert "127.0.0.1" in str(caught.value)
        assert str(nowhere["port"]) in str(caught.value)

    def test_is_the_cause_of_a_timeout_that_tells_the_counts(
        self, make_any_pool: MakePool, nowhere: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=3, name="lonely", **nowhere)
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn()  # so that there has been an attempt
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.2)
        assert isinstance(caught.value.__cause__, psycopg2.OperationalError)
        assert "refused" in str(caught.value.__cause__)
        for told in ("lonely", "in use 0", "idle 0", "maxconn 3"):
            assert told in str(caught.value)

    def test_makes_the_breaker_answer_a_borrower_without_timeout(
        self, make_any_pool: MakePool, nowhere: dict[str, Any]
    ) -> None:
        pool = make_any_pool(**nowhere)

        def unavailable() -> PoolUnavailable | None:
            try:
                pool.getconn()
            except PoolUnavailable as error:
                return error
            except psycopg2.OperationalError:
                return None
            raise AssertionError("it lent a connection to nowhere")

        error = wait_until(unavailable)
        assert error is not None
        assert "refused" in f"{error} {error.__cause__}"
        [endpoint] = pool.endpoints()
        assert endpoint.state in ("open", "half-open")
        assert endpoint.failures >= 3

    def test_asks_for_few_attempts_however_many_wait(
        self, make_any_pool: MakePool, nowhere: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=50, **nowhere)
        started = time.monotonic()
        waiters = [in_thread(pool.getconn, timeout=0.5) for _ in range(30)]
        errors = [waiter.error() for waiter in waiters]
        assert all(isinstance(error, PoolTimeout) for error in errors)
        assert all(isinstance(error, psycopg2.OperationalError) for error in errors)
        # Three at once, then at most five a second.
        assert pool.get_stats()["connections_errors"] <= 5 + (time.monotonic() - started) / 0.2

    def test_loses_no_slot(self, make_any_pool: MakePool, make_server: MakeServer) -> None:
        server = make_server()
        server.stop()
        pool = make_any_pool(maxconn=2, **server.params)
        for _ in range(3):
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn()
        server.start()
        round_trip(pool)
        assert_whole(pool)


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Server]:
    """Make a server with the role "careful"; "nemo", which does not exist, needs no password."""
    with new_server(hba=["host all nemo 127.0.0.0/8 trust"]) as server:
        server.execute(f"CREATE ROLE careful LOGIN PASSWORD '{SECRET}'")
        yield server


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def make_strict_pool(strict_server: Server, request: pytest.FixtureRequest) -> Iterator[MakePool]:
    params: dict[str, Any] = {**strict_server.params, "user": "careful", "password": WRONG}
    with pool_maker(**params, num_workers=request.param) as make:
        yield make


class TestRefusedLogins:
    """They reach every borrower at once."""

    @pytest.mark.parametrize("timeout", [0, 30, None])
    def test_a_wrong_password(self, make_strict_pool: MakePool, timeout: float | None) -> None:
        pool = make_strict_pool()
        started = time.monotonic()
        with pytest.raises(
            psycopg2.OperationalError, match=r'password authentication failed for user "careful"'
        ):
            pool.getconn(timeout=timeout)
        assert time.monotonic() - started < 15
        assert pool.stats().in_use == 0

    def test_a_right_password(self, make_strict_pool: MakePool) -> None:
        assert round_trip(make_strict_pool(password=SECRET))

    @pytest.mark.parametrize("timeout", [0, 30])
    def test_an_unknown_database(self, make_any_pool: MakePool, timeout: float) -> None:
        pool = make_any_pool(dbname="atlantis")
        with pytest.raises(psycopg2.OperationalError, match=r"atlantis.* does not exist"):
            pool.getconn(timeout=timeout)

    def test_an_unknown_user(self, make_strict_pool: MakePool) -> None:
        pool = make_strict_pool(user="nemo")
        with pytest.raises(psycopg2.OperationalError, match=r"nemo.* does not exist"):
            pool.getconn(timeout=30)

    def test_are_told_by_psycopg2_and_leave_the_endpoint_alone(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(dbname="atlantis")
        errors: list[str] = []
        for _ in range(10):
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn()
            errors.append(type(caught.value).__name__)
        assert set(errors) == {"OperationalError"}
        assert [endpoint.state for endpoint in pool.endpoints()] == ["open"]

    def test_are_remembered_for_a_moment_so_that_a_crowd_does_not_repeat_them(
        self, make_any_pool: MakePool
    ) -> None:
        pool = make_any_pool(maxconn=20, dbname="atlantis")
        for _ in range(50):
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn()
        # After 1, 2, 4, ... seconds; workers may have had several under way at first.
        assert pool.get_stats()["connections_errors"] <= 6

    def test_reach_all_who_wait(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=20, dbname="atlantis")
        waiters = [start_waiter(pool) for _ in range(10)]
        for waiter in waiters:
            assert "atlantis" in str(waiter.error())

    def test_are_exceptions_of_ones_own(self, make_any_pool: MakePool) -> None:
        """One exception raised in two threads mixes their tracebacks."""
        pool = make_any_pool(maxconn=20, dbname="atlantis")
        errors = []
        for _ in range(3):
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn(timeout=10)
            errors.append(caught.value)
        assert len({id(error) for error in errors}) == 3

    def test_end_when_their_reason_ends(self, strict_server: Server) -> None:
        """A password that is rotated: the next attempt has the new one."""
        passwords = [SECRET, WRONG]
        params = {**strict_server.params, "user": "careful"}
        with ConnectionPool(
            0, 2, connect_params=lambda: {"password": passwords.pop()}, **params
        ) as pool:
            with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
                pool.getconn(timeout=10)
            wait_until(lambda: _borrows(pool))
            assert passwords == []


def _borrows(pool: ConnectionPool) -> bool:
    try:
        round_trip(pool)
    except psycopg2.OperationalError:
        return False
    return True


def everything_said(error: BaseException) -> str:
    return f"{error!s} {error!r} {error.args!r} " + "".join(traceback.format_exception(error))


class TestSecrets:
    def test_are_in_no_message_no_repr_and_no_log(
        self, make_strict_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        pool = make_strict_pool(minconn=1, debug=True)
        said = [repr(pool), str(pool)]
        for timeout in (0, 0.1):
            with pytest.raises(psycopg2.Error) as caught:
                pool.getconn(timeout=timeout)
            said.append(str(caught.value) + repr(caught.value) + repr(caught.value.__cause__))
        said += [repr(pool.endpoints()), repr(pool.get_stats()), caplog.text]
        assert all(WRONG not in text for text in said)

    def test_in_a_url_are_in_no_message_and_no_log(
        self, strict_server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        dsn = f"postgresql://careful:{WRONG}@127.0.0.1:{strict_server.port}/postgres"
        with ConnectionPool(1, 2, dsn=dsn) as pool:
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn(timeout=10)
            assert WRONG not in everything_said(caught.value)
            assert WRONG not in repr(pool) + repr(pool.endpoints()) + caplog.text

    @pytest.mark.parametrize(
        "dsn",
        [
            f"host=127.0.0.1 password={WRONG} nonsense",
            f"host=127.0.0.1 password='{WRONG}",
            f"host=127.0.0.1 nonsense={WRONG}",
            f"host=127.0.0.1 {WRONG}",
            f"postgresql://careful:{WRONG}@[::1/db",
            f"postgresql://careful:{WRONG}@127.0.0.1/db?nonsense=1",
            f"postgresql://careful:{WRONG}%zz@127.0.0.1/db",
        ],
    )
    def test_are_not_quoted_from_a_dsn_that_libpq_cannot_read(self, dsn: str) -> None:
        with pytest.raises(psycopg2.ProgrammingError) as caught:
            ConnectionPool(0, 1, dsn=dsn)
        assert WRONG not in f"{caught.value!s} {caught.value!r} {caught.value.__cause__!r}"
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    def test_of_connect_params_are_in_no_message(
        self, make_strict_pool: MakePool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        pool = make_strict_pool(password=None, connect_params=lambda: {"password": WRONG})
        with pytest.raises(psycopg2.OperationalError) as caught:
            pool.getconn(timeout=10)
        assert "password authentication failed" in str(caught.value)
        assert WRONG not in everything_said(caught.value) + caplog.text


class TestExhaustion:
    def test_tells_the_pools_name_and_counts(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1, name="small")
        conn = pool.getconn()
        with pytest.raises(PoolExhausted) as exhausted:
            pool.getconn()
        with pytest.raises(PoolTimeout) as late:
            pool.getconn(timeout=0.02)
        for error in (exhausted, late):
            for told in ("small", "in use 1", "idle 0", "maxconn 1"):
                assert told in str(error.value)
        assert late.value.__cause__ is None
        pool.putconn(conn)

    def test_begins_as_psycopg2s_own_message(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=1)
        conn = pool.getconn()
        with pytest.raises(psycopg2.pool.PoolError, match=r"^connection pool exhausted"):
            pool.getconn()
        pool.putconn(conn)
        pool.closeall()
        with pytest.raises(psycopg2.pool.PoolError, match=r"^connection pool is closed"):
            pool.getconn()


class TestUnknownHosts:
    def test_are_errors_of_the_name(self, make_any_pool: MakePool, dns_server: DnsServer) -> None:
        resolver = dns_server.resolver()
        pool = make_any_pool(host="no-such-host.invalid", user="postgres", resolver=resolver)
        with pytest.raises(psycopg2.OperationalError, match=r"no-such-host\.invalid"):
            pool.getconn(timeout=0)
