"""Use the installed package a little: run by `python -m tests.wheel`, without pytest."""

from __future__ import annotations

import asyncio
import subprocess
from importlib import metadata, resources

import psycopg2_pool2 as pools


def borrow_and_return() -> None:
    with pools.ConnectionPool.from_env(timeout=10) as pool:
        with pool.transaction() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
        conn = pool.getconn()
        pool.putconn(conn)
        assert pool.stats().in_use == 0


def statements() -> None:
    with pools.PooledDatabase.from_env() as database:
        assert database.fetch_val("SELECT 2") == 2


async def statements_of_tasks() -> None:
    async with pools.AsyncPooledDatabase.from_env(maxconn=2) as database:
        answers = await asyncio.gather(*(database.fetch_val("SELECT 3") for _ in range(5)))
        assert answers == [3] * 5


def command() -> None:
    for arguments in (["--help"], ["doctor"]):
        subprocess.run(["psycopg2_pool2", *arguments], check=True, capture_output=True)


def names() -> None:
    assert pools.__version__ == metadata.version("psycopg2_pool2")
    for name in pools.__all__:
        getattr(pools, name)
    assert resources.files("psycopg2_pool2").joinpath("py.typed").is_file()


names()
borrow_and_return()
statements()
asyncio.run(statements_of_tasks())
command()
