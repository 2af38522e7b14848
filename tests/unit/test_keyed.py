"""One key, one connection while it is in use."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from psycopg2_pool2.keyed import KeyedLoans
from psycopg2_pool2.timing import Deadline
from tests.support.fakes import FakeClock
from tests.support.waiting import in_thread, wait_until


class Conn:
    """A connection with a record that refers to it weakly, as the store's do."""

    def __init__(self) -> None:
        reference = weakref.ref(self)

        class Record(SimpleNamespace):
            def __call__(self) -> Any:
                return reference()

        self.pool_record = Record(key=None, attention=False)


def forever() -> Deadline:
    return Deadline(None, FakeClock(), 1000.0)


def refuse() -> Conn:
    raise AssertionError("nothing is to be borrowed")


@pytest.mark.parametrize("key", [0, "", None, ("a", 1), "key"])
def test_the_same_key_gives_the_same_connection(key: Any) -> None:
    loans = KeyedLoans(lambda record: True)
    conn = loans.get(key, Conn, forever())
    assert loans.get(key, refuse, forever()) is conn
    assert loans.get("another", Conn, forever()) is not conn


def test_after_its_return_the_key_is_free() -> None:
    loans = KeyedLoans(lambda record: True)
    conn = loans.get("key", Conn, forever())
    assert conn.pool_record.attention, "or nobody would call end()"
    loans.end(conn.pool_record)
    assert conn.pool_record.key is None
    assert loans.get("key", Conn, forever()) is not conn


def test_a_connection_known_by_its_key_alone_stays() -> None:
    loans = KeyedLoans(lambda record: True)
    record = loans.get("key", Conn, forever()).pool_record
    assert loans.get("key", refuse, forever()) is record()
    loans.end(record)
    assert record() is None


def test_the_end_of_an_old_loan_does_not_end_a_new_one() -> None:
    loans = KeyedLoans(lambda record: True)
    old = loans.get("key", Conn, forever())
    record = old.pool_record
    loans.end(record)
    new = loans.get("key", Conn, forever())
    record.key = "key"
    loans.end(record)
    assert loans.get("key", refuse, forever()) is new


def test_what_is_no_longer_in_use_is_not_given_out_by_its_key() -> None:
    """1. A thread returns it. 2. It is interrupted before it frees the key."""
    lent: set[int] = set()
    loans = KeyedLoans(lambda record: id(record) in lent)
    old = loans.get("key", Conn, forever())
    new = loans.get("key", Conn, forever())
    assert new is not old
    lent.add(id(new.pool_record))
    assert loans.get("key", refuse, forever()) is new


def test_what_came_back_before_it_was_looked_at_is_not_given_out_by_its_key() -> None:
    """1. The key is in use. 2. Its connection is returned, and lent to another. 3. It is found."""
    loans = KeyedLoans(lambda record: True)
    old = loans.get("key", Conn, forever())

    class AfterItsReturn(Deadline):
        def slice(self, most: float) -> float:
            loans.end(old.pool_record)
            return super().slice(most)

    new = loans.get("key", Conn, AfterItsReturn(None, FakeClock(), 1000.0))
    assert new is not old


def test_a_failed_borrow_frees_the_key() -> None:
    loans = KeyedLoans(lambda record: True)
    with pytest.raises(KeyboardInterrupt):
        loans.get("key", _interrupt, forever())
    assert isinstance(loans.get("key", Conn, forever()), Conn)


def _interrupt() -> Conn:
    raise KeyboardInterrupt


def test_of_several_who_ask_at_once_the_first_borrows_and_the_others_get_the_same() -> None:
    loans = KeyedLoans(lambda record: True)
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Conn:
        begun.set()
        assert go_on.wait(10)
        return Conn()

    first = in_thread(loans.get, "key", slowly, forever())
    assert begun.wait(10)
    others = [in_thread(loans.get, "key", refuse, forever()) for _ in range(5)]
    go_on.set()
    conn = first.result()
    assert all(other.result() is conn for other in others)


def test_if_the_first_fails_the_next_one_tries() -> None:
    loans = KeyedLoans(lambda record: True)
    begun, go_on = threading.Event(), threading.Event()

    def fail() -> Conn:
        begun.set()
        assert go_on.wait(10)
        raise ValueError("the first fails")

    first = in_thread(loans.get, "key", fail, forever())
    assert begun.wait(10)
    second = in_thread(loans.get, "key", Conn, forever())
    go_on.set()
    assert isinstance(first.error(), ValueError)
    assert isinstance(second.result(), Conn)


def test_who_waits_for_the_first_waits_until_his_own_deadline() -> None:
    loans = KeyedLoans(lambda record: True)
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Conn:
        begun.set()
        assert go_on.wait(10)
        return Conn()

    first = in_thread(loans.get, "key", slowly, forever())
    assert begun.wait(10)
    assert loans.get("key", refuse, Deadline(0, FakeClock(), 1000.0)) is None
    go_on.set()
    assert isinstance(first.result(), Conn)
    wait_until(lambda: first.done)
