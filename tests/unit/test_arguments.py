"""What psycopg2.connect is called with: refused at once, merged each time, kept secret."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.arguments import ConnectArguments
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.failures import classify

MARK = "s3cr3t-MARK"


def arguments(params: Any = None, **kwargs: Any) -> ConnectArguments:
    return ConnectArguments(kwargs, params)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"host": f"u:{MARK}@db"},
        {"dsn": f"postgresql://u:pa@{MARK}@db/x"},
        {"sslmode": f"postgresql://u:{MARK}@db"},
        {"dsn": f"host=a password={MARK}\udce4"},
        {"dsn": f"host=a\0 password={MARK}"},
        {"dsn": f"postgresql://u:pa%{MARK}@db"},
        {"dsn": f"nonsense {MARK}"},
        {"hostaddr": "127.0.0.1", "nonsense": MARK},
    ],
)
def test_what_is_misplaced_is_refused_and_not_told(kwargs: dict[str, Any]) -> None:
    with pytest.raises(psycopg2.ProgrammingError) as caught:
        arguments(**kwargs)
    assert MARK not in repr(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("dsn", [0, False, [], {}, 5, object()])
def test_a_dsn_is_text(dsn: Any) -> None:
    with pytest.raises(TypeError, match="dsn must be a str"):
        arguments(dsn=dsn)


def test_one_database_has_one_name() -> None:
    with pytest.raises(TypeError, match="database and dbname"):
        arguments(database="a", dbname="a")
    assert arguments(database="a").parameters == {"dbname": "a"}


def test_libpq_s_error_loses_the_password_where_it_is_quoted_and_keeps_its_meaning() -> None:
    known = arguments(password="database", sslpassword="hunter2")
    error = known.censored(
        psycopg2.OperationalError('FATAL:  database "x" does not exist, nor "hunter2" at all\n')
    )
    assert str(error) == 'FATAL:  database "x" does not exist, nor "***" at all'
    assert type(error) is psycopg2.OperationalError
    assert classify(error) is FailureKind.LOGIN


def test_a_callback_s_error_is_told_without_the_passwords_of_the_last_connects() -> None:
    tokens = iter(["token-1", "token-2"])
    known = arguments(lambda: {"password": next(tokens)}, password=MARK)
    for _ in range(2):
        known.merged({})
    assert known.tell(ValueError(f"{MARK} token-1 token-2 x")) == "*** *** *** x"


def test_where_to_is_the_endpoint_s_unless_connect_params_says_it() -> None:
    where = {"host": "db", "hostaddr": "10.0.0.1", "port": 5}
    kwargs, _ = arguments(lambda: {"user": "me"}, host="db").merged(where)
    assert kwargs == {"host": "db", "hostaddr": "10.0.0.1", "port": 5, "user": "me"}
    kwargs, _ = arguments(lambda: {"host": "other"}, port=7).merged(where)
    assert kwargs == {"host": "other", "port": 7}


@pytest.mark.parametrize(
    "given", [None, ["x"], {5: 1}, {"connection_factory": None}, {"async_": True}]
)
def test_connect_params_returns_keywords(given: Any) -> None:
    with pytest.raises(TypeError, match="connect_params must") as caught:
        arguments(lambda: given).merged({})
    assert classify(caught.value) is FailureKind.MISTAKE


def test_what_connect_params_raises_may_be_mended() -> None:
    def fail() -> Any:
        raise LookupError("the token service")

    with pytest.raises(LookupError) as caught:
        arguments(fail).merged({})
    assert classify(caught.value) is FailureKind.CALLBACK
