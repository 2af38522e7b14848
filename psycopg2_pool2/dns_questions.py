"""What a lookup asks DNS for, and how far that has come: pure, no I/O and no clock."""

from __future__ import annotations

from collections.abc import Sequence

from .dns_exchange import Exchange, Records
from .resolv_conf import NameServer

PATIENCE = 1.0
"""Seconds to wait for the other type if addresses of one came at once.

Some name servers never answer a question for IPv6 addresses.
"""


class Question:
    """One name and type, asked of one name server after the other until one answers."""

    def __init__(self, name: str, kind: str, servers: Sequence[NameServer], now: float) -> None:
        self.name = name
        self.kind = kind
        self.servers = list(servers)  # less those that have failed
        self.began = now
        self.send_at = now
        self.sent = 0
        self.exchanges: dict[NameServer, Exchange] = {}
        self.is_settled = False
        self.has_failed = False
        self.records: Records | None = None
        self.settled_at = now

    def settle(self, records: Records | None, now: float, *, failed: bool = False) -> None:
        """Note the answer, None for no such record, or that there will be none."""
        self.is_settled = True
        self.has_failed = failed
        self.records = records
        self.settled_at = now

    def next_server(self) -> NameServer:
        """Return the name server whose turn it is."""
        return self.servers[self.sent % len(self.servers)]

    def plan_next(self, now: float, pause: float) -> None:
        """Say when to ask the next one: after the first round ever more seldom."""
        self.sent += 1
        rounds = (self.sent - 1) // max(1, len(self.servers))
        self.send_at = now + pause * 2.0 ** min(rounds, 10)


class Candidate:
    """A name of the search list, asked for all types."""

    def __init__(
        self, name: str, kinds: Sequence[str], servers: Sequence[NameServer], now: float
    ) -> None:
        self.began = now
        self.questions = [Question(name, kind, servers, now) for kind in kinds]

    @property
    def has_records(self) -> bool:
        """Whether there is something to connect to."""
        return any(question.records for question in self.questions)

    def pending(self) -> list[Question]:
        """Return the questions that are not settled."""
        return [question for question in self.questions if not question.is_settled]

    def patience_ends(self) -> float:
        """Return when not to wait any longer for the other type: never, if nothing has come."""
        came = [q.settled_at - self.began for q in self.questions if q.records]
        return self.began + max(PATIENCE, 2.0 * min(came)) if came else float("inf")

    def is_decided(self, now: float) -> bool:
        """Tell whether there is nothing left to wait for."""
        return not self.pending() or now >= self.patience_ends()
