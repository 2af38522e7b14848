"""The endpoints of a pool: which there are, which is next, and when names are asked for."""

from __future__ import annotations

import math
import random
import sys
import threading
from collections import Counter
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import CircuitBreaker, HostResolutionError
from psycopg2_pool2.addresses import NOBODY, Answer, Place
from psycopg2_pool2.endpoints import Endpoint, Endpoints
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.resolver import NameServerSilent, NoSuchHost
from tests.support.fakes import FakeClock
from tests.support.waiting import in_thread, wait_until

SOCKETS = "/tmp" if sys.platform != "win32" else "C:\\tmp"
ERROR = psycopg2.OperationalError("Connection refused")


class Names:
    """In place of a Resolver: what each name stands for, or what asking for it raises."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Exception] = {}
        self.asked: list[str] = []
        self.during: Any = lambda name: None

    def say(self, *addresses: str | Place, name: str = "db.test", ttl: float = 5.0) -> None:
        places = (a if isinstance(a, Place) else Place(a) for a in addresses)
        self.answers[name] = Answer(tuple(places), ttl)

    def lookup(self, name: str, seconds: float) -> Answer:
        self.asked.append(name)
        self.during(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def names() -> Names:
    made = Names()
    made.say("a", "b", "c")
    return made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make(names: Names, clock: FakeClock, host: str = "db.test", **more: str) -> Endpoints:
    """Make the endpoints of a dsn, and have them looked up."""
    made = Endpoints(
        {"host": host, "port": "5432", **more},
        names,  # type: ignore[arg-type]
        60.0,
        CircuitBreaker(),
        3,
        True,
        clock,
    )
    made.refresh(5.0)
    return made


def addresses(endpoints: Endpoints) -> list[str | None]:
    return [endpoint.address for endpoint in endpoints.current()]


def at(endpoints: Endpoints, address: str) -> Endpoint:
    [found] = [e for e in endpoints.current() if e.address == address]
    return found


def choice(endpoints: Endpoints, **load: int) -> str | None:
    """Return the address that the next attempt goes to, and give the attempt up."""
    attempt = endpoints.begin((), Counter({at(endpoints, a): n for a, n in load.items()}))
    return None if attempt is None else attempt.endpoint.address


def fail(endpoints: Endpoints, address: str, kind: FailureKind = FailureKind.CUT) -> None:
    endpoints.failed(endpoints.begin_at(at(endpoints, address)), ERROR, kind)


def succeed(endpoints: Endpoints, address: str) -> None:
    endpoints.succeeded(endpoints.begin_at(at(endpoints, address)), 0.1)


# -- what there is -----------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", SOCKETS])
def test_a_single_place_that_is_no_name_is_left_to_libpq(
    names: Names, clock: FakeClock, host: str
) -> None:
    endpoints = make(names, clock, host)
    assert endpoints.are_fixed
    assert endpoints.refresh_in() == math.inf
    assert [e.keywords for e in endpoints.current()] == [{}]
    assert names.asked == []


def test_each_place_of_a_list_is_told_to_libpq_in_full(names: Names, clock: FakeClock) -> None:
    """What does not apply to it is set to nothing, or the rest of the dsn would apply."""
    endpoints = make(names, clock, f"{SOCKETS},db.test,127.0.0.9", port="1,2,3")
    assert not endpoints.are_fixed
    assert [e.keywords for e in endpoints.current()] == [
        {"host": SOCKETS, "hostaddr": "", "port": 1},
        *({"host": "db.test", "hostaddr": address, "port": 2} for address in "abc"),
        {"host": "127.0.0.9", "hostaddr": "127.0.0.9", "port": 3},
    ]


def test_who_stays_keeps_his_history(names: Names, clock: FakeClock) -> None:
    endpoints = make(names, clock)
    before = {e.address: e for e in endpoints.current()}
    fail(endpoints, "b")
    names.say("b", "d")
    for _ in range(20):
        clock.advance(5)
        endpoints.refresh(5.0)
    assert sorted(map(str, addresses(endpoints))) == ["b", "d"]
    assert at(endpoints, "b") is before["b"]
    assert at(endpoints, "b").breaker.failing


@pytest.mark.parametrize(
    "trouble", [NameServerSilent("nobody answers"), NoSuchHost("there is no such name")]
)
def test_those_that_were_there_stay_while_nobody_is_named(
    names: Names, clock: FakeClock, trouble: Exception
) -> None:
    endpoints = make(names, clock)
    before = endpoints.current()
    good, names.answers["db.test"] = names.answers["db.test"], trouble
    for _ in range(100):
        clock.advance(15)
        endpoints.refresh(5.0)  # no error: there is somebody to connect to
    assert endpoints.current() == before
    names.answers["db.test"] = good
    clock.advance(15)
    endpoints.refresh(5.0)
    assert endpoints.current() == before


def test_a_name_of_which_nothing_is_known_is_an_error(names: Names, clock: FakeClock) -> None:
    names.answers["db.test"] = NameServerSilent('host "db.test": nobody answers')
    with pytest.raises(HostResolutionError, match=r"db\.test"):
        make(names, clock)


# -- when names are asked for ------------------------------------------------


@pytest.mark.parametrize(("ttl", "expected"), [(0.0, 1.0), (5.0, 5.0), (3600.0, 60.0)])
def test_a_name_is_asked_for_again_when_its_answer_is_old(
    names: Names, clock: FakeClock, ttl: float, expected: float
) -> None:
    """At most once a second, at least once a minute."""
    names.say("a", ttl=ttl)
    endpoints = make(names, clock)
    assert endpoints.refresh_in() == pytest.approx(expected)
    clock.advance(expected - 0.01)
    endpoints.refresh(5.0)
    assert len(names.asked) == 1
    clock.advance(0.02)
    endpoints.refresh(5.0)
    assert len(names.asked) == 2


def test_while_nobody_answers_the_questions_are_further_and_further_apart(
    names: Names, clock: FakeClock
) -> None:
    endpoints = make(names, clock)
    names.answers["db.test"] = NameServerSilent("nobody answers")
    pauses = []
    clock.advance(5)
    for _ in range(7):
        endpoints.refresh(5.0)
        pauses.append(endpoints.refresh_in())
        clock.advance(pauses[-1])
    assert pauses == pytest.approx([1, 2, 4, 8, 15, 15, 15])


@pytest.mark.parametrize("trouble", [NameServerSilent("nobody answers"), NoSuchHost("no such")])
def test_an_unknown_name_in_a_list_is_not_asked_for_before_its_time(
    names: Names, clock: FakeClock, trouble: Exception
) -> None:
    names.answers["lost.test"] = trouble
    endpoints = make(names, clock, "lost.test,db.test")
    assert names.asked.count("lost.test") == 1
    for _ in range(10):
        endpoints.refresh(5.0)
    assert names.asked.count("lost.test") == 1


def test_who_knows_something_does_not_wait_for_another_s_question(
    names: Names, clock: FakeClock
) -> None:
    endpoints = make(names, clock)
    clock.advance(5)
    here, go = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        here.set()
        assert go.wait(30)

    names.during = hold
    slow = in_thread(endpoints.refresh, 5.0)
    wait_until(here.is_set)
    in_thread(endpoints.refresh, 5.0).result()  # returns, though the first one is held
    assert len(names.asked) == 2
    go.set()
    slow.result()


# -- which is next -----------------------------------------------------------


def test_the_one_with_fewest_connections_is_next(names: Names, clock: FakeClock) -> None:
    endpoints = make(names, clock)
    assert {choice(endpoints, a=2, b=1, c=2) for _ in range(20)} == {"b"}
    assert {choice(endpoints, a=1, b=1, c=0) for _ in range(20)} == {"c"}


def test_attempts_under_way_count_as_connections(names: Names, clock: FakeClock) -> None:
    endpoints = make(names, clock)
    attempts = [endpoints.begin((), Counter()) for _ in range(6)]
    assert Counter(a.endpoint.address for a in attempts if a) == {"a": 2, "b": 2, "c": 2}


def test_of_equals_another_is_next_in_another_pool(names: Names, clock: FakeClock) -> None:
    found = Counter(choice(make(names, clock)) for _ in range(300))
    assert min(found[address] for address in "abc") >= 50


def test_a_program_that_seeds_its_random_numbers_changes_nothing(
    names: Names, clock: FakeClock
) -> None:
    """Many do, in every process with the same seed; and they want their numbers for themselves."""
    found = set()
    for _ in range(40):
        random.seed(7)
        state = random.getstate()
        endpoints = make(names, clock)
        found.add(choice(endpoints))
        fail(endpoints, "a")
        assert random.getstate() == state
    assert found == {"a", "b", "c"}


def test_of_services_the_best_priority_is_next_and_then_the_weight(
    names: Names, clock: FakeClock
) -> None:
    names.say(
        Place("a", priority=1, weight=90),
        Place("b", priority=1, weight=10),
        Place("c", priority=2, weight=100),
        name="_pg._tcp.test",
    )
    found: Counter[str | None] = Counter()
    for _ in range(300):
        endpoints = make(names, clock, "_pg._tcp.test")
        found[choice(endpoints)] += 1
        assert choice(endpoints, a=9, b=2) == "a"
        assert choice(endpoints, a=18, b=0) == "b"
    assert found["c"] == 0
    # A pool's first connection goes there in about that proportion.
    assert 3 <= found["b"] <= 80


def test_one_that_fails_is_asked_only_if_the_others_do_too(names: Names, clock: FakeClock) -> None:
    endpoints = make(names, clock)
    fail(endpoints, "a")
    assert choice(endpoints, b=8, c=9) == "b"
    assert choice(endpoints, b=9, c=8) == "c"
    fail(endpoints, "b")
    fail(endpoints, "c")
    assert choice(endpoints) in ("a", "b", "c")


def test_one_that_fails_is_looked_at_less_and_less_often(names: Names, clock: FakeClock) -> None:
    """Every few seconds if it has ever served, else twice a minute."""
    endpoints = make(names, clock)
    succeed(endpoints, "a")
    for address, longest in (("a", 5.0), ("b", 30.0)):
        gaps = []
        fail(endpoints, address)
        for _ in range(9):
            since = clock()
            while at(endpoints, address) not in endpoints.lagging():
                clock.advance(0.05)
                assert clock() - since < 2 * longest
            gaps.append(clock() - since)
            fail(endpoints, address)
        assert 0.5 <= gaps[0] <= 1.5
        assert max(gaps) <= 1.3 * longest
        assert min(gaps[-2:]) >= 0.7 * longest


def test_success_makes_it_one_of_the_others_again(names: Names, clock: FakeClock) -> None:
    endpoints = make(names, clock)
    fail(endpoints, "a")
    assert at(endpoints, "a") not in endpoints.wanted()
    assert endpoints.any_lags()
    succeed(endpoints, "a")
    assert at(endpoints, "a") in endpoints.wanted()
    assert not endpoints.any_lags()
    assert choice(endpoints, a=0, b=1, c=1) == "a"
    assert at(endpoints, "a").last_error is None
    assert at(endpoints, "a").connect_seconds == 0.1


def test_nobody_s_answer_is_short(names: Names) -> None:
    """A name that does not exist yet is asked for again within seconds."""
    assert NOBODY.ttl <= 5
