"""What the facts mean for a pool: pure functions, which need no server.

A *problem* keeps the pool from working, or will; an *advice* is worth a thought; *fine* is told
where the numbers are of interest.
"""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.text import in_one_line

from ..words import duration, milliseconds
from .capacity import Plan, capacity
from .facts import Endpoint, Examination, Finding, Server

_DEFAULTS = inspect.signature(ConnectionPool).parameters
HEALTH_CHECK_INTERVAL: float = _DEFAULTS["health_check_interval"].default

SLOW_QUERY = 0.005
"""Seconds of a round trip from which on a test at every borrow is worth a thought."""
SLOW_CONNECT = 0.1
"""Seconds of a connect from which on it is worth to have connections ready."""
LONG_KEEPALIVE = 3600.0
"""Seconds after which a server looks for vanished clients that are too many."""
NEARLY_FULL = 0.9


def advise(examination: Examination, plan: Plan) -> list[Finding]:
    """Return what there is to say about all endpoints, the problems first."""
    findings = [*_about_names(examination), *_about_roles(examination)]
    findings += _joined(
        replace(finding, where=(endpoint.label,))
        for endpoint in examination.endpoints
        for rule in _RULES
        for finding in rule(endpoint)
    )
    wanted = [e.server for e in examination.endpoints if e.server and e.server.suits]
    if wanted:
        findings.append(capacity(plan, wanted))
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


_ORDER = ("problem", "advice", "fine")


def _joined(findings: Iterable[Finding]) -> list[Finding]:
    """Return what is the same at several endpoints once."""
    known: dict[Finding, Finding] = {}
    for finding in findings:
        key = replace(finding, where=())
        before = known.get(key, key)
        known[key] = replace(finding, where=(*before.where, *finding.where))
    return list(known.values())


# -- all together ----------------------------------------------------------


def _about_names(examination: Examination) -> Iterator[Finding]:
    for name in examination.names:
        if name.error is not None:
            yield Finding("problem", "dns", name.error, (name.name,))
        if name.one_at_a_time:
            yield Finding(
                "advice",
                "dns",
                "each answer names one address, and not always the same: the pool finds the others"
                " while it is open, and remembers each for address_timeout",
                (name.name,),
            )


def _about_roles(examination: Examination) -> Iterator[Finding]:
    servers = [endpoint.server for endpoint in examination.endpoints if endpoint.server]
    wish = examination.target_session_attrs
    if servers and not any(server.suits for server in servers):
        yield Finding(
            "problem",
            "role",
            f"no server is {wish}, as target_session_attrs asks: a pool gets no connection",
        )
    standbys = sum(server.standby for server in servers)
    if wish == "any" and 0 < standbys < len(servers):
        yield Finding(
            "advice",
            "role",
            "connections go to the standbys too, where nothing can be written:"
            " target_session_attrs=read-write leads to the primary, prefer-standby to the others",
        )


# -- one endpoint ----------------------------------------------------------


def _unreachable(endpoint: Endpoint) -> Iterator[Finding]:
    if endpoint.error is not None:
        yield Finding("problem", endpoint.failure, endpoint.error)


def _of_server(
    rule: Callable[[Server], Iterator[Finding]],
) -> Callable[[Endpoint], Iterator[Finding]]:
    """Return a rule for endpoints that asks another one about the server, where there is one."""

    def ask(endpoint: Endpoint) -> Iterator[Finding]:
        if endpoint.server is not None:
            yield from rule(endpoint.server)

    return ask


@_of_server
def _idle_sessions(server: Server) -> Iterator[Finding]:
    limit = server.seconds("idle_session_timeout")
    # What is idle is tested at every interval once it has been idle for one: so after two.
    if 0 < limit <= 2 * HEALTH_CHECK_INTERVAL:
        yield Finding(
            "problem",
            "idle_session_timeout",
            f"the server ends sessions that are idle for {duration(limit)}, before the pool's"
            " health check keeps them awake: turn it off for this role, or set"
            f" health_check_interval to less than {duration(limit / 2)}",
        )
    elif limit:
        yield Finding(
            "advice",
            "idle_session_timeout",
            f"the server ends sessions that are idle for {duration(limit)}: keep"
            f" health_check_interval below half of that, as it is by default"
            f" ({duration(HEALTH_CHECK_INTERVAL)}), and num_workers above 0",
        )


@_of_server
def _limited_work(server: Server) -> Iterator[Finding]:
    limits = {
        "idle_in_transaction_session_timeout": "a borrower that pauses longer in a transaction"
        " loses its connection",
        "transaction_timeout": "a longer transaction loses its connection",
        "statement_timeout": "a longer statement is cancelled, a migration too",
        "lock_timeout": "a statement that waits longer for a lock fails",
    }
    for name, consequence in limits.items():
        if limit := server.seconds(name):
            source = server.settings[name].source
            yield Finding(
                "advice", name, f"{name}={duration(limit)} (from {source}): {consequence}"
            )


@_of_server
def _read_only(server: Server) -> Iterator[Finding]:
    if server.is_on("default_transaction_read_only"):
        source = server.settings["default_transaction_read_only"].source
        yield Finding(
            "advice",
            "default_transaction_read_only",
            f"transactions are read-only unless they say otherwise (from {source})",
        )


@_of_server
def _vanished_clients(server: Server) -> Iterator[Finding]:
    idle = server.seconds("tcp_keepalives_idle")
    if idle >= LONG_KEEPALIVE:
        yield Finding(
            "advice",
            "tcp_keepalives_idle",
            f"the server looks for vanished clients after {duration(idle)}, and keeps their"
            " connections until then: 60 s on the server gives them back sooner",
        )
    known = server.settings.get("client_connection_check_interval")
    if known is not None and not known.number:
        yield Finding(
            "advice",
            "client_connection_check_interval",
            "a statement whose client has vanished runs to its end, and keeps its connection:"
            " 10 s on the server ends it",
        )


@_of_server
def _logging(server: Server) -> Iterator[Finding]:
    on = [name for name in ("log_connections", "log_disconnections") if server.is_on(name)]
    if on:
        yield Finding(
            "advice",
            on[0],
            f"{' and '.join(on)}: every connection is written to the server's log; small"
            " idle_timeout and lifetime_timeout make many of them",
        )


@_of_server
def _latency(server: Server) -> Iterator[Finding]:
    if server.query_seconds >= SLOW_QUERY:
        yield Finding(
            "advice",
            "latency",
            f"a test at every borrow costs {milliseconds(server.query_seconds)}: test_idle_after=1"
            " spares it those used within the last second",
        )
    if server.connect_seconds >= SLOW_CONNECT:
        yield Finding(
            "advice",
            "latency",
            f"opening takes {milliseconds(server.connect_seconds)}: choose minconn so that"
            " what is usually needed is open",
        )


@_of_server
def _pooler(server: Server) -> Iterator[Finding]:
    if server.pooler is not None and server.pooler.shares:
        yield Finding(
            "advice",
            "pooler",
            "a pooler shares connections between transactions: what a session keeps (SET, LISTEN,"
            " advisory locks, temporary tables) does not last, and reset must not be 'session'",
        )


@_of_server
def _row_security(server: Server) -> Iterator[Finding]:
    """Warn of rows that are chosen by what a session says of itself, which outlives a loan."""
    if not server.policies:
        return
    first, *others = server.policies
    shown = in_one_line(f"{first.name} on {first.table} reads {first.reads}")
    more = f", and {len(others)} more" if others else ""
    told = (
        f"row-level security depends on the session ({shown}{more}), and what a borrower sets for"
        " its session is there for the next one: set it for a transaction, by SET LOCAL or"
        " set_config(name, value, true)"
    )
    if server.pooler is None or not server.pooler.shares:
        told += ', or give the pool reset="session"'
    yield Finding("advice", "row-level security", told)


@_of_server
def _nearly_full(server: Server) -> Iterator[Finding]:
    used, most = server.connections, server.limits.open_to_all
    if server.pooler is None and used >= NEARLY_FULL * most:
        yield Finding("advice", "connections", f"{used} of {most} connections are in use now")


def _encryption(endpoint: Endpoint) -> Iterator[Finding]:
    server = endpoint.server
    if server is not None and server.tls is None and endpoint.address is not None:
        if not ipaddress.ip_address(endpoint.address.partition("%")[0]).is_loopback:
            yield Finding("advice", "tls", "the connection is not encrypted")


_RULES: tuple[Callable[[Endpoint], Iterator[Finding]], ...] = (
    _unreachable,
    _idle_sessions,
    _limited_work,
    _read_only,
    _pooler,
    _row_security,
    _nearly_full,
    _encryption,
    _latency,
    _vanished_clients,
    _logging,
)
