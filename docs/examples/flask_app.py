"""A Flask application; a request has one connection, from its first use to its end.

Run it, for trying out and in earnest::

    export DATABASE_URL=postgresql://user@localhost/postgres
    psql "$DATABASE_URL" -f schema.sql
    flask --app flask_app run
    gunicorn --workers 2 --threads 8 'flask_app:create_app()'
"""

import uuid

import psycopg2
from flask import Blueprint, Flask, current_app, g, request

from psycopg2_pool2 import CommitUncertain, ConnectionPool, PoolError

messages = Blueprint("messages", __name__)


def get_conn():
    """Return the connection of this request; the first call borrows it."""
    if "conn" not in g:
        g.conn = current_app.extensions["pool"].getconn()
    return g.conn


def return_conn(_error):
    """Give the connection of this request back; what is not committed is rolled back."""
    conn = g.pop("conn", None)
    if conn is not None:
        current_app.extensions["pool"].putconn(conn)


@messages.get("/messages")
def list_messages():
    """Answer with some messages."""
    with get_conn().cursor() as cursor:
        cursor.execute("SELECT body FROM message LIMIT 10")
        return [body for (body,) in cursor]


@messages.post("/messages")
def add_message():
    """Store a message, once: a client that may have to send it again chooses its id."""
    message_id = str(uuid.UUID(request.json["id"]) if "id" in request.json else uuid.uuid4())
    with get_conn() as conn, conn.cursor() as cursor:  # commits at its end
        cursor.execute(
            "INSERT INTO message (id, body) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (message_id, request.json["body"]),
        )
    return {"id": message_id}, 201


@messages.app_errorhandler(CommitUncertain)
def unknown(_error):
    """Answer when nobody can know whether it was done; 503 would invite to do it twice."""
    return {"error": "it may have been done or not: repeat it only with the same id"}, 500


@messages.app_errorhandler(psycopg2.OperationalError)
@messages.app_errorhandler(psycopg2.InterfaceError)
@messages.app_errorhandler(PoolError)
def unavailable(_error):
    """Answer while there is no connection, or when one was lost: nothing was done."""
    return {"error": "the database is not available, try again"}, 503


def create_app():
    """Make the application, with a pool of its own."""
    app = Flask(__name__)
    app.extensions["pool"] = ConnectionPool.from_env(minconn=0, maxconn=8, timeout=10)
    app.teardown_appcontext(return_conn)
    app.register_blueprint(messages)
    return app
