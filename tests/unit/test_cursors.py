"""The notes of a loan's cursors."""

from __future__ import annotations

from typing import Any

from psycopg2 import extensions as ext

from psycopg2_pool2.cursors import CURSORS, NamedCursor, end, note
from psycopg2_pool2.store import Record


class Thing:
    """What a record can refer to."""


def make_record() -> tuple[Thing, Record]:
    thing = Thing()
    return thing, Record(thing, lambda record: None, 0.0)


def make_cursor(kind: type[ext.cursor] = ext.cursor) -> Any:
    """Return a cursor of no connection."""
    return kind.__new__(kind)


def test_a_cursor_asks_for_attention_unless_something_else_does() -> None:
    _thing, record = make_record()
    kept = [note(record, make_cursor())]
    assert record.attention == CURSORS
    record.attention = True
    kept.append(note(record, make_cursor()))
    assert record.attention is True
    assert end(record)
    assert all(cursor.closed for cursor in kept)
    assert not record.cursors


def test_what_is_no_cursor_is_not_noted() -> None:
    _thing, record = make_record()
    wrapper = Thing()
    assert note(record, wrapper) is wrapper
    assert not record.cursors
    assert not record.attention


def test_a_cursor_noted_twice_ends_once() -> None:
    _thing, record = make_record()
    cursor = make_cursor(NamedCursor)
    for _ in range(2):
        record.cursors.add(cursor)
    assert end(record)
    assert cursor.closed
    cursor.close()
    cursor.__exit__(None, None, None)


def test_names_of_held_cursors_keep_a_loan_from_ending_simply() -> None:
    _thing, record = make_record()
    record.held.add("held")
    assert not end(record)
