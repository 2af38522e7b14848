"""Blocks of dependencies and streamed answers, in a FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from psycopg2_pool2 import AsyncPooledDatabase, PooledDatabase
from psycopg2_pool2.contrib.embedded import Server
from tests.support.aio import MakeAsyncPool

fastapi = pytest.importorskip("fastapi")
responses = pytest.importorskip("fastapi.responses")

pytestmark = pytest.mark.usefixtures("told")

PID = "SELECT pg_backend_pid()"


class Refused(Exception):
    """An endpoint's error, which rolls back."""


@pytest.fixture
def table(server: Server, app: str) -> Iterator[str]:
    name = f"t_{app.replace('-', '_')}"
    server.execute(f"CREATE TABLE {name} (word text)")
    yield name
    server.execute(f"DROP TABLE {name}")


def count(server: Server, table: str) -> int:
    return int(server.execute(f"SELECT count(*) FROM {table}")[0][0])


def request(app: Any, method: str) -> str:
    """Serve one request; return the body of the answer."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    body: list[bytes] = []
    received: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not received:
            await asyncio.sleep(60)  # the client stays
        return received.pop()

    async def send(message: dict[str, Any]) -> None:
        body.append(message.get("body", b""))

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    return b"".join(body).decode()


def post(endpoint: Callable[..., Any], *dependencies: Callable[..., Any]) -> None:
    """Serve one request that the endpoint may refuse."""
    app = fastapi.FastAPI(dependencies=[fastapi.Depends(each) for each in dependencies])
    app.post("/")(endpoint)
    with contextlib.suppress(Refused):
        request(app, "POST")


class TestSyncDependency:
    def test_whose_statements_are_outside_the_block_is_told_of(
        self, db: PooledDatabase, server: Server, table: str, told: Callable[[], list[str]]
    ) -> None:
        def in_transaction() -> Iterator[None]:
            with db.transaction():
                db.execute("SELECT 1")
                yield

        def endpoint() -> None:
            db.execute(f"INSERT INTO {table} VALUES ('x')")
            raise Refused

        post(endpoint, in_transaction)
        assert count(server, table) == 1  # the language lets nobody connect the two
        (text,) = told()
        assert "in in_transaction" in text
        assert "in endpoint" in text

    def test_that_passes_its_connection_on_works(
        self, db: PooledDatabase, server: Server, table: str, told: Callable[[], list[str]]
    ) -> None:
        def in_transaction() -> Iterator[Any]:
            with db.transaction() as conn:
                yield conn

        depends = fastapi.Depends(in_transaction)

        def endpoint(conn: Any = depends) -> None:
            with conn.cursor() as cursor:
                cursor.execute(f"INSERT INTO {table} VALUES ('x')")
            raise Refused

        post(endpoint)
        assert count(server, table) == 0
        assert told() == []

    def test_has_its_second_half_in_the_block(
        self, db: PooledDatabase, server: Server, table: str
    ) -> None:
        def in_transaction() -> Iterator[None]:
            with contextlib.suppress(Refused), db.transaction() as conn:
                yield
                assert db.fetch_val(PID) == conn.info.backend_pid
                db.execute(f"INSERT INTO {table} VALUES ('x')")
                raise Refused

        def endpoint() -> None:
            pass

        post(endpoint, in_transaction)
        assert count(server, table) == 0


class TestAsyncDependency:
    def test_has_the_statements_of_an_async_endpoint(
        self, make_async_pool: MakeAsyncPool, server: Server, table: str, told: Any
    ) -> None:
        db = AsyncPooledDatabase(make_async_pool(maxconn=5))

        async def in_transaction() -> AsyncIterator[None]:
            async with db.transaction():
                yield

        async def endpoint() -> None:
            await db.execute(f"INSERT INTO {table} VALUES ('x')")
            raise Refused

        post(endpoint, in_transaction)
        assert count(server, table) == 0
        assert told() == []
        assert db.pool.stats().in_use == 0

    def test_has_the_statements_of_a_sync_endpoint(
        self, db: PooledDatabase, server: Server, table: str, told: Any
    ) -> None:
        async def in_transaction() -> AsyncIterator[None]:
            with db.transaction():
                yield

        def endpoint() -> None:
            db.execute(f"INSERT INTO {table} VALUES ('x')")
            raise Refused

        post(endpoint, in_transaction)
        assert count(server, table) == 0
        assert told() == []


def test_streamed_answer_keeps_the_block_of_its_generator(
    db: PooledDatabase, told: Callable[[], list[str]]
) -> None:
    """Each row is fetched by whichever thread is free, in a context of its own."""

    def rows() -> Iterator[str]:
        with db.transaction():
            for _ in range(20):
                yield f"{db.fetch_val(PID)} {db.fetch_val('SELECT pg_current_xact_id()')}\n"

    app = fastapi.FastAPI()
    app.get("/")(lambda: responses.StreamingResponse(rows()))
    lines = request(app, "GET").splitlines()
    assert len(lines) == 20
    assert len(set(lines)) == 1
    assert told() == []
