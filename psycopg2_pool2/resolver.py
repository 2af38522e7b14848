"""What a host name stands for: the only importer of dnspython.

A name in the hosts file is never asked of DNS, as the usual ``hosts: files dns``
of nsswitch.conf has it; one that DNS does not know is left to ``getaddrinfo``,
which may ask others (multicast DNS, LDAP, a container's own).  dnspython is
imported, and the system's configuration read, when a name is first asked of DNS.
"""

from __future__ import annotations

import copy
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from .addresses import NOBODY, Answer, Place
from .errors import HostResolutionError
from .targets import is_srv, numeric
from .timing import Deadline, monotonic

T = TypeVar("T")

UNTIMED_TTL = 10.0
"""Seconds that an answer without a TTL is valid: getaddrinfo's, or a callable's."""
FILE_TTL = 60.0
"""Seconds that what the hosts file says is valid; it changes by hand."""
AAAA_PATIENCE = 1.0
"""Seconds to wait for IPv6 addresses when there are others, if those came at once.

Some name servers never answer such a question.
"""

if sys.platform == "win32":
    HOSTS_FILE = os.path.expandvars(r"%SystemRoot%\System32\drivers\etc\hosts")
else:
    HOSTS_FILE = "/etc/hosts"


class NameServerSilent(HostResolutionError):
    """Nobody answered, or only that he cannot: what was known before stays true."""


class NoSuchHost(HostResolutionError):
    """The answer is that the name stands for nobody."""

    answer = NOBODY
    is_definite = True


class Resolver:
    """Find the addresses of names.

    ``resolver`` is None for the system's configuration, a dnspython Resolver
    (anything with its ``resolve``), or a callable that takes a name and returns
    IP addresses, which is then asked for every name and nobody else is.

    A question to DNS ends in time.  getaddrinfo and a callable cannot be
    interrupted: they take as long as they take (the system's resolver has a
    limit of its own), in a thread that no borrower depends on where the pool has
    workers.
    """

    def __init__(
        self,
        resolver: Any = None,
        *,
        hosts_file: str = HOSTS_FILE,
    ) -> None:
        self._given = resolver if hasattr(resolver, "resolve") else None
        self._callable: Any = resolver if self._given is None else None
        self._hosts_file = _HostsFile(hosts_file)
        self._system: Any = None  # a dnspython Resolver that has read resolv.conf

    def lookup(self, name: str, seconds: float) -> Answer:
        """Return what ``name`` stands for; blocks for at most ``seconds``.

        Raises :class:`NameServerSilent` or :class:`NoSuchHost`, and TypeError if
        a callable returns anything but addresses.
        """
        question = _Question(name, seconds, Deadline(seconds, monotonic, monotonic()))
        if self._callable is not None:
            answer = self._ask_callable(question)
        elif is_srv(name):
            answer = self._services(question)
        else:
            answer = self._addresses(question)
        if not answer.places:
            raise question.nobody()
        return answer

    # -- addresses ---------------------------------------------------------

    def _addresses(self, question: _Question) -> Answer:
        name = question.name.rstrip(".").lower()
        if name == "localhost" or self._hosts_file.has(name):
            return self._ask_system(question, FILE_TTL)
        answer = self._ask_dns(question)
        return answer if answer.places else self._ask_system(question, UNTIMED_TTL)

    def _ask_dns(self, question: _Question) -> Answer:
        """Ask for A and AAAA, one after the other: a silent server costs the time once."""
        four = self._query(question, question.name, "A")
        if four is None:  # there is no such name, so no AAAA either
            return NOBODY
        found = [*_timed_addresses(four)]
        lifetime = question.left()
        if found:
            lifetime = min(lifetime, max(AAAA_PATIENCE, 2.0 * question.elapsed()))
        try:
            # Where the search list has led, and nowhere else.
            six = self._query(question, getattr(four, "qname", question.name), "AAAA", lifetime)
        except NameServerSilent:
            if not found:
                raise
        else:
            found += _timed_addresses(six or ())
        return _joined(found)

    def _query(
        self, question: _Question, name: Any, kind: str, lifetime: float | None = None
    ) -> Any:
        """Return dnspython's answer, perhaps an empty one; None if there is no such name."""
        import dns.exception
        import dns.name
        import dns.resolver

        unknown = (
            dns.resolver.NXDOMAIN,
            dns.resolver.YXDOMAIN,
            dns.resolver.NoAnswer,
            dns.resolver.NoResolverConfiguration,  # getaddrinfo may know where to ask
            dns.exception.SyntaxError,  # not a name that DNS could know
            dns.name.NameTooLong,
            dns.name.IDNAException,
        )
        seconds = question.left() if lifetime is None else lifetime
        try:
            return self._dns_resolver(seconds).resolve(
                name, kind, raise_on_no_answer=False, lifetime=seconds, search=True
            )
        except unknown:
            return None
        except Exception as error:
            # Read the configuration again next time: it may name others by then.
            self._system = None
            raise question.silent(str(error) or type(error).__name__) from error

    def _dns_resolver(self, seconds: float) -> Any:
        if self._given is not None:
            return self._given
        if self._system is None:
            import dns.resolver

            self._system = dns.resolver.Resolver()
        resolver = copy.copy(self._system)
        # So that one of several name servers that is down leaves time for the others.
        servers = max(1, len(resolver.nameservers))
        resolver.timeout = min(resolver.timeout, seconds / (2 * servers))
        return resolver

    # -- services ----------------------------------------------------------

    def _services(self, question: _Question) -> Answer:
        answer = self._query(question, question.name, "SRV")
        records = [] if answer is None else [r for r in answer if r.target.to_text() != "."]
        if not records:
            return NOBODY
        additional = _additional(answer)
        found: list[tuple[Place, float]] = []
        silence: NameServerSilent | None = None
        ttl = _ttl(answer)
        for record in records:
            try:
                places = additional.get(record.target) or self._target(question, record.target)
            except NameServerSilent as error:
                silence = error
                continue
            found += [(_served(place, record), min(ttl, seconds)) for place, seconds in places]
        if silence is not None and not found:
            raise silence
        return _joined(found)._replace(complete=silence is None)

    def _target(self, question: _Question, target: Any) -> list[tuple[Place, float]]:
        try:
            # With its last dot, which keeps it out of the search list.
            answer = self._addresses(question._replace(name=target.to_text()))
        except NoSuchHost:
            return []
        return [(place, answer.ttl) for place in answer.places]

    # -- what cannot be interrupted ----------------------------------------

    def _ask_system(self, question: _Question, ttl: float) -> Answer:
        name = question.name
        try:
            if not question.left():
                raise question.silent("no time was left to ask")
            infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in _nobody_codes():
                raise question.nobody() from error
            raise question.silent(f"getaddrinfo says {error.strerror}") from error
        except UnicodeError as error:  # a label is empty or too long
            raise question.nobody() from error
        except OSError as error:
            raise question.silent(f"getaddrinfo says {error.strerror}") from error
        return _joined((Place(_scoped(info[4])), ttl) for info in infos)

    def _ask_callable(self, question: _Question) -> Answer:
        name = question.name
        try:
            given = _listed(self._callable(name))
        except Exception as error:
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

    def elapsed(self) -> float:
        return self.deadline.elapsed()

    def nobody(self) -> NoSuchHost:
        return NoSuchHost(f'host "{self.name}" could not be resolved: there is no such name')

    def silent(self, cause: str) -> NameServerSilent:
        return NameServerSilent(
            f'host "{self.name}" could not be resolved within {self.seconds:.2f} s: {cause}'
        )


class _HostsFile:
    """Whether a name is in the hosts file, which is read again when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        # Only of the names that were asked for: some list a hundred thousand others.
        self._seen: tuple[object, dict[str, bool]] = (None, {})

    def has(self, name: str) -> bool:
        """Tell whether the file has a name, given in lower case."""
        try:
            status = os.stat(self._path)
            version = status.st_mtime_ns, status.st_size, status.st_ino
            if version != self._seen[0]:
                self._seen = version, {}
            seen = self._seen[1]
            if name not in seen:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    seen[name] = name in _hosts_names(file)
            return seen[name]
        except OSError:
            return False


def _hosts_names(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from line.partition("#")[0].lower().split()[1:]


def _timed_addresses(answer: Any) -> list[tuple[Place, float]]:
    return [(Place(record.address), _ttl(answer)) for record in answer]


def _ttl(answer: Any) -> float:
    """Return the shortest TTL of the chain of CNAMEs, less what it has spent in a cache."""
    expiration = getattr(answer, "expiration", None)
    if expiration is None:
        return UNTIMED_TTL
    chain = getattr(answer, "chaining_result", None)
    longest = float("inf") if chain is None else float(chain.minimum_ttl)
    return max(0.0, min(longest, float(expiration) - time.time()))


def _additional(answer: Any) -> dict[Any, list[tuple[Place, float]]]:
    """Return the addresses that the name server sent along, by name."""
    found: dict[Any, list[tuple[Place, float]]] = {}
    for rrset in getattr(getattr(answer, "response", None), "additional", ()):
        found.setdefault(rrset.name, []).extend(
            (Place(record.address), float(rrset.ttl))
            for record in rrset
            if hasattr(record, "address")
        )
    return found


def _served(place: Place, record: Any) -> Place:
    host = record.target.to_text(omit_final_dot=True)
    return Place(place.address, record.port, record.priority, record.weight, host)


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


def _nobody_codes() -> set[int]:
    names = ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    return {getattr(socket, name) for name in names if hasattr(socket, name)}


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
