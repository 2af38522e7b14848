"""Find out where a dsn leads, and ask every server there, by the pool's own modules."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import psycopg2

from psycopg2_pool2 import CircuitBreaker, HostResolutionError
from psycopg2_pool2 import endpoints as pool_endpoints
from psycopg2_pool2.addresses import Answer, Place
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.failures import classify
from psycopg2_pool2.resolver import Resolver
from psycopg2_pool2.targets import Target, read_targets

from ..errors import reason
from ..patience import NoAnswer, begin, result, within
from .connections import Connections, connector_for
from .facts import Endpoint, Examination, Name, Server
from .questions import read_server

LOOKUPS = 3
"""How often a name is asked for, to see whether the answers differ."""


def examine(params: Mapping[str, Any], seconds: float, resolver: Any = None) -> Examination:
    """Look the names up and ask all servers, at the same time; blocks for `seconds` twice at most.

    `params` are psycopg2.connect's, `resolver` is the pool's option.
    """
    connector = connector_for(params)
    lookups = _Lookups(resolver, read_targets(connector.parameters))
    endpoints = pool_endpoints.Endpoints(
        connector.parameters, lookups, math.inf, CircuitBreaker(), 1, False, time.monotonic
    )
    # Those that cannot be looked up are among the lookups' names.
    with contextlib.suppress(HostResolutionError, NoAnswer):
        within(seconds, lambda: endpoints.refresh(seconds))
    asked = _ask_all(params, endpoints.current(), seconds)
    return Examination(endpoints.session_attrs, tuple(lookups.names.values()), asked)


class _Lookups(Resolver):
    """Looks every name up several times, and remembers what was said."""

    def __init__(self, resolver: Any, targets: Sequence[Target]) -> None:
        super().__init__(resolver)
        hosts = [str(target.host) for target in targets if target.kind in ("name", "srv")]
        self.names = {host: _unanswered(host) for host in hosts}

    def lookup(self, name: str, seconds: float) -> Answer:
        """Return the answers taken together."""
        answers: list[Answer] = []
        try:
            while len(answers) < LOOKUPS:
                answers.append(super().lookup(name, seconds / LOOKUPS))
        except HostResolutionError as error:
            if not answers:
                self.names[name] = Name(name, error=str(error))
                raise
        self.names[name] = describe(name, answers)
        return Answer(_places(answers), answers[0].ttl)


def _unanswered(name: str) -> Name:
    """Return what is told of a name whose lookup takes longer than anybody wants to wait."""
    return Name(name, error=f'host "{name}" could not be resolved in time')


def describe(name: str, answers: Sequence[Answer]) -> Name:
    """Return what several answers for one name say of it."""
    addresses = tuple(dict.fromkeys(_address(place) for place in _places(answers)))
    return Name(
        name,
        addresses,
        # A cache on the way counts it down.
        max(answer.ttl for answer in answers),
        one_at_a_time=len(addresses) > 1 and all(len(answer.places) == 1 for answer in answers),
    )


def _places(answers: Sequence[Answer]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(place for answer in answers for place in answer.places))


def _address(place: Place) -> str:
    return place.address if place.port is None else f"{place.address} port {place.port}"


def _ask_all(
    params: Mapping[str, Any], places: Sequence[pool_endpoints.Endpoint], seconds: float
) -> tuple[Endpoint, ...]:
    """Ask all at once: each of those that are silent takes its whole time."""
    deadline = time.monotonic() + seconds
    begun = [(at, begin(partial(_ask, params, at, seconds))) for at in places]
    asked = []
    for at, future in begun:
        try:
            server = result(future, deadline - time.monotonic())
        except (psycopg2.Error, NoAnswer) as error:
            place = at.host, at.address, at.port
            asked.append(Endpoint(*place, error=reason(error), failure=_failure(error)))
        else:
            asked.append(Endpoint(at.host, at.address, at.port, server=server))
    return tuple(asked)


def _failure(error: BaseException) -> str:
    """Return the kind of a failure, as the pool's log and documentation call it."""
    kind = classify(error)
    if kind in (None, FailureKind.SILENT, FailureKind.CUT):
        return "unreachable"
    return kind.label


def _ask(params: Mapping[str, Any], at: pool_endpoints.Endpoint, seconds: float) -> Server:
    with Connections(params, at.keywords, seconds) as connections:
        return read_server(connections)
