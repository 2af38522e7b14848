"""Asking DNS by the pool's own loop, of real name servers that behave in many ways."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from psycopg2_pool2 import dns_query
from psycopg2_pool2.dns_exchange import Exchange
from psycopg2_pool2.dns_query import Reply, ask
from psycopg2_pool2.resolv_conf import Configuration, NameServer
from tests.support.dns import DnsServer, Mode, a, aaaa, cname, srv
from tests.support.waiting import in_thread, wait_until

# Far more than an answer takes, and far less than the test's own limit.
AMPLE = 20.0
BOTH = ("A", "AAAA")


@pytest.fixture
def servers() -> Iterator[list[DnsServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(DnsServer(f"127.0.0.{number}")) for number in (1, 2, 3)]


@pytest.fixture
def first(servers: list[DnsServer]) -> DnsServer:
    return servers[0]


def asking(*servers: DnsServer, **options: Any) -> Configuration:
    return Configuration(tuple(NameServer(one.host, one.port) for one in servers), **options)


def found(reply: Reply) -> list[str]:
    return sorted(each.address for records in reply.records.values() for each in records.records)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# -- answers ---------------------------------------------------------------------


def test_types_are_asked_for_at_the_same_time(first: DnsServer) -> None:
    first.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    first.delay = 0.3
    call = in_thread(ask, asking(first), ["db.test."], BOTH, AMPLE)
    wait_until(lambda: len(first.queries) == 2)
    assert not call.done
    reply = call.result(20)
    assert found(reply) == ["127.0.0.1", "::1"]
    assert reply.is_definite
    assert reply.complaints == ()


def test_ttl_is_the_shortest_of_the_chain(first: DnsServer) -> None:
    first.zone = {
        "www.test": [cname("next.test", ttl=300)],
        "next.test": [cname("db.test", ttl=20)],
        "db.test": [a("127.0.0.1", ttl=100)],
    }
    assert ask(asking(first), ["www.test."], ("A",), AMPLE).records["A"].ttl == 20.0


def test_service_comes_with_the_addresses_that_were_sent_along(first: DnsServer) -> None:
    first.zone = {"_x._tcp.test": [srv("db.test", 5432)], "db.test": [a("127.0.0.1", ttl=7)]}
    records = ask(asking(first), ["_x._tcp.test."], ("SRV",), AMPLE).records["SRV"]
    [record] = records.records
    assert records.additional[record.target] == [("127.0.0.1", 7.0)]


def test_name_that_has_no_such_record_is_definitely_nobody(first: DnsServer) -> None:
    first.zone["db.test"] = [srv("x.test", 1)]
    for names in (["db.test."], ["no.test."], ["db.test.", "no.test."], ["a..b."], []):
        reply = ask(asking(first), names, BOTH, AMPLE)
        assert (reply.records, reply.is_definite, reply.complaints) == ({}, True, ())


@pytest.mark.parametrize("mode", [Mode.TRUNCATE, Mode.SILENT_UDP])
def test_many_records_come_over_tcp(first: DnsServer, mode: Mode) -> None:
    first.zone["db.test"] = [a(f"10.0.{n // 250}.{n % 250}") for n in range(2000)]
    first.behave(mode)
    configuration = asking(first, use_tcp=mode is Mode.SILENT_UDP)
    assert len(found(ask(configuration, ["db.test."], BOTH, AMPLE))) == 2000
    transports = {query.transport for query in first.queries}
    assert transports == ({"udp", "tcp"} if mode is Mode.TRUNCATE else {"tcp"})


def test_server_that_refuses_edns_is_asked_without(first: DnsServer) -> None:
    first.zone["db.test"] = [a("127.0.0.1")]
    first.refuses_edns = True
    reply = ask(asking(first, use_edns=True), ["db.test."], ("A",), AMPLE)
    assert found(reply) == ["127.0.0.1"]
    assert first.asked("db.test") == ["A", "A"]


def test_noise_is_not_taken_for_an_answer(first: DnsServer) -> None:
    first.zone["db.test"] = [a("127.0.0.1")]
    first.behave(Mode.NOISE)
    assert found(ask(asking(first), ["db.test."], BOTH, AMPLE)) == ["127.0.0.1"]


# -- name servers that fail --------------------------------------------------------

FAILURES = {
    Mode.SERVFAIL: "answered SERVFAIL",
    Mode.REFUSED: "answered REFUSED",
    Mode.NOTIMP: "answered NOTIMP",
    Mode.FORMERR: "answered FORMERR",
    Mode.LAME: "does not know the name, nor asks others",
    Mode.MALFORMED: "sent a malformed answer",
}


@pytest.mark.parametrize("mode", FAILURES)
def test_next_server_is_asked_at_once_after_a_failure(
    servers: list[DnsServer], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = servers
    first.behave(mode)
    second.zone["db.test"] = [a("127.0.0.1")]
    # Silence would be waited for far longer than this test runs.
    monkeypatch.setattr(dns_query, "NEXT_SERVER", 3600.0)
    configuration = asking(first, second, third, timeout=3600.0)
    call = in_thread(ask, configuration, ["db.test."], BOTH, 3600.0)
    assert found(call.result(20)) == ["127.0.0.1"]
    assert third.queries == []


@pytest.mark.parametrize(("mode", "said"), FAILURES.items())
def test_complaint_tells_who_was_asked_and_what_was_said(
    first: DnsServer, mode: Mode, said: str
) -> None:
    first.behave(mode)
    reply = ask(asking(first), ["db.test."], ("A",), AMPLE)
    assert reply.complaints == (
        f"name server {first.host} port {first.port} {said} (A of db.test)",
    )
    assert not reply.records
    assert (reply.failed, reply.was_silent) == (frozenset({"A"}), False)


def test_closed_port_is_a_complaint_and_costs_no_time(servers: list[DnsServer]) -> None:
    first, second, _ = servers
    first.close()
    second.zone["db.test"] = [a("127.0.0.1")]
    assert found(ask(asking(first, second), ["db.test."], BOTH, AMPLE)) == ["127.0.0.1"]
    for use_tcp in (False, True):
        reply = ask(asking(first, use_tcp=use_tcp), ["db.test."], ("A",), AMPLE)
        [complaint] = reply.complaints
        assert "cannot be reached: Connection refused" in complaint
        assert not reply.was_silent


def test_silent_server_is_listened_to_while_the_next_is_asked(servers: list[DnsServer]) -> None:
    slow, silent, _ = servers
    slow.zone["db.test"] = [a("127.0.0.1")]
    slow.delay = 1.0
    silent.behave(Mode.SILENCE)
    reply = ask(asking(slow, silent, timeout=5.0), ["db.test."], ("A",), 1.6)
    assert found(reply) == ["127.0.0.1"]
    assert silent.queries, "it was asked before the slow one answered"


def test_silence_ends_with_the_time_and_says_so(first: DnsServer) -> None:
    first.behave(Mode.SILENCE)
    reply = ask(asking(first), ["db.test.", "db."], BOTH, 0.5)
    assert not reply.records
    assert (reply.failed, reply.was_silent) == (frozenset(BOTH), True)
    assert all("did not answer" in complaint for complaint in reply.complaints)
    assert {query.name for query in first.queries} == {"db.test", "db"}, "each had its turn"


def test_server_is_waited_for_as_long_as_the_c_library_would(first: DnsServer) -> None:
    first.behave(Mode.SILENCE)
    started = time.monotonic()
    reply = ask(asking(first, timeout=0.2, attempts=2), ["db.test."], BOTH, 3600.0)
    assert reply.was_silent
    assert time.monotonic() - started < 20.0


def test_one_type_that_is_silent_or_fails_does_not_hide_the_other(
    first: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psycopg2_pool2.dns_questions.PATIENCE", 0.1)
    first.zone["db.test"] = [a("127.0.0.1"), aaaa("::1")]
    for mode in (Mode.SILENCE, Mode.SERVFAIL, Mode.NXDOMAIN):
        for kind, address in (("A", "::1"), ("AAAA", "127.0.0.1")):
            with DnsServer("127.0.0.4") as other:
                other.zone = first.zone
                other.behave(mode, kind=kind)
                reply = ask(asking(other), ["db.test."], BOTH, AMPLE)
            assert found(reply) == [address]
            assert reply.failed == (set() if mode is Mode.NXDOMAIN else {kind})


# -- the search list -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [Mode.NXDOMAIN, Mode.SERVFAIL, Mode.REFUSED, Mode.SILENCE])
def test_candidate_that_fails_does_not_hide_the_next(first: DnsServer, mode: Mode) -> None:
    first.zone["db.two."] = [a("127.0.0.1")]
    first.behave(mode, "db.one")
    reply = ask(asking(first), ["db.one.", "db.two.", "db.three."], BOTH, 1.0)
    assert found(reply) == ["127.0.0.1"]
    assert first.asked("db.three") == []


def test_each_of_many_candidates_has_its_turn_in_half_of_the_time(first: DnsServer) -> None:
    first.zone["db.9"] = [a("127.0.0.1")]
    for number in range(9):
        first.behave(Mode.SILENCE, f"db.{number}")
    reply = ask(asking(first), [f"db.{number}." for number in range(10)], BOTH, 1.0)
    assert found(reply) == ["127.0.0.1"]


def test_first_candidate_counts_however_late_its_answer(servers: list[DnsServer]) -> None:
    slow, quick, _ = servers
    slow.delay = 0.8
    slow.zone = {"db.one": [a("10.0.0.1")], "db.two": [a("10.0.0.2")]}
    quick.zone = {"db.two": [a("10.0.0.2")]}
    quick.behave(Mode.SILENCE, "db.one")
    # The second candidate is answered by the quick one while the first is still open.
    reply = ask(asking(slow, quick), ["db.one.", "db.two."], ("A",), 1.6)
    assert found(reply) == ["10.0.0.1"]


def test_failure_of_one_candidate_leaves_open_whether_there_is_such_a_name(
    first: DnsServer,
) -> None:
    first.behave(Mode.SERVFAIL, "db.one")
    reply = ask(asking(first), ["db.one.", "db.two."], ("A",), AMPLE)
    assert not reply.is_definite


# -- sockets, clocks and interruptions -----------------------------------------------


def test_nothing_stays_open(servers: list[DnsServer], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = servers
    first.behave(Mode.SILENCE)
    second.behave(Mode.SERVFAIL)
    third.behave(Mode.TRUNCATE)
    third.zone["db.test"] = [a("127.0.0.1")]
    ask(asking(*servers), ["db.test."], BOTH, 1.0)
    wait_until(lambda: not third._clients)
    before = descriptors()
    ask(asking(*servers), ["db.test.", "db."], BOTH, 1.0)

    def interrupt(exchange: Exchange) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Exchange, "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(asking(third), ["db.test."], BOTH, 1.0)
    wait_until(lambda: not third._clients)
    assert descriptors() == before


def test_out_of_descriptors_is_a_complaint(
    first: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    reply = ask(asking(first), ["db.test."], ("A",), AMPLE)
    assert "Too many open files" in reply.complaints[0]


def test_clock_that_stands_still_ends_no_lookup_too_late(
    first: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.behave(Mode.SILENCE)
    now = time.monotonic()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now)
    call = in_thread(ask, asking(first), ["db.test."], BOTH, 0.3)
    ends = real() + 20.0
    while not call.done and real() < ends:
        call.thread.join(0.1)
    assert call.done
    monkeypatch.undo()
    assert call.result(1).was_silent


def test_complaints_are_a_few_each_once() -> None:
    assert dns_query.limited(["a", "b", "a"]) == ("a", "b")
    assert dns_query.limited("abcdef") == ("a", "b", "c", "d", "and 2 more")
