"""Blocks that end elsewhere or out of order, and statements beside a suspended one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import AsyncPooledDatabase, PooledDatabase, scopes
from psycopg2_pool2.contrib.embedded import Server
from tests.support.aio import MakeAsyncPool, in_loop
from tests.support.pools import MakePool
from tests.support.waiting import in_thread

pytestmark = pytest.mark.usefixtures("told")

SERIES = "SELECT generate_series(1, 3)"


class Undo(Exception):
    """Rolls a block back."""


class Notes:
    """A table that is written to in a block; what is left of it is counted."""

    def __init__(self, server: Server, table: str) -> None:
        self._server = server
        self._table = table
        self.insert = f"INSERT INTO {table} VALUES ('x')"

    def count(self) -> int:
        return int(self._server.execute(f"SELECT count(*) FROM {self._table}")[0][0])


@pytest.fixture
def notes(server: Server, app: str) -> Iterator[Notes]:
    table = f"t_{app.replace('-', '_')}"
    server.execute(f"CREATE TABLE {table} (word text)")
    yield Notes(server, table)
    server.execute(f"DROP TABLE {table}")


Told = Callable[[], list[str]]
Block = Callable[[PooledDatabase], Any]
BLOCKS = pytest.mark.parametrize(
    "block", [PooledDatabase.connection, PooledDatabase.transaction], ids=["conn", "transaction"]
)


def rows(db: PooledDatabase, block: Block) -> Iterator[Any]:
    with block(db):
        yield from db.execute(SERIES)


def in_rolled_back_block(db: PooledDatabase, notes: Notes, between: Callable[[], object]) -> None:
    with contextlib.suppress(Undo), db.transaction():
        db.execute(notes.insert)
        between()
        db.execute(notes.insert)
        raise Undo


@BLOCKS
class TestEndElsewhere:
    def test_of_a_generator_in_another_thread(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        generator = rows(db, block)
        in_thread(lambda: next(generator)).result()
        in_rolled_back_block(db, notes, generator.close)  # type: ignore[attr-defined]
        assert notes.count() == 0
        assert db.pool.stats().in_use == 0

    def test_by_the_garbage_collector(self, db: PooledDatabase, notes: Notes, block: Block) -> None:
        class Node:
            pass

        def begin() -> None:
            node: Any = Node()
            node.me, node.generator = node, rows(db, block)
            next(node.generator)

        gc.disable()
        try:
            in_thread(begin).result()
            in_rolled_back_block(db, notes, gc.collect)
        finally:
            gc.enable()
        assert notes.count() == 0
        assert db.pool.stats().in_use == 0

    def test_of_an_exit_stack(self, db: PooledDatabase, notes: Notes, block: Block) -> None:
        stack = ExitStack()
        in_thread(lambda: stack.enter_context(block(db))).result()
        in_rolled_back_block(db, notes, stack.close)
        assert notes.count() == 0

    def test_of_a_copied_context(self, db: PooledDatabase, notes: Notes, block: Block) -> None:
        entered = block(db)
        contextvars.copy_context().run(entered.__enter__)
        in_rolled_back_block(db, notes, lambda: entered.__exit__(None, None, None))
        assert notes.count() == 0

    def test_of_another_databases_block(
        self, db: PooledDatabase, notes: Notes, block: Block, make_pool: MakePool
    ) -> None:
        generator = rows(PooledDatabase(make_pool(maxconn=2)), block)
        in_thread(lambda: next(generator)).result()
        in_rolled_back_block(db, notes, generator.close)  # type: ignore[attr-defined]
        assert notes.count() == 0

    def test_of_a_pools_block(self, db: PooledDatabase, notes: Notes, block: Block) -> None:
        pool = db.pool
        entered = pool.conn() if block is PooledDatabase.connection else pool.transaction()
        in_thread(entered.__enter__).result()
        in_rolled_back_block(db, notes, lambda: entered.__exit__(None, None, None))
        assert notes.count() == 0
        assert pool.stats().in_use == 0

    def test_commits_what_was_done_in_it(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        def generate() -> Iterator[None]:
            with block(db) as conn:
                db.execute(notes.insert)
                yield
                db.execute(notes.insert)  # in a context that knows nothing of the block
                conn.commit()

        generator = generate()
        in_thread(lambda: next(generator)).result()
        assert notes.count() == 0
        in_thread(lambda: list(generator)).result()
        assert notes.count() == 2

    def test_rolls_back_what_was_done_in_it(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        def generate() -> Iterator[None]:
            with block(db):
                db.execute(notes.insert)
                yield
                with db.transaction():
                    db.execute(notes.insert)
                raise Undo

        generator = generate()
        in_thread(lambda: next(generator)).result()
        with db.transaction():  # whose the second half is not
            db.execute(notes.insert)
            with pytest.raises(Undo):
                next(generator)
        # In a connection block the second is a transaction of its own, or part of an open one.
        assert notes.count() == 1


@BLOCKS
class TestOrder:
    def test_block_goes_on_when_a_generators_that_began_before_ends(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        generator = rows(db, block)
        next(generator)
        in_rolled_back_block(db, notes, generator.close)  # type: ignore[attr-defined]
        assert notes.count() == 0

    def test_block_goes_on_when_a_generators_that_began_in_it_ends(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        def between() -> None:
            first, second = rows(db, block), rows(db, block)
            next(first)
            next(second)
            db.execute(notes.insert)
            first.close()  # type: ignore[attr-defined]
            second.close()  # type: ignore[attr-defined]

        with contextlib.suppress(psycopg2.Error):  # the savepoints cross each other
            in_rolled_back_block(db, notes, between)
        assert notes.count() == 0

    def test_generators_end_in_any_order(
        self, db: PooledDatabase, notes: Notes, block: Block
    ) -> None:
        for _ in range(5):
            a, b, c = rows(db, block), rows(db, block), rows(db, block)
            assert next(a) == next(b) == next(c) == (1,)
            assert db.pool.stats().in_use == 3  # each has its own
            for generator in (b, a, c):
                generator.close()  # type: ignore[attr-defined]
                db.execute(notes.insert)
        assert notes.count() == 15
        assert scopes._current.get() is None
        assert not scopes._generators

    def test_of_two_databases_is_no_matter(
        self, db: PooledDatabase, notes: Notes, block: Block, make_pool: MakePool
    ) -> None:
        other = PooledDatabase(make_pool(maxconn=2))
        outer, inner = block(other), block(other)
        outer.__enter__()
        with contextlib.suppress(Undo), db.transaction():
            db.execute(notes.insert)
            inner.__enter__()
            outer.__exit__(None, None, None)
            db.execute(notes.insert)
            with contextlib.suppress(psycopg2.InterfaceError):  # the outer one has ended
                inner.__exit__(None, None, None)
            db.execute(notes.insert)
            raise Undo
        assert notes.count() == 0


class TestInner:
    def test_raises_when_the_block_around_it_has_ended(
        self, db: PooledDatabase, notes: Notes
    ) -> None:
        outer = db.transaction()
        outer.__enter__()
        with pytest.raises(psycopg2.InterfaceError, match="ended"), db.transaction():
            db.execute(notes.insert)
            outer.__exit__(Undo, Undo(), None)
            with pytest.raises(psycopg2.InterfaceError, match="ended"):
                db.execute(notes.insert)
            with db.pool.conn():  # the same connection, which the savepoint leaves alone
                pass
        assert notes.count() == 0

    def test_error_is_its_own_when_the_block_around_it_has_ended(self, db: PooledDatabase) -> None:
        outer = db.connection()
        outer.__enter__()
        with pytest.raises(Undo), db.transaction():
            outer.__exit__(None, None, None)
            raise Undo


class TestSuspendedGenerator:
    @BLOCKS
    @pytest.mark.parametrize("by_loop", [True, False])
    def test_takes_no_statement_of_its_caller(
        self, db: PooledDatabase, notes: Notes, told: Told, block: Block, by_loop: bool
    ) -> None:
        if by_loop:
            for _ in rows(db, block):
                db.execute(notes.insert)
                break
        else:
            generator = rows(db, block)
            next(generator)
            db.execute(notes.insert)
            generator.close()  # type: ignore[attr-defined]
        assert notes.count() == 1
        (text,) = told()
        assert "test_takes_no_statement_of_its_caller" in text
        assert "in rows" in text

    def test_is_told_once(self, db: PooledDatabase, notes: Notes, told: Told) -> None:
        for _ in range(3):
            for _ in rows(db, PooledDatabase.transaction):
                db.execute(notes.insert)
        assert notes.count() == 9
        assert len(told()) == 1

    def test_takes_no_block_of_its_caller(self, db: PooledDatabase, notes: Notes) -> None:
        for _ in rows(db, PooledDatabase.transaction):
            with db.transaction():
                db.execute(notes.insert)
            assert notes.count() == 1
            break

    def test_in_a_block_is_told_of_too(self, db: PooledDatabase, notes: Notes, told: Told) -> None:
        with db.transaction():
            for _ in rows(db, PooledDatabase.transaction):
                db.execute(notes.insert)
                break  # the savepoint is undone
        assert notes.count() == 0
        assert "undone with that block" in told()[0]

    def test_has_its_own_statements(self, db: PooledDatabase, notes: Notes, told: Told) -> None:
        def write() -> Iterator[None]:
            with db.transaction():
                for _ in range(3):
                    db.execute(notes.insert)
                    yield
                raise Undo

        with contextlib.suppress(Undo):
            list(write())
        assert notes.count() == 0
        assert told() == []


class TestContextManager:
    @staticmethod
    @contextmanager
    def mine(db: PooledDatabase) -> Iterator[None]:
        with db.transaction():
            yield

    def test_of_the_programs_has_the_statements_of_its_body(
        self, db: PooledDatabase, notes: Notes, told: Told
    ) -> None:
        with contextlib.suppress(Undo), self.mine(db):
            db.execute(notes.insert)
            with self.mine(db), ExitStack() as stack:
                stack.enter_context(self.mine(db))
                db.execute(notes.insert)
            raise Undo
        assert notes.count() == 0
        assert told() == []

    def test_in_a_generator_is_the_generators(
        self, db: PooledDatabase, notes: Notes, told: Told
    ) -> None:
        def generate() -> Iterator[None]:
            with self.mine(db):
                yield

        for _ in generate():
            db.execute(notes.insert)
            break
        assert notes.count() == 1
        assert len(told()) == 1

    def test_that_a_framework_drives_has_the_statements_of_its_body(
        self, db: PooledDatabase, notes: Notes, told: Told
    ) -> None:
        def fixture() -> Iterator[None]:
            with db.transaction():
                yield

        def start(generator: Iterator[None]) -> Iterator[None]:
            next(generator)
            return generator

        def finish(generator: Any) -> None:
            with contextlib.suppress(Undo):
                generator.throw(Undo())

        generator, other = start(fixture()), start(fixture())
        db.execute(notes.insert)
        finish(other)
        db.execute(notes.insert)
        finish(generator)
        assert notes.count() == 0
        assert told() == []

    def test_that_ends_in_another_context_is_told_of(
        self, db: PooledDatabase, notes: Notes, told: Told
    ) -> None:
        entered = self.mine(db)
        contextvars.copy_context().run(entered.__enter__)
        db.execute(notes.insert)  # which is not part of it
        entered.__exit__(None, None, None)
        (text,) = told()
        assert "in mine" in text
        assert "test_that_ends_in_another_context_is_told_of" in text

    def test_whose_connection_is_passed_on_is_not_told_of(
        self, db: PooledDatabase, notes: Notes, told: Told
    ) -> None:
        entered = db.transaction()
        conn = contextvars.copy_context().run(entered.__enter__)
        with conn.cursor() as cursor:
            cursor.execute(notes.insert)
        entered.__exit__(None, None, None)
        assert notes.count() == 1
        assert told() == []


@pytest.fixture
def tested(db: PooledDatabase) -> Iterator[None]:
    with contextlib.suppress(Undo), db.transaction():
        yield
        raise Undo


@pytest.mark.usefixtures("tested")
def test_a_fixtures_block_has_the_statements_of_the_test(
    db: PooledDatabase, notes: Notes, told: Told
) -> None:
    db.execute("CREATE TEMPORARY TABLE mine (n int)")
    assert db.pool.stats().in_use == 1
    assert db.execute("SELECT * FROM mine") == []  # on the same connection
    assert told() == []


class TestTasks:
    @staticmethod
    async def rows(db: AsyncPooledDatabase, *, nested: bool = False) -> AsyncIterator[Any]:
        async with db.transaction():
            for row in await db.execute(SERIES):
                yield row

    def test_block_that_ends_in_another_takes_nothing_away(
        self, make_async_pool: MakeAsyncPool, notes: Notes
    ) -> None:
        @in_loop
        async def test() -> None:
            db = AsyncPooledDatabase(make_async_pool(maxconn=3))
            generator: Any = self.rows(db)
            await asyncio.create_task(generator.__anext__())
            with contextlib.suppress(Undo):
                async with db.transaction():
                    await db.execute(notes.insert)
                    await generator.aclose()
                    await db.execute(notes.insert)
                    raise Undo
            assert db.pool.stats().in_use == 0

        test()
        assert notes.count() == 0

    def test_suspended_generator_takes_no_statement_of_its_caller(
        self, make_async_pool: MakeAsyncPool, notes: Notes, told: Told
    ) -> None:
        @in_loop
        async def test() -> None:
            db = AsyncPooledDatabase(make_async_pool(maxconn=3))
            async with contextlib.aclosing(self.rows(db)) as found:  # type: ignore[type-var]
                async for _ in found:
                    await db.execute(notes.insert)
                    break

        test()
        assert notes.count() == 1
        assert len(told()) == 1

    def test_context_manager_has_the_statements_of_its_body(
        self, make_async_pool: MakeAsyncPool, notes: Notes, told: Told
    ) -> None:
        @in_loop
        async def test() -> None:
            db = AsyncPooledDatabase(make_async_pool(maxconn=3))
            with contextlib.suppress(Undo):
                async with asynccontextmanager(self.rows)(db):
                    await db.execute(notes.insert)
                    raise Undo

        test()
        assert notes.count() == 0
        assert told() == []

    def test_callbacks_of_a_block_find_it_ended(
        self, make_async_pool: MakeAsyncPool, db: PooledDatabase, notes: Notes
    ) -> None:
        @in_loop
        async def test() -> None:
            loop = asyncio.get_running_loop()
            called = loop.create_future()
            with contextlib.suppress(Undo), db.transaction():
                loop.call_soon(lambda: called.set_result(db.execute(notes.insert)))
                raise Undo
            await called

        test()
        assert notes.count() == 1


def test_a_thread_in_a_copied_context_whose_inner_block_outlives_the_outer_is_told(
    db: PooledDatabase, notes: Notes
) -> None:
    inside, ended = threading.Event(), threading.Event()

    def work() -> None:
        with db.transaction():
            inside.set()
            assert ended.wait(20)
            db.execute(notes.insert)

    with db.connection():
        context = contextvars.copy_context()
        done = in_thread(lambda: context.run(work))
        assert inside.wait(20)
    ended.set()
    with pytest.raises(psycopg2.InterfaceError, match="ended"):
        done.result()
    assert notes.count() == 0
