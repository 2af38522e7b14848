"""What clears a session: which errors mean that DISCARD ALL is not known, and which pass."""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
import psycopg2.errors
import pytest

from psycopg2_pool2.session_reset import DISCARD_ALL, ResetRefused, SessionReset


class Session:
    """Notes what it is sent, and answers some statements with errors."""

    def __init__(self, answers: dict[str, type[psycopg2.Error]], *, dies: bool = False) -> None:
        self.sent: list[str] = []
        self.alive = True
        self._answers = answers
        self._dies = dies

    def execute(self, sql: str) -> None:
        self.sent.append(sql)
        error = self._answers.get(sql)
        if error is not None:
            self.alive = not self._dies
            raise _with_code(error)


def _with_code(kind: type[psycopg2.Error]) -> psycopg2.Error:
    # pgcode is read-only; a class of the same name has the one that the server would send.
    [code] = (code for code, known in _CODES.items() if known is kind)
    error: psycopg2.Error = type(kind.__name__, (kind,), {"pgcode": code})("no")
    return error


_CODES: dict[str, type[psycopg2.Error]] = {
    "0A000": psycopg2.errors.FeatureNotSupported,
    "42601": psycopg2.errors.SyntaxError,
    "57014": psycopg2.errors.QueryCanceled,
    "55P03": psycopg2.errors.LockNotAvailable,
    "42501": psycopg2.errors.InsufficientPrivilege,
}


def send(reset: SessionReset, session: Session) -> list[str]:
    """Clear a session; return what was sent."""
    try:
        reset.send(session.execute, lambda: session.alive)
    finally:
        sent, session.sent = session.sent, []
    return sent


@pytest.mark.parametrize(
    "passing", [psycopg2.errors.QueryCanceled, psycopg2.errors.LockNotAvailable]
)
def test_passing_error_changes_nothing(passing: type[psycopg2.Error]) -> None:
    reset = SessionReset()
    with pytest.raises(passing):
        send(reset, Session({DISCARD_ALL: passing}))
    assert send(reset, Session({})) == [DISCARD_ALL]


@pytest.mark.parametrize("where", [DISCARD_ALL, "UNLISTEN *"])
def test_lost_connection_changes_nothing(where: str) -> None:
    reset = SessionReset()
    refusal = psycopg2.errors.SyntaxError
    with pytest.raises(refusal):
        send(reset, Session({DISCARD_ALL: refusal, where: refusal}, dies=True))
    assert send(reset, Session({})) == [DISCARD_ALL]


def test_parts_that_are_known_are_sent_together_afterwards() -> None:
    reset = SessionReset()
    session = Session(
        {
            DISCARD_ALL: psycopg2.errors.SyntaxError,
            "UNLISTEN *": psycopg2.errors.FeatureNotSupported,
        }
    )
    assert len(send(reset, session)) == 11
    [together] = send(reset, session)
    assert "RESET ALL; DEALLOCATE ALL; SELECT pg_advisory_unlock_all()" in together


REFUSALS: list[dict[str, Callable[..., psycopg2.Error]]] = [
    {"RESET ALL": psycopg2.errors.FeatureNotSupported},  # nothing clears the settings
    {"RESET ROLE": psycopg2.errors.InsufficientPrivilege},  # which does not say that it is unknown
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: next(iter(refusal)))
def test_session_that_cannot_be_cleared_is_refused_without_asking_again(
    refusal: dict[str, type[psycopg2.Error]],
) -> None:
    reset = SessionReset()
    session = Session({DISCARD_ALL: psycopg2.errors.SyntaxError, **refusal})
    for _ in range(2):
        with pytest.raises(ResetRefused, match="each loan costs a login"):
            send(reset, session)
    assert session.sent == []
    with pytest.raises(ResetRefused):
        send(reset, session)
