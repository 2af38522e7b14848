"""A bank behind a pool: its books, those who move money there, and what each of them knows."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server

ACCOUNTS = 200
BALANCE = 1000

_nonces = itertools.count(1)


@dataclass(frozen=True)
class Transfer:
    """An amount that goes from one account to another, under a number of its own."""

    nonce: int
    source: int
    target: int
    amount: int


class Bank:
    """Accounts, and a journal that is written in the same transaction as the balances.

    The journal has no unique key: what is applied twice shall be seen, not refused.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        server.execute(
            "DROP TABLE IF EXISTS account, journal;"
            "CREATE TABLE account AS SELECT id, %s AS balance FROM generate_series(1, %s) id;"
            "ALTER TABLE account ADD PRIMARY KEY (id);"
            "CREATE TABLE journal (nonce int, source int, target int, amount int)",
            [BALANCE, ACCOUNTS],
        )

    @staticmethod
    def apply(conn: Any, transfer: Transfer) -> bool:
        """Do it, in the transaction that is open; tell whether the answers are those asked for."""
        with conn.cursor() as cursor:
            cursor.execute(
                "INSERT INTO journal VALUES (%s, %s, %s, %s) RETURNING nonce",
                [transfer.nonce, transfer.source, transfer.target, transfer.amount],
            )
            answers = [cursor.fetchone()[0]]
            changes = [(transfer.source, -transfer.amount), (transfer.target, transfer.amount)]
            for account, change in sorted(changes):  # in one order, so that nobody deadlocks
                cursor.execute(
                    "UPDATE account SET balance = balance + %s WHERE id = %s RETURNING id",
                    [change, account],
                )
                answers.append(cursor.fetchone()[0])
        return answers == [transfer.nonce, *sorted([transfer.source, transfer.target])]

    def audit(self, ledger: Ledger) -> None:
        """Compare the books with themselves and with what the borrowers know."""
        journal = self._server.execute("SELECT nonce, source, target, amount FROM journal")
        balances = {row[0]: row[1] for row in self._server.execute("SELECT * FROM account")}
        booked = Counter(row[0] for row in journal)
        twice = {nonce for nonce, times in booked.items() if times > 1}
        assert sum(balances.values()) == ACCOUNTS * BALANCE, "the total has changed"
        assert balances == _balances_after(journal), "the balances are not what the journal says"
        assert_none(twice, "done twice")
        assert_none(ledger.acknowledged - booked.keys(), "acknowledged and lost")
        assert_none(ledger.failed & booked.keys(), "failed and done")
        assert_none(booked.keys() - ledger.acknowledged - ledger.uncertain, "nobody's")


def assert_none(found: Collection[object], what: str) -> None:
    """See that nothing was found that is wrong."""
    assert not found, f"{what}: {found}"


def _balances_after(journal: list[tuple[Any, ...]]) -> dict[int, int]:
    balances = dict.fromkeys(range(1, ACCOUNTS + 1), BALANCE)
    for _, source, target, amount in journal:
        balances[source] -= amount
        balances[target] += amount
    return balances


@dataclass
class Ledger:
    """What a borrower knows of his transfers, and the errors he saw, by the stage of the loan."""

    acknowledged: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    uncertain: set[int] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    borrow_errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """How many transfers were tried to the end."""
        return len(self.acknowledged) + len(self.failed) + len(self.uncertain)

    def note(self, stage: str, nonce: int, error: psycopg2.Error) -> None:
        """Note an error and what it means for the transfer."""
        told = " ".join(str(error).split())
        self.errors[f"{stage}: {type(error).__name__}"] += 1
        if stage == "borrow":
            self.borrow_errors.append(f"{type(error).__name__}: {told}")
        (self.uncertain if stage == "commit" else self.failed).add(nonce)

    def add(self, other: Ledger) -> None:
        """Take in what another borrower knows."""
        self.acknowledged |= other.acknowledged
        self.failed |= other.failed
        self.uncertain |= other.uncertain
        self.errors += other.errors
        self.borrow_errors += other.borrow_errors
        self.wrong += other.wrong


class Worker:
    """A thread that moves money from account to account until it is told that it is over."""

    def __init__(self, pool: ConnectionPool, seed: int, held: set[int]) -> None:
        self.ledger = Ledger()
        self._pool = pool
        self._draw = random.Random(seed)
        self._held = held  # by all workers together

    def run(self, over: threading.Event) -> None:
        """Go on until it is over."""
        while not over.is_set():
            self.move()

    def move(self) -> None:
        """Move an amount, and note what came of it."""
        source, target = self._draw.sample(range(1, ACCOUNTS + 1), 2)
        transfer = Transfer(next(_nonces), source, target, self._draw.randrange(1, 100))
        stage = "borrow"
        try:
            with self._pool.transaction() as conn:
                stage = "statement"
                with self._holding(conn):
                    if not Bank.apply(conn, transfer):
                        self.ledger.wrong.append(f"another's answer to {transfer}")
                stage = "commit"
        except psycopg2.Error as error:
            self.ledger.note(stage, transfer.nonce, error)
        else:
            self.ledger.acknowledged.add(transfer.nonce)

    @contextlib.contextmanager
    def _holding(self, conn: connection) -> Iterator[None]:
        """See that nobody else has the connection, and that it came clean."""
        if id(conn) in self._held:
            self.ledger.wrong.append("a connection was lent twice")
        if not conn.closed and conn.get_transaction_status() != TRANSACTION_STATUS_IDLE:
            self.ledger.wrong.append("a connection was lent inside a transaction")
        self._held.add(id(conn))
        try:
            yield
        finally:
            self._held.discard(id(conn))
