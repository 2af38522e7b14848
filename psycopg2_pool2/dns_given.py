"""Ask a resolver that the user has made, which is dnspython's or has its ``resolve``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .dns_exchange import Records, additional_of
from .dns_query import Reply, limited
from .dns_questions import PATIENCE
from .interruptions import let_through
from .resolv_conf import Configuration
from .timing import Deadline, monotonic

FIRST_SHARE = 0.75
"""Of the time for a name, what the first type may take: silence must not cost the other's."""
UNTIMED_TTL = 10.0
"""Seconds that an answer is valid that does not say for how long."""


def ask_given(resolver: Any, name: str, kinds: Sequence[str], seconds: float) -> Reply:
    """Ask for records of a name, by the resolver's own search list and ndots.

    Blocks for at most ``seconds`` if the resolver keeps to its ``lifetime``.
    Whatever it raises is a complaint of the reply, never an error.
    """
    deadline = Deadline(seconds, monotonic, monotonic())
    names = _candidates(resolver, name)
    failed: set[str] = set()
    complaints: list[str] = []
    was_silent = False
    for number, candidate in enumerate(names):
        share = deadline.slice(seconds) / (len(names) - number)
        reply = _ask_one(resolver, candidate, kinds, share)
        if reply.records:
            return reply
        failed |= reply.failed
        complaints += reply.complaints
        was_silent |= reply.was_silent
    return Reply({}, frozenset(failed), limited(complaints), was_silent)


def _candidates(resolver: Any, name: str) -> list[Any]:
    import dns.exception
    import dns.name

    if not hasattr(resolver, "search"):  # it has a way of its own
        return [name]
    domains = resolver.search or [getattr(resolver, "domain", None) or dns.name.root]
    ndots = getattr(resolver, "ndots", None)
    configuration = Configuration(
        search=tuple(str(domain) for domain in domains), ndots=1 if ndots is None else ndots
    )
    found = []
    for candidate in configuration.candidates(name):
        try:
            found.append(dns.name.from_text(candidate))
        except (dns.exception.DNSException, UnicodeError):
            pass  # not a name that DNS could know
    return found


def _ask_one(resolver: Any, name: Any, kinds: Sequence[str], seconds: float) -> Reply:
    """Ask for one type after the other."""
    deadline = Deadline(seconds, monotonic, monotonic())
    records: dict[str, Records] = {}
    failed: set[str] = set()
    complaints: list[str] = []
    was_silent = False
    for number, kind in enumerate(kinds):
        lifetime = deadline.slice(seconds)
        if records:
            lifetime = min(lifetime, max(PATIENCE, 2.0 * deadline.elapsed()))
        elif number + 1 < len(kinds):
            lifetime *= FIRST_SHARE
        try:
            found = _resolve(resolver, name, kind, lifetime)
        except _NoSuchNameError:
            break
        except Exception as error:
            let_through(error)
            failed.add(kind)
            complaints.append(str(error) or type(error).__name__)
            was_silent |= _is_silence(error)
        else:
            if found is not None:
                records[kind] = found
    return Reply(records, frozenset(failed), tuple(complaints), was_silent)


class _NoSuchNameError(Exception):
    """There is no such name, and so no record of any type."""


def _resolve(resolver: Any, name: Any, kind: str, lifetime: float) -> Records | None:
    import dns.exception
    import dns.name
    import dns.resolver

    unknown = (
        dns.resolver.NXDOMAIN,
        dns.resolver.YXDOMAIN,
        dns.exception.SyntaxError,
        dns.name.NameTooLong,
        dns.name.IDNAException,
    )
    try:
        answer = resolver.resolve(
            name, kind, raise_on_no_answer=False, lifetime=lifetime, search=True
        )
    except unknown as error:
        raise _NoSuchNameError from error
    except dns.resolver.NoAnswer:
        return None
    records = tuple(answer)
    if not records:
        return None
    return Records(records, _ttl(answer), _additional(answer))


def _ttl(answer: Any) -> float:
    """Return the shortest TTL of the chain of CNAMEs, less what it has spent in a cache."""
    expiration = getattr(answer, "expiration", None)
    if expiration is None:
        return UNTIMED_TTL
    chain = getattr(answer, "chaining_result", None)
    longest = float("inf") if chain is None else float(chain.minimum_ttl)
    return max(0.0, min(longest, float(expiration) - time.time()))


def _additional(answer: Any) -> dict[Any, list[tuple[str, float]]]:
    response = getattr(answer, "response", None)
    return {} if response is None else additional_of(response)


def _is_silence(error: Exception) -> bool:
    import dns.exception

    return isinstance(error, (dns.exception.Timeout, TimeoutError))
