"""The doctor's pure parts: what answers mean, and how the report reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from psycopg2_pool2.addresses import Answer, Place
from psycopg2_pool2.cli.activity import Group
from psycopg2_pool2.cli.doctor.collect import describe
from psycopg2_pool2.cli.doctor.facts import (
    Endpoint,
    Examination,
    Finding,
    Limits,
    Name,
    Pooler,
    Server,
    Setting,
    Tls,
)
from psycopg2_pool2.cli.doctor.questions import sharing
from psycopg2_pool2.cli.doctor.render import complaints, report
from psycopg2_pool2.cli.plain import plain_text

SERVER = Server(
    connect_seconds=0.0123,
    query_seconds=0.00021,
    version="17.2",
    standby=True,
    read_only=True,
    suits=True,
    user="app",
    database="shop",
    limits=Limits(100, 3, 2, 20, 30),
    tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    activity=(
        Group("web", "app", "idle", 12, 4000.0, 2.5),
        Group("", "eve", None, 1, None, None),
    ),
    settings={
        "statement_timeout": Setting("5s", 5.0, "user"),
        "lock_timeout": Setting("0", 0.0, "default"),
    },
)


def answer(*addresses: str, ttl: float = 5.0) -> Answer:
    return Answer(tuple(map(Place, addresses)), ttl)


class TestName:
    def test_has_the_addresses_of_all_answers_once(self) -> None:
        name = describe("db", [answer("a", "b"), answer("b", "a"), answer("b", "c", ttl=3)])
        assert name == Name("db", ("a", "b", "c"), 5.0, one_at_a_time=False)

    @pytest.mark.parametrize(
        ("answers", "one_at_a_time"),
        [
            ([answer("a"), answer("b"), answer("a")], True),
            ([answer("a"), answer("a"), answer("a")], False),
            ([answer("a"), answer("a", "b"), answer("b")], False),
        ],
    )
    def test_has_one_address_at_a_time_only_if_that_was_seen(
        self, answers: list[Answer], one_at_a_time: bool
    ) -> None:
        assert describe("db", answers).one_at_a_time is one_at_a_time

    def test_tells_the_ports_of_services(self) -> None:
        service = Answer((Place("a", port=5433),), 5.0)
        assert describe("_pg._tcp.db", [service]).addresses == ("a port 5433",)


@pytest.mark.parametrize(
    ("told", "first", "second", "shared"),
    [
        (1, {1}, {2}, None),  # a server
        (9, {1}, {2}, False),  # a pooler that gives each session a process of its own
        (9, {1, 3}, {2}, True),
        (9, {1}, {2, 3}, True),
        (9, {1}, {1}, True),
    ],
)
def test_a_pooler_is_known_by_the_processes_that_serve(
    told: int, first: set[int], second: set[int], shared: bool | None
) -> None:
    assert sharing(told, first, second) is shared


class TestReport:
    def test_tells_all_that_is_known(self) -> None:
        name = Name("db.test", ("10.0.0.1", "10.0.0.2"), 5.0, one_at_a_time=True)
        gone = Endpoint("db.test", "10.0.0.2", 5432, error="Connection refused")
        seen = Examination(
            "any", (name,), (Endpoint("db.test", "10.0.0.1", 5432, server=SERVER), gone)
        )
        findings = [
            Finding("problem", "unreachable", "Connection refused", (gone.label,)),
            Finding("advice", "connections", "think of it"),
        ]
        assert plain_text(report(seen, findings)) == (
            "db.test: 2 addresses, one at a time, TTL 5 s: 10.0.0.1, 10.0.0.2\n"
            "\n"
            "db.test (10.0.0.1) port 5432\n"
            "  server       PostgreSQL 17.2, standby, read-only\n"
            "  connect      12.3 ms\n"
            "  query        0.21 ms (SELECT 1)\n"
            "  TLS          TLSv1.3, TLS_AES_256_GCM_SHA384\n"
            "  connections  13 in use, max_connections=100, 5 reserved\n"
            "               20 for the role app\n"
            "               30 for the database shop\n"
            "  settings     2 looked at, 1 not at the default\n"
            "\n"
            "  application  user  state          connections     oldest  longest in state\n"
            "  web          app   idle                    12  1 h 6 min             2.5 s\n"
            "  (none)       eve   (not visible)            1\n"
            "\n"
            "  setting            value  from\n"
            "  statement_timeout  5s     user\n"
            "\n"
            "db.test (10.0.0.2) port 5432\n"
            "  unreachable: Connection refused\n"
            "\n"
            "Findings\n"
            "  problem  db.test (10.0.0.2) port 5432: Connection refused\n"
            "  advice   think of it\n"
            "\n"
            "1 problem found.\n"
        )

    @pytest.mark.parametrize(
        ("pooler", "told"),
        [
            (Pooler(False), "something that is not the server"),
            (
                Pooler(True, "PgBouncer 1.18.0", 500),
                "PgBouncer 1.18.0, max_client_conn=500, shares connections between transactions",
            ),
        ],
    )
    def test_names_the_pooler(self, pooler: Pooler, told: str) -> None:
        endpoint = Endpoint(None, None, 5432, server=replace(SERVER, pooler=pooler))
        text = plain_text(report(Examination("any", (), (endpoint,)), []))
        assert f"  pooler       {told}\n" in text
        assert text.startswith("libpq's default socket port 5432\n")
        assert text.endswith("No problems found.\n")

    @pytest.mark.parametrize(
        ("standby", "read_only", "role"),
        [
            (False, False, "primary"),
            (False, True, "primary, read-only by default"),
            (True, True, "standby, read-only"),
        ],
    )
    def test_tells_the_role(self, standby: bool, read_only: bool, role: str) -> None:
        assert replace(SERVER, standby=standby, read_only=read_only).role == role

    def test_is_a_line_for_each_name_and_endpoint_where_nothing_was_reached(self) -> None:
        seen = Examination(
            "any",
            (Name("a", error="no such name"), Name("b", ("10.0.0.1",), 5.0)),
            (Endpoint("b", "10.0.0.1", 5432, error="timeout expired"),),
        )
        assert complaints(seen) == ["no such name", "b (10.0.0.1) port 5432: timeout expired"]
