"""When a transaction is tried again, with a connection that does as it is told."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions as ext

from psycopg2_pool2.attempts import attempts
from psycopg2_pool2.errors import CommitUncertain


class FakeConnection:
    """Ends a transaction as the test says."""

    def __init__(self, at_commit: Exception | None = None, closes: bool = False) -> None:
        self.closed = 0
        self.ended: list[str] = []
        self._at_commit = at_commit
        self._closes = closes

    def get_transaction_status(self) -> int:
        return ext.TRANSACTION_STATUS_INTRANS

    def __enter__(self) -> FakeConnection:
        return self

    def __exit__(self, exc_type: Any, *_: Any) -> None:
        self.ended.append("commit" if exc_type is None else "rollback")
        if exc_type is None and self._at_commit is not None:
            self.closed = int(self._closes)
            raise self._at_commit


def error(pgcode: str | None, cls: type[psycopg2.Error] = psycopg2.OperationalError) -> Any:
    return type(cls.__name__, (cls,), {"pgcode": pgcode})("told")


def run(conns: list[FakeConnection], fail: Any = None, **kwargs: Any) -> int:
    """Return how many attempts it took; `fail` is what the work raises."""
    number = 0

    def work(conn: FakeConnection) -> int:
        if fail is not None:
            conn.closed = int(fail == "lost")
            raise error(None if fail == "lost" else fail)
        return number

    for attempt in attempts(**kwargs):
        number += 1
        with attempt:
            return attempt.transact(conns.pop(0), work)
    raise AssertionError


def test_the_first_attempt_that_succeeds_is_the_last() -> None:
    conn = FakeConnection()
    assert run([conn]) == 1
    assert conn.ended == ["commit"]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_loss_before_commit_is_tried_again_so_many_times(retries: int) -> None:
    conns = [FakeConnection() for _ in range(retries + 1)]
    with pytest.raises(psycopg2.OperationalError, match="told"):
        run([*conns], "lost", retries=retries)
    assert all(conn.ended == ["rollback"] for conn in conns)


@pytest.mark.parametrize("pgcode", ["57P01", "57P02", "57P05", "08006"])
def test_a_farewell_is_a_loss(pgcode: str) -> None:
    conns = [FakeConnection() for _ in range(4)]
    with pytest.raises(psycopg2.OperationalError):
        run(conns, pgcode)
    assert not conns


@pytest.mark.parametrize("pgcode", ["40001", "40P01"])
def test_conflicts_are_tried_again_only_where_that_is_wanted(pgcode: str) -> None:
    conns = [FakeConnection() for _ in range(4)]
    with pytest.raises(psycopg2.OperationalError):
        run(conns, pgcode)
    assert len(conns) == 3
    with pytest.raises(psycopg2.OperationalError):
        run(conns, pgcode, retries=2, conflicts=True)
    assert not conns


def test_a_conflict_at_commit_is_definite() -> None:
    first = FakeConnection(at_commit=error("40001"))
    assert run([first, FakeConnection()], conflicts=True) == 2


@pytest.mark.parametrize("lost", [("57P01", False), ("08003", False), (None, True)])
def test_a_loss_at_commit_is_never_tried_again(lost: tuple[str | None, bool]) -> None:
    pgcode, closes = lost
    cause = error(pgcode)
    with pytest.raises(CommitUncertain, match="told") as raised:
        run([FakeConnection(cause, closes), FakeConnection()], conflicts=True)
    assert raised.value.__cause__ is cause


def test_another_error_at_commit_is_definite_and_raised() -> None:
    with pytest.raises(psycopg2.IntegrityError):
        run([FakeConnection(error("23503", psycopg2.IntegrityError))])


def test_pauses_follow_conflicts_only_and_grow() -> None:
    longest = 0.0
    for _ in range(50):
        pauses = []
        for attempt in attempts(9, conflicts=True):
            pauses.append(attempt.pause)
            with attempt, attempt.judging(FakeConnection()):
                if len(pauses) == 10:
                    break
                raise error("40001")
        assert pauses[0] == 0
        assert all(pause <= 0.01 * 2.0 ** (n - 1) for n, pause in enumerate(pauses) if n)
        assert max(pauses) <= 1
        longest = max(longest, *pauses)
    assert longest > 0.5
    pauses = []
    for attempt in attempts(3):
        pauses.append(attempt.pause)
        with attempt, attempt.judging(FakeConnection()):
            if len(pauses) < 4:
                raise error("57P01")
    assert pauses == [0, 0, 0, 0]


def test_an_interrupt_while_the_connection_is_returned_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        for attempt in attempts(3):
            with attempt:
                try:
                    with attempt.judging(FakeConnection()):
                        raise error("57P01")
                finally:
                    raise KeyboardInterrupt


@pytest.mark.parametrize("retries", [-1, True, "3"])
def test_retries_is_a_number(retries: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="retries"):
        run([FakeConnection()], retries=retries)
