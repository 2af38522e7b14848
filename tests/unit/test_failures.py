"""What errors mean, and how they are told."""

from __future__ import annotations

import psycopg2
import pytest
from psycopg2 import errorcodes, errors

from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.failures import classify, copy_error, mark, says_lost

SERVER = 'connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  password authentication failed for user "x"', FailureKind.LOGIN),
        ("timeout expired", FailureKind.SILENT),
        ("Connection refused", FailureKind.CUT),
        ("FATAL:  the database system is starting up", FailureKind.NOT_NOW),
        ("etwas ganz anderes", FailureKind.CUT),
        ("FATAL:  etwas ganz anderes", None),
    ],
)
def test_words_that_are_known_tell_and_an_answer_in_others_does_not(
    text: str, kind: FailureKind | None
) -> None:
    assert classify(psycopg2.OperationalError(SERVER + text)) is kind


def test_an_error_that_is_not_libpq_s_tells_by_its_class() -> None:
    assert classify(OSError("no more files")) is FailureKind.CUT
    assert classify(psycopg2.InterfaceError("odd")) is FailureKind.CUT
    assert classify(ZeroDivisionError()) is FailureKind.CALLBACK
    assert classify(psycopg2.ProgrammingError("bad dsn")) is FailureKind.MISTAKE


def test_a_statement_s_sqlstate_tells_where_its_words_do_not() -> None:
    class Coded(psycopg2.OperationalError):
        pgcode = "53200"

    assert classify(Coded("Speicher aufgebraucht")) is FailureKind.NOT_NOW


def test_a_mark_says_more_than_the_words_and_stays_on_a_copy() -> None:
    error = psycopg2.OperationalError("Connection refused")
    mark(error, FailureKind.CALLBACK)
    assert classify(copy_error(error)) is FailureKind.CALLBACK


def test_an_error_that_refuses_attributes_is_marked_all_the_same() -> None:
    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    error = Frozen()
    mark(error, FailureKind.LOGIN)
    assert classify(error) is FailureKind.LOGIN


def test_a_copied_error_is_raised_without_traceback() -> None:
    try:
        raise psycopg2.OperationalError("gone") from ValueError("why")
    except psycopg2.OperationalError as error:
        original = error
    twin = copy_error(original)
    assert twin is not original
    assert type(twin) is type(original)
    assert str(twin) == "gone"
    assert twin.__traceback__ is None
    assert isinstance(twin.__cause__, ValueError)
    assert str(twin.__cause__) == "why"


def test_a_copied_error_keeps_no_frame_by_its_causes() -> None:
    def fail() -> None:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise KeyError("second") from error

    try:
        fail()
    except KeyError as error:
        original = error
    original.__cause__.__cause__ = original  # type: ignore[union-attr]  # in a circle
    twin: BaseException | None = copy_error(original)
    causes = 0
    while twin is not None:
        assert twin.__traceback__ is None
        twin = twin.__cause__
        causes += 1
    assert causes > 2


def test_an_error_that_cannot_be_copied_is_issued_itself() -> None:
    class Stubborn(Exception):
        def __reduce__(self) -> str:
            raise TypeError("no")

    error = Stubborn()
    assert copy_error(error) is error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (errors.AdminShutdown, True),
        (errors.CrashShutdown, True),
        (errors.ConnectionException, True),
        (errors.ReadOnlySqlTransaction, False),
        (errors.IdleSessionTimeout, True),
        (errors.QueryCanceled, False),
        (errors.UniqueViolation, False),
    ],
)
def test_sqlstates_tell_whether_the_session_is_lost(
    error: type[psycopg2.Error], lost: bool
) -> None:
    made = type("Coded", (error,), {"pgcode": _code(error)})()
    assert says_lost(made) is lost


def _code(error: type[psycopg2.Error]) -> str:
    names = {name.replace("_", ""): getattr(errorcodes, name) for name in dir(errorcodes)}
    code: str = names[error.__name__.upper()]
    return code


def test_errors_without_a_sqlstate_tell_nothing() -> None:
    assert not says_lost(psycopg2.OperationalError("x"))
    assert not says_lost(ValueError("08000"))
