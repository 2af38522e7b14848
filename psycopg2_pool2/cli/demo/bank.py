"""Accounts in a database, the money that is moved between them, and whether it is right."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg2_pool2 import ConnectionPool

from .admin import Admin

ACCOUNTS, BALANCE = 1000, 1000


@dataclass(frozen=True)
class Transfer:
    """One movement of money; its number makes sure that it is not done twice."""

    number: int
    source: int
    target: int
    amount: int


class Bank:
    """Accounts, and the transfers between them, in two tables of the demo's own."""

    def __init__(self, pool: ConnectionPool, name: str) -> None:
        self.pool = pool
        self.accounts = f"{name}_accounts"
        self.transfers = f"{name}_transfers"
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Make the tables, and give everybody the same."""
        with self.pool.transaction() as conn, conn.cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE {self.accounts} (id int PRIMARY KEY, balance bigint NOT NULL);"
                f"CREATE TABLE {self.transfers} (number bigint PRIMARY KEY, source int NOT NULL,"
                " target int NOT NULL, amount bigint NOT NULL);"
                f"INSERT INTO {self.accounts} SELECT n, %s FROM generate_series(1, %s) n",
                [BALANCE, ACCOUNTS],
            )

    def invent(self) -> Transfer:
        """Return a transfer between two accounts."""
        source, target = random.sample(range(1, ACCOUNTS + 1), 2)
        return Transfer(next(self._numbers), source, target, random.randint(1, 100))

    def move(self, conn: Any, transfer: Transfer) -> None:
        """Do a transfer, or nothing if it has been done, in the transaction that is open."""
        changes = [(transfer.source, -transfer.amount), (transfer.target, transfer.amount)]
        with conn.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {self.transfers} VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [transfer.number, transfer.source, transfer.target, transfer.amount],
            )
            # In the order of their numbers, so that two transfers never wait for each other.
            for account, amount in sorted(changes) if cursor.rowcount else ():
                cursor.execute(
                    f"UPDATE {self.accounts} SET balance = balance + %s WHERE id = %s",
                    [amount, account],
                )

    def audit(self) -> tuple[int, int]:
        """Return the money in all accounts, and the number of transfers."""
        with self.pool.conn() as conn, conn.cursor() as cursor:
            cursor.execute(
                f"SELECT (SELECT sum(balance)::bigint FROM {self.accounts}),"
                f" (SELECT count(*) FROM {self.transfers})"
            )
            [(total, transfers)] = cursor.fetchall()
            return total, transfers


@contextlib.contextmanager
def open_bank(pool: ConnectionPool, admin: Admin, name: str, *, keep: bool) -> Iterator[Bank]:
    """Open a bank, and remove its tables at the end, unless the whole server goes then."""
    bank = Bank(pool, name)
    bank.open()
    try:
        yield bank
    finally:
        if not keep:
            # An interrupt may have come before the workers were told to end.
            pool.shutdown(timeout=5)
            admin.execute(f"DROP TABLE {bank.accounts}, {bank.transfers}")
