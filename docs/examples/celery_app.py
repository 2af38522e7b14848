"""A Celery application; each process of its worker has a pool of its own.

Run it, with a broker::

    export DATABASE_URL=postgresql://user@localhost/postgres
    export CELERY_BROKER_URL=redis://localhost
    psql "$DATABASE_URL" -f schema.sql
    celery -A celery_app worker --concurrency 4
    python -c 'import uuid, celery_app; celery_app.add_message.delay(uuid.uuid4(), "Hello")'
"""

import psycopg2
from celery import Celery

from psycopg2_pool2 import ConnectionPool, PoolError

app = Celery("celery_app")
app.config_from_envvar("CELERY_CONFIG_MODULE", silent=True)

# A process does one task at a time.  It is forked from one that has imported this
# module; the pool begins anew there.
pool = ConnectionPool.from_env(minconn=0, maxconn=1, timeout=10)


@app.task(
    autoretry_for=(psycopg2.OperationalError, psycopg2.InterfaceError, PoolError),
    retry_backoff=True,
    acks_late=True,
)
def add_message(message_id, body):
    """Store a message, once: the caller chooses its id, so that a retry does no harm.

    Not even after CommitUncertain, which is an OperationalError.
    """
    with pool.transaction() as conn, conn.cursor() as cursor:
        cursor.execute(
            "INSERT INTO message (id, body) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (str(message_id), body),
        )
