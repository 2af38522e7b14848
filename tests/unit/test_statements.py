"""Which INSERT may be sent for many rows at once."""

from __future__ import annotations

import pytest

from psycopg2_pool2.statements import _VALUES

ONE_ROW = [
    "INSERT INTO t VALUES (%s, %s)",
    "insert into t (a, b) values (%s, lower(%s))",
    "  INSERT INTO s.t (a) OVERRIDING SYSTEM VALUE VALUES (%s) RETURNING a",
    'INSERT INTO "T" ("values") VALUES (%(a)s) ON CONFLICT DO NOTHING',
    "INSERT INTO t AS x VALUES (%s, now(), DEFAULT)\n",
    "INSERT INTO t VALUES %s",
    "INSERT INTO t (a) VALUES (%s) ON CONFLICT (a) DO NOTHING RETURNING (a, b)",
]
OTHER = [
    "INSERT INTO t VALUES (%s), (%s)",
    "INSERT INTO t SELECT %s",
    "INSERT INTO t SELECT * FROM (VALUES (%s), (2)) v",
    "WITH v AS (VALUES (%s)) INSERT INTO t SELECT * FROM v",
    "INSERT INTO t VALUES (%s) ON CONFLICT (a) DO UPDATE SET a = 1",
    "INSERT INTO t VALUES (%s) RETURNING %s",
    "INSERT INTO t VALUES (%s, ')')",
    "INSERT INTO t -- VALUES (\nVALUES (%s)",
    "UPDATE t SET a = %s",
    "DELETE FROM t WHERE a IN (VALUES (%s))",
    "INSERT INTO t VALUES (%s, (SELECT a FROM t))",
    "INSERT INTO t VALUES (%s); DELETE FROM t WHERE a = %s",
]


@pytest.mark.parametrize("statement", ONE_ROW)
def test_one_tuple_of_values_may(statement: str) -> None:
    assert _VALUES.match(statement)


@pytest.mark.parametrize("statement", OTHER)
def test_anything_else_may_not(statement: str) -> None:
    assert not _VALUES.match(statement)


def test_a_long_statement_does_not_take_for_ever() -> None:
    assert not _VALUES.match("INSERT INTO t VALUES (" + "(" * 5000)
    assert not _VALUES.match("INSERT INTO t VALUES (" + "VALUES (" * 2000)
    assert not _VALUES.match("INSERT INTO t (" + "a, " * 20000 + "b) VALUES ('x')")
