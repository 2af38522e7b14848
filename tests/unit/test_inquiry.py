"""What is made of answers in words that are not known: real libpq errors, and a server to ask."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import CircuitBreaker, inquiry
from psycopg2_pool2.endpoints import Endpoint
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.inquiry import Inquiry
from tests.support.fakes import FakeClock
from tests.support.rude_server import Accept, AskPassword, Close, Hang, Refuse, Reply, RudeServer

WRONG_PASSWORD = "Passwort-Authentifizierung für Benutzer »u« fehlgeschlagen"
NO_DATABASE = "Datenbank »shop« existiert nicht"
STARTING = "das Datenbanksystem startet"
FULL = "tut mir leid, schon zu viele Verbindungen"
MISSING_FILE = 'root certificate file "/nowhere/root.crt" does not exist'


@pytest.fixture
def rude() -> Iterator[RudeServer]:
    with RudeServer() as server:
        yield server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def asker(rude: RudeServer, clock: FakeClock) -> Inquiry:
    return Inquiry({k: str(v) for k, v in rude.params.items()}, clock)


def endpoint_of(rude: RudeServer) -> Endpoint:
    return Endpoint(None, rude.host, rude.port, CircuitBreaker(), 3, {})


def failure(text: str, severity: str = "FATAL") -> psycopg2.Error:
    """Return an error as libpq tells what a server said."""
    place = 'connection to server at "127.0.0.1", port 1 failed'
    return psycopg2.OperationalError(f"{place}: {severity}:  {text}\n")


class TestKnownWords:
    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ('password authentication failed for user "u"', FailureKind.LOGIN),
            ("the database system is starting up", FailureKind.NOT_NOW),
            ("sorry, too many clients already", FailureKind.FULL),
        ],
    )
    def test_are_not_asked_about(
        self, rude: RudeServer, asker: Inquiry, text: str, kind: FailureKind
    ) -> None:
        assert asker.kind_of(failure(text), endpoint_of(rude), None) is kind
        assert rude.accepted == 0

    def test_are_those_that_a_mark_stands_for_too(self, rude: RudeServer, asker: Inquiry) -> None:
        error = RuntimeError("configure")
        assert asker.kind_of(error, endpoint_of(rude), None) is FailureKind.CALLBACK
        assert rude.accepted == 0


class TestUnknownWords:
    @pytest.mark.parametrize(
        ("sqlstate", "text", "kind"),
        [
            ("3D000", NO_DATABASE, FailureKind.LOGIN),
            ("57P03", STARTING, FailureKind.NOT_NOW),
            ("57P01", "die Verbindung wird abgebrochen", FailureKind.NOT_NOW),
            ("53300", FULL, FailureKind.FULL),
            ("28000", "kein pg_hba.conf-Eintrag", FailureKind.LOGIN),
        ],
    )
    def test_mean_what_the_server_says_by_sqlstate(
        self, rude: RudeServer, asker: Inquiry, sqlstate: str, text: str, kind: FailureKind
    ) -> None:
        rude.decide = lambda login: Refuse(sqlstate, text)
        assert asker.kind_of(failure(text), endpoint_of(rude), None) is kind

    def test_that_the_server_repeats_are_remembered(self, rude: RudeServer, asker: Inquiry) -> None:
        rude.decide = lambda login: Refuse("3D000", NO_DATABASE)
        for _ in range(3):
            asker.kind_of(failure(NO_DATABASE), endpoint_of(rude), None)
        assert rude.logins == 1

    def test_are_the_same_words_whatever_number_is_in_them(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        rude.decide = lambda login: Refuse("3D000", f"{NO_DATABASE} ({login.number})")
        kinds = {
            asker.kind_of(failure(f"{NO_DATABASE} ({number})"), endpoint_of(rude), None)
            for number in (1, 2, 17)
        }
        assert kinds == {FailureKind.LOGIN}
        assert rude.logins == 1

    @pytest.mark.parametrize("reply", [AskPassword(Refuse("28P01", WRONG_PASSWORD)), Accept()])
    def test_of_a_server_that_takes_logins_mean_a_refused_one_the_second_time(
        self, rude: RudeServer, asker: Inquiry, reply: Reply
    ) -> None:
        rude.decide = lambda login: reply
        place = endpoint_of(rude)
        kinds = [asker.kind_of(failure(WRONG_PASSWORD), place, None) for _ in range(3)]
        assert kinds == [FailureKind.NOT_NOW, FailureKind.LOGIN, FailureKind.LOGIN]
        assert rude.accepted == 2, "the third time they are known"
        assert asker.kind_of(failure(WRONG_PASSWORD), endpoint_of(rude), None) is FailureKind.LOGIN

    def test_of_a_server_that_takes_logins_have_to_be_the_same_twice(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        place = endpoint_of(rude)
        kinds = [asker.kind_of(failure(text), place, None) for text in (STARTING, WRONG_PASSWORD)]
        assert kinds == [FailureKind.NOT_NOW] * 2

    def test_are_forgotten_when_a_login_succeeds_between(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        place = endpoint_of(rude)
        asker.kind_of(failure(WRONG_PASSWORD), place, None)
        asker.succeeded(place)
        assert asker.kind_of(failure(WRONG_PASSWORD), place, None) is FailureKind.NOT_NOW

    def test_of_one_server_say_nothing_of_another_until_they_are_clear(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        first, second = endpoint_of(rude), endpoint_of(rude)
        asker.kind_of(failure(WRONG_PASSWORD), first, None)
        assert asker.kind_of(failure(WRONG_PASSWORD), second, None) is FailureKind.NOT_NOW

    def test_are_not_judged_by_another_refusal_that_may_concern_the_question_only(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        """Where the question is refused in other words it is no answer about the login."""
        rude.decide = lambda login: Refuse("28000", "kein pg_hba.conf-Eintrag")
        place = endpoint_of(rude)
        kinds = [asker.kind_of(failure(WRONG_PASSWORD), place, None) for _ in range(2)]
        assert kinds == [FailureKind.NOT_NOW, FailureKind.LOGIN]

    def test_of_a_server_that_stops_meanwhile_are_not_remembered(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        rude.decide = lambda login: Refuse("57P03", STARTING)
        place = endpoint_of(rude)
        assert asker.kind_of(failure(NO_DATABASE), place, None) is FailureKind.NOT_NOW
        rude.decide = lambda login: Refuse("3D000", NO_DATABASE)
        assert asker.kind_of(failure(NO_DATABASE), place, None) is FailureKind.LOGIN

    def test_of_a_server_that_does_not_answer_any_more_mean_silence(
        self, rude: RudeServer, asker: Inquiry
    ) -> None:
        rude.decide = lambda login: Hang()
        assert asker.kind_of(failure(STARTING), endpoint_of(rude), 0.1) is FailureKind.SILENT

    @pytest.mark.parametrize("reset", [False, True])
    def test_of_a_server_that_hangs_up_mean_a_cut(
        self, rude: RudeServer, asker: Inquiry, reset: bool
    ) -> None:
        rude.decide = lambda login: Close(reset)
        assert asker.kind_of(failure(STARTING), endpoint_of(rude), None) is FailureKind.CUT

    def test_of_a_server_that_has_gone_mean_a_cut(self, rude: RudeServer, asker: Inquiry) -> None:
        rude.close()
        assert asker.kind_of(failure(STARTING), endpoint_of(rude), None) is FailureKind.CUT

    def test_are_kept_within_bounds(self, rude: RudeServer, asker: Inquiry) -> None:
        latest = [""]
        rude.decide = lambda login: Refuse("3D000", latest[0])
        for number in range(inquiry._MOST_REMEMBERED + 10):
            latest[0] = "ab"[number % 2] * (number + 1)
            asker.kind_of(failure(latest[0]), endpoint_of(rude), None)
        assert len(asker._known) == inquiry._MOST_REMEMBERED
        before = rude.logins
        asker.kind_of(failure(latest[0]), endpoint_of(rude), None)
        assert rude.logins == before

    def test_cost_no_more_than_the_time_that_is_left(
        self, rude: RudeServer, asker: Inquiry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[float] = []

        def ask(*args: Any) -> None:
            given.append(args[-1])
            raise TimeoutError

        monkeypatch.setattr("psycopg2_pool2.handshake.ask", ask)
        for seconds in (None, 0.5, 60.0):
            asker.kind_of(failure(STARTING), endpoint_of(rude), seconds)
        assert given == [inquiry.ASK_TIMEOUT, 0.5, inquiry.ASK_TIMEOUT]

    def test_are_asked_about_without_a_password(self, rude: RudeServer) -> None:
        seen: list[dict[str, str]] = []

        def decide(login: Any) -> Reply:
            seen.append(dict(login.parameters))
            return AskPassword(Accept())

        rude.decide = decide
        asker = Inquiry(
            {**{k: str(v) for k, v in rude.params.items()}, "password": "p4ss"}, FakeClock()
        )
        asker.kind_of(failure(WRONG_PASSWORD), endpoint_of(rude), None)
        assert len(seen) == 1
        assert "p4ss" not in str(seen)


def test_a_port_that_nobody_serves_is_not_asked_about(asker: Inquiry) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(host="127.0.0.1", port=port)
    place = Endpoint(None, "127.0.0.1", port, CircuitBreaker(), 3, {})
    assert asker.kind_of(caught.value, place, None) is FailureKind.CUT


class TestMissingFile:
    @pytest.fixture
    def place(self, rude: RudeServer) -> Endpoint:
        return endpoint_of(rude)

    def test_is_waited_for_a_moment_and_told_then(
        self, asker: Inquiry, place: Endpoint, clock: FakeClock
    ) -> None:
        error = psycopg2.OperationalError(MISSING_FILE)
        assert asker.kind_of(error, place, None) is FailureKind.NOT_NOW
        clock.advance(inquiry.MOMENT - 0.01)
        assert asker.kind_of(error, place, None) is FailureKind.NOT_NOW
        clock.advance(0.02)
        assert asker.kind_of(error, place, None) is FailureKind.LOGIN

    def test_is_waited_for_by_a_pool_that_has_connected(
        self, asker: Inquiry, place: Endpoint, clock: FakeClock
    ) -> None:
        error = psycopg2.OperationalError(MISSING_FILE)
        asker.succeeded(place)
        for _ in range(3):
            assert asker.kind_of(error, place, None) is FailureKind.NOT_NOW
            clock.advance(3600)
