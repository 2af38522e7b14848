"""A script with peewee, whose connections are borrowed from a pool.

Run it::

    export DATABASE_URL=postgresql://user@localhost/postgres
    psql "$DATABASE_URL" -f schema.sql
    python peewee_app.py
"""

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor

from peewee import Model, PostgresqlDatabase, TextField, UUIDField

from psycopg2_pool2 import ConnectionPool


class PooledPsycopg2(PostgresqlDatabase):
    """A peewee database: to connect is to borrow, to close is to give back."""

    def __init__(self, pool, **options):
        super().__init__("the pool knows which", **options)
        self.pool = pool
        # peewee would hold this lock while one thread waits for a connection, and
        # keep out the one that gives it back.  What it guards is each thread's own.
        self._lock = contextlib.nullcontext()

    def _connect(self):
        conn = self.pool.getconn()
        conn.autocommit = True  # peewee sends BEGIN and COMMIT itself
        return conn

    def _close(self, conn):
        self.pool.putconn(conn)


database = PooledPsycopg2(ConnectionPool.from_env(minconn=0, maxconn=4, timeout=30))


class Message(Model):
    """A message."""

    id = UUIDField(primary_key=True, default=uuid.uuid4)
    body = TextField()

    class Meta:
        """Where messages are."""

        database = database


def add_messages(bodies):
    """Store messages: all of them, or none."""
    with database.connection_context(), database.atomic():
        return [Message.create(body=body).id for body in bodies]


def count_messages(ids):
    """Tell how many of them are stored."""
    with database.connection_context():
        return Message.select().where(Message.id.in_(ids)).count()


def main():
    """Share four connections among sixteen threads."""
    with database.pool, ThreadPoolExecutor(16) as threads:
        added = list(threads.map(add_messages, [["Hello", "Goodbye"]] * 100))
        print(sum(threads.map(count_messages, added)))


if __name__ == "__main__":
    main()
