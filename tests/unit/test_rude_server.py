"""The harness's rude server does what other tests rely on, with the real libpq."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psycopg2
import pytest

from tests.support.rude_server import (
    Accept,
    AskPassword,
    Close,
    Hang,
    Login,
    Refuse,
    Reply,
    RudeServer,
    Send,
    Wait,
)
from tests.support.waiting import in_thread, wait_until


def test_psycopg2_logs_in_and_queries() -> None:
    with RudeServer() as rude, contextlib.closing(psycopg2.connect(**rude.params)) as conn:
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
            cursor.execute("SHOW in_hot_standby")
            assert cursor.fetchone() == ("off",)
            assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        conn.rollback()
        assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
        assert rude.statements == ["BEGIN", "SELECT 1", "SHOW in_hot_standby", "ROLLBACK"]
        assert (rude.accepted, rude.logins, rude.connections) == (1, 1, 1)


def test_each_login_is_decided() -> None:
    seen: list[Login] = []

    def decide(login: Login) -> Reply:
        seen.append(login)
        return Refuse("57P03", "Moment") if login.number == 1 else Accept({"server_version": "9"})

    with RudeServer(decide) as rude:
        with pytest.raises(psycopg2.OperationalError, match="FATAL:  Moment"):
            psycopg2.connect(**rude.params, application_name="me")
        with contextlib.closing(psycopg2.connect(**rude.params)) as conn:
            assert conn.server_version == 90000
        assert [login.number for login in seen] == [1, 2]
        assert (seen[0].user, seen[0].database) == ("postgres", "postgres")
        assert seen[0].parameters["application_name"] == "me"


def test_statements_are_answered_as_told() -> None:
    answers: dict[str, Reply | str] = {
        "SELECT name": "Müller",
        "SELECT bad": Refuse("42703", "no such column", "ERROR"),
        "SELECT end": Refuse("57P01", "terminating", "FATAL"),
    }
    with (
        RudeServer(on_statement=answers.get) as rude,
        contextlib.closing(psycopg2.connect(**rude.params)) as conn,
        conn.cursor() as cursor,
    ):
        cursor.execute("SELECT name")
        assert cursor.fetchone() == ("Müller",)
        with pytest.raises(psycopg2.errors.UndefinedColumn):
            cursor.execute("SELECT bad")
        assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INERROR
        conn.rollback()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT end")
        assert conn.closed


@pytest.mark.parametrize(
    "reply",
    [
        Close(),
        Close(reset=True),
        Send(b"HTTP/1.1 400 Bad Request\r\n\r\n", Close()),
        Send(b"E\0\0", Close(), pause=0.001),
        AskPassword(Refuse("28P01", "falsch", "FATALE", "latin-1")),
        Wait(0.001, Close()),
    ],
)
def test_a_login_can_fail_in_other_ways(reply: Reply) -> None:
    with (
        RudeServer(lambda login: reply) as rude,
        pytest.raises(psycopg2.OperationalError),
    ):
        psycopg2.connect(**rude.params, password="x")


def test_an_accepted_login_may_ask_for_a_password_and_take_its_time() -> None:
    reply = AskPassword(Wait(0.001, Accept()))
    with RudeServer(lambda login: reply) as rude:
        psycopg2.connect(**rude.params, password="x").close()


@pytest.mark.parametrize("reply", [Hang(), Wait(3600, Accept())])
def test_closing_ends_what_hangs(reply: Reply) -> None:
    with RudeServer(lambda login: reply) as rude:
        connecting = in_thread(psycopg2.connect, **rude.params)
        wait_until(lambda: rude.logins == 1)
    assert isinstance(connecting.error(), psycopg2.OperationalError)
    rude.close()  # harmless


def test_connections_can_be_cut() -> None:
    with RudeServer() as rude, contextlib.closing(psycopg2.connect(**rude.params)) as conn:
        assert rude.cut() == 1
        with pytest.raises(psycopg2.OperationalError), conn.cursor() as cursor:
            cursor.execute("SELECT 1")
        wait_until(lambda: rude.connections == 0)


def test_the_port_can_be_used_again() -> None:
    with RudeServer() as rude:
        psycopg2.connect(**rude.params).close()
    with RudeServer(port=rude.port) as again:
        psycopg2.connect(**again.params).close()


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_work(tmp_path: Path, abstract: bool) -> None:
    host = f"@rude-{tmp_path.name}" if abstract else str(tmp_path)
    with RudeServer(host=host) as rude:
        psycopg2.connect(**rude.params).close()
        assert rude.logins == 1
