"""A FastAPI application, with endpoints of both kinds, that share a pool.

Run it::

    export DATABASE_URL=postgresql://user@localhost/postgres
    psql "$DATABASE_URL" -f schema.sql
    uvicorn fastapi_app:app
"""

from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid4

import psycopg2
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from psycopg2_pool2 import AsyncConnectionPool, CommitUncertain, ConnectionPool, PoolError


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Have a pool as long as the application runs."""
    async with AsyncConnectionPool.from_env(minconn=0, maxconn=8, timeout=10) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


def get_async_pool(request: Request) -> AsyncConnectionPool:
    """Return the pool for endpoints that are coroutines."""
    return request.app.state.pool


def get_pool(request: Request) -> ConnectionPool:
    """Return the same pool for endpoints that run in FastAPI's threads.

    They borrow from it themselves.  A dependency that borrowed for them would
    keep threads waiting for a connection, while those who have one wait for a
    thread.
    """
    return request.app.state.pool.pool


AsyncPool = Annotated[AsyncConnectionPool, Depends(get_async_pool)]
Pool = Annotated[ConnectionPool, Depends(get_pool)]


class Message(BaseModel):
    """What somebody has to say; a client that may have to send it again chooses the id."""

    id: UUID = Field(default_factory=uuid4)
    body: str


def fetch_messages(conn) -> list[str]:
    """Return some messages."""
    with conn.cursor() as cursor:
        cursor.execute("SELECT body FROM message LIMIT 10")
        return [body for (body,) in cursor]


@app.get("/messages")
async def list_messages(pool: AsyncPool) -> list[str]:
    """Answer with some messages; a thread of the pool's fetches them."""
    return await pool.run(fetch_messages)


@app.post("/messages", status_code=201)
def add_message(pool: Pool, message: Message) -> dict[str, str]:
    """Store a message, once."""
    with pool.transaction() as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO message (id, body) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (str(message.id), message.body),
        )
    return {"id": str(message.id)}


@app.exception_handler(CommitUncertain)
async def unknown(_request: Request, _error: Exception) -> JSONResponse:
    """Answer when nobody can know whether it was done; 503 would invite to do it twice."""
    error = "it may have been done or not: repeat it only with the same id"
    return JSONResponse({"error": error}, 500)


@app.exception_handler(psycopg2.OperationalError)
@app.exception_handler(psycopg2.InterfaceError)
@app.exception_handler(PoolError)
async def unavailable(_request: Request, _error: Exception) -> JSONResponse:
    """Answer while there is no connection, or when one was lost: nothing was done."""
    return JSONResponse({"error": "the database is not available, try again"}, 503)
