"""The sessions of a server, seen and ended by SQL."""

from __future__ import annotations

from typing import Any

from psycopg2_pool2.contrib.session import Params, execute

from .endpoint import Endpoint


class Administered(Endpoint):
    """A server with an administrator, who looks at the sessions of clients and ends them."""

    def execute(self, sql: str, params: Params | None = None) -> list[tuple[Any, ...]]:
        """Run one statement as an administrator, on a connection of its own; return its rows."""
        administrator = {
            **self.params,
            "password": self.password,
            "application_name": "embedded",
            "connect_timeout": 5,
        }
        return execute(administrator, sql, params)

    def backends(self, application_name: str | None = None) -> list[int]:
        """Return the process ids of the sessions of clients, the administrator's own left out."""
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND (%(name)s::text IS NULL OR application_name = %(name)s) ORDER BY backend_start",
            {"name": application_name},
        )
        return [pid for (pid,) in rows]

    def terminate_backend(self, pid: int) -> None:
        """End one session as `pg_terminate_backend` does, and wait for its end."""
        self.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def terminate_all(self, application_name: str | None = None) -> int:
        """End the sessions of all clients; return how many there were."""
        pids = self.backends(application_name)
        self.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) pid", [pids])
        return len(pids)
