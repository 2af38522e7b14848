"""A WSGI application; the files beside it say how gunicorn runs it.

In this folder::

    export DATABASE_URL=postgresql://user@localhost/postgres
    gunicorn -c preload.conf.py
    gunicorn -c gthread.conf.py
    gunicorn -c gevent.conf.py
"""

import json

import psycopg2

from psycopg2_pool2 import ConnectionPool

# At most 5 connections for each worker.  With minconn=0 a master that has loaded
# this module opens none.
pool = ConnectionPool.from_env(minconn=0, maxconn=5, timeout=10)


def app(environ, start_response):
    """Answer with the version of the server."""
    try:
        with pool.conn() as conn, conn.cursor() as cursor:
            cursor.execute("SHOW server_version")
            status, answer = "200 OK", {"version": cursor.fetchone()[0]}
    except psycopg2.Error:
        status, answer = "503 Service Unavailable", {"error": "the database is not available"}
    body = json.dumps(answer).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]
