"""Finding the addresses of names, asked of a real DNS server."""

from __future__ import annotations

import errno
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.resolver
import pytest

from psycopg2_pool2 import ConnectionPool, dns_given, resolv_conf
from psycopg2_pool2 import resolver as resolver_module
from psycopg2_pool2.addresses import AddressBook, Answer, Place
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.errors import HostResolutionError
from psycopg2_pool2.resolv_conf import NameServer
from psycopg2_pool2.resolver import FILE_TTL, UNTIMED_TTL, NameServerSilent, NoSuchHost, Resolver
from psycopg2_pool2.workers import Workers
from tests.support.dns import DnsServer, Mode, a, aaaa, cname, srv
from tests.support.waiting import in_thread, wait_until

# Far more than an answer takes, and far less than the test's own limit.
AMPLE = 20.0


class SystemNames:
    """What the system's getaddrinfo knows, which no test can tell the real one."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked: list[str] = []
        self.threads: list[threading.Thread] = []
        self.go = threading.Event()
        self.go.set()

    def getaddrinfo(self, host: str, port: None, **hints: Any) -> list[Any]:
        self.asked.append(host)
        self.threads.append(threading.current_thread())
        assert self.go.wait(60)
        if host not in self.names:
            raise self.error
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))
            for address in self.names[host]
        ]


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemNames]:
    made = SystemNames()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.go.set()


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    return tmp_path / "hosts"


@pytest.fixture
def names(dns_server: DnsServer, hosts_file: Path) -> Resolver:
    """Make a Resolver that asks the test's server, without threads."""
    return Resolver(dns_server.resolver(), hosts_file=str(hosts_file))


@pytest.fixture
def workers(system: SystemNames) -> Iterator[Workers]:
    made = Workers()
    yield made
    system.go.set()
    made.stop()
    wait_until(lambda: not made._threads)


def addresses(answer: Answer) -> list[str]:
    return sorted(place.address for place in answer.places)


# -- addresses -----------------------------------------------------------


def test_all_addresses_of_both_kinds_are_found(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1"), a("127.0.0.2"), aaaa("::1")]
    answer = names.lookup("db.test", AMPLE)
    assert addresses(answer) == ["127.0.0.1", "127.0.0.2", "::1"]
    assert answer.complete
    assert all(place.port is None for place in answer.places)
    assert dns_server.asked("db.test") == ["A", "AAAA"]


@pytest.mark.parametrize("record", [a("127.0.0.1"), aaaa("::1")])
def test_one_kind_is_enough(names: Resolver, dns_server: DnsServer, record: Any) -> None:
    dns_server.zone["db.test"] = [record]
    assert len(names.lookup("db.test", AMPLE).places) == 1


def test_the_answer_is_valid_for_its_shortest_ttl(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1", ttl=70), aaaa("::1", ttl=50)]
    assert names.lookup("db.test", AMPLE).ttl == pytest.approx(50, abs=AMPLE)
    dns_server.zone["reader.test"] = [cname("next.test", ttl=1000)]
    dns_server.zone["next.test"] = [cname("db.test", ttl=500)]
    dns_server.zone["db.test"] = [a("127.0.0.1", ttl=5000)]
    answer = names.lookup("reader.test", AMPLE)
    assert addresses(answer) == ["127.0.0.1"]
    assert answer.ttl == pytest.approx(500, abs=AMPLE)


def test_what_a_cache_has_spent_of_the_ttl_is_gone(
    dns_server: DnsServer, hosts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1", ttl=1000)]
    cached = dns_server.resolver()
    cached.cache = dns.resolver.Cache()
    names = Resolver(cached, hosts_file=str(hosts_file))
    names.lookup("db.test", AMPLE)
    dns_server.clear()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 600)
    assert names.lookup("db.test", AMPLE).ttl == pytest.approx(400, abs=AMPLE)
    assert dns_server.asked("db.test").count("A") == 0


def test_one_address_at_a_time_makes_a_book_of_all(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["reader.test"] = [a(f"127.0.0.{number}", ttl=0) for number in (1, 2, 3)]
    dns_server.one_at_a_time("reader.test", every=2)
    book = AddressBook(60.0)
    for now in range(6):
        answer = names.lookup("reader.test", AMPLE)
        assert len(answer.places) == 1
        book.learn(answer, float(now))
    assert {place.address for place in book.known()} == {"127.0.0.1", "127.0.0.2", "127.0.0.3"}


def test_one_address_at_a_time_on_command(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["reader.test"] = [a("127.0.0.1"), a("127.0.0.2")]
    dns_server.one_at_a_time("reader.test", every=None)
    for expected in ("127.0.0.1", "127.0.0.1"):
        assert addresses(names.lookup("reader.test", AMPLE)) == [expected]
    dns_server.turn("reader.test")
    assert addresses(names.lookup("reader.test", AMPLE)) == ["127.0.0.2"]


def test_a_truncated_answer_is_fetched_over_tcp(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["db.test"] = [a(f"127.0.1.{number}") for number in range(100)]
    dns_server.behave(Mode.TRUNCATE)
    assert len(names.lookup("db.test", AMPLE).places) == 100
    assert [query.transport for query in dns_server.queries] == ["udp", "tcp"] * 2


def test_the_search_list_is_gone_through_once(dns_server: DnsServer, hosts_file: Path) -> None:
    dns_server.zone["db.two.test"] = [a("127.0.0.1")]
    dns_server.zone["db.deep.two.test"] = [a("127.0.0.2")]
    names = Resolver(dns_server.resolver("one.test", "two.test"), hosts_file=str(hosts_file))
    assert addresses(names.lookup("db", AMPLE)) == ["127.0.0.1"]
    assert [tuple(query)[:2] for query in dns_server.queries] == [
        ("db.one.test", "A"),
        ("db.two.test", "A"),
        ("db.two.test", "AAAA"),
    ]
    assert addresses(names.lookup("db.deep", AMPLE)) == ["127.0.0.2"]
    with pytest.raises(NoSuchHost):
        names.lookup("db.", AMPLE)


def test_ndots_decides_what_is_asked_first(dns_server: DnsServer, hosts_file: Path) -> None:
    dns_server.zone["db.deep.one.test"] = [a("127.0.0.1")]
    dns_server.zone["db.deep"] = [a("127.0.0.2")]
    for ndots, expected in ((1, "127.0.0.2"), (3, "127.0.0.1")):
        asked = dns_server.resolver("one.test", ndots=ndots)
        names = Resolver(asked, hosts_file=str(hosts_file))
        assert addresses(names.lookup("db.deep", AMPLE)) == [expected]


# -- silence and ignorance ---------------------------------------------------


FAILURES = [Mode.SILENCE, Mode.SERVFAIL, Mode.REFUSED, Mode.NOTIMP, Mode.FORMERR, Mode.MALFORMED]


@pytest.mark.parametrize("mode", FAILURES)
def test_failing_server_leaves_the_name_to_the_system(
    names: Resolver, dns_server: DnsServer, system: SystemNames, mode: Mode
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    system.names["db.test"] = ["10.0.0.1"]
    dns_server.behave(mode)
    answer = names.lookup("db.test", 1.0)
    assert (addresses(answer), answer.ttl) == (["10.0.0.1"], UNTIMED_TTL)
    assert dns_server.asked("db.test")
    dns_server.behave(Mode.ANSWER)
    assert addresses(names.lookup("db.test", AMPLE)) == ["127.0.0.1"]


@pytest.mark.parametrize("mode", FAILURES)
def test_name_that_nobody_resolves_because_dns_fails_may_exist(
    names: Resolver, dns_server: DnsServer, system: SystemNames, mode: Mode
) -> None:
    dns_server.behave(mode)
    # As macOS has it while no name server answers.
    system.error = socket.gaierror(socket.EAI_NONAME, "no such name")
    with pytest.raises(NameServerSilent, match=r'"db\.test".*within 0\.30 s') as caught:
        names.lookup("db.test", 0.3)
    assert isinstance(caught.value, HostResolutionError)
    assert str(dns_server.port) in str(caught.value)
    assert str(caught.value).endswith("getaddrinfo says no such name")
    assert system.asked == ["db.test"]


def test_silence_after_an_answer_leaves_the_name_to_what_is_known(
    names: Resolver, dns_server: DnsServer, system: SystemNames
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    system.names["db.test"] = ["10.0.0.1"]
    names.lookup("db.test", AMPLE)
    dns_server.behave(Mode.SILENCE)
    with pytest.raises(NameServerSilent):
        names.lookup("db.test", 0.2)
    assert system.asked == [], "it would take as long again"
    dns_server.behave(Mode.SERVFAIL)
    assert addresses(names.lookup("db.test", AMPLE)) == ["10.0.0.1"]


def test_resolver_that_may_not_wait_asks_the_system_only_if_dns_is_not_silent(
    dns_server: DnsServer, hosts_file: Path, system: SystemNames
) -> None:
    names = Resolver(dns_server.resolver(), hosts_file=str(hosts_file), may_wait=False)
    system.names["db.test"] = ["10.0.0.1"]
    dns_server.behave(Mode.SILENCE)
    with pytest.raises(NameServerSilent):
        names.lookup("db.test", 0.2)
    assert system.asked == []
    for mode in (Mode.SERVFAIL, Mode.NXDOMAIN):
        dns_server.behave(mode)
        assert addresses(names.lookup("db.test", AMPLE)) == ["10.0.0.1"]


@pytest.mark.parametrize("mode", [Mode.SILENCE, Mode.SERVFAIL, Mode.REFUSED])
def test_failing_search_domain_does_not_hide_the_others(
    dns_server: DnsServer, hosts_file: Path, system: SystemNames, mode: Mode
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    dns_server.behave(mode, "db.test.bad.test")
    given = dns_server.resolver("good.test", "bad.test", ndots=5)
    answer = Resolver(given, hosts_file=str(hosts_file)).lookup("db.test", 1.0)
    assert addresses(answer) == ["127.0.0.1"]
    assert answer.complete
    assert system.asked == []


@pytest.mark.parametrize("mode", [Mode.SILENCE, Mode.SERVFAIL])
def test_failing_ipv4_does_not_hide_ipv6(
    names: Resolver, dns_server: DnsServer, mode: Mode
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    dns_server.behave(mode, kind="A")
    answer = names.lookup("db.test", 1.0)
    assert addresses(answer) == ["::1"]
    assert answer.complete, "there may be no IPv4 address at all"


def test_type_that_fails_after_it_had_addresses_makes_the_answer_incomplete(
    names: Resolver, dns_server: DnsServer
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    assert names.lookup("db.test", AMPLE).complete
    dns_server.behave(Mode.SERVFAIL, kind="A")
    for _ in range(2):
        answer = names.lookup("db.test", AMPLE)
        assert (addresses(answer), answer.complete) == (["::1"], False)
    dns_server.behave(Mode.ANSWER, kind="A")
    dns_server.zone["db.test"] = [aaaa("::1")]
    assert names.lookup("db.test", AMPLE).complete
    dns_server.behave(Mode.SERVFAIL, kind="A")
    assert names.lookup("db.test", AMPLE).complete, "it had none the last time"


@pytest.mark.parametrize("num_workers", [3, 0])
def test_pool_is_served_although_a_search_domain_fails(
    server: Server, dns_server: DnsServer, num_workers: int
) -> None:
    dns_server.zone["db.prod.test"] = [a(server.host)]
    dns_server.behave(Mode.SERVFAIL, "db.prod.test.corp.test")
    given = dns_server.resolver("svc.test", "corp.test", ndots=5)
    dsn = f"host=db.prod.test port={server.port} user=postgres dbname=postgres"
    pool = ConnectionPool(0, 2, timeout=20, num_workers=num_workers, resolver=given, dsn=dsn)
    with pool, pool.conn() as conn:
        assert conn.info.host == "db.prod.test"


class OddResolver:
    """Has a `resolve` and nothing else of dnspython's."""

    def __init__(self, answer: Callable[[str, str], Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []

    def resolve(self, name: str, kind: str, **options: Any) -> Any:
        assert options["lifetime"] > 0
        self.asked.append((name, kind))
        return self.answer(name, kind)


def test_resolver_of_another_kind_is_asked_for_the_name_as_it_is(
    hosts_file: Path, system: SystemNames
) -> None:
    class Address:
        address = "127.0.0.1"

    odd = OddResolver(lambda name, kind: [Address()] if kind == "A" else [])
    answer = Resolver(odd, hosts_file=str(hosts_file)).lookup("db", AMPLE)
    assert (addresses(answer), answer.ttl) == (["127.0.0.1"], UNTIMED_TTL)
    assert odd.asked == [("db", "A"), ("db", "AAAA")]


def test_whatever_a_given_resolver_raises_leaves_the_name_to_the_system(
    hosts_file: Path, system: SystemNames
) -> None:
    def fail(name: str, kind: str) -> Any:
        raise LookupError("out of order")

    names = Resolver(OddResolver(fail), hosts_file=str(hosts_file))
    with pytest.raises(NameServerSilent, match=r"out of order; getaddrinfo says"):
        names.lookup("db.test", AMPLE)
    system.names["db.test"] = ["10.0.0.1"]
    assert addresses(names.lookup("db.test", AMPLE)) == ["10.0.0.1"]


def test_nobody_at_the_name_server_s_port_is_no_answer(dns_server: DnsServer) -> None:
    asked = dns_server.resolver()
    dns_server.close()
    with pytest.raises(NameServerSilent):
        Resolver(asked).lookup("db.test", 0.5)


def test_an_answer_that_comes_too_late_is_none(names: Resolver, dns_server: DnsServer) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    dns_server.delay = 0.5
    with pytest.raises(NameServerSilent):
        names.lookup("db.test", 0.1)
    dns_server.delay = 0.0
    assert addresses(names.lookup("db.test", AMPLE)) == ["127.0.0.1"]


def test_silence_about_ipv6_does_not_hide_what_was_found(
    names: Resolver, dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns_given, "PATIENCE", 0.1)
    dns_server.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    dns_server.behave(Mode.SILENCE, kind="AAAA")
    call = in_thread(names.lookup, "db.test", 3600.0)
    assert addresses(call.result(60)) == ["127.0.0.1"]
    dns_server.zone["db.test"] = [aaaa("::1")]
    with pytest.raises(NameServerSilent):
        names.lookup("db.test", 0.2)


@pytest.mark.parametrize("error", ["EAI_AGAIN", "EAI_FAIL"])
def test_a_name_nobody_could_be_asked_for_may_exist(
    names: Resolver, system: SystemNames, error: str
) -> None:
    system.error = socket.gaierror(getattr(socket, error), "not now")
    with pytest.raises(NameServerSilent, match="not now"):
        names.lookup("nosuch.test", AMPLE)


@pytest.mark.parametrize("name", ["nosuch.test", "empty.test", "a..b", "x" * 64, "x." * 200 + "y"])
def test_who_is_known_nowhere_does_not_exist(
    names: Resolver, dns_server: DnsServer, system: SystemNames, name: str
) -> None:
    dns_server.zone["empty.test"] = [srv("db.test", 1)]
    with pytest.raises(NoSuchHost, match="no such name") as caught:
        names.lookup(name, AMPLE)
    assert isinstance(caught.value, HostResolutionError)
    assert caught.value.answer.places == ()
    assert system.asked == [name]


def test_a_name_that_python_cannot_encode_does_not_exist(
    dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real getaddrinfo
    with pytest.raises(NoSuchHost):
        Resolver(dns_server.resolver()).lookup("x" * 64, AMPLE)


# -- the rest of the system --------------------------------------------------


@pytest.mark.parametrize("kind", ["nosuch.test", "empty.test", "short"])
def test_whom_dns_does_not_know_the_system_may(
    names: Resolver, dns_server: DnsServer, system: SystemNames, kind: str
) -> None:
    dns_server.zone["empty.test"] = [srv("db.test", 1)]
    system.names[kind] = ["10.0.0.1", "10.0.0.1", "fe80::1"]
    answer = names.lookup(kind, AMPLE)
    assert [place.address for place in answer.places] == ["10.0.0.1", "fe80::1"]
    assert answer.ttl == UNTIMED_TTL
    assert dns_server.asked(kind)[:1] == ["A"]


def test_a_name_in_the_hosts_file_is_never_asked_of_dns(
    names: Resolver, dns_server: DnsServer, system: SystemNames, hosts_file: Path
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    hosts_file.write_text("# db.test is not here\n10.0.0.1 first DB.test # second.test\n")
    system.names = {"db.test": ["10.0.0.1"], "DB.Test": ["10.0.0.1"], "second.test": ["10.0.0.2"]}
    for name in ("db.test", "DB.Test"):
        answer = names.lookup(name, AMPLE)
        assert (addresses(answer), answer.ttl) == (["10.0.0.1"], FILE_TTL)
    assert dns_server.queries == []
    names.lookup("second.test", AMPLE)
    assert dns_server.asked("second.test") == ["A"], "only a comment names it"
    assert addresses(names.lookup("db.test.", AMPLE)) == ["127.0.0.1"], "the file has no such name"


def test_the_hosts_file_may_change_and_vanish(
    names: Resolver, dns_server: DnsServer, system: SystemNames, hosts_file: Path
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1")]
    system.names["db.test"] = ["10.0.0.1"]
    assert addresses(names.lookup("db.test", AMPLE)) == ["127.0.0.1"]
    hosts_file.write_text("10.0.0.1 db.test\n")
    assert addresses(names.lookup("db.test", AMPLE)) == ["10.0.0.1"]
    hosts_file.write_text("10.0.0.1 other.test\n")
    assert addresses(names.lookup("db.test", AMPLE)) == ["127.0.0.1"]
    hosts_file.unlink()
    assert addresses(names.lookup("db.test", AMPLE)) == ["127.0.0.1"]


def test_localhost_is_the_system_s_matter(
    names: Resolver, dns_server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real getaddrinfo
    assert set(addresses(names.lookup("localhost", AMPLE))) & {"127.0.0.1", "::1"}
    assert dns_server.queries == []


# -- services ----------------------------------------------------------------

SERVICE = "_postgresql._tcp.example.test"


@pytest.mark.parametrize("additional", [True, False])
def test_a_service_has_places_with_ports_priorities_and_weights(
    names: Resolver, dns_server: DnsServer, additional: bool
) -> None:
    dns_server.additional = additional
    dns_server.zone |= {
        SERVICE: [srv("one.test", 5433, 20, 0, ttl=900), srv("two.test", 5434, 10, 60, ttl=900)],
        "one.test": [a("127.0.0.1", ttl=1000), aaaa("::1", ttl=1000)],
        "two.test": [a("127.0.0.2", ttl=500)],
    }
    answer = names.lookup(SERVICE, AMPLE)
    assert sorted(answer.places) == [
        Place("127.0.0.1", 5433, 20, 0, "one.test"),
        Place("127.0.0.2", 5434, 10, 60, "two.test"),
        Place("::1", 5433, 20, 0, "one.test"),
    ]
    assert answer.ttl == pytest.approx(500, abs=AMPLE)
    assert answer.complete
    assert dns_server.asked("one.test") == ([] if additional else ["A", "AAAA"])
    dns_server.zone[SERVICE] = [srv("one.test", 5433, ttl=100)]
    assert names.lookup(SERVICE, AMPLE).ttl == pytest.approx(100, abs=AMPLE)


def test_a_target_is_looked_up_as_it_is_and_not_in_the_search_list(
    dns_server: DnsServer, hosts_file: Path
) -> None:
    dns_server.additional = False
    dns_server.zone |= {SERVICE: [srv("db", 1)], "db": [a("127.0.0.1")], "db.x": [a("127.0.0.2")]}
    names = Resolver(dns_server.resolver("x", ndots=9), hosts_file=str(hosts_file))
    assert addresses(names.lookup(SERVICE, AMPLE)) == ["127.0.0.1"]


def test_a_target_may_be_in_the_hosts_file(
    names: Resolver, dns_server: DnsServer, system: SystemNames, hosts_file: Path
) -> None:
    dns_server.additional = False
    dns_server.zone[SERVICE] = [srv("db.test", 1)]
    hosts_file.write_text("10.0.0.1 db.test\n")
    system.names["db.test"] = ["10.0.0.1"]
    assert names.lookup(SERVICE, AMPLE).places == (Place("10.0.0.1", 1, host="db.test"),)


def test_what_is_named_twice_is_there_once_with_its_best_priority(
    names: Resolver, dns_server: DnsServer
) -> None:
    dns_server.zone |= {
        SERVICE: [srv("one.test", 1, 9), srv("two.test", 1, 3)],
        "one.test": [a("127.0.0.1")],
        "two.test": [a("127.0.0.1")],
    }
    assert names.lookup(SERVICE, AMPLE).places == (Place("127.0.0.1", 1, 3, host="two.test"),)


def test_a_service_that_is_not_offered_is_nobody(
    names: Resolver, dns_server: DnsServer, system: SystemNames
) -> None:
    dns_server.zone[SERVICE] = [srv(".", 0)]
    for name in (SERVICE, "_none._tcp.example.test"):
        with pytest.raises(NoSuchHost):
            names.lookup(name, AMPLE)
    assert system.asked == [], "the root is no host"
    dns_server.zone[SERVICE] = [srv("gone.test", 1)]
    with pytest.raises(NoSuchHost):
        names.lookup(SERVICE, AMPLE)


def test_a_target_nobody_answers_for_makes_the_answer_incomplete(
    names: Resolver, dns_server: DnsServer
) -> None:
    dns_server.additional = False
    dns_server.zone |= {SERVICE: [srv("one.test", 1), srv("two.test", 2)]}
    dns_server.zone |= {"two.test": [a("127.0.0.2")]}
    dns_server.behave(Mode.SERVFAIL, "one.test")
    answer = names.lookup(SERVICE, AMPLE)
    assert addresses(answer) == ["127.0.0.2"]
    assert not answer.complete
    dns_server.behave(Mode.SERVFAIL, "two.test")
    with pytest.raises(NameServerSilent, match="test"):
        names.lookup(SERVICE, AMPLE)


# -- callables ---------------------------------------------------------------


def test_a_callable_is_asked_for_every_name(system: SystemNames) -> None:
    asked: list[str] = []

    def find(name: str) -> Iterator[str]:
        asked.append(name)
        yield from ["10.0.0.1", "2001:db8:0::1", "10.0.0.1"]

    names = Resolver(find)
    for name in ("localhost", "db.test", SERVICE):
        answer = names.lookup(name, AMPLE)
        assert answer == Answer((Place("10.0.0.1"), Place("2001:db8::1")), UNTIMED_TTL)
    assert asked == ["localhost", "db.test", SERVICE]
    assert system.asked == []


def test_a_callable_that_raises_has_not_answered() -> None:
    def find(name: str) -> list[str]:
        raise ValueError("hunter2")

    with pytest.raises(NameServerSilent, match="ValueError") as caught:
        Resolver(find).lookup("db.test", AMPLE)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "hunter2" not in str(caught.value)


def test_a_callable_that_finds_nobody_has_answered() -> None:
    with pytest.raises(NoSuchHost):
        Resolver(lambda name: []).lookup("db.test", AMPLE)


@pytest.mark.parametrize(
    "given", [None, 5, "10.0.0.1", b"x", [None], ["db.test"], [("1.2.3.4", 5)]]
)
def test_a_callable_that_returns_anything_else_is_a_mistake(given: Any) -> None:
    with pytest.raises(TypeError, match="resolver must return"):
        Resolver(lambda name: given).lookup("db.test", AMPLE)


# -- what cannot be interrupted ----------------------------------------------


def test_the_system_is_asked_in_the_thread_of_the_caller(system: SystemNames) -> None:
    system.names["localhost"] = ["127.0.0.1"]
    names = Resolver()
    names.lookup("localhost", AMPLE)
    assert system.threads == [threading.current_thread()]
    with pytest.raises(NameServerSilent, match="no time"):
        names.lookup("localhost", 0.0)
    assert len(system.asked) == 1


# -- the system's configuration ----------------------------------------------


class System:
    """Files of the system's configuration that tell a Resolver to ask a server of the test's."""

    def __init__(self, folder: Path, servers: list[DnsServer]) -> None:
        self._folder = folder
        self._servers = {server.host: server.port for server in servers}

    def write(self, resolv_conf: str = "", nsswitch: str = "hosts: files dns\n") -> None:
        (self._folder / "resolv.conf").write_text(resolv_conf)
        (self._folder / "nsswitch.conf").write_text(nsswitch)

    def resolver(self, **options: Any) -> Resolver:
        return Resolver(
            hosts_file=str(self._folder / "hosts"),
            resolv_conf=str(self._folder / "resolv.conf"),
            nsswitch=str(self._folder / "nsswitch.conf"),
            **options,
        )

    def with_port(self, server: NameServer) -> NameServer:
        return server._replace(port=self._servers[server.address])


@pytest.fixture
def silent() -> Iterator[DnsServer]:
    with DnsServer("127.0.0.2") as made:
        made.behave(Mode.SILENCE)
        yield made


@pytest.fixture
def configured(
    dns_server: DnsServer, silent: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> System:
    made = System(tmp_path, [dns_server, silent])
    read = resolv_conf.SystemConfiguration.read

    def with_ports(configuration: resolv_conf.SystemConfiguration) -> resolv_conf.Configuration:
        found = read(configuration)
        return found._replace(servers=tuple(map(made.with_port, found.servers)))

    monkeypatch.setattr(resolv_conf.SystemConfiguration, "read", with_ports)
    return made


def test_configuration_is_read_again_when_it_has_changed(
    configured: System, dns_server: DnsServer
) -> None:
    dns_server.zone |= {"db.one.test": [a("127.0.0.1")], "db.two.test": [a("127.0.0.2")]}
    names = configured.resolver()
    for domain, address in (("one.test", "127.0.0.1"), ("two.test", "127.0.0.2")):
        configured.write(f"nameserver {dns_server.host}\nsearch {domain}   # {address}\n")
        assert addresses(names.lookup("db", AMPLE)) == [address]


def test_a_name_server_that_is_down_leaves_time_for_the_next(
    configured: System, dns_server: DnsServer, silent: DnsServer
) -> None:
    dns_server.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    configured.write(f"nameserver {silent.host}\nnameserver {dns_server.host}\n")
    answer = configured.resolver().lookup("db.test", 2.0)
    assert addresses(answer) == ["127.0.0.1", "::1"]
    assert silent.queries


def test_silent_system_name_server_is_no_answer(
    configured: System, silent: DnsServer, system: SystemNames
) -> None:
    configured.write(f"nameserver {silent.host}\n")
    names = configured.resolver()
    silence = f"name server {silent.host} port {silent.port} did not answer"
    with pytest.raises(NameServerSilent, match=re.escape(silence)):
        names.lookup("db.test", 0.2)
    system.names["db.test"] = ["10.0.0.1"]
    assert addresses(names.lookup("db.test", 0.2)) == ["10.0.0.1"]


def test_silent_name_server_that_is_given_up_early_is_not_asked_again_by_way_of_the_system(
    configured: System, silent: DnsServer, system: SystemNames
) -> None:
    configured.write(f"nameserver {silent.host}\noptions timeout:1 attempts:1\n")
    names = configured.resolver(may_wait=False)
    with pytest.raises(NameServerSilent, match="did not answer"):
        names.lookup("db.test", AMPLE)
    assert system.asked == []


def test_error_that_is_not_a_name_server_s_leaves_the_name_to_the_system(
    configured: System, system: SystemNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_descriptors() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    configured.write()
    monkeypatch.setattr(selectors, "DefaultSelector", out_of_descriptors)
    monkeypatch.setattr(System, "with_port", lambda self, server: server)
    names = configured.resolver()
    with pytest.raises(NameServerSilent, match="Too many open files"):
        names.lookup("db.test", AMPLE)
    system.names["db.test"] = ["10.0.0.1"]
    assert addresses(names.lookup("db.test", AMPLE)) == ["10.0.0.1"]


@pytest.mark.parametrize("sources", ["files", "files ldap dns", "files mdns4_minimal dns"])
def test_name_that_another_source_may_know_is_the_system_s_matter(
    configured: System, dns_server: DnsServer, system: SystemNames, sources: str
) -> None:
    dns_server.zone["db.local"] = [a("127.0.0.1")]
    system.names["db.local"] = ["10.0.0.1"]
    configured.write(f"nameserver {dns_server.host}\n", f"hosts: {sources}\n")
    assert addresses(configured.resolver().lookup("db.local", AMPLE)) == ["10.0.0.1"]
    given = configured.resolver(resolver=dns_server.resolver())
    assert addresses(given.lookup("db.local", AMPLE)) == ["127.0.0.1"], "the user has said whom"


def test_name_that_is_not_ascii_is_left_to_the_system_as_libpq_leaves_it(
    configured: System, dns_server: DnsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def getaddrinfo(host: object, port: None, **hints: Any) -> list[Any]:
        asked.append(host)
        if host == "käse":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    (tmp_path / "hosts").write_text("10.0.0.1 käse\n", encoding="utf-8")
    configured.write(f"nameserver {dns_server.host}\n")
    assert addresses(configured.resolver().lookup("käse", AMPLE)) == ["10.0.0.1"]
    assert asked == ["käse".encode(), "käse"]


PROGRAM = """
import socket, sys
import psycopg2_pool2
from psycopg2_pool2.resolver import Resolver
pool = psycopg2_pool2.ConnectionPool(0, 1, host="127.0.0.1", port=1)
names = Resolver()
names.lookup("localhost", 20)
assert not [name for name in sys.modules if name.split(".")[0] == "dns"]
pool.shutdown()
"""


def test_dnspython_is_not_imported_before_a_name_is_asked_of_dns() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)


def test_only_what_asks_dns_imports_dnspython() -> None:
    folder = Path(resolver_module.__file__).parent
    importing = [
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"^\s*(import|from) dns\b", path.read_text(), re.MULTILINE)
    ]
    assert sorted(importing) == [
        "dns_exchange.py",
        "dns_given.py",
        "dns_query.py",
        "resolv_conf.py",  # on Windows, where there is no such file
    ]
