"""What was seen, as it is read, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ..activity import activity_table, connections
from ..blocks import GAP, Block, Text
from ..words import count
from .look import View


def as_blocks(view: View) -> Iterator[Block]:
    """Yield what to show of a view."""
    time = view.time.astimezone().strftime("%H:%M:%S")
    server = view.server
    if server is None:
        yield Text(f"{time}  unavailable: {view.error}", "bad")
        return
    role = "standby" if server.standby else "primary"
    used = count(connections(view.groups), "connection")
    yield Text(f"{time}  {server.label}, PostgreSQL {server.version}, {role}", "title")
    yield Text(f"{used} of {server.max_connections}, without this one")
    if view.groups:
        yield GAP
        yield activity_table(view.groups)


def as_json(view: View) -> dict[str, Any]:
    """Return a view as it is written with --json."""
    return {
        "command": "watch",
        **asdict(view),
        "time": view.time.isoformat(timespec="milliseconds"),
        "available": view.error is None,
    }
