"""Whether the connections that pools may open fit into what the servers allow: pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..activity import connections
from ..words import count
from .facts import Finding, Limits, Server, Severity


@dataclass(frozen=True)
class Plan:
    """How many processes will have a pool, and its `maxconn`; None where that is not known."""

    processes: int | None = None
    maxconn: int | None = None


@dataclass(frozen=True)
class Room:
    """How many connections a server has for us, and how many of them nobody has now."""

    usable: int
    free: int
    limit: str


def capacity(plan: Plan, servers: Sequence[Server]) -> Finding:
    """Judge a plan by the servers that its pools will connect to, of which there is one at least.

    Connections are spread evenly while all servers serve; when others fail, one gets them all.
    """
    rooms = [room for server in servers if (room := room_of(server)) is not None]
    if len(rooms) < len(servers):
        return _finding(
            "advice",
            "a pooler is in between: its limit of clients counts for processes * maxconn, not"
            " the server's, and it does not tell it to this user",
        )
    tightest = min(rooms, key=lambda room: room.usable)
    room = replace(tightest, free=min(room.free for room in rooms))
    if plan.processes is None or plan.maxconn is None:
        return _finding("fine", _proposal(plan, room))
    severity, text = _verdict(plan.processes, plan.maxconn, room, len(rooms))
    return _finding(severity, text)


def room_of(server: Server) -> Room | None:
    """Return the room that a server has, None where only its pooler knows."""
    if server.pooler is not None:
        most = server.pooler.max_clients
        return None if most is None else Room(most, most, f"the pooler's max_client_conn={most}")
    limits = server.limits
    own = connections([group for group in server.activity if group.user == server.user])
    frees = [limits.open_to_all - server.connections]
    frees += [limits.role - own] if limits.role >= 0 else []
    frees += [limits.database] if limits.database >= 0 else []
    return Room(limits.usable, max(0, min(frees)), _limit(limits))


def _limit(limits: Limits) -> str:
    if limits.usable == limits.role:
        return "the role's connection limit"
    if limits.usable == limits.database:
        return "the database's connection limit"
    kept = limits.max_connections - limits.open_to_all
    return f"max_connections={limits.max_connections}, less {kept} reserved"


def _verdict(processes: int, maxconn: int, room: Room, servers: int) -> tuple[Severity, str]:
    wanted = processes * maxconn
    share = math.ceil(wanted / servers)
    told = f"{count(processes, 'process', 'processes')} with maxconn={maxconn} may open {wanted}"
    if servers > 1:
        told += f" connections, {share} on each of {servers} servers"
    told += f"; {room.usable} are possible ({room.limit})"
    if share > room.usable:
        return "problem", told
    if share > room.free:
        return "advice", f"{told}, but only {room.free} are free now"
    if wanted > room.usable:
        return "advice", f"{told}: too many for one server, should the others fail"
    return "fine", f"{told}, {room.free} of them free now"


def _proposal(plan: Plan, room: Room) -> str:
    told = f"{room.usable} connections are possible ({room.limit}), {room.free} of them free now"
    if plan.processes is not None:
        each = room.free // plan.processes
        return f"{told}: {count(plan.processes, 'process', 'processes')} may have maxconn={each}"
    if plan.maxconn is not None:
        most = count(room.free // plan.maxconn, "process", "processes")
        return f"{told}: enough for {most} with maxconn={plan.maxconn}"
    return f"{told}: processes * maxconn may be as many"


def _finding(severity: Severity, text: str) -> Finding:
    return Finding(severity, "connections", text)
