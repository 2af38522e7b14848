"""A server that sends without an end: it is hung up on before it fills the memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from psycopg2_pool2 import ConnectionPool, PoolError
from psycopg2_pool2.floods import MOST_BYTES
from tests.support.processes import run_program
from tests.support.rude import RudeServer, rude_server
from tests.support.waiting import in_thread, wait_until

MOST_SENT = MOST_BYTES + 256 * 2**20
"""Far more than a busy machine sends and takes in between two looks."""
TOLD = "the server sent more than 32 MB where a short answer was expected"


@pytest.fixture
def flooding() -> Iterator[RudeServer]:
    with rude_server("x" * 1000, greets=True, floods=True) as server:
        yield server


def test_a_test_ends_when_the_server_sends_notices_without_an_end(
    flooding: RudeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg2_pool2")
    with ConnectionPool(0, 1, dsn=flooding.dsn, test_timeout=600) as pool:
        borrowing = in_thread(pool.getconn, timeout=600)
        wait_until(lambda: flooding.floods_sent)
        pool.shutdown()
        with pytest.raises(PoolError):
            borrowing.result()
    assert flooding.floods_sent[0] < MOST_SENT
    assert TOLD in caplog.text


WITHOUT_ANOTHER_THREAD = """
import logging, sys
import psycopg2_pool2
logging.basicConfig(level="DEBUG")
pool = psycopg2_pool2.ConnectionPool(0, 1, dsn=sys.argv[1], test_timeout=600, num_workers=0)
try:
    pool.getconn(timeout=5)
except psycopg2_pool2.PoolError as error:
    print(error)
"""


def test_a_process_of_one_thread_hangs_up_by_itself(flooding: RudeServer) -> None:
    ended = run_program(WITHOUT_ANOTHER_THREAD, flooding.dsn)
    assert TOLD in ended.errors, ended
    assert flooding.floods_sent[0] < MOST_SENT
