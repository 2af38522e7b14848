"""More of tests/unit/test_store_interleavings.py than a unit test has time for."""

from __future__ import annotations

import os
import time
from itertools import combinations_with_replacement, count, islice

import pytest

from tests.support.explore import OPERATIONS, WORLDS, new_explorer
from tests.support.interleave import HAS_BYTECODES

SECONDS = float(os.environ.get("STRESS_SECONDS", "10")) * 0.1
PAIRS = list(combinations_with_replacement(OPERATIONS, 2))


@pytest.mark.skipif(not HAS_BYTECODES, reason="this Python cannot trace bytecodes")
def test_two_operations_interleave_at_any_bytecode() -> None:
    begin = time.time_ns() % len(PAIRS)
    end = time.monotonic() + SECONDS
    with new_explorer() as explorer:
        explorer.set_granularity(by_bytecode=True)
        for index in islice(count(begin), len(PAIRS)):
            for where in WORLDS:
                explorer.exhaust(PAIRS[index % len(PAIRS)], where, bound=1)
            if time.monotonic() > end:
                return


def test_two_operations_may_be_interrupted_twice() -> None:
    begin = time.time_ns() % len(PAIRS)
    end = time.monotonic() + SECONDS
    with new_explorer() as explorer:
        for index in islice(count(begin), len(PAIRS)):
            for where in WORLDS:
                explorer.exhaust(PAIRS[index % len(PAIRS)], where, bound=2)
                if time.monotonic() > end:
                    return


def test_three_operations_interleave_at_random() -> None:
    seed = time.time_ns()
    end = time.monotonic() + SECONDS
    with new_explorer() as explorer:
        while time.monotonic() < end:
            explorer.walk(seed)
            seed += 1
