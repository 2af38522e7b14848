"""A WSGI application with a pool, and the configuration that gunicorn reads from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.apps import own_pool


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answer every request with who served it."""
    body = json.dumps(own_pool.answer()).encode()
    start_response(
        "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    )
    return [body]


# -- gunicorn's configuration ---------------------------------------------------

bind = "127.0.0.1:0"
preload_app = True
workers = 2
control_socket_disable = True
graceful_timeout = 5


def on_reload(server: Any) -> None:
    """Tell in the master, before it replaces the workers, which of its sessions answer."""
    server.log.info("the sessions of the master: %s", own_pool.backends())
