"""How the system asks DNS: resolv.conf, read as the C library reads it.

What makes no sense there is passed over and hides nothing else, as in glibc.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .cached_file import CachedFile
from .targets import numeric

RESOLV_CONF = "/etc/resolv.conf"
MOST_SERVERS = 3
"""How many name servers the C library asks."""
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class NameServer(NamedTuple):
    """Where DNS is asked."""

    address: str
    port: int = 53

    def __str__(self) -> str:
        return self.address if self.port == 53 else f"{self.address} port {self.port}"


class Configuration(NamedTuple):
    """Whom to ask, for which names, and for how long.

    ``timeout`` is in seconds, of one question to one name server, which is
    repeated so that there are ``attempts``.
    """

    servers: tuple[NameServer, ...] = (NameServer("127.0.0.1"),)
    search: tuple[str, ...] = ()
    ndots: int = 1
    timeout: float = 5.0
    attempts: int = 2
    rotate: bool = False
    use_tcp: bool = False
    use_edns: bool = False
    use_ipv6: bool = True
    ask_bare: bool = True  # a name without a dot, as it stands

    def candidates(self, name: str) -> list[str]:
        """Return the names to ask for in turn, each with its last dot."""
        if name.endswith("."):
            return [name]
        dots = name.count(".")
        listed = [f"{name}.{suffix.strip('.')}".rstrip(".") + "." for suffix in self.search]
        as_it_stands = [f"{name}."] if dots or self.ask_bare else []
        if dots >= self.ndots:
            listed = as_it_stands + listed
        else:
            listed += as_it_stands
        return list(dict.fromkeys(listed))

    def with_environment(self, environ: Mapping[str, str] = os.environ) -> Configuration:
        """Return what ``LOCALDOMAIN`` and ``RES_OPTIONS`` make of it."""
        made = self._with_options(environ.get("RES_OPTIONS", ""))
        domains = environ.get("LOCALDOMAIN")
        return made if domains is None else made._replace(search=tuple(domains.split()))

    def _with_options(self, text: str) -> Configuration:
        changed: dict[str, Any] = {}
        for option in text.split():
            word, _, value = option.partition(":")
            if word in _NUMBERS:
                field, least, most = _NUMBERS[word]
                changed[field] = min(max(_number(value), least), most)
            elif word in _FLAGS:
                field, wanted = _FLAGS[word]
                changed[field] = wanted
        return self._replace(**changed)


_NUMBERS = {
    "ndots": ("ndots", 0, 15),
    "timeout": ("timeout", 1, 30),
    "attempts": ("attempts", 1, 5),
}
_FLAGS = {
    "rotate": ("rotate", True),
    "use-vc": ("use_tcp", True),
    "edns0": ("use_edns", True),
    "no-aaaa": ("use_ipv6", False),
    "no-tld-query": ("ask_bare", False),
}


class SystemConfiguration:
    """The system's configuration, which is read again when it has changed."""

    def __init__(self, path: str = RESOLV_CONF) -> None:
        self._file = CachedFile(path, parse)

    def read(self) -> Configuration:
        """Return the configuration as it is now; nothing in a file makes it raise."""
        if sys.platform == "win32":
            return _from_registry()
        return self._file.read().with_environment()


def parse(text: str) -> Configuration:
    """Return what a resolv.conf says."""
    servers: list[NameServer] = []
    search: list[str] | None = None
    options: list[str] = []
    for keyword, value in _lines(text):
        words = value.split()
        if keyword == "nameserver":
            servers += _servers(words)
        elif keyword == "search":
            search = words
        elif keyword == "domain":
            search = words[:1]
        elif keyword == "options":
            options += words
    made = Configuration(search=tuple(_domain_of_host() if search is None else search))
    if servers:
        made = made._replace(servers=tuple(servers[:MOST_SERVERS]))
    return made._with_options(" ".join(options))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.split("\n"):
        found = re.match(r"([a-z]+)[ \t]+(.*)", line)
        if found is not None:
            yield found[1], found[2]


def _servers(words: list[str]) -> list[NameServer]:
    address = numeric(words[0]) if words else None
    return [] if address is None else [NameServer(_UNSPECIFIED.get(address, address))]


def _domain_of_host() -> list[str]:
    return [domain for domain in (socket.gethostname().partition(".")[2],) if domain]


def _number(text: str) -> int:
    found = re.match(r"[0-9]{1,9}", text)
    return 0 if found is None else int(found[0])


def _from_registry() -> Configuration:
    import dns.resolver

    read = dns.resolver.Resolver()
    domains = read.search or [read.domain]
    made = Configuration(search=tuple(str(domain).rstrip(".") for domain in domains))
    servers = tuple(NameServer(str(server)) for server in read.nameservers)
    return made._replace(servers=servers) if servers else made
