"""What the doctor finds out: plain data, which is also its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..activity import Group, connections
from ..words import label


@dataclass(frozen=True)
class Name:
    """A host name, and what the name servers say of it.

    `addresses` are those of all answers; `one_at_a_time` is true if each answer held a single
    one, and not always the same. `ttl_seconds` is how long the pool takes an answer for true.
    """

    name: str
    addresses: tuple[str, ...] = ()
    ttl_seconds: float | None = None
    one_at_a_time: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted."""

    version: str
    cipher: str


@dataclass(frozen=True)
class Limits:
    """How many connections a server allows; the role's and the database's limit are -1 for none."""

    max_connections: int
    superuser_reserved: int
    reserved: int
    role: int
    database: int

    @property
    def open_to_all(self) -> int:
        """How many there are for everybody."""
        return self.max_connections - self.superuser_reserved - self.reserved

    @property
    def usable(self) -> int:
        """How many this role may have in this database, if nobody else has any."""
        return min(n for n in (self.open_to_all, self.role, self.database) if n >= 0)


@dataclass(frozen=True)
class Setting:
    """A setting of the server as it holds for this user and database.

    `shown` is as SHOW prints it; `number` in seconds where it is a time, None where it is none.
    `source` is pg_settings' word for where it was set.
    """

    shown: str
    number: float | None
    source: str


@dataclass(frozen=True)
class Pooler:
    """Something between us and the server that lends us its own connections.

    `shares` is true if two connections of ours were seen on one of its; `software` and
    `max_clients` are what PgBouncer's console says, if this user may ask it.
    """

    shares: bool
    software: str | None = None
    max_clients: int | None = None


@dataclass(frozen=True)
class Policy:
    """A policy of row-level security whose answer depends on the session.

    `reads` is what of the session: current_setting, current_user or the like.
    """

    table: str
    name: str
    reads: str


@dataclass(frozen=True)
class Server:
    """What a server tells of itself. `suits` is whether `target_session_attrs` wants it."""

    connect_seconds: float
    query_seconds: float
    version: str
    standby: bool
    read_only: bool
    suits: bool
    user: str
    database: str
    limits: Limits
    tls: Tls | None = None
    pooler: Pooler | None = None
    activity: tuple[Group, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()

    @property
    def connections(self) -> int:
        """How many clients are connected now, beside the doctor."""
        return connections(self.activity)

    @property
    def role(self) -> str:
        """Return what it is and whether it can be written to, in words."""
        if self.standby:
            return "standby, read-only"
        return "primary, read-only by default" if self.read_only else "primary"

    def seconds(self, setting: str) -> float:
        """Return a setting that is a time, 0.0 where it is off or not known to this server."""
        known = self.settings.get(setting)
        return 0.0 if known is None else known.number or 0.0

    def is_on(self, setting: str) -> bool:
        """Tell whether a setting is not off; PostgreSQL 18 knows an empty one too."""
        known = self.settings.get(setting)
        return known is not None and known.shown not in ("", "off")


@dataclass(frozen=True)
class Endpoint:
    """One place that the dsn stands for: a server, or why there is none."""

    host: str | None
    address: str | None
    port: int
    error: str | None = None
    server: Server | None = None
    failure: str = "unreachable"  # in a word or two, if there is an error

    @property
    def label(self) -> str:
        """Return how it is called."""
        return label(self.host, self.address, self.port)


@dataclass(frozen=True)
class Examination:
    """All that was found out about a dsn."""

    target_session_attrs: str
    names: tuple[Name, ...]
    endpoints: tuple[Endpoint, ...]


Severity = Literal["problem", "advice", "fine"]


@dataclass(frozen=True)
class Finding:
    """What the doctor makes of the facts.

    `about` is a keyword; `where` are the endpoints or the name that it holds for, none for all.
    """

    severity: Severity
    about: str
    text: str
    where: tuple[str, ...] = ()


def as_json(examination: Examination, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all of it as it is written with --json."""
    sick = any(finding.severity == "problem" for finding in findings)
    status = "problems" if sick else "fine"
    return {
        "command": "doctor",
        "status": status,
        **asdict(examination),
        "endpoints": [{"label": e.label, **asdict(e)} for e in examination.endpoints],
        "findings": findings,
    }
