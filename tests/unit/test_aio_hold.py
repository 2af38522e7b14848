"""A worker that uses a connection for a task, and the task that gives up, in every order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import aio
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of, plans


class World:
    """A connection that its worker gives back when the hold is over."""

    def __init__(self) -> None:
        self.used = self.cancelled = self.given_up = self.marked = False
        self.is_anothers = False
        desk = SimpleNamespace(find_record=lambda conn: conn)  # this is its own record
        pool: Any = SimpleNamespace(
            pool=SimpleNamespace(_desk=desk), _interrupt=lambda interruption: None
        )
        self.hold = aio._Hold(pool)

    @property
    def retired(self) -> bool:
        return self.marked

    @retired.setter
    def retired(self, value: bool) -> None:
        assert not self.is_anothers, "marked although its next borrower has it"
        self.marked = value

    def item(self) -> World:
        return self

    def fileno(self) -> int:
        raise psycopg2.InterfaceError("there is no socket")

    def worker(self) -> None:
        try:
            self.hold.use(self, self._use)
        except asyncio.CancelledError:
            self.cancelled = True
        self.is_anothers = True

    def _use(self, conn: object) -> None:
        assert not self.given_up or self.marked, "begun for a task that had given up"
        self.used = True

    def task(self) -> None:
        self.hold.give_up()
        self.given_up = True


@pytest.mark.parametrize(("by_bytecode", "switches"), [(False, 3), (True, 2)])
def test_it_is_refused_or_marked_and_never_marked_later(
    monkeypatch: pytest.MonkeyPatch, by_bytecode: bool, switches: int
) -> None:
    if by_bytecode and not HAS_BYTECODES:
        pytest.skip("this Python cannot trace bytecodes")
    seen: set[tuple[bool, bool, bool]] = set()
    traced = code_of(aio._Hold, aio._interruption, World.worker, World._use, World.task)
    with Interleaver(traced, threads=2) as interleaver:
        interleaver.by_bytecode = by_bytecode
        monkeypatch.setattr(aio, "threading", SimpleNamespace(Lock=interleaver.lock))
        todo = [Plan(first=first) for first in range(2)]
        while todo:
            plan = todo.pop()
            world = World()
            acts: list[Callable[[], object]] = [world.worker, world.task]
            run = interleaver.run(acts, plan)
            assert not run.stuck, plan
            assert not any(run.errors), (plan, run.errors)
            assert world.used != world.cancelled, plan
            seen.add((world.used, world.cancelled, world.marked))
            todo += plans(run, bound=switches)
    # Refused; given up in the midst of it; given up when it was over.
    assert seen == {(False, True, False), (True, False, True), (True, False, False)}
