"""The doctor's report as it is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..activity import activity_table
from ..blocks import GAP, Block, Cell, Style, Table, Text
from ..words import count, duration, milliseconds
from .facts import Endpoint, Examination, Finding, Name, Pooler, Server, Setting, Severity

_STYLES: dict[Severity, Style] = {"problem": "bad", "advice": "advice", "fine": "good"}


def report(examination: Examination, findings: Sequence[Finding]) -> Iterator[Block]:
    """Yield the whole report."""
    for name in examination.names:
        yield _name(name)
    if examination.names:
        yield GAP
    for endpoint in examination.endpoints:
        yield from _endpoint(endpoint)
        yield GAP
    yield Text("Findings", "title")
    yield Table([_finding(finding) for finding in findings])
    yield GAP
    yield _sum(findings)


def complaints(examination: Examination) -> list[str]:
    """Return why nothing could be reached, a line for each endpoint and each unknown name."""
    names = [str(name.error) for name in examination.names if name.error]
    places = [f"{e.label}: {e.error}" for e in examination.endpoints if e.error]
    return names + places


def _name(name: Name) -> Text:
    if name.error is not None:
        return Text(name.error, "bad")
    how = ", one at a time" if name.one_at_a_time else ""
    addresses = count(len(name.addresses), "address", "addresses")
    ttl = duration(name.ttl_seconds or 0.0)
    listed = ", ".join(name.addresses)
    return Text(f"{name.name}: {addresses}{how}, TTL {ttl}: {listed}")


def _endpoint(endpoint: Endpoint) -> Iterator[Block]:
    yield Text(endpoint.label, "title")
    if endpoint.server is None:
        yield Table([[Text(f"{endpoint.failure}: {endpoint.error}", "bad")]])
        return
    server = endpoint.server
    yield Table(list(_facts(server)))
    if server.activity:
        yield GAP
        yield activity_table(server.activity)
    if changed := _changed(server):
        yield GAP
        yield Table(
            [[name, known.shown, known.source] for name, known in changed],
            headings=("setting", "value", "from"),
        )


def _facts(server: Server) -> Iterator[Sequence[Cell]]:
    yield "server", f"PostgreSQL {server.version}, {server.role}"
    yield "connect", milliseconds(server.connect_seconds)
    yield "query", f"{milliseconds(server.query_seconds)} (SELECT 1)"
    yield "TLS", f"{server.tls.version}, {server.tls.cipher}" if server.tls else "none"
    if server.pooler is not None:
        yield "pooler", _pooler(server.pooler)
    limits = server.limits
    kept = limits.max_connections - limits.open_to_all
    yield (
        "connections",
        f"{server.connections} in use, max_connections={limits.max_connections}, {kept} reserved",
    )
    if limits.role >= 0:
        yield "", f"{limits.role} for the role {server.user}"
    if limits.database >= 0:
        yield "", f"{limits.database} for the database {server.database}"
    changed = len(_changed(server))
    yield "settings", f"{len(server.settings)} looked at, {changed} not at the default"


def _changed(server: Server) -> list[tuple[str, Setting]]:
    return [item for item in server.settings.items() if item[1].source != "default"]


def _pooler(pooler: Pooler) -> str:
    told = pooler.software or "something that is not the server"
    if pooler.max_clients is not None:
        told += f", max_client_conn={pooler.max_clients}"
    return told + (", shares connections between transactions" if pooler.shares else "")


def _finding(finding: Finding) -> Sequence[Cell]:
    where = f"{', '.join(finding.where)}: " if finding.where else ""
    return Text(finding.severity, _STYLES[finding.severity]), f"{where}{finding.text}"


def _sum(findings: Sequence[Finding]) -> Text:
    problems = sum(finding.severity == "problem" for finding in findings)
    if problems:
        return Text(f"{count(problems, 'problem')} found.", "bad")
    return Text("No problems found.", "good")
