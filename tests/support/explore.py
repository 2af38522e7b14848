"""The operations of a pool, and runs of two or three of them by all plans, or by random ones."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from types import CodeType

import pytest

from psycopg2_pool2 import store as store_module
from tests.support.interleave import Call, Interleaver, Plan, Run, plans
from tests.support.store_world import TRACED, World, patch_locks

Operation = Callable[[World, int], object]
Names = tuple[str, ...]

OPERATIONS: dict[str, Operation] = {
    "borrow": lambda world, mine: world.borrow(),
    "borrow and return": lambda world, mine: world.borrow_and_return(),
    "wait": lambda world, mine: world.wait(),
    "give up": lambda world, mine: world.give_up(),
    "return": lambda world, mine: world.give_back(mine),
    "return broken": lambda world, mine: world.give_back_broken(mine),
    "drop": lambda world, mine: world.drop(mine),
    "drop in cycle": lambda world, mine: world.drop_in_cycle(mine),
    "return from garbage": lambda world, mine: world.return_from_garbage(mine),
    "save from garbage": lambda world, mine: world.save_from_garbage(mine),
    "check": lambda world, mine: world.check(),
    "retire": lambda world, mine: world.retire(),
    "reap": lambda world, mine: world.reap(),
    "clear": lambda world, mine: world.clear(),
    "open": lambda world, mine: world.open_one(),
    "open in vain": lambda world, mine: world.open_in_vain(),
    "shrink": lambda world, mine: world.shrink(),
    "enlarge": lambda world, mine: world.enlarge(),
    "close": lambda world, mine: world.shut(),
    "look again": lambda world, mine: world.look_again(),
    "fail waiters": lambda world, mine: world.fail(),
}
RETIREMENT: dict[str, Operation] = {
    "look and borrow": lambda world, mine: world.look_and_borrow(),
    "return and look": lambda world, mine: world.give_back_and_look(mine),
    "retire all": lambda world, mine: world.retire_all(),
}
_KNOWN = {**OPERATIONS, **RETIREMENT}
# Every operation may return one of three connections that are lent: its own, or
# with "!" after its name the last one.
WORLDS: dict[str, dict[str, int]] = {
    "all lent": {"idle": 0, "lent": 3},
    "one idle": {"idle": 1, "lent": 3},
    "room for one": {"idle": 0, "lent": 3, "room": 1},
    "room for two": {"idle": 0, "lent": 3, "room": 2},
    "one missing": {"idle": 0, "lent": 3, "room": 1, "minconn": 4},
}


class Explorer:
    """Runs plans on fresh worlds, counts them, and raises at the first that goes wrong."""

    def __init__(self, interleaver: Interleaver) -> None:
        self.world: World | None = None
        self.runs = 0
        self._interleaver = interleaver

    def set_granularity(self, *, by_bytecode: bool) -> None:
        """Take each bytecode, or each line, for a step."""
        self._interleaver.by_bytecode = by_bytecode

    def run(
        self,
        names: Names,
        where: str,
        plan: Plan,
        *,
        intruder: str | None = None,
        record: bool = False,
    ) -> Run:
        """Run one plan on a fresh world."""
        world = self.world = World(**WORLDS[where])

        def call(name: str, number: int) -> Call:
            operation = _KNOWN[name.removesuffix("!")]
            return lambda: operation(world, world.on_loan[-1 if name.endswith("!") else number])

        intrude = call(intruder, -1) if intruder else lambda: None
        calls = [call(name, index) for index, name in enumerate(names)]
        run = self._interleaver.run(calls, plan, world.watch, intrude, record=record)
        self.runs += 1
        problem = world.problem_after(run)
        if problem is not None and not record:
            story = "\n".join(self._story(names, where, plan, intruder))
            extra = f", {intruder!r} within" if intruder else ""
            raise AssertionError(f"{problem}: {names}{extra} with {where}\n{plan}\n{story}")
        return run

    def _story(self, names: Names, where: str, plan: Plan, intruder: str | None) -> list[str]:
        if plan.walk is not None:
            return []
        story = self.run(names, where, plan, intruder=intruder, record=True).story
        return [line for line, _ in groupby(story)]

    def exhaust(self, names: Names, where: str, bound: int, *, expiries: int = 0) -> None:
        """Run all plans with at most so many preemptions."""
        todo = [Plan(first, expiries=expiries) for first in range(len(names))]
        while todo:
            todo.extend(plans(self.run(names, where, todo.pop()), bound))

    def fault(self, names: Names, where: str) -> None:
        """Raise an exception in the first one at every moment where one can come."""
        for first in range(len(names)):
            moments = self.run(names, where, Plan(first, expiries=3)).moments[0]
            for moment in range(1, moments + 1):
                self.run(names, where, Plan(first, fault=(0, moment), expiries=3))

    def fault_at_random(self, names: Names, where: str, seed: int) -> None:
        """Raise an exception in the first one at some moment, with random switches."""
        draw = random.Random(seed)
        plan = Plan(draw.randrange(len(names)), fault=(0, draw.randrange(1, 60)), expiries=3)
        self._walk(names, where, plan, seed)

    def intrude(self, names: Names, where: str, intruder: str) -> None:
        """Do the intruder's operation within the first one, at every moment where it can come."""
        for first in range(len(names)):
            moments = self.run(names, where, Plan(first)).moments[0]
            for moment in range(1, moments + 1):
                plan = Plan(first, intrusion=(0, moment), expiries=3)
                self.run(names, where, plan, intruder=intruder)

    def walk(self, seed: int) -> None:
        """Run three operations, one of the worlds and the switches all drawn with this seed."""
        draw = random.Random(seed)
        names = tuple(draw.choice(list(OPERATIONS)) for _ in range(3))
        where = draw.choice(list(WORLDS))
        self._walk(names, where, Plan(draw.randrange(3)), seed)

    def _walk(self, names: Names, where: str, plan: Plan, seed: int) -> None:
        try:
            self.run(names, where, replace(plan, walk=random.Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None


@contextmanager
def new_explorer(traced: Iterable[CodeType] = TRACED) -> Iterator[Explorer]:
    """Make an explorer; locks that stores make meanwhile are its own."""
    with Interleaver(traced, threads=3) as interleaver, pytest.MonkeyPatch.context() as patch:
        explorer = Explorer(interleaver)
        locks = patch_locks(
            interleaver, lambda: None if explorer.world is None else explorer.world.clock
        )
        patch.setattr(store_module, "threading", locks)
        gc.collect()
        gc.freeze()  # so that collecting what a run leaves behind takes no time
        yield explorer
        gc.unfreeze()
    print(f"{explorer.runs} runs")
