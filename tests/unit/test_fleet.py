"""How a fleet of processes probes a server that is away, in simulated time."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.bench.fleet import ANSWER, FIXED, PsycopgPoolPace, Story, simulate
from tests.bench.harness import Row, Rows
from tests.bench.peers import OURS
from tests.bench.scenarios.fleet import SCENARIO, bound, history

SLACK = 3 * ANSWER
SIZES = pytest.mark.parametrize("processes", [10, 1000])


class TestOurs:
    def test_large_fleet_leaves_a_starting_server_alone(self) -> None:
        rates = history(120, OURS, 1000).rates
        assert len(rates) == 60, "the second minute"
        assert max(rates) <= 500

    def test_fixed_pace_would_not(self) -> None:
        assert min(simulate(Story(100, 62), FIXED).rates) > 350

    @pytest.mark.parametrize("outage", [2, 10, 30, 120])
    def test_large_fleet_is_served_within_a_tenth_of_the_outage(self, outage: int) -> None:
        seen = history(outage, OURS, 1000)
        assert seen.last_served <= bound(outage) + seen.story.own_time

    @pytest.mark.parametrize("outage", [2, 10, 30, 120])
    @pytest.mark.parametrize("processes", [1, 10, 100])
    def test_any_fleet_is_served_within_a_tenth_and_its_jitter(
        self, processes: int, outage: int
    ) -> None:
        seen = history(outage, OURS, processes)
        limit = max(0.3, min(0.12 * outage, 6)) + SLACK
        assert seen.last_served <= limit + seen.story.own_time

    @SIZES
    def test_restart_is_survived_as_fast_as_with_the_fixed_pace(self, processes: int) -> None:
        ours, fixed = (history(2, pace, processes) for pace in (OURS, FIXED))
        assert ours.last_served <= max(1.05 * fixed.last_served, 0.3 + SLACK)

    def test_outage_costs_less_and_less(self) -> None:
        attempts = history(120, OURS, 1000).attempts
        steps = [attempts[second] for second in (1, 5, 10, 20, 40)]
        assert all(later < 0.8 * earlier for earlier, later in pairwise(steps))


class TestPsycopgPool:
    def test_doubles_its_delay_and_starts_over_after_five_minutes(self) -> None:
        pytest.importorskip("psycopg_pool")
        pace, times = PsycopgPoolPace(), [0.0]
        while times[-1] < 302:
            times.append(pace.next_after(times[-1]))
        gaps = [later - earlier for earlier, later in pairwise(times)]
        first = gaps[0]
        assert 0.9 <= first - ANSWER <= 1.1
        assert gaps[1:8] == pytest.approx([first * 2**n for n in range(1, 8)], rel=0.01)
        assert times[9] == pytest.approx(300, abs=0.1), "the delay is cut short at the end"
        assert gaps[9] == pytest.approx(ANSWER), "the next borrower tries at once"
        assert gaps[10] < 1.2


class TestSimulation:
    def test_repeats_itself_with_the_same_seed(self) -> None:
        story = Story(20, 10)
        one, same, other = (simulate(story, OURS, seed) for seed in (1, 1, 2))
        assert (one.attempts, one.served) == (same.attempts, same.served)
        assert one.served != other.served

    def test_leaves_the_random_numbers_of_others_alone(self) -> None:
        before = random.getstate()
        simulate(Story(1, 2), FIXED)
        assert random.getstate() == before

    def test_serves_each_process_once_at_the_rate_of_the_server(self) -> None:
        seen = simulate(Story(50, 2, logins=10), OURS)
        assert len(seen.served) == 50
        assert min(later - earlier for earlier, later in pairwise(seen.served)) > 0.099
        assert 5 <= seen.last_served <= 5 + 0.3 + SLACK
        assert sum(seen.attempts.values()) == seen.refused + 50

    def test_begins_with_three_attempts_of_each_process(self) -> None:
        seen = simulate(Story(50, 1, logins=1000), OURS)
        assert seen.attempts[0] >= 50 * 3


def test_aims_are_reported_for_the_cases_that_were_run() -> None:
    sample = {f"{key}_{size}": 2.0 for key in ("rate", "last") for size in (100, 1000)}
    rows = Rows(Row("2 s", pace, [sample]) for pace in (OURS, FIXED))
    told = [aim for aim in SCENARIO.aims(rows) if aim.measured == aim.measured]
    assert len(told) == 3
    assert all(aim.met for aim in told)
