"""What a borrow and return of an idle connection costs, counted instead of timed.

A machine's speed changes from minute to minute; how many calls and instructions the path takes does
not. Whoever makes it longer on purpose raises the budget here.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import psycopg2_pool2
from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.prometheus import PoolCollector
from psycopg2_pool2.store import ThreadWaiter
from tests.support.pools import MakePool

PACKAGE = str(Path(psycopg2_pool2.__file__).parent)
WARM_UP = 50


class Calls(NamedTuple):
    """What was called in the package's own code, and from there."""

    functions: int  # Python functions that were entered
    builtins: int  # C functions that were called


# The most: as counted, with two instructions in a hundred to spare.
CALLS = Calls(functions=4, builtins=7)
INSTRUCTIONS = {(3, 10): 120, (3, 11): 123, (3, 12): 111, (3, 13): 121}
# The same for a borrow that waits until another gives the only connection back, and that return.
WAITING_CALLS = Calls(functions=24, builtins=30)


def count_calls(action: Callable[[], object]) -> Calls:
    """Count the calls of one action."""
    seen = {"call": 0, "c_call": 0}

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event in seen and _is_ours(frame):
            seen[event] += 1

    with _restored(sys.getprofile, sys.setprofile):
        sys.setprofile(profile)
        action()
    return Calls(seen["call"], seen["c_call"])


def count_instructions(action: Callable[[], object]) -> int:
    """Count the bytecodes of one action."""
    # Python 3.12 begins to report them the second time only.
    return max(_traced_instructions(action) for _ in range(2))


def _traced_instructions(action: Callable[[], object]) -> int:
    instructions = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal instructions
        if not _is_ours(frame):
            return None
        frame.f_trace_opcodes = True
        instructions += event == "opcode"
        return trace

    with _restored(sys.gettrace, sys.settrace):
        sys.settrace(trace)
        action()
    return instructions


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(PACKAGE)


@contextmanager
def _restored(get: Callable[[], Any], put: Callable[[Any], None]) -> Iterator[None]:
    """Put back afterwards what measures coverage; have no garbage collected meanwhile.

    That may be another test's pool, whose end is not this one's cost.
    """
    before = get()
    gc.disable()
    try:
        yield
    finally:
        put(before)
        gc.enable()


def warm_cycle(pool: ConnectionPool) -> Callable[[], object]:
    """Return the action that is counted, borrow and return, done often enough before."""

    def act() -> None:
        pool.putconn(pool.getconn())

    pool.wait()
    for _ in range(WARM_UP):
        act()
    return act


def waiting_cycle(pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Return the action of waiting for a connection until it comes back, in one thread."""
    pool.wait()
    held = [pool.getconn()]
    wait = ThreadWaiter.wait

    def wait_for_its_return(waiter: ThreadWaiter[Any], seconds: float) -> bool:
        pool.putconn(held.pop())
        return wait(waiter, seconds)

    def act() -> None:
        held.append(pool.getconn())

    monkeypatch.setattr(ThreadWaiter, "wait", wait_for_its_return)
    for _ in range(WARM_UP):
        act()
    return act


@pytest.fixture
def act(make_pool: MakePool) -> Callable[[], object]:
    """Return the shortest cycle there is: an idle connection, no test."""
    return warm_cycle(make_pool(1, test_on_borrow=False))


@pytest.fixture
def act_longer(make_pool: MakePool) -> Callable[[], object]:
    """Return a cycle that does more: it records who borrowed."""
    return warm_cycle(make_pool(1, test_on_borrow=False, leak_timeout=60))


def test_an_idle_cycle_calls_no_more_than_its_budget(act: Callable[[], object]) -> None:
    calls = count_calls(act)
    assert calls.functions <= CALLS.functions
    assert calls.builtins <= CALLS.builtins


def test_an_idle_cycle_takes_no_more_instructions_than_its_budget(
    act: Callable[[], object],
) -> None:
    budget = INSTRUCTIONS.get(sys.version_info[:2])
    if budget is None:
        pytest.skip("nobody has counted the instructions on this Python yet")
    assert 0 < count_instructions(act) <= budget


def test_a_borrow_that_waits_calls_no_more_than_its_budget(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under contention every borrow does, and what it costs nobody else can use the interpreter."""
    pool = make_pool(1, 1, timeout=60, test_on_borrow=False)
    act = waiting_cycle(pool, monkeypatch)
    calls = count_calls(act)
    assert calls.functions <= WAITING_CALLS.functions
    assert calls.builtins <= WAITING_CALLS.builtins
    assert pool.get_stats()["requests_queued"] == WARM_UP + 1


def test_observers_cost_nothing_once_they_have_left(make_pool: MakePool) -> None:
    pool = make_pool(1, test_on_borrow=False)
    collector = PoolCollector(pool)
    act = warm_cycle(pool)
    assert count_calls(act).functions > CALLS.functions
    collector.remove(pool)
    calls = count_calls(act)
    assert calls.functions <= CALLS.functions
    assert calls.builtins <= CALLS.builtins


def test_a_longer_path_is_noticed(act_longer: Callable[[], object]) -> None:
    calls = count_calls(act_longer)
    assert calls.functions > CALLS.functions
    assert calls.builtins > CALLS.builtins
    assert count_instructions(act_longer) > max(INSTRUCTIONS.values())


def test_the_counts_are_the_same_again_and_again(act: Callable[[], object]) -> None:
    assert len({(*count_calls(act), count_instructions(act)) for _ in range(5)}) == 1
