"""The cost of naming the tenant in each loan: one short transaction, in several ways.

Run it: ``python -m tests.bench.tenants``.  All ways take turns in one run; times are
those of the first way, which says nothing, as 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.servers import new_server

LOOK = "SELECT body FROM note WHERE id = 7"
LOCAL = "SELECT set_config('app.tenant', %s, true)"
SESSION = "SELECT set_config('app.tenant', %s, false)"
ROUNDS = 40
LOANS = 50

Loan = Callable[[ConnectionPool], None]


def execute(conn: Any, *statements: str) -> None:
    with conn.cursor() as cursor:
        for sql in statements:
            cursor.execute(sql, ["ann"] if "%s" in sql else None)
        cursor.fetchall()


def plainly(pool: ConnectionPool) -> None:
    with pool.transaction() as conn:
        execute(conn, LOOK)


def with_a_local_setting(pool: ConnectionPool) -> None:
    with pool.transaction() as conn:
        execute(conn, LOCAL, LOOK)


def with_a_local_setting_in_one_statement(pool: ConnectionPool) -> None:
    with pool.transaction() as conn:
        execute(conn, f"{LOCAL}; {LOOK}")


def with_a_setting_of_the_session(pool: ConnectionPool) -> None:
    with pool.transaction() as conn:
        execute(conn, SESSION, LOOK)


def reset_all(conn: Any) -> None:
    conn.autocommit = True
    with conn.cursor() as cursor:
        cursor.execute("RESET ALL; RESET ROLE")


def configure(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.execute("SET app.tenant TO ''")


WAYS: dict[str, tuple[Loan, dict[str, Any]]] = {
    "no tenant": (plainly, {}),
    "set_config(..., true), a statement of its own": (with_a_local_setting, {}),
    "the same, sent together with the first statement": (
        with_a_local_setting_in_one_statement,
        {},
    ),
    'set_config(..., false) and reset="session"': (
        with_a_setting_of_the_session,
        {"reset": "session"},
    ),
    "the same, with a configure of one statement": (
        with_a_setting_of_the_session,
        {"reset": "session", "configure": configure},
    ),
    "set_config(..., false) and reset=reset_all": (
        with_a_setting_of_the_session,
        {"reset": reset_all},
    ),
}


def measure(server: Server) -> dict[str, list[float]]:
    """Return the seconds for a loan in each way, in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ConnectionPool(1, 1, timeout=10, **server.params, **options))
            for name, (_, options) in WAYS.items()
        }
        for number in range(ROUNDS + 2):
            for name, (loan, _) in WAYS.items():
                began = time.perf_counter()
                for _ in range(LOANS):
                    loan(pools[name])
                if number > 1:  # else it was to warm up
                    seconds[name].append((time.perf_counter() - began) / LOANS)
    return seconds


def main() -> None:
    """Print a line for each way."""
    with new_server() as server:
        server.execute("CREATE TABLE note (id int PRIMARY KEY, body text)")
        server.execute("INSERT INTO note SELECT n, n FROM generate_series(1, 1000) AS n")
        seconds = measure(server)
    base = statistics.median(seconds["no tenant"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"{name:55} {median / base:5.2f}  ({median * 1e6:.0f} µs)")


if __name__ == "__main__":
    main()
