"""The site as a WSGI application, and the configuration that gunicorn reads from here."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application
from django.db import connection

os.environ.setdefault("DJANGO_SETTINGS_MODULE", f"{__package__}.settings")
application = get_wsgi_application()
# As a program does that asks something while it is loaded: before gunicorn forks.
connection.ensure_connection()

# -- gunicorn's configuration ---------------------------------------------------

bind = "127.0.0.1:0"
preload_app = True
workers = 2
threads = 2
control_socket_disable = True
graceful_timeout = 5
