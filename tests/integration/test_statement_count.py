"""What the server is sent by borrows and returns that have nothing to clean."""

from __future__ import annotations

from tests.support.pools import MakePool, borrow, fill
from tests.support.servers import StatementLog

CYCLES = 1000


def test_clean_cycles_without_test_send_nothing(
    make_any_pool: MakePool, statement_log: StatementLog
) -> None:
    pool = make_any_pool(test_on_borrow=False)
    fill(pool, 2)
    statement_log.clear()
    for _ in range(CYCLES):
        pool.putconn(pool.getconn())
    assert statement_log.statements() == []


def test_each_cycle_with_the_default_test_sends_one_statement(
    make_any_pool: MakePool, statement_log: StatementLog
) -> None:
    pool = make_any_pool()
    fill(pool, 2)
    statement_log.clear()
    for _ in range(CYCLES):
        pool.putconn(pool.getconn())
    assert statement_log.statements() == ["SELECT 1"] * CYCLES


def test_idle_connections_are_sent_nothing_while_others_are_in_use(
    make_pool: MakePool, statement_log: StatementLog
) -> None:
    pool = make_pool(test_on_borrow=False)
    fill(pool, 4)
    held = borrow(pool, 2)
    statement_log.clear()
    for _ in range(CYCLES):
        pool.putconn(pool.getconn())
    assert statement_log.statements() == []
    for conn in held:
        pool.putconn(conn)
