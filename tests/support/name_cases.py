"""Configurations of the system's resolver, each with the name servers that it names.

Each is for a network of its own: the name servers are at port 53 of loopback addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.support.dns import DnsServer, Mode, Record, a, aaaa, cname

FIRST, SECOND, THIRD = "127.0.0.53", "127.0.0.54", "127.0.0.55"
GOOD = [a("10.1.0.1"), a("10.1.0.2")]
BOTH = [*GOOD, aaaa("fd00::1")]
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
SWITCH = "passwd: files\nhosts: files dns\n"

Start = Callable[[str], DnsServer]
"""Starts a name server at an address."""
Serve = Callable[[Start], object]


class Case(NamedTuple):
    """A name, what the system is told, and who answers.

    `resolves` is whether the system finds it, in glibc 2.36 at least: a newer one may find more.
    `seconds` are what a lookup of the pool's has, and `needs_system` is that DNS does not answer
    within them, so that a pool without workers does not wait for it. `system_name` is what the
    system is asked if that is another form of the name.
    """

    name: str
    resolv_conf: str | bytes
    serve: Serve
    hosts: str = HOSTS
    switch: str = SWITCH
    environment: Mapping[str, str] = {}
    seconds: float = 5.0
    resolves: bool = True
    needs_system: bool = False
    aliases: str = ""  # the contents of the file that HOSTALIASES names
    system_name: bytes | None = None


def _zone(zone: Mapping[str, list[Record]] | None = None, at: str = FIRST) -> Serve:
    """Serve a zone."""
    return lambda start: start(at).zone.update(zone or {"db.test": BOTH})


def _behaving(
    mode: Mode,
    name: str | None = None,
    kind: str | None = None,
    zone: Mapping[str, list[Record]] | None = None,
) -> Serve:
    """Serve a zone, but treat some questions so."""

    def serve(start: Start) -> None:
        server = start(FIRST)
        server.zone.update(zone or {"db.test": BOTH})
        server.behave(mode, name, kind)

    return serve


def _failing_domain(mode: Mode) -> Serve:
    """Serve a name as it stands, and fail below the first domain of the search list."""
    return _behaving(mode, "db.test.bad.test")


def _before_a_good_one(mode: Mode | None, *others: Mode | None) -> Serve:
    """Let name servers of these kinds, None for a closed port, stand before a good one."""

    def serve(start: Start) -> None:
        addresses = [FIRST, SECOND, THIRD]
        for each in (mode, *others):
            address = addresses.pop(0)
            if each is not None:
                start(address).behave(each)
        start(addresses[0]).zone["db.test"] = BOTH

    return serve


def _slow(seconds: float, zone: Mapping[str, list[Record]] | None = None) -> Serve:
    def serve(start: Start) -> None:
        server = start(FIRST)
        server.zone.update(zone or {"db.test": BOTH})
        server.delay = seconds

    return serve


def _refusing_edns(start: Start) -> None:
    server = start(FIRST)
    server.zone["db.test"] = BOTH
    server.refuses_edns = True


def _nobody(start: Start) -> None:
    """Serve nothing at all."""


_ONE = f"nameserver {FIRST}\n"
_TWO = _ONE + f"nameserver {SECOND}\n"
_THREE = _TWO + f"nameserver {THIRD}\n"
_SHORT = "options timeout:1 attempts:1\n"
_BAD_SEARCH = _ONE + "search bad.test good.test\noptions ndots:5\n"
_KUBERNETES = _ONE + (
    "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
)
_LONG = {"db.test": [a(f"10.2.0.{number}") for number in range(100)]}

CASES: dict[str, Case] = {
    # answers
    "ipv4": Case("db.test", _ONE, _zone({"db.test": GOOD})),
    "ipv4 and ipv6": Case("db.test", _ONE, _zone()),
    "ipv6": Case("db.test", _ONE, _zone({"db.test": [aaaa("fd00::1")]})),
    "alias": Case(
        "www.test",
        _ONE,
        _zone({"www.test": [cname("next.test")], "next.test": [cname("db.test")], "db.test": BOTH}),
    ),
    "no such name": Case("no.test", _ONE, _zone(), resolves=False),
    "no address": Case(
        "alias.test", _ONE, _zone({"alias.test": [cname("x.test")]}), resolves=False
    ),
    "truncated": Case("db.test", _ONE, _behaving(Mode.TRUNCATE, zone=_LONG)),
    "noise": Case("db.test", _ONE, _behaving(Mode.NOISE), resolves=False),
    "upper case": Case("DB.Test", _ONE, _zone()),
    "trailing dot": Case(
        "db.", _ONE + "search test\noptions ndots:3\n", _zone({"db": GOOD, "db.test": BOTH})
    ),
    "international": Case("käse.test", _ONE, _zone({"xn--kse-qla.test": BOTH})),
    "not a name": Case("a..b", _ONE, _zone(), resolves=False),
    # search lists
    "short name": Case("db", _ONE + "search test\n", _zone()),
    "second domain": Case("db", _ONE + "search other.test test\n", _zone()),
    "domain": Case("db", _ONE + "domain\ttest\n", _zone()),
    "the last of search and domain": Case("db", _ONE + "search x.test\ndomain test\n", _zone()),
    "root in the list": Case("db", _ONE + "search . test\n", _zone({"db": GOOD})),
    "kubernetes, inside": Case("db.shop", _KUBERNETES, _zone({"db.shop.svc.cluster.local": BOTH})),
    "kubernetes, outside": Case("db.test", _KUBERNETES, _zone()),
    "few dots": Case(
        "db.one",
        _ONE + "search test\noptions ndots:2\n",
        _zone({"db.one.test": GOOD, "db.one": BOTH}),
    ),
    "enough dots": Case(
        "db.one",
        _ONE + "search test\noptions ndots:1\n",
        _zone({"db.one.test": GOOD, "db.one": BOTH}),
    ),
    "no dots needed": Case(
        "db", _ONE + "search test\noptions ndots:0\n", _zone({"db.test": GOOD, "db": BOTH})
    ),
    "search fails": Case("db.test", _BAD_SEARCH, _failing_domain(Mode.SERVFAIL)),
    "search is refused": Case("db.test", _BAD_SEARCH, _failing_domain(Mode.REFUSED)),
    "search is not implemented": Case("db.test", _BAD_SEARCH, _failing_domain(Mode.NOTIMP)),
    "search is not understood": Case("db.test", _BAD_SEARCH, _failing_domain(Mode.FORMERR)),
    "search is silent": Case("db.test", _BAD_SEARCH + _SHORT, _failing_domain(Mode.SILENCE)),
    "search is silent for long": Case(
        "db.test", _BAD_SEARCH + "options timeout:4 attempts:1\n", _failing_domain(Mode.SILENCE)
    ),
    "second domain after a failure": Case(
        "db", _BAD_SEARCH, _behaving(Mode.SERVFAIL, "db.bad.test", zone={"db.good.test": BOTH})
    ),
    # the file
    "server that is a name": Case("db.test", "nameserver dns.test\n" + _ONE, _zone()),
    "server that is nothing": Case(
        "db.test", f"nameserver\nnameserver 1.2\n{_ONE}x\x00y\n", _zone()
    ),
    "comments": Case(
        "db.test", f"# x\n; y\nnameserver {FIRST} # z\n  options timeout:9\n", _zone()
    ),
    "latin-1": Case("db.test", b"# f\xfcr die B\xfcros\n" + _ONE.encode(), _zone()),
    "unspecified server": Case("db.test", "nameserver 0.0.0.0\n", _zone(at="127.0.0.1")),
    "ipv6 server": Case("db.test", "nameserver ::1\n", _zone(at="::1")),
    "empty": Case("db.test", "", _zone(at="127.0.0.1")),
    "empty, and nobody there": Case("db.test", "", _nobody, resolves=False),
    "unknown options": Case("db.test", _ONE + "options debug inet6 ndots: timeout:x y\n", _zone()),
    "tcp only": Case("db.test", _ONE + "options use-vc\n", _behaving(Mode.SILENT_UDP)),
    "edns": Case("db.test", _ONE + "options edns0\n", _zone()),
    "edns is refused": Case("db.test", _ONE + "options edns0\n", _refusing_edns, resolves=False),
    "no ipv6 wanted": Case("db.test", _ONE + "options no-aaaa\n", _zone()),
    "environment": Case(
        "db.one",
        _ONE + "search x.test\n",
        _behaving(Mode.SILENT_UDP, zone={"db.one.test": GOOD, "db.one": BOTH}),
        environment={"LOCALDOMAIN": "test", "RES_OPTIONS": "ndots:2 use-vc"},
    ),
    # name servers that fail
    "ipv4 fails": Case("db.test", _ONE, _behaving(Mode.SERVFAIL, kind="A")),
    "ipv4 is silent": Case(
        "db.test", _ONE + _SHORT, _behaving(Mode.SILENCE, kind="A"), resolves=False
    ),
    "ipv6 fails": Case("db.test", _ONE, _behaving(Mode.SERVFAIL, kind="AAAA")),
    "ipv6 is silent": Case("db.test", _ONE + _SHORT, _behaving(Mode.SILENCE, kind="AAAA")),
    "ipv4 has no such name": Case("db.test", _ONE, _behaving(Mode.NXDOMAIN, kind="A")),
    "ipv6 has no such name": Case("db.test", _ONE, _behaving(Mode.NXDOMAIN, kind="AAAA")),
    "first is silent": Case("db.test", _TWO, _before_a_good_one(Mode.SILENCE)),
    "first is silent, little time": Case(
        "db.test", _TWO, _before_a_good_one(Mode.SILENCE), seconds=1.0
    ),
    "two are silent": Case(
        "db.test", _THREE + _SHORT, _before_a_good_one(Mode.SILENCE, Mode.SILENCE)
    ),
    "first is closed": Case("db.test", _TWO, _before_a_good_one(None)),
    "closed, then silent": Case("db.test", _THREE + _SHORT, _before_a_good_one(None, Mode.SILENCE)),
    "first fails": Case("db.test", _TWO, _before_a_good_one(Mode.SERVFAIL)),
    "first is lame": Case("db.test", _TWO, _before_a_good_one(Mode.LAME)),
    "first is malformed": Case(
        "db.test", _TWO + _SHORT, _before_a_good_one(Mode.MALFORMED), resolves=False
    ),
    "any order": Case("db.test", _TWO + "options rotate\n", _before_a_good_one(Mode.SERVFAIL)),
    "slow": Case("db.test", _ONE, _slow(1.5)),
    "very slow": Case("db.test", _ONE, _slow(2.5)),
    "too slow": Case("db.test", _ONE, _slow(1.5), seconds=1.0, needs_system=True),
    "slow search": Case("db", _ONE + "search x.test y.test test\n", _slow(1.0)),
    "all are silent": Case("db.test", _ONE + _SHORT, _behaving(Mode.SILENCE), resolves=False),
    "all fail": Case("db.test", _ONE + _SHORT, _behaving(Mode.SERVFAIL), resolves=False),
    # other sources
    "hosts file": Case("db.test", _ONE, _zone(), hosts=HOSTS + "10.9.0.1 db.test\n"),
    "hosts file, much": Case(
        "db.test",
        _ONE,
        _zone(),
        hosts=HOSTS + "10.9.0.1 x DB.Test # a\n10.9.0.2 db.test\nfd00::9 db.test\n",
    ),
    "hosts file, silent dns": Case(
        "db.test", _ONE, _behaving(Mode.SILENCE), hosts=HOSTS + "10.9.0.1 db.test\n"
    ),
    "hosts file, trailing dot": Case("db.test.", _ONE, _zone(), hosts=HOSTS + "10.9.0.1 db.test\n"),
    "hosts file, not ascii": Case(
        "käse",
        _ONE,
        _zone(),
        hosts=HOSTS + "10.9.0.1 käse\n",
        system_name="käse".encode(),
    ),
    "localhost": Case("localhost", _ONE, _behaving(Mode.SILENCE)),
    "no dns": Case(
        "db.test", _ONE, _behaving(Mode.SILENCE), switch="hosts: files\n", resolves=False
    ),
    "dns first": Case(
        "db.test",
        _ONE,
        _zone(),
        HOSTS + "10.9.0.1 db.test\n",
        "hosts: dns [!UNAVAIL=return] files\n",
    ),
    "multicast dns": Case(
        "db.local",
        _ONE,
        _zone({"db.local": GOOD}),
        switch="hosts: files mdns4_minimal [NOTFOUND=return] dns\n",
    ),
    "another name of its own": Case(
        "db", _ONE + "search x.test\n", _zone(), aliases="db db.test\n"
    ),
    "unknown source": Case("db.test", _ONE, _zone(), switch="hosts: files none dns\n"),
    "no nsswitch": Case("db.test", _ONE, _zone(), switch=""),
}
