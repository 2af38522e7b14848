"""Who looks at the pool's sessions from beside it, and ends them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from psycopg2_pool2.contrib.session import execute


class Admin:
    """Somebody with connections beside the pool's, who looks at its sessions and ends them."""

    def __init__(self, params: Mapping[str, Any], pool_name: str) -> None:
        self._pool_name = pool_name
        self._params = {**params, "application_name": f"{pool_name}_admin"}

    def execute(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own; return its rows."""
        return execute(self._params, sql, values or None)

    def sessions(self) -> int:
        """Count the pool's sessions, as the server sees them."""
        return len(self._pids())

    def end_all(self) -> int:
        """End the pool's sessions; return how many, when they are gone."""
        pids = self._pids()
        self.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", pids)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and set(pids).intersection(self._pids()):
            time.sleep(0.005)
        return len(pids)

    def _pids(self) -> list[int]:
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return [pid for (pid,) in self.execute(sql, self._pool_name)]
