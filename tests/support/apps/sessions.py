"""What the server tells of the sessions of a process, asked in one of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg2

Seen = dict[int, tuple[Any, ...]]


class Witness:
    """See whether anything was sent to sessions, or ended them, between two looks.

    The server notes in ``state_change`` when a session's last statement began
    or ended, before it answers; so a statement that somebody else slipped in
    shows, and its answer need not be waited for.
    """

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg2.connect(dsn)
        self._conn.autocommit = True

    def look(self, backends: Iterable[int]) -> Seen:
        """Return the state of these sessions."""
        with self._conn.cursor() as cursor:
            cursor.execute(
                "SELECT pid, backend_start, state, state_change, query FROM pg_stat_activity"
                " WHERE pid = ANY(%s)",
                [list(backends)],
            )
            return {pid: tuple(state) for pid, *state in cursor}

    def changes(self, before: Seen) -> list[str]:
        """Name the sessions that are not as they were."""
        after = self.look(before)
        return [
            f"session {pid} was {seen} and is {after.get(pid, 'gone')}"
            for pid, seen in before.items()
            if after.get(pid) != seen
        ]

    def close(self) -> None:
        """End the session that looks."""
        self._conn.close()
