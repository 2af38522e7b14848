"""Servers that refuse logins, for good or for a while, in any language."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import ConnectionPool, PoolTimeout, balance, login_backoff, upkeep
from psycopg2_pool2 import breaker as breaker_module
from psycopg2_pool2 import endpoints as endpoints_module
from psycopg2_pool2.contrib.embedded import Server
from tests.support.german import GermanServer, Latin1Server, new_german_server
from tests.support.pools import (
    MakePool,
    borrow,
    give_back,
    pool_maker,
    round_trip,
    start_waiter,
    wait_for_waiters,
)
from tests.support.rude_server import Accept, AskPassword, Refuse, Reply, RudeServer
from tests.support.servers import new_server
from tests.support.waiting import in_thread, wait_until

LOGGER = "psycopg2_pool2"
PASSWORD = "wrong-battery-7364"
MOST_LOGINS = 4
"""Two, since the words are not clear the first time, and as many questions without a password."""

IN_ENGLISH: dict[str, Reply] = {
    "pg_hba": Refuse("28000", 'no pg_hba.conf entry for host "127.0.0.1", user "u", no encryption'),
    "password": AskPassword(Refuse("28P01", 'password authentication failed for user "u"')),
    "database": Refuse("3D000", 'database "shop" does not exist'),
    "role": Refuse("28000", 'role "u" does not exist'),
}
IN_GERMAN: dict[str, Reply] = {
    "German pg_hba": Refuse("28000", "kein pg_hba.conf-Eintrag für Host »127.0.0.1«"),
    "German password": AskPassword(
        Refuse("28P01", "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen")
    ),
    "German database": Refuse("3D000", "Datenbank »shop« existiert nicht"),
    "German role": Refuse("28000", "Rolle »u« existiert nicht"),
}
IN_OTHER_LANGUAGES: dict[str, Reply] = {
    "French password": AskPassword(
        Refuse("28P01", "authentification par mot de passe échouée pour l'utilisateur « u »")
    ),
    "French database": Refuse("3D000", "la base de données « shop » n'existe pas"),
    "Chinese password": AskPassword(
        Refuse("28P01", '用户 "u" Password 认证失败', severity="致命错误")
    ),
    "Chinese role": Refuse("28000", '角色 "u" 不存在', severity="致命错误"),
    "Spanish password": AskPassword(
        Refuse("28P01", "la autentificación password falló para el usuario «u»")
    ),
    "Spanish pg_hba": Refuse("28000", "no hay una línea en pg_hba.conf para «127.0.0.1»"),
}
BY_PGBOUNCER: dict[str, Reply] = {
    "PgBouncer database": Refuse("08P01", "no such database: shop"),
    "PgBouncer user": AskPassword(Refuse("08P01", "no such user")),
    "PgBouncer password": AskPassword(Refuse("08P01", "password authentication failed")),
    "PgBouncer, in words to come": Refuse("08P01", "the bouncer does not like you"),
}
REFUSALS = {**IN_ENGLISH, **IN_GERMAN, **IN_OTHER_LANGUAGES, **BY_PGBOUNCER}
EACH_REFUSAL = pytest.mark.parametrize("reply", REFUSALS.values(), ids=REFUSALS)
SOME_REFUSALS = pytest.mark.parametrize(
    "reply", [REFUSALS[x] for x in ("password", "German password", "German database")]
)
STARTING = "das Datenbanksystem startet für Sie"
STOPPING = "Verbindung wird abgebrochen aufgrund von Anweisung des Administrators für heute"


def text_of(reply: Reply) -> str:
    """Return what a refusal says in the end."""
    while isinstance(reply, AskPassword):
        reply = reply.then
    assert isinstance(reply, Refuse)
    return reply.message


def params_of(*servers: RudeServer) -> dict[str, Any]:
    return {
        "host": ",".join(server.host for server in servers),
        "port": ",".join(str(server.port) for server in servers),
        "user": "u",
        "dbname": "shop",
        "password": PASSWORD,
    }


@pytest.fixture(params=[3, 0], ids=["workers", "no-workers"])
def num_workers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def make_pool(num_workers: int) -> Iterator[MakePool]:
    with pool_maker(num_workers=num_workers) as make:
        yield make


@pytest.fixture
def rude() -> Iterator[RudeServer]:
    with RudeServer() as server:
        yield server


@pytest.fixture
def good() -> Iterator[list[RudeServer]]:
    with RudeServer() as first, RudeServer() as second:
        yield [first, second]


@pytest.fixture
def long_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a refused login be tried again only long after the test."""
    monkeypatch.setattr(login_backoff, "FIRST_PAUSE", 60.0)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what may pass be tried again ten times as often."""
    monkeypatch.setattr(breaker_module, "PROMPT_RETRY", 0.02)
    for module in (balance, upkeep):
        monkeypatch.setattr(module, "STEP", 0.05)
    for name in ("SHORTEST_LAG", "LONGEST_LAG", "LONGEST_LAG_OF_THE_UNKNOWN"):
        monkeypatch.setattr(endpoints_module, name, 0.05)


def state_at(pool: ConnectionPool, server: RudeServer) -> Any:
    [found] = [e for e in pool.endpoints() if e.port == server.port]
    return found


def open_and_close(pool: ConnectionPool) -> None:
    """Make the pool open a connection."""
    pool.putconn(pool.getconn(timeout=10), close=True)


def connects(pool: ConnectionPool) -> int:
    number: int = pool.get_stats()["connections_num"]
    return number


@EACH_REFUSAL
@pytest.mark.usefixtures("long_backoff", "quick_retries")
class TestOneOfThree:
    def test_fails_no_borrower_and_is_shown(
        self,
        rude: RudeServer,
        good: list[RudeServer],
        make_pool: MakePool,
        reply: Reply,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        rude.decide = lambda login: reply
        pool = make_pool(0, 12, **params_of(rude, *good))
        for timeout in (10, 0):
            held = [pool.getconn(timeout=timeout) for _ in range(6)]
            assert {conn.info.port for conn in held} == {server.port for server in good}
            for conn in held:
                pool.putconn(conn, close=True)
        held = borrow(pool, 4)  # so that the other has too few

        def is_left_alone() -> bool:
            open_and_close(pool)
            return bool(state_at(pool, rude).state == "open")

        wait_until(is_left_alone)
        found = state_at(pool, rude)
        assert found.failures >= 1
        assert found.connections == 0
        assert text_of(reply) in found.last_error
        assert PASSWORD not in repr(pool.endpoints())
        before = rude.logins
        assert before <= MOST_LOGINS
        for _ in range(10):
            open_and_close(pool)
        assert rude.logins == before
        assert [state_at(pool, server).failures for server in good] == [0, 0]
        wait_until(lambda: caplog.records)
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "others serve" in record.getMessage()
        assert text_of(reply) in record.getMessage()
        give_back(pool, held)


@pytest.mark.usefixtures("long_backoff", "quick_retries")
class TestTheOnlyServer:
    @EACH_REFUSAL
    def test_has_a_borrower_told_within_three_logins_and_newcomers_without_any(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        pool = make_pool(0, 4, **params_of(rude))
        with pytest.raises(psycopg2.OperationalError) as caught:
            pool.getconn(timeout=10)
        assert type(caught.value) is psycopg2.OperationalError
        assert text_of(reply) in str(caught.value)
        assert connects(pool) <= 3
        before = rude.logins
        assert before <= MOST_LOGINS
        for timeout in (10, None, 0):
            with pytest.raises(psycopg2.OperationalError) as caught:
                pool.getconn(timeout=timeout)
            assert type(caught.value) is psycopg2.OperationalError
            assert text_of(reply) in str(caught.value)
        assert rude.logins == before
        assert state_at(pool, rude).state == "open"
        assert PASSWORD not in repr(pool.endpoints()) + repr(caught.value)

    @SOME_REFUSALS
    def test_has_all_who_wait_told(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        pool = make_pool(0, 4, **params_of(rude))
        threads = [in_thread(pool.getconn, timeout=15) for _ in range(8)]
        errors = [thread.error() for thread in threads]
        assert {type(error) for error in errors} == {psycopg2.OperationalError}
        assert all(text_of(reply) in str(error) for error in errors)

    @SOME_REFUSALS
    def test_is_left_alone_though_minconn_are_missing(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        pool = make_pool(2, 4, **params_of(rude))

        def is_left_alone() -> bool:
            pool.reap_idle_connections()  # without workers it is this that opens them
            return bool(state_at(pool, rude).state == "open")

        wait_until(is_left_alone)
        wait_until(lambda: not pool.get_stats()["pool_opening"])
        before = rude.logins
        assert before <= 6
        pool.reap_idle_connections()
        with pytest.raises(psycopg2.OperationalError, match="FATAL"):
            pool.getconn(timeout=10)
        assert rude.logins == before

    @SOME_REFUSALS
    def test_is_tried_at_once_after_drain(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        pool = make_pool(0, 4, **params_of(rude))
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn(timeout=10)
        rude.decide = lambda login: Accept()
        pool.drain()
        assert round_trip(pool)
        assert state_at(pool, rude).state == "closed"
        assert state_at(pool, rude).last_error is None

    @SOME_REFUSALS
    def test_is_warned_of_once(
        self,
        rude: RudeServer,
        make_pool: MakePool,
        reply: Reply,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        rude.decide = lambda login: reply
        pool = make_pool(0, 4, name="shop", **params_of(rude))
        for _ in range(5):
            with pytest.raises(psycopg2.OperationalError):
                pool.getconn(timeout=10)
        [record] = [r for r in caplog.records if r.name.startswith(LOGGER)]
        assert record.levelno == logging.WARNING
        assert "shop" in record.getMessage()
        assert text_of(reply) in record.getMessage()
        assert PASSWORD not in caplog.text


@SOME_REFUSALS
@pytest.mark.usefixtures("quick_retries")
def test_a_refusal_is_over_when_the_server_accepts(
    rude: RudeServer, make_pool: MakePool, reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_backoff, "FIRST_PAUSE", 0.05)
    rude.decide = lambda login: reply
    pool = make_pool(0, 4, **params_of(rude))
    with pytest.raises(psycopg2.OperationalError):
        pool.getconn(timeout=10)
    rude.decide = lambda login: Accept()

    def serves() -> bool:
        with contextlib.suppress(psycopg2.OperationalError):
            return bool(round_trip(pool))
        return False

    wait_until(serves)
    assert state_at(pool, rude).failures == 0


NOT_NOW = {
    f"{sqlstate} in {name}": Refuse(sqlstate, text, encoding=encoding)
    for sqlstate, text in (("57P03", STARTING), ("57P01", STOPPING))
    for name, encoding in (("UTF-8", "utf-8"), ("Latin-1", "latin-1"))
}


@pytest.mark.usefixtures("long_backoff", "quick_retries")
class TestRestart:
    @pytest.mark.parametrize("reply", NOT_NOW.values(), ids=NOT_NOW)
    def test_is_waited_for_in_german(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        pool = make_pool(0, 4, **params_of(rude))
        waiters = [start_waiter(pool, timeout=15) for _ in range(3)]
        wait_until(lambda: rude.logins >= 6)
        assert not any(waiter.done for waiter in waiters)
        rude.decide = lambda login: Accept()
        for waiter in waiters:
            pool.putconn(waiter.result())

    @pytest.mark.parametrize("reply", NOT_NOW.values(), ids=NOT_NOW)
    def test_that_ends_between_the_login_and_the_question_is_no_refused_login(
        self, rude: RudeServer, make_pool: MakePool, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply if login.number == 1 else Accept()
        pool = make_pool(0, 4, **params_of(rude))
        assert round_trip(pool)
        assert connects(pool) == 2

    def test_that_lasts_too_long_is_a_timeout_with_the_server_s_words(
        self, rude: RudeServer, make_pool: MakePool
    ) -> None:
        rude.decide = lambda login: Refuse("57P03", STARTING)
        pool = make_pool(0, 4, **params_of(rude))
        with pytest.raises(PoolTimeout) as caught:
            pool.getconn(timeout=0.2)
        assert isinstance(caught.value, psycopg2.OperationalError)
        assert STARTING in str(caught.value)
        assert STARTING in str(caught.value.__cause__)


@pytest.mark.usefixtures("long_backoff", "quick_retries")
@pytest.mark.parametrize("timeout", [10, 0])
@pytest.mark.parametrize("charset", ["latin-1", "koi8-r", "gb18030"])
def test_bytes_that_are_not_utf_8_are_readable(
    rude: RudeServer, make_pool: MakePool, timeout: float, charset: str
) -> None:
    text = {
        "latin-1": "Rolle u existiert nicht für Müller",
        "koi8-r": "роль u не существует",
        "gb18030": "角色 u 不存在",
    }[charset]
    rude.decide = lambda login: Refuse("28000", text, encoding=charset)
    pool = make_pool(0, 4, **params_of(rude))
    with pytest.raises(psycopg2.OperationalError) as caught:
        pool.getconn(timeout=timeout)
    said = str(caught.value)
    assert "FATAL:  " in said
    assert " u " in said
    assert text.encode(charset).decode("utf-8", "replace") in said
    told = state_at(pool, rude).last_error
    assert text.encode(charset).decode("utf-8", "replace") in told


# -- a server that really speaks German ------------------------------------


@pytest.fixture(scope="module", params=[GermanServer, Latin1Server])
def german(request: pytest.FixtureRequest) -> Iterator[GermanServer]:
    hba = ["host all guarded 127.0.0.0/8 scram-sha-256"]
    with new_german_server(request.param, hba) as server:
        server.execute("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        yield server


@pytest.mark.usefixtures("long_backoff")
class TestGermanServer:
    def test_has_a_wrong_password_told_within_three_logins(
        self, german: GermanServer, make_pool: MakePool
    ) -> None:
        params = {**german.params, "user": "guarded", "password": PASSWORD}
        mark = german.mark()
        pool = make_pool(0, 4, **params)
        for _ in range(5):
            with pytest.raises(psycopg2.OperationalError, match="Passwort-Authentifizierung f"):
                pool.getconn(timeout=10)
        wait_until(lambda: "Passwort-Authentifizierung" in log_of(german, mark))
        assert log_of(german, mark).count("Passwort-Authentifizierung") <= 3
        assert connects(pool) <= 3

    def test_is_waited_for_while_it_restarts(
        self, german: GermanServer, make_pool: MakePool
    ) -> None:
        pool = make_pool(0, 4, **german.params)
        try:
            with contextlib.closing(psycopg2.connect(**german.params)):
                assert german.pid is not None
                os.kill(german.pid, signal.SIGTERM)  # it waits for the session
                wait_until(lambda: refuses(german))
                waiter = start_waiter(pool)
                wait_until(lambda: pool.get_stats()["connections_errors"] >= 3)
                assert not waiter.done
            wait_until(lambda: not german.running)
        finally:
            german.start()
        pool.putconn(waiter.result())


def refuses(server: Server) -> bool:
    try:
        psycopg2.connect(**server.params).close()
    except (psycopg2.OperationalError, UnicodeDecodeError):
        return True
    return False


def log_of(server: Server, mark: int) -> str:
    """Return a log that may be in any encoding."""
    with server._log.path.open("rb") as file:
        file.seek(mark)
        return file.read().decode("utf-8", "replace")


# -- growth that is refused ------------------------------------------------


@pytest.fixture(scope="module")
def private() -> Iterator[Server]:
    """Share a server whose roles this module's tests may change."""
    with new_server() as made:
        made.execute(f"CREATE ROLE shop LOGIN PASSWORD '{made.verifier}'")
        made.execute("CREATE DATABASE shop")
        yield made


SPOIL = {
    "NOLOGIN": ("ALTER ROLE shop NOLOGIN", "ALTER ROLE shop LOGIN"),
    "CONNECT revoked": (
        "REVOKE CONNECT ON DATABASE shop FROM public",
        "GRANT CONNECT ON DATABASE shop TO public",
    ),
}


class TestGrowth:
    @pytest.fixture(params=SPOIL)
    def spoil(self, private: Server, request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
        spoiling, mending = SPOIL[request.param]
        yield lambda: private.execute(spoiling)
        private.execute(mending)

    def test_that_is_refused_fails_no_waiter_while_connections_come_back(
        self, private: Server, make_pool: MakePool, spoil: Callable[[], Any]
    ) -> None:
        pool = make_pool(0, 10, **{**private.params, "user": "shop", "dbname": "shop"})
        conns = borrow(pool, 2)
        spoil()
        waiters = [in_thread(round_trip, pool, timeout=20) for _ in range(6)]
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 1)
        wait_for_waiters(pool, 6)
        give_back(pool, conns)
        assert all(waiter.result() for waiter in waiters)
        assert pool.get_stats()["requests_errors"] == 0
        assert pool.stats().idle == 2

    def test_that_is_refused_is_told_when_the_last_connection_is_closed(
        self, private: Server, make_pool: MakePool, spoil: Callable[[], Any]
    ) -> None:
        pool = make_pool(0, 10, **{**private.params, "user": "shop", "dbname": "shop"})
        conns = borrow(pool, 2)
        spoil()
        waiters = [start_waiter(pool) for _ in range(3)]
        wait_until(lambda: pool.get_stats()["connections_errors"] >= 1)
        pool.putconn(conns.pop(), close=True)
        started = time.monotonic()
        assert not any(waiter.done for waiter in waiters)
        pool.putconn(conns.pop(), close=True)
        errors = [waiter.error() for waiter in waiters]
        assert {type(error) for error in errors} == {psycopg2.OperationalError}
        assert time.monotonic() - started < 10, "long before their time is over"
