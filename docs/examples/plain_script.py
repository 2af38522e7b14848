"""A script with a pool, which borrows in both ways.

Run it::

    export DATABASE_URL=postgresql://user@localhost/postgres
    python plain_script.py
"""

from concurrent.futures import ThreadPoolExecutor

from psycopg2_pool2 import ConnectionPool


def square_as_before(pool, number):
    """Borrow and return, as programs for psycopg2.pool do."""
    conn = pool.getconn()
    try:
        with conn.cursor() as cursor:
            cursor.execute("SELECT %s * %s", (number, number))
            return cursor.fetchone()[0]
    finally:
        pool.putconn(conn)


def square(pool, number):
    """Do the same in a block, which returns the connection at its end."""
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT %s * %s", (number, number))
        return cursor.fetchone()[0]


def main():
    """Share four connections among sixteen threads."""
    with (
        ConnectionPool.from_env(maxconn=4, timeout=30) as pool,
        ThreadPoolExecutor(16) as threads,
    ):
        before = threads.map(lambda number: square_as_before(pool, number), range(100))
        after = threads.map(lambda number: square(pool, number), range(100))
        print(sum(before), sum(after))


if __name__ == "__main__":
    main()
