"""What the doctor makes of the facts: no server is needed to have an opinion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from psycopg2_pool2.cli.activity import Group
from psycopg2_pool2.cli.doctor.advise import HEALTH_CHECK_INTERVAL, advise
from psycopg2_pool2.cli.doctor.capacity import Plan, capacity
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
    as_json,
)

HEALTHY = Server(
    connect_seconds=0.003,
    query_seconds=0.0002,
    version="17.2",
    standby=False,
    read_only=False,
    suits=True,
    user="app",
    database="shop",
    limits=Limits(100, 3, 0, -1, -1),
)


def setting(number: float, source: str = "user") -> Setting:
    return Setting(f"{number:g}s", number, source)


def switched_on(name: str) -> dict[str, Setting]:
    return {name: Setting("on", None, "database")}


def used(number: int, user: str = "other") -> tuple[Group, ...]:
    return (Group("web", user, "idle", number, 60.0, 1.0),)


def at(address: str = "127.0.0.1", **changes: Any) -> Endpoint:
    return Endpoint(None, address, 5432, server=replace(HEALTHY, **changes))


def findings(
    *endpoints: Endpoint, names: tuple[Name, ...] = (), attrs: str = "any", plan: Plan | None = None
) -> list[Finding]:
    return advise(Examination(attrs, names, endpoints), plan or Plan())


def about(keyword: str, *endpoints: Endpoint, **kwargs: Any) -> Finding:
    """Return the one finding about something."""
    [found] = [f for f in findings(*endpoints, **kwargs) if f.about == keyword]
    return found


def test_there_is_nothing_to_say_of_a_healthy_server_but_its_room() -> None:
    [room] = findings(at())
    assert (room.severity, room.about, room.where) == ("fine", "connections", ())


class TestProblems:
    def test_an_endpoint_that_cannot_be_reached(self) -> None:
        gone = Endpoint("db.test", "10.0.0.1", 5432, error="Connection refused")
        assert findings(gone) == [
            Finding(
                "problem", "unreachable", "Connection refused", ("db.test (10.0.0.1) port 5432",)
            )
        ]

    def test_a_name_that_stands_for_nobody(self) -> None:
        unknown = Name("db.test", error="no such name")
        assert about("dns", names=(unknown,)).severity == "problem"

    def test_no_server_in_the_role_that_the_dsn_asks_for(self) -> None:
        standby = at(standby=True, read_only=True, suits=False)
        found = about("role", standby, attrs="read-write")
        assert found.severity == "problem"
        assert "read-write" in found.text
        # And no server to count connections at.
        assert not [f for f in findings(standby, attrs="read-write") if f.about == "connections"]

    def test_sessions_that_end_before_the_health_check_comes(self) -> None:
        short = at(settings={"idle_session_timeout": setting(2 * HEALTH_CHECK_INTERVAL)})
        long = at(settings={"idle_session_timeout": setting(2 * HEALTH_CHECK_INTERVAL + 1)})
        assert about("idle_session_timeout", short).severity == "problem"
        assert about("idle_session_timeout", long).severity == "advice"

    def test_they_come_first(self) -> None:
        severities = [
            f.severity for f in findings(at(query_seconds=1.0), Endpoint("a", "b", 1, "gone"))
        ]
        assert severities == ["problem", "advice", "fine"]

    def test_make_the_status_in_the_json(self) -> None:
        seen = Examination("any", (), (at(),))
        assert as_json(seen, [])["status"] == "fine"
        assert as_json(seen, [Finding("advice", "x", "")])["status"] == "fine"
        assert as_json(seen, [Finding("problem", "x", "")])["status"] == "problems"


class TestAdvice:
    @pytest.mark.parametrize(
        ("keyword", "endpoint"),
        [
            ("statement_timeout", at(settings={"statement_timeout": setting(5)})),
            ("lock_timeout", at(settings={"lock_timeout": setting(5)})),
            ("transaction_timeout", at(settings={"transaction_timeout": setting(5)})),
            (
                "idle_in_transaction_session_timeout",
                at(settings={"idle_in_transaction_session_timeout": setting(5)}),
            ),
            (
                "default_transaction_read_only",
                at(settings=switched_on("default_transaction_read_only")),
            ),
            ("tcp_keepalives_idle", at(settings={"tcp_keepalives_idle": setting(7200)})),
            (
                "client_connection_check_interval",
                at(settings={"client_connection_check_interval": setting(0)}),
            ),
            ("log_connections", at(settings=switched_on("log_connections"))),
            ("log_disconnections", at(settings=switched_on("log_disconnections"))),
            ("latency", at(query_seconds=0.02)),
            ("latency", at(connect_seconds=0.2)),
            ("pooler", at(pooler=Pooler(shares=True, max_clients=100))),
            ("tls", at("10.0.0.1")),
        ],
    )
    def test_is_given_where_it_is_due(self, keyword: str, endpoint: Endpoint) -> None:
        found = about(keyword, endpoint)
        assert (found.severity, found.where) == ("advice", (endpoint.label,))

    @pytest.mark.parametrize(
        "endpoint",
        [
            at(settings={"statement_timeout": setting(0), "idle_session_timeout": setting(0)}),
            at(settings={"tcp_keepalives_idle": setting(60)}),
            at(settings={"client_connection_check_interval": setting(10)}),
            at(settings={"log_connections": Setting("", None, "default")}),
            at(settings={"log_connections": Setting("off", None, "default")}),
            at(pooler=Pooler(shares=False, max_clients=100)),
            at("10.0.0.1", tls=Tls("TLSv1.3", "AES")),
            at("::1"),
            at("127.8.0.1"),
            Endpoint("/run/postgresql", None, 5432, server=HEALTHY),
        ],
    )
    def test_is_not_given_where_it_is_not(self, endpoint: Endpoint) -> None:
        assert [f.severity for f in findings(endpoint)] == ["fine"]

    def test_tells_the_value_and_where_it_comes_from(self) -> None:
        found = about("statement_timeout", at(settings={"statement_timeout": setting(90)}))
        assert "1 min 30 s (from user)" in found.text

    def test_is_given_once_for_all_endpoints_that_it_is_true_of(self) -> None:
        slow = (at("127.0.0.1", query_seconds=0.02), at("127.0.0.2", query_seconds=0.02))
        other = at("127.0.0.3", query_seconds=0.03)
        found = [f for f in findings(*slow, other) if f.about == "latency"]
        assert [f.where for f in found] == [
            ("127.0.0.1 port 5432", "127.0.0.2 port 5432"),
            ("127.0.0.3 port 5432",),
        ]

    def test_names_the_way_to_the_primary_among_standbys(self) -> None:
        both = (at("127.0.0.1"), at("127.0.0.2", standby=True, read_only=True))
        assert "target_session_attrs" in about("role", *both).text
        assert not [f for f in findings(*both, attrs="prefer-standby") if f.about == "role"]
        assert not [f for f in findings(both[1]) if f.about == "role"]

    def test_explains_a_name_with_one_address_at_a_time(self) -> None:
        reader = Name("reader.test", ("10.0.0.1", "10.0.0.2"), 1.0, one_at_a_time=True)
        assert about("dns", at(), names=(reader,)).severity == "advice"

    def test_warns_of_a_server_that_is_nearly_full(self) -> None:
        texts = [f.text for f in findings(at(activity=used(90)))]
        assert "90 of 97 connections are in use now" in texts
        assert len(findings(at(activity=used(80)))) == 1


class TestCapacity:
    @pytest.mark.parametrize(
        ("processes", "maxconn", "servers", "severity", "told"),
        [
            (4, 10, [HEALTHY], "fine", "may open 40; 97 are possible"),
            (1, 97, [HEALTHY], "fine", "1 process with maxconn=97"),
            (1, 98, [HEALTHY], "problem", "may open 98; 97 are possible"),
            (1, 90, [replace(HEALTHY, activity=used(8))], "advice", "only 89 are free now"),
            (2, 60, [HEALTHY] * 2, "advice", "should the others fail"),
            (2, 40, [HEALTHY] * 2, "fine", "40 on each of 2 servers"),
            (2, 98, [HEALTHY] * 2, "problem", "98 on each of 2 servers"),
        ],
    )
    def test_compares_the_plan_with_the_room(
        self, processes: int, maxconn: int, servers: list[Server], severity: str, told: str
    ) -> None:
        found = capacity(Plan(processes, maxconn), servers)
        assert found.severity == severity
        assert told in found.text

    @pytest.mark.parametrize(
        ("plan", "told"),
        [
            (Plan(), "90 of them free now: processes * maxconn may be as many"),
            (Plan(processes=4), "4 processes may have maxconn=22"),
            (Plan(maxconn=20), "enough for 4 processes with maxconn=20"),
        ],
    )
    def test_proposes_what_the_plan_leaves_open(self, plan: Plan, told: str) -> None:
        found = capacity(plan, [replace(HEALTHY, activity=used(7))])
        assert found.severity == "fine"
        assert told in found.text

    @pytest.mark.parametrize(
        ("limits", "usable", "named"),
        [
            (Limits(100, 3, 5, -1, -1), 92, "max_connections=100, less 8 reserved"),
            (Limits(100, 3, 0, 20, -1), 20, "the role's connection limit"),
            (Limits(100, 3, 0, 20, 10), 10, "the database's connection limit"),
            (Limits(100, 3, 0, 0, -1), 0, "the role's connection limit"),
        ],
    )
    def test_knows_every_limit(self, limits: Limits, usable: int, named: str) -> None:
        found = capacity(Plan(1, 500), [replace(HEALTHY, limits=limits)])
        assert f"{usable} are possible ({named})" in found.text

    def test_takes_what_the_role_has_already_from_the_roles_limit(self) -> None:
        limited = replace(HEALTHY, limits=Limits(100, 3, 0, 20, -1))
        others = capacity(Plan(), [replace(limited, activity=used(15, "other"))])
        own = capacity(Plan(), [replace(limited, activity=used(15, "app"))])
        assert "20 of them free" in others.text
        assert "5 of them free" in own.text

    def test_looks_for_the_tightest_limit_at_all_servers(self) -> None:
        small = replace(HEALTHY, limits=Limits(100, 3, 0, 20, -1))
        busy = replace(HEALTHY, activity=used(87))
        found = capacity(Plan(2, 21), [small, busy])
        assert (found.severity, "20 are possible" in found.text) == ("problem", True)
        found = capacity(Plan(2, 15), [small, busy])
        assert (found.severity, "only 10 are free" in found.text) == ("advice", True)

    def test_never_tells_less_than_nothing(self) -> None:
        assert "0 of them free" in capacity(Plan(), [replace(HEALTHY, activity=used(100))]).text

    def test_counts_at_the_pooler_where_there_is_one(self) -> None:
        known = replace(HEALTHY, pooler=Pooler(True, "PgBouncer 1.18", 500))
        assert capacity(Plan(10, 50), [known]).severity == "fine"
        assert capacity(Plan(10, 51), [known]).severity == "problem"
        unknown = replace(HEALTHY, pooler=Pooler(True))
        assert "does not tell" in capacity(Plan(10, 51), [unknown]).text
