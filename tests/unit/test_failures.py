"""What errors mean, and how they are told."""

from __future__ import annotations

import psycopg2
import pytest
from psycopg2 import errorcodes, errors

from psycopg2_pool2.failures import Verdict, judge, reissue, says_lost

SERVER = 'connection to server at "127.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('FATAL:  password authentication failed for user "x"', Verdict.FINAL),
        ("fe_sendauth: no password supplied", Verdict.FINAL),
        ('FATAL:  no pg_hba.conf entry for host "::1"', Verdict.FINAL),
        ('FATAL:  role "x" does not exist', Verdict.FINAL),
        ('FATAL:  database "x" does not exist', Verdict.FINAL),
        ('FATAL:  permission denied for database "x"', Verdict.FINAL),
        ('invalid sslmode value: "x"', Verdict.FINAL),
        ("server does not support SSL, but SSL was required", Verdict.FINAL),
        ("FATAL:  unsupported startup parameter: options", Verdict.FINAL),
        ("FATAL:  unsupported startup parameter in options: work_mem", Verdict.FINAL),
        ("FATAL:  Feature not supported: RDS Proxy currently doesn't ...", Verdict.FINAL),
        ("FATAL:  sorry, too many clients already", Verdict.FULL),
        ("FATAL:  remaining connection slots are reserved for superusers", Verdict.FULL),
        ('FATAL:  too many connections for role "x"', Verdict.FULL),
        ("FATAL:  no more connections allowed (max_client_conn)", Verdict.FULL),
        ("timeout expired", Verdict.SILENT),
        ("Connection timed out", Verdict.SILENT),
        ("No route to host", Verdict.SILENT),
        ("Connection refused", Verdict.REFUSED),
        ("FATAL:  the database system is starting up", Verdict.REFUSED),
        ("server closed the connection unexpectedly", Verdict.REFUSED),
        ("etwas ganz anderes", Verdict.REFUSED),
    ],
)
def test_the_server_s_words_are_understood(text: str, verdict: Verdict) -> None:
    assert judge(psycopg2.OperationalError(SERVER + text)) is verdict


def test_an_error_of_the_system_may_pass_and_one_of_the_program_may_not() -> None:
    assert judge(OSError("no more files")) is Verdict.REFUSED
    assert judge(psycopg2.InterfaceError("odd")) is Verdict.REFUSED
    assert judge(ZeroDivisionError()) is Verdict.FINAL
    assert judge(psycopg2.ProgrammingError("bad dsn")) is Verdict.FINAL


def test_a_reissued_error_is_a_copy_without_traceback() -> None:
    try:
        raise psycopg2.OperationalError("gone") from ValueError("why")
    except psycopg2.OperationalError as error:
        original = error
    twin = reissue(original)
    assert twin is not original
    assert type(twin) is type(original)
    assert str(twin) == "gone"
    assert twin.__traceback__ is None
    assert twin.__cause__ is original.__cause__


def test_an_error_that_cannot_be_copied_is_issued_itself() -> None:
    class Stubborn(Exception):
        def __reduce__(self) -> str:
            raise TypeError("no")

    error = Stubborn()
    assert reissue(error) is error


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
