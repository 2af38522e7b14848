"""Who is connected to a server, as far as it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .blocks import Cell, Style, Table, Text
from .words import duration

# Whoever may not see a session sees its name and user, but neither its state nor its kind: what
# has a user and a database is a client's then, too.
_SQL = """
SELECT application_name, coalesce(usename, ''), state, count(*)::int,
       extract(epoch FROM max(clock_timestamp() - backend_start))::float,
       extract(epoch FROM max(clock_timestamp() - state_change))::float
FROM pg_stat_activity
WHERE application_name <> %s
  AND (backend_type = 'client backend'
       OR backend_type IS NULL AND datid IS NOT NULL AND usesysid IS NOT NULL)
GROUP BY 1, 2, 3
ORDER BY 4 DESC, 1, 2, 3
"""


@dataclass(frozen=True)
class Group:
    """Connections of one application and user in one state.

    `oldest_seconds` is how long the oldest is open, `longest_seconds` how long one has been in
    this state at most. State and times are None where this user may not see them.
    """

    application: str
    user: str
    state: str | None
    connections: int
    oldest_seconds: float | None
    longest_seconds: float | None


def read_activity(cursor: Any, but: str) -> list[Group]:
    """Return who is connected, the most first, without the application of this name."""
    cursor.execute(_SQL, [but])
    return [Group(*row) for row in cursor.fetchall()]


def connections(groups: Sequence[Group]) -> int:
    """Return how many there are in all."""
    return sum(group.connections for group in groups)


def activity_table(groups: Sequence[Group]) -> Table:
    """Return the groups as they are shown."""
    return Table(
        [_row(group) for group in groups],
        headings=("application", "user", "state", "connections", "oldest", "longest in state"),
        right=(3, 4, 5),
    )


def _row(group: Group) -> list[Cell]:
    style: Style = "faint" if group.state == "idle" else "plain"
    ages = (group.oldest_seconds, group.longest_seconds)
    return [
        group.application or "(none)",
        group.user,
        Text(group.state or "(not visible)", style),
        str(group.connections),
        *("" if age is None else duration(max(0.0, age)) for age in ages),
    ]
