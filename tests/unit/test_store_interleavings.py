"""Every way in which two operations of a pool can interleave, and many of three.

`tests.support.interleave` has how it is done, `tests.support.store_world` what the
operations are and what must hold.  A failure prints the plan and its story;
`explorer.run` with that plan repeats it.  `make stress` explores further.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.explore import OPERATIONS, Explorer, new_explorer
from tests.support.interleave import HAS_BYTECODES
from tests.support.store_world import RETIREMENT_TRACED

RETURNS = ["return", "return broken", "drop"]
"""What the garbage collector can do at any moment, by a borrower's `__del__`."""


@pytest.fixture(scope="module")
def explorer() -> Iterator[Explorer]:
    with new_explorer() as made:
        yield made


@pytest.fixture(scope="module")
def retirement() -> Iterator[Explorer]:
    with new_explorer(RETIREMENT_TRACED) as made:
        made.set_granularity(by_bytecode=HAS_BYTECODES)
        yield made


@pytest.fixture
def by_line(explorer: Explorer) -> Explorer:
    explorer.set_granularity(by_bytecode=False)
    return explorer


@pytest.fixture
def by_bytecode(explorer: Explorer) -> Explorer:
    if not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    explorer.set_granularity(by_bytecode=True)
    return explorer


@pytest.mark.parametrize("name", OPERATIONS)
def test_two_operations_interleave_at_any_line(by_line: Explorer, name: str) -> None:
    names = list(OPERATIONS)
    for other in names[names.index(name) :]:
        by_line.exhaust((name, other), "all lent", bound=1)


@pytest.mark.parametrize("where", ["all lent", "one idle"])
@pytest.mark.parametrize("one", ["wait", "give up", "borrow", "return"])
def test_a_return_may_be_interrupted_twice(by_line: Explorer, one: str, where: str) -> None:
    by_line.exhaust((one, "return"), where, bound=2)


@pytest.mark.parametrize("one", ["wait", "give up", "borrow", "check", "close"])
def test_a_return_interleaves_at_any_bytecode(by_bytecode: Explorer, one: str) -> None:
    by_bytecode.exhaust((one, "return"), "all lent", bound=1)


@pytest.mark.parametrize("names", [("return!", "return!"), ("return!", "return broken!")])
def test_of_two_who_return_the_same_one_is_refused(
    by_bytecode: Explorer, names: tuple[str, ...]
) -> None:
    by_bytecode.exhaust(names, "all lent", bound=2)


def test_three_operations_interleave_at_random(by_line: Explorer) -> None:
    for seed in range(600):
        by_line.walk(seed)


def test_waiters_are_served_in_the_order_of_their_entry(by_line: Explorer) -> None:
    by_line.exhaust(("wait", "wait", "return!"), "all lent", bound=1)


def test_a_waiter_has_no_second_one_opened_for_him(by_line: Explorer) -> None:
    for other in ("look again", "wait", "return broken"):
        by_line.exhaust(("wait", other), "room for two", bound=1)


def test_no_borrower_overtakes_a_waiter(by_line: Explorer) -> None:
    by_line.exhaust(("wait", "return", "borrow"), "all lent", bound=1)
    by_line.exhaust(("wait", "check", "borrow"), "one idle", bound=1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_exception_after_any_bytecode_loses_nothing(by_bytecode: Explorer, name: str) -> None:
    for other in ("wait", "return"):
        by_bytecode.fault((name, other), "all lent")


@pytest.mark.parametrize("names", [("return", "wait"), ("wait", "return")], ids=" + ".join)
def test_an_exception_while_others_go_on_loses_nothing(
    by_bytecode: Explorer, names: tuple[str, str]
) -> None:
    for seed in range(500):
        by_bytecode.fault_at_random(names, "all lent", seed)


@pytest.mark.parametrize("intruder", RETURNS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_return_by_the_garbage_collector_is_safe_after_any_bytecode(
    by_bytecode: Explorer, name: str, intruder: str
) -> None:
    by_bytecode.intrude((name, "wait"), "all lent", intruder)
    by_bytecode.intrude((name, "open"), "one missing", intruder)


class TestRetirement:
    """Whoever has a connection in hand clears its mark, and then reads why it was set."""

    @pytest.mark.parametrize("where", ["one idle", "all lent"])
    @pytest.mark.parametrize("one", ["look and borrow", "return and look", "borrow", "return"])
    def test_is_noticed_now_or_at_the_next_look(
        self, retirement: Explorer, one: str, where: str
    ) -> None:
        retirement.exhaust((one, "retire all"), where, bound=1)
