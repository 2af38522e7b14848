"""What a program does with pools while a tracer is at work; told as JSON.

``python -m tests.support.apps.traced_loans TRACER DSN``
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from psycopg2.extensions import parse_dsn

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool, PooledDatabase
from psycopg2_pool2.contrib import session
from psycopg2_pool2.proxies import real_connection
from tests.support.apps.tracers import TRACERS, Tracer
from tests.support.pools import ask, pid_of
from tests.support.waiting import wait_until


def main(name: str, dsn: str) -> None:
    """Do it all, and print what was seen."""
    tracer = TRACERS[name]()
    seen = of_threads(tracer, dsn) | asyncio.run(of_tasks(tracer, dsn))
    if tracer.fits_frameworks:
        seen |= of_engine(tracer, dsn) | of_django(tracer, dsn)
    print(json.dumps(seen), flush=True)
    os._exit(0)  # not the agents' farewells to servers that do not exist


def of_threads(tracer: Tracer, dsn: str) -> dict[str, Any]:
    """Use a pool that tests and cleans as much as it can."""
    pool = ConnectionPool(0, 1, dsn=dsn, timeout=30, reset="session")
    pool.putconn(pool.getconn())
    tracer.statements()
    with tracer.trace():
        seen = good_loans(pool)
    seen["statements"] = tracer.statements()
    kill_idle(pool, dsn)
    tracer.statements()
    with tracer.trace():
        seen |= bad_loans(pool)
    seen["more statements"] = tracer.statements()
    seen["left"] = [pool.stats().in_use, pool.stats().idle]
    pool.shutdown()
    return seen


def good_loans(pool: ConnectionPool) -> dict[str, Any]:
    """Borrow and return in several ways."""
    seen: dict[str, Any] = {}
    conn = pool.getconn()
    seen["is proxy"] = real_connection(conn) is not conn
    ask(conn, "SELECT 11")
    conn.commit()
    pool.putconn(conn)
    again = pool.getconn()
    seen["same again"] = again is conn
    ask(again, "SELECT 12")
    pool.putconn(again)  # in a transaction
    with pool.transaction() as conn:
        ask(conn, "SELECT 13")
    keyed = pool.getconn("key")
    seen["same by key"] = pool.getconn("key") is keyed
    ask(keyed, "SELECT 14")
    pool.putconn(keyed, "key")
    seen["rows"] = PooledDatabase(pool).execute("SELECT 15")
    return seen


def bad_loans(pool: ConnectionPool) -> dict[str, Any]:
    """Borrow after a loss and after a leak, and return in a roundabout way."""
    seen: dict[str, Any] = {"after a loss": ask_and_return(pool, "SELECT 16")}
    pool.getconn()  # and drop it
    cursor = pool.getconn().cursor()  # and drop the proxy, if it is one
    pool.putconn(cursor.connection)
    with pool.conn() as conn:
        seen["is proxy still"] = real_connection(conn) is not conn
        seen["after a leak"] = ask(conn, "SELECT 17")
    return seen


def ask_and_return(pool: ConnectionPool, sql: str) -> Any:
    """Do it, and refer to the connection no more: tracers keep the frames of their callers."""
    with pool.conn() as conn:
        return ask(conn, sql)


def kill_idle(pool: ConnectionPool, dsn: str) -> None:
    """End the session of the idle connection."""
    with pool.conn() as conn:
        pid = pid_of(conn)
    session.execute({"dsn": dsn}, "SELECT pg_terminate_backend(%s)", [pid])
    alive = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: session.execute({"dsn": dsn}, alive, [pid]) == [(0,)])


async def of_tasks(tracer: Tracer, dsn: str) -> dict[str, Any]:
    """Use an asyncio pool."""
    seen: dict[str, Any] = {}
    async with AsyncConnectionPool(0, 2, dsn=dsn, timeout=30) as pool:
        await pool.putconn(await pool.getconn())
        tracer.statements()
        with tracer.trace():
            seen["run"] = await pool.run(ask, "SELECT 21")
            async with pool.transaction() as conn:
                seen["run on"] = await pool.run_on(conn, ask, "SELECT 22")
        seen["statements of tasks"] = tracer.statements()
    return seen


def of_engine(tracer: Tracer, dsn: str) -> dict[str, Any]:
    """Use SQLAlchemy on a pool."""
    from psycopg2_pool2.contrib.sqlalchemy import create_engine

    pool = ConnectionPool(0, 1, dsn=dsn, timeout=30)
    engine = create_engine(pool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 30")
    tracer.statements()
    with tracer.trace():
        for sql in ("SELECT 31", "SELECT 32"):
            with engine.connect() as connection:
                connection.exec_driver_sql(sql)
    found = {"statements of an engine": tracer.statements(), "of an engine": pool.stats().idle}
    pool.shutdown()
    return found


def of_django(tracer: Tracer, dsn: str) -> dict[str, Any]:
    """Use Django's connection, which is a pool's."""
    import django
    from django.conf import settings

    parameters = parse_dsn(dsn)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "psycopg2_pool2.contrib.django",
                **{key: parameters.get(name, "") for key, name in DJANGO_NAMES.items()},
            }
        }
    )
    django.setup()
    from django.db import connection

    for number in (40, 41, 42):
        if number == 41:
            tracer.statements()
        with tracer.trace(), connection.cursor() as cursor:
            cursor.execute(f"SELECT {number}")
        connection.close()
    return {"statements of Django": tracer.statements()}


DJANGO_NAMES = {"NAME": "dbname", "USER": "user", "HOST": "host", "PORT": "port"}


if __name__ == "__main__":
    main(*sys.argv[1:])
