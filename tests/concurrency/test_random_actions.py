"""A few seconds of everything at once; `make stress` does the same for longer."""

from __future__ import annotations

import pytest

from tests.support.interrupts import MAY_STRIKE_ANYWHERE
from tests.support.pools import MakePool
from tests.support.random_actions import act_at_random, seed_of_the_run


@MAY_STRIKE_ANYWHERE
@pytest.mark.parametrize("torment", [False, True], ids=["in peace", "interrupted"])
def test_whatever_threads_do_the_pool_stays_whole(
    make_any_pool: MakePool, app: str, torment: bool
) -> None:
    pool = make_any_pool(maxconn=6, health_check_interval=0.2, lifetime_timeout=5)
    act_at_random(pool, app, 0.75, seed_of_the_run(1), torment=torment)
