"""A script of greenlets, which share a pool.

Run it::

    export DATABASE_URL=postgresql://user@localhost/postgres
    python gevent_script.py
"""

from gevent import monkey

monkey.patch_all()  # before anything else is imported

import gevent  # noqa: E402
from gevent.socket import wait_read, wait_write  # noqa: E402
from psycopg2 import extensions  # noqa: E402

from psycopg2_pool2 import ConnectionPool  # noqa: E402


def wait(conn):
    """Let other greenlets run while psycopg2 waits for the server."""
    while (state := conn.poll()) != extensions.POLL_OK:
        if state == extensions.POLL_READ:
            wait_read(conn.fileno())
        else:
            wait_write(conn.fileno())


def square(pool, number):
    """Ask the server for a square."""
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT %s * %s", (number, number))
        return cursor.fetchone()[0]


def main():
    """Share five connections among two hundred greenlets; then give up on a slow statement."""
    extensions.set_wait_callback(wait)
    with ConnectionPool.from_env(maxconn=5, timeout=30) as pool:
        greenlets = [gevent.spawn(square, pool, number) for number in range(200)]
        print(sum(greenlet.get() for greenlet in greenlets))
        with gevent.Timeout(0.1, False), pool.conn() as conn, conn.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
        print(pool.stats().in_use)


if __name__ == "__main__":
    main()
