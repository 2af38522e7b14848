"""What many processes do together, in simulated time; see tests/bench/simulation.py."""

from __future__ import annotations

import functools
import logging
import math
import random

import pytest

from psycopg2_pool2 import balance
from tests.bench.scenarios import spread
from tests.bench.simulation import (
    FIRST,
    FOURTH,
    METHODS,
    History,
    NameServer,
    OurPool,
    RandomNameServer,
    Story,
    World,
    simulate,
)

SHORT = Story(processes=30, fourth_comes=120, one_dies=240, it_returns=300, end=420)
CONNECTIONS = SHORT.processes * SHORT.size
ANSWERS: dict[str, type[NameServer]] = {"in turn": NameServer, "at random": RandomNameServer}
TURNS = pytest.mark.parametrize("answers", ANSWERS)


def full(world: World) -> OurPool:
    return OurPool(world, maxconn=world.size)


def with_room(world: World) -> OurPool:
    return OurPool(world)


POOLS = {"with room": with_room, "full": full}
SIZES = pytest.mark.parametrize("kind", POOLS)


@functools.cache
def seen(kind: str, answers: str = "in turn", deployment: float = 60.0) -> History:
    story = SHORT._replace(names=ANSWERS[answers], deployment=deployment)
    return simulate(story, POOLS[kind])


@functools.cache
def plain(method: str) -> History:
    return simulate(SHORT, METHODS[method])


class TestOurs:
    @SIZES
    @TURNS
    def test_connections_are_spread_though_an_answer_names_one(
        self, kind: str, answers: str
    ) -> None:
        history = seen(kind, answers)
        assert sum(history.counts[SHORT.fourth_comes - 1]) == CONNECTIONS
        assert history.spread(SHORT.fourth_comes - 1) <= SHORT.processes

    @SIZES
    def test_also_if_all_processes_start_on_the_same_replica(self, kind: str) -> None:
        history = seen(kind, deployment=1.0)
        assert sorted(history.counts[2]) == [0, 0, 0, CONNECTIONS]
        assert history.spread(SHORT.fourth_comes - 1) <= SHORT.processes

    @SIZES
    @TURNS
    def test_a_new_one_gets_connections_soon(self, kind: str, answers: str) -> None:
        assert seen(kind, answers).arrival(0.75) <= 60

    @SIZES
    def test_what_is_left_over_does_not_always_go_to_the_same(self, kind: str) -> None:
        assert seen(kind).arrival(0.9) <= 60

    @SIZES
    def test_a_new_one_is_not_overrun(self, kind: str) -> None:
        history = seen(kind)
        # Each process moves a tenth of its connections a second.
        steps = SHORT.processes * max(1, SHORT.size // 10)
        assert history.busiest_second(SHORT.fourth_comes, SHORT.one_dies) <= steps

    @SIZES
    def test_others_serve_for_one_that_dies(self, kind: str) -> None:
        history = seen(kind)
        for second in range(SHORT.one_dies + 1, SHORT.it_returns):
            assert history.counts[second][0] == 0
            assert sum(history.counts[second]) >= CONNECTIONS - SHORT.processes

    @SIZES
    def test_one_that_is_down_is_not_stormed(self, kind: str) -> None:
        history = seen(kind)
        during = history.attempts_in(SHORT.one_dies + 10, SHORT.it_returns)
        # Each process tries every five seconds, 20 % sooner at most.
        assert during <= SHORT.processes * (SHORT.it_returns - SHORT.one_dies - 10) / 4 + 1

    @SIZES
    def test_one_that_returns_gets_its_share_again(self, kind: str) -> None:
        assert seen(kind).restoration(0.9) <= 60

    @SIZES
    def test_nothing_is_moved_when_all_is_even(self, kind: str) -> None:
        history = seen(kind)
        assert history.attempts_in(SHORT.fourth_comes - 30, SHORT.fourth_comes) == 0
        assert history.attempts_in(SHORT.end - 30, SHORT.end) == 0

    def test_a_full_pool_never_has_more_than_it_may(self) -> None:
        assert max(sum(counts) for counts in seen("full").counts) == CONNECTIONS


class TestOthers:
    def test_libpq_leaves_a_new_one_alone_until_lifetimes_end(self) -> None:
        history = plain("libpq, 24 h")
        assert history.arrival(0.01) == math.inf
        assert history.counts[-1][0] == 0  # the one that came back, as well

    def test_random_choice_spreads_over_what_it_knows(self) -> None:
        history = plain("random, 24 h")
        assert history.spread(SHORT.fourth_comes - 1) < CONNECTIONS / 4
        assert history.arrival(0.01) == math.inf

    def test_a_lifetime_brings_connections_to_a_new_one(self) -> None:
        lasting = SHORT._replace(processes=5, end=5000)
        assert simulate(lasting, METHODS["random, 1 h"]).counts[-1][3] > 0

    @pytest.mark.parametrize("method", ["libpq, 24 h", "random, 24 h"])
    def test_what_is_lost_is_replaced(self, method: str) -> None:
        assert sum(plain(method).counts[SHORT.it_returns - 1]) == CONNECTIONS


class TestNameServer:
    def test_tells_everybody_the_same_while_an_answer_is_valid(self) -> None:
        now = 7.0
        names = NameServer(lambda: now)
        assert [place.address for place in names.answer().places] == [FIRST[1]]
        assert names.answer().ttl == 3.0
        now = 10.0
        assert [place.address for place in names.answer().places] == [FIRST[2]]

    def test_names_each_in_turn_a_new_one_too(self) -> None:
        names = NameServer(iter([0.0, 5.0, 10.0, 15.0]).__next__)
        names.addresses = (*FIRST, FOURTH)
        told = [names.answer().places[0].address for _ in range(4)]
        assert told == [*FIRST, FOURTH]

    def test_may_draw_each_answer(self) -> None:
        names = RandomNameServer(lambda: 0.0)
        assert {names.answer().places[0].address for _ in range(200)} == set(FIRST)


class TestSimulation:
    def test_leaves_no_trace(self) -> None:
        logger = logging.getLogger("psycopg2_pool2")
        before = random.getstate(), logger.level, vars(balance)["answers"]
        simulate(SHORT._replace(processes=1, end=10), OurPool)
        assert (random.getstate(), logger.level, vars(balance)["answers"]) == before

    def test_repeats_itself_with_the_same_seed(self) -> None:
        story = SHORT._replace(processes=5)
        one, same, other = (simulate(story, METHODS["random, 24 h"], seed=n) for n in (1, 1, 2))
        assert one.counts == same.counts
        assert one.counts != other.counts

    def test_is_summarised(self) -> None:
        figures = spread.figures(plain("libpq, 24 h"))
        assert figures["arrival_90"] == SHORT.one_dies - SHORT.fourth_comes
        assert figures["arrival_90_gave_up"] == 1
        ours = spread.figures(seen("with room"))
        assert ours["arrival_90"] == seen("with room").arrival(0.9)
        assert ours["arrival_90_gave_up"] == 0
        assert ours["before"] == seen("with room").spread(SHORT.fourth_comes - 1)
