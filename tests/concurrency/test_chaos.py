"""Transfers through everything that can happen to a server, for seconds; longer in tests/stress."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.bank import Bank, Ledger, Transfer
from tests.support.census import Tally
from tests.support.chaos import SERVER_SETTINGS, new_world, seed_of_the_run
from tests.support.middlebox import Middlebox
from tests.support.pools import ask
from tests.support.servers import MakeServer, new_server
from tests.support.waiting import in_thread

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]


@pytest.mark.parametrize("num_workers", [3, 0], ids=["workers", "no-workers"])
def test_no_transfer_is_lost_and_none_is_done_twice(
    make_server: MakeServer, num_workers: int
) -> None:
    server = make_server(**SERVER_SETTINGS)
    with new_world(server, seed_of_the_run(1), num_workers=num_workers) as world:
        world.run()


class Books:
    """A bank in which one transfer was acknowledged and one has failed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.bank = Bank(server)
        self.done, self.failed = Transfer(1, 10, 20, 5), Transfer(2, 30, 40, 5)
        self.ledger = Ledger(acknowledged={1}, failed={2})
        self.apply(self.done)

    def apply(self, transfer: Transfer) -> None:
        with contextlib.closing(psycopg2.connect(**self.server.params)) as conn, conn:
            assert Bank.apply(conn, transfer)


@pytest.fixture(scope="module")
def bank_server() -> Iterator[Server]:
    with new_server() as server:
        yield server


@pytest.fixture
def books(bank_server: Server) -> Books:
    return Books(bank_server)


class TestTheAudit:
    """It is not blind."""

    def test_passes_books_that_are_right(self, books: Books) -> None:
        books.bank.audit(books.ledger)

    def test_passes_what_is_uncertain_done_or_not(self, books: Books) -> None:
        books.ledger = Ledger(acknowledged={1}, uncertain={2, 3})
        books.apply(books.failed)
        books.bank.audit(books.ledger)

    def test_sees_what_was_done_twice(self, books: Books) -> None:
        books.apply(books.done)
        with pytest.raises(AssertionError, match="done twice"):
            books.bank.audit(books.ledger)

    def test_sees_what_was_acknowledged_and_lost(self, books: Books) -> None:
        books.ledger.acknowledged.add(3)
        with pytest.raises(AssertionError, match="acknowledged and lost"):
            books.bank.audit(books.ledger)

    def test_sees_what_failed_and_was_done(self, books: Books) -> None:
        books.apply(books.failed)
        with pytest.raises(AssertionError, match="failed and done"):
            books.bank.audit(books.ledger)

    def test_sees_what_nobody_asked_for(self, books: Books) -> None:
        books.apply(Transfer(3, 50, 60, 5))
        with pytest.raises(AssertionError, match="nobody's"):
            books.bank.audit(books.ledger)

    def test_sees_half_a_transfer(self, books: Books) -> None:
        books.server.execute("UPDATE account SET balance = balance + 5 WHERE id = 10")
        with pytest.raises(AssertionError, match="total"):
            books.bank.audit(books.ledger)

    def test_sees_a_transfer_that_went_elsewhere(self, books: Books) -> None:
        books.server.execute("UPDATE account SET balance = balance - 5 WHERE id = 20")
        books.server.execute("UPDATE account SET balance = balance + 5 WHERE id = 21")
        with pytest.raises(AssertionError, match="balances"):
            books.bank.audit(books.ledger)


class TestTheMiddlebox:
    @pytest.fixture
    def middlebox(self, bank_server: Server) -> Iterator[Middlebox]:
        with Middlebox((bank_server.host, bank_server.port)) as made:
            yield made

    @pytest.fixture
    def flow(self, middlebox: Middlebox) -> Iterator[Any]:
        with contextlib.closing(psycopg2.connect(**middlebox.params)) as conn:
            yield conn

    def test_lets_nothing_through_on_forgotten_flows_until_it_remembers(
        self, middlebox: Middlebox, flow: Any
    ) -> None:
        assert middlebox.forget_flows() == 1
        asking = in_thread(ask, flow)
        with contextlib.closing(psycopg2.connect(**middlebox.params)) as another:
            assert ask(another) == 1
        assert not asking.done
        middlebox.forward()
        assert asking.result() == 1

    def test_knows_which_session_is_whose(self, middlebox: Middlebox, flow: Any) -> None:
        with socket.socket(fileno=os.dup(flow.fileno())) as duplicate:
            port = duplicate.getsockname()[1]
        seen = ask(flow, "SELECT inet_client_port()")
        assert middlebox.server_ports({port}) == {seen}
        assert middlebox.server_ports({seen}) == set()


class TestTheTally:
    def test_counts_from_the_connect_to_the_end(self, bank_server: Server) -> None:
        tally = Tally()
        factory = tally.factory()

        def connect(**changes: Any) -> Any:
            return psycopg2.connect(**{**bank_server.params, **changes}, connection_factory=factory)

        first = connect()
        first.close()
        second = connect()
        del second
        with pytest.raises(psycopg2.OperationalError):
            connect(dbname="nowhere")
        assert tally.most == 1
        both = [connect(), connect()]
        assert tally.most == len(both)
        for conn in both:
            conn.close()
