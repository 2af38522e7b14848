"""A connection cut at every byte of a statement and its COMMIT: done once, or the caller is told.

The proxy lets so many bytes pass in one direction, and cuts where the next one wants to.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import psycopg2
import pytest

from psycopg2_pool2 import (
    AsyncConnectionPool,
    AsyncPooledDatabase,
    CommitUncertain,
    ConnectionPool,
    PooledDatabase,
)
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import assert_whole
from tests.support.proxy import Proxy
from tests.support.servers import MakeProxy

Direction = Literal["to_server", "to_client"]
DIRECTIONS: list[Direction] = ["to_server", "to_client"]

INSERT = "INSERT INTO cut VALUES (%s)"
# What goes over the wire before the COMMIT, and with it: message type, length, text, zero byte.
BEFORE_COMMIT = sum(len(sql) + 6 for sql in ("BEGIN", "INSERT INTO cut VALUES (1000)"))
WITH_COMMIT = BEFORE_COMMIT + len("COMMIT") + 6
# More than the server answers to all three.
ANSWERS = 90

_numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def table(server: Server) -> Iterator[None]:
    server.execute("CREATE TABLE cut (n int)")
    yield
    server.execute("DROP TABLE cut")


@pytest.fixture
def through(table: None, proxy: MakeProxy) -> Proxy:
    return proxy()


def arguments(server: Server, through: Proxy) -> dict[str, Any]:
    return {
        **server.params,
        "host": through.host,
        "port": through.port,
        "minconn": 0,
        "maxconn": 2,
        "timeout": 20,
        "test_on_borrow": False,  # its bytes are not those that are counted
        "health_check_interval": 0,
    }


def times_done(server: Server, number: int) -> int:
    done: int = server.execute("SELECT count(*) FROM cut WHERE n = %s", [number])[0][0]
    return done


def cut_at(through: Proxy, direction: Direction, byte: int, reset: bool = True) -> None:
    if direction == "to_server":
        through.cut_after(to_server=byte, reset=reset)
    else:
        through.cut_after(to_client=byte, reset=reset)


def last_cut(direction: Direction) -> int:
    return WITH_COMMIT if direction == "to_server" else ANSWERS


def outcome(server: Server, number: int, insert: Callable[[], object]) -> str:
    """Insert, and see that what the caller is told is true."""
    try:
        insert()
    except CommitUncertain:
        done = times_done(server, number)
        assert done <= 1
        return f"uncertain, done {done}"
    assert times_done(server, number) == 1
    return "done"


def expect(direction: Direction, byte: int, found: str) -> None:
    if direction == "to_server":
        # Without all of COMMIT the server cannot have done it, though the caller cannot know.
        sent_commit = BEFORE_COMMIT <= byte < WITH_COMMIT
        assert found == ("uncertain, done 0" if sent_commit else "done"), byte


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_statement_is_done_once_or_the_caller_is_told(
    server: Server, through: Proxy, direction: Direction, reset: bool
) -> None:
    found: Counter[str] = Counter()
    with ConnectionPool(**arguments(server, through)) as pool:
        database = PooledDatabase(pool)
        for byte in range(last_cut(direction) + 1):
            number = next(_numbers)
            database.execute("SELECT 1")  # there is a connection now, to be cut
            cut_at(through, direction, byte, reset)
            told = outcome(server, number, lambda n=number: database.execute(INSERT, [n]))  # type: ignore[misc]
            expect(direction, byte, told)
            found[told] += 1
            through.cut()
        pool.check()  # on a busy machine the monitor has not seen the last cut yet
        assert_whole(pool)
    assert found["done"]
    assert found["uncertain, done 0" if direction == "to_server" else "uncertain, done 1"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_statement_of_a_task_is_done_once_or_the_caller_is_told(
    server: Server, through: Proxy, direction: Direction
) -> None:
    found: Counter[str] = Counter()

    async def insert_at_every_byte() -> None:
        async with AsyncConnectionPool(**arguments(server, through)) as pool:
            database = AsyncPooledDatabase(pool)
            for byte in range(last_cut(direction) + 1):
                number = next(_numbers)
                await database.execute("SELECT 1")
                cut_at(through, direction, byte)
                told = "done"
                try:
                    await database.execute(INSERT, [number])
                except CommitUncertain:
                    told = f"uncertain, done {times_done(server, number)}"
                assert times_done(server, number) <= 1
                assert told != "done" or times_done(server, number) == 1
                expect(direction, byte, told)
                found[told] += 1
                through.cut()
            assert_whole(pool.pool)

    asyncio.run(insert_at_every_byte())
    assert found["done"]
    assert found["uncertain, done 0" if direction == "to_server" else "uncertain, done 1"]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_transaction_that_is_run_is_done_once_or_the_caller_is_told(
    server: Server, through: Proxy, direction: Direction
) -> None:
    """Of two statements, cut at every third byte."""
    with ConnectionPool(**arguments(server, through)) as pool:
        database = PooledDatabase(pool)
        for byte in range(0, 2 * last_cut(direction), 3):
            number = next(_numbers)

            def insert_two(_: Any, number: int = number) -> None:
                database.execute(INSERT, [number])
                database.execute(INSERT, [-number])

            database.execute("SELECT 1")
            cut_at(through, direction, byte)
            outcome(server, number, lambda fn=insert_two: database.run(fn))  # type: ignore[misc]
            assert times_done(server, number) == times_done(server, -number)
            through.cut()
        pool.check()  # on a busy machine the monitor has not seen the last cut yet
        assert_whole(pool)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_block_is_never_begun_again(server: Server, through: Proxy, direction: Direction) -> None:
    """It raises; and if nothing was raised, it was done."""
    with ConnectionPool(**arguments(server, through)) as pool:
        database = PooledDatabase(pool)
        entered = 0
        cuts = range(0, last_cut(direction) + 1, 3)
        for byte in cuts:
            number = next(_numbers)
            database.execute("SELECT 1")
            cut_at(through, direction, byte)
            try:
                with database.transaction():
                    entered += 1
                    database.execute(INSERT, [number])
            except CommitUncertain:
                assert times_done(server, number) <= 1
            except psycopg2.OperationalError:
                assert times_done(server, number) == 0
            else:
                assert times_done(server, number) == 1
            through.cut()
        assert entered == len(cuts)
        pool.check()  # on a busy machine the monitor has not seen the last cut yet
        assert_whole(pool)
