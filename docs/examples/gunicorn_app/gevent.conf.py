"""Processes of many greenlets, which share the process's pool."""

from gevent import monkey

monkey.patch_all()  # before the application is loaded

from gevent.socket import wait_read, wait_write  # noqa: E402
from psycopg2 import extensions  # noqa: E402

wsgi_app = "wsgi:app"
worker_class = "gevent"
preload_app = True
workers = 2
worker_connections = 100


def wait(conn):
    """Let other greenlets run while psycopg2 waits for the server."""
    while (state := conn.poll()) != extensions.POLL_OK:
        if state == extensions.POLL_READ:
            wait_read(conn.fileno())
        else:
            wait_write(conn.fileno())


extensions.set_wait_callback(wait)
