"""What a host name stands for: the hosts file, then DNS, then whatever else the system asks.

A name in the hosts file is never asked of DNS, as the usual ``hosts: files dns``
of nsswitch.conf has it.  One to which DNS gives no usable answer, for whatever
reason, is left to ``getaddrinfo``: it may ask others (multicast DNS, LDAP, a
container's own), and it is what libpq would use.  dnspython is imported, and the
system's configuration read, when a name is first asked of DNS.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from .addresses import NOBODY, Answer, Place
from .errors import HostResolutionError
from .interruptions import let_through
from .proxies import connect_is_mock, connect_is_replaced
from .targets import is_srv, numeric
from .timing import Deadline, monotonic

if TYPE_CHECKING:
    from .dns_exchange import Records
    from .dns_query import Reply
    from .system_names import SystemNames

UNTIMED_TTL = 10.0
"""Seconds that an answer without a TTL is valid: getaddrinfo's, or a callable's."""
FILE_TTL = 60.0
"""Seconds that what the hosts file says is valid; it changes by hand."""
DNS_SHARE = 0.8
"""Of a lookup's time, what DNS may take; the rest is for getaddrinfo."""


AS_WRITTEN = Answer((Place(""),), UNTIMED_TTL)
"""The answer that leaves the name to ``psycopg2.connect``."""


class NameServerSilent(HostResolutionError):
    """No usable answer came: what was known before stays true."""


class NoSuchHost(HostResolutionError):
    """The answer is that the name stands for nobody."""

    answer = NOBODY
    is_definite = True


class Resolver:
    """Find the addresses of names; safe to use from any thread.

    ``resolver`` is None for the system's configuration, a dnspython Resolver
    (anything with its ``resolve``), or a callable that takes a name and returns
    IP addresses, which is then asked for every name and nobody else is.

    A question to DNS ends in time.  getaddrinfo and a callable cannot be
    interrupted: they take as long as they take (the system's resolver has a
    limit of its own), in a thread that no borrower depends on where the pool has
    workers.  So getaddrinfo is not asked where name servers were silent, which
    makes it take as long again, for a name that DNS has answered before: what is
    known of it stays in use.  ``may_wait=False``, for a pool without workers,
    says the same of every name.
    """

    def __init__(
        self,
        resolver: Any = None,
        *,
        hosts_file: str | None = None,
        resolv_conf: str | None = None,
        nsswitch: str | None = None,
        may_wait: bool = True,
    ) -> None:
        self._given = resolver if hasattr(resolver, "resolve") else None
        self._callable: Any = resolver if self._given is None else None
        self._files = hosts_file, nsswitch, resolv_conf
        self._may_wait = may_wait
        # The types of record that the last answers of DNS for a name have had.
        self._types: dict[str, frozenset[str]] = {}

    def lookup(self, name: str, seconds: float) -> Answer:
        """Return what ``name`` stands for; DNS gets at most ``seconds``.

        Where a test has replaced ``psycopg2.connect``, a name that cannot be
        resolved stands for itself, and nobody is asked for a mock's sake.

        Raises :class:`NameServerSilent` or :class:`NoSuchHost`, and TypeError if
        a callable returns anything but addresses.
        """
        if connect_is_mock():
            return AS_WRITTEN
        try:
            return self._lookup(name, seconds)
        except HostResolutionError:
            if connect_is_replaced():
                return AS_WRITTEN
            raise

    def _lookup(self, name: str, seconds: float) -> Answer:
        question = _Question(name, seconds, Deadline(seconds, monotonic, monotonic()))
        if self._callable is not None:
            answer = self._ask_callable(question)
        elif is_srv(name):
            answer = self._find_service(question)
        else:
            answer = self._find_host(question)
        if not answer.places:
            raise question.nobody()
        return answer

    @cached_property
    def _system(self) -> SystemNames:
        """How this system finds names; imported when a name is to be found."""
        from .system_names import system_names

        return system_names(*self._files)

    # -- addresses ---------------------------------------------------------

    def _find_host(self, question: _Question, *, is_target: bool = False) -> Answer:
        """Return the addresses of a name; that of a service is not worth a long wait."""
        name = question.name
        ttl = self._system_ttl(name)
        if ttl is not None:
            return self._ask_system(question, ttl)
        may_wait = self._may_wait and not is_target and name not in self._types
        reply = self._ask_dns(question, ("A", "AAAA"), DNS_SHARE if may_wait else 1.0)
        if reply.records:
            return self._known_by_dns(name, reply)
        if reply.was_silent and not may_wait:
            raise question.silent(*reply.complaints)
        answer = self._ask_system(question, UNTIMED_TTL, reply)
        self._types.pop(name, None)
        return answer

    def _system_ttl(self, name: str) -> float | None:
        """Return how long the system's answer is valid if DNS is not to be asked, else None."""
        plain = name.lower().rstrip(".")
        if (
            plain == "localhost"
            or plain.endswith(".localhost")
            or self._system.hosts_file.has(name)
        ):
            return FILE_TTL
        if self._given is not None:
            return None
        has_alias = "." not in name and bool(os.environ.get("HOSTALIASES"))
        return UNTIMED_TTL if has_alias or self._system.services.come_first(plain) else None

    def _ask_dns(self, question: _Question, kinds: tuple[str, ...], share: float) -> Reply:
        """Ask for records of these types; whatever goes wrong is in the reply."""
        from .dns_query import Reply, ask

        seconds = share * question.left()
        try:
            if self._given is not None:
                from .dns_given import ask_given

                return ask_given(self._given, question.name, kinds, seconds)
            configuration = self._system.configuration.read()
            if not configuration.use_ipv6:
                kinds = tuple(kind for kind in kinds if kind != "AAAA")
            return ask(configuration, configuration.candidates(question.name), kinds, seconds)
        except Exception as error:
            let_through(error)
            return Reply(failed=frozenset(kinds), complaints=(str(error) or type(error).__name__,))

    def _known_by_dns(self, name: str, reply: Reply) -> Answer:
        """Return the answer, complete unless a type that there was before has failed."""
        found = [each for records in reply.records.values() for each in _timed(records)]
        missing = reply.failed & self._types.get(name, frozenset())
        self._types[name] = missing | frozenset(reply.records)
        return _joined(found)._replace(complete=not missing)

    # -- services ----------------------------------------------------------

    def _find_service(self, question: _Question) -> Answer:
        reply = self._ask_dns(question, ("SRV",), 1.0)
        if not reply.records:
            if reply.is_definite:
                return NOBODY
            raise question.silent(*reply.complaints)
        found = reply.records["SRV"]
        records = [record for record in found.records if record.target.to_text() != "."]
        places: list[tuple[Place, float]] = []
        silence: NameServerSilent | None = None
        for number, record in enumerate(records):
            try:
                at = found.additional.get(record.target) or self._find_target(
                    question, record.target, len(records) - number
                )
            except NameServerSilent as error:
                silence = error
                continue
            places += [(_served(one, record), min(found.ttl, seconds)) for one, seconds in at]
        try:
            if silence is not None and not places:
                raise silence
            return _joined(places)._replace(complete=silence is None)
        finally:
            del silence  # its traceback refers to this frame

    def _find_target(
        self, question: _Question, target: Any, are_left: int
    ) -> list[tuple[str, float]]:
        """Return the addresses of one of the targets that are left to look up."""
        name = target.to_text(omit_final_dot=True)
        if not self._system.hosts_file.has(name):
            name = target.to_text()  # the last dot keeps it out of the search list
        try:
            answer = self._find_host(question.part(name, are_left), is_target=True)
        except NoSuchHost:
            return []
        return [(place.address, answer.ttl) for place in answer.places]

    # -- what cannot be interrupted ----------------------------------------

    def _ask_system(self, question: _Question, ttl: float, reply: Reply | None = None) -> Answer:
        """Ask getaddrinfo, perhaps after DNS gave this reply."""
        before = () if reply is None or reply.is_definite else reply.complaints
        if not question.left():
            raise question.silent(*before, "no time was left to ask the system")
        try:
            infos = _getaddrinfo(question.name)
        except (OSError, UnicodeError) as error:
            let_through(error)
            # Of a name server that failed some systems say too that there is no such name.
            if _is_nobody(error) and (reply is None or reply.is_definite):
                raise question.nobody() from error
            text = getattr(error, "strerror", None) or type(error).__name__
            raise question.silent(*before, f"getaddrinfo says {text}") from error
        return _joined((Place(_scoped(info[4])), ttl) for info in infos)

    def _ask_callable(self, question: _Question) -> Answer:
        name = question.name
        try:
            given = _listed(self._callable(name))
        except Exception as error:
            let_through(error)
            # Its text is the user's, and may tell a secret.
            raise question.silent(f"resolver raised {type(error).__name__}") from error
        return _joined((Place(address), UNTIMED_TTL) for address in _checked(given))


class _Question(NamedTuple):
    """A name, and until when it may be asked for."""

    name: str
    seconds: float
    deadline: Deadline

    def left(self) -> float:
        return self.deadline.slice(self.seconds)

    def part(self, name: str, number: int) -> _Question:
        """Return a question for another name, with one part of so many of the time left."""
        seconds = self.left() / number
        return _Question(name, seconds, Deadline(seconds, monotonic, monotonic()))

    def nobody(self) -> NoSuchHost:
        return NoSuchHost(f'host "{self.name}" could not be resolved: there is no such name')

    def silent(self, *causes: str) -> NameServerSilent:
        return NameServerSilent(
            f'host "{self.name}" could not be resolved within {self.seconds:.2f} s: '
            + "; ".join(causes)
        )


def _getaddrinfo(name: str) -> list[Any]:
    """Ask the system as libpq does: a name that is not ASCII as it stands, then as IDNA."""
    forms: list[Any] = [name] if name.isascii() else [os.fsencode(name), name]
    while len(forms) > 1:
        try:
            return socket.getaddrinfo(forms.pop(0), None, type=socket.SOCK_STREAM)
        except socket.gaierror:
            pass
    return socket.getaddrinfo(forms[0], None, type=socket.SOCK_STREAM)


def _is_nobody(error: Exception) -> bool:
    if isinstance(error, UnicodeError):  # a label is empty or too long
        return True
    names = ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    codes = {getattr(socket, name) for name in names if hasattr(socket, name)}
    return isinstance(error, socket.gaierror) and error.errno in codes


def _timed(records: Records) -> list[tuple[Place, float]]:
    return [(Place(record.address), records.ttl) for record in records.records]


def _served(address: str, record: Any) -> Place:
    host = record.target.to_text(omit_final_dot=True)
    return Place(address, record.port, record.priority, record.weight, host)


def _joined(found: Iterable[tuple[Place, float]]) -> Answer:
    """Return one answer, each address and port in it once, the first of them."""
    timed = list(found)
    if not timed:
        return NOBODY
    places: dict[tuple[str, int | None], Place] = {}
    for place, _ in sorted(timed, key=lambda one: one[0].priority):
        places.setdefault((place.address, place.port), place)
    return Answer(tuple(places.values()), min(ttl for _, ttl in timed))


def _scoped(sockaddr: tuple[Any, ...]) -> str:
    address = str(sockaddr[0])
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in address:
        return f"{address}%{sockaddr[3]}"
    return address


def _listed(given: Any) -> Any:
    iterable = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    return list(given) if iterable else given


def _checked(given: Any) -> list[str]:
    if not isinstance(given, list):
        raise TypeError(f"resolver must return IP addresses, not a {type(given).__name__}")
    return [_checked_address(address) for address in given]


def _checked_address(address: Any) -> str:
    if not isinstance(address, str):
        raise TypeError(f"resolver must return strings, not a {type(address).__name__}")
    usual = numeric(address)
    if usual is None:  # not told: nobody knows what it is
        raise TypeError("resolver must return IP addresses; it returned a str that is none")
    return usual
