"""Run real operations in real threads, one at a time, and switch between them where told.

The threads run traced.  Before every line (or bytecode) of the code under test
the one that runs asks the *plan* whether another one goes on instead.  Locks
and gates are replaced by ones that the scheduler knows: who would block is not
runnable, and when nobody is, the run is *stuck*: a deadlock or a lost wake-up.
So every run is repeatable: the same plan gives the same run.

At a chosen step a run can also have an exception raised in a thread, as a
signal or `PyThreadState_SetAsyncExc` would, or a call made in it, as the
garbage collector does when it runs a ``__del__``.
"""

from __future__ import annotations

import linecache
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType, TracebackType
from typing import Any

Call = Callable[[], object]
_PATIENCE = 30.0
"""Seconds of real time after which a run is given up: a fault of the scheduler itself."""


class Injected(BaseException):
    """The asynchronous exception that a run raises in a thread."""


class _Abandoned(BaseException):
    """Unwinds the threads of a run that is stuck."""


@dataclass
class Plan:
    """Who runs when: who begins, and at which steps of the run (from 0) who goes on.

    When a thread ends or blocks, the next one in order goes on.
    """

    first: int = 0
    switches: tuple[tuple[int, int], ...] = ()
    fault: tuple[int, int] | None = None
    """Raise `Injected` in this thread at this step of its own (from 1)."""
    intrusion: tuple[int, int] | None = None
    """Make the run's extra call in this thread at this step of its own (from 1)."""
    expiries: int = 0
    """How many waits may time out when nobody can run, before the run is stuck."""
    walk: random.Random | None = None
    """Switch at random instead."""

    def __str__(self) -> str:
        told = {name: value for name, value in vars(self).items() if value and name != "walk"}
        return f"Plan({', '.join(f'{name}={value!r}' for name, value in told.items())})"


@dataclass
class Run:
    """What came of a run."""

    plan: Plan
    choices: list[int] = field(default_factory=list)
    """For each step, as bits, which other threads could have gone on."""
    steps: list[int] = field(default_factory=list)
    """How many steps each thread took."""
    problems: list[str] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)
    stuck: bool = False
    faulted: bool = False
    expired: int = 0
    story: list[str] = field(default_factory=list)


class _Task:
    """One thread and what it does in the present run."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.baton = threading.Lock()
        self.baton.acquire()
        self.call: Call | None = None
        self.done = True
        self.steps = 0
        self.ready: Callable[[], bool] | None = None  # None: not blocked
        self.may_expire = False
        self.expired = False

    def is_runnable(self) -> bool:
        return not self.done and (self.ready is None or self.expired or self.ready())


class Interleaver:
    """The scheduler: it owns the threads and hands the baton from one to the next."""

    def __init__(self, traced: Iterable[CodeType], *, threads: int, opcodes: bool = False) -> None:
        self._traced = frozenset(traced)
        self._opcodes = opcodes
        self._event = "opcode" if opcodes else "line"
        self._tasks = [_Task(index) for index in range(threads)]
        self._active: list[_Task] = []
        self._current: _Task | None = None
        self._finished = threading.Semaphore(0)
        self._aborting = False
        self._closing = False
        self._run = Run(Plan())
        self._switches: dict[int, int] = {}
        self._watch: Callable[[], str | None] = lambda: None
        self._intruder: Call = lambda: None
        self._recording = False
        self._locks: list[CoopLock] = []
        self._threads = [
            threading.Thread(target=self._serve, args=[task], daemon=True) for task in self._tasks
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Interleaver:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        for task in self._tasks:
            task.baton.release()
        for thread in self._threads:
            thread.join(_PATIENCE)

    # -- locks that the scheduler knows ------------------------------------

    def lock(self) -> CoopLock:
        """Make a lock that may be re-entered; in place of `threading.RLock`."""
        lock = CoopLock(self)
        self._locks.append(lock)
        return lock

    def gate(self) -> CoopGate:
        """Make what a waiter waits at; in place of `threading.Lock`."""
        return CoopGate(self)

    @property
    def current(self) -> object:
        """The running thread's task; None outside of a run."""
        return self._current

    def wait_for(self, ready: Callable[[], bool], *, may_expire: bool = False) -> bool:
        """Block the running thread until `ready()`; False if its time was over first."""
        task = self._current
        if task is None or self._aborting:
            raise _Abandoned
        while not ready():
            task.ready, task.may_expire = ready, may_expire
            self._hand_over(task)
            if task.expired:
                task.ready, task.expired = None, False
                return False
        task.ready = None
        return True

    # -- a run -------------------------------------------------------------

    def run(
        self,
        calls: list[Call],
        plan: Plan,
        watch: Callable[[], str | None] = lambda: None,
        intruder: Call = lambda: None,
        *,
        record: bool = False,
    ) -> Run:
        """Run the calls, each in a thread, by the plan; `watch` looks for problems at each step."""
        self._run = run = Run(plan, errors=[None] * len(calls))
        self._switches = dict(plan.switches)
        self._watch, self._intruder, self._recording = watch, intruder, record
        self._aborting = False
        self._active = self._tasks[: len(calls)]
        for task, call in zip(self._active, calls, strict=True):
            task.call, task.done, task.steps = call, False, 0
            task.ready, task.expired = None, False
        self._pass_to(self._active[plan.first])
        if not self._finished.acquire(timeout=_PATIENCE):
            raise AssertionError(f"the scheduler hangs: {plan}")
        if self._aborting:
            for task in self._active:
                if not task.done:
                    task.baton.release()
                    if not self._finished.acquire(timeout=_PATIENCE):
                        raise AssertionError(f"a thread cannot be unwound: {plan}")
        self._current = None
        self._locks.clear()
        run.steps = [task.steps for task in self._active]
        return run

    def _serve(self, task: _Task) -> None:
        while True:
            task.baton.acquire()
            if self._closing:
                return
            self._work(task)
            task.done = True
            if self._aborting:
                self._finished.release()
            else:
                self._hand_over(task, ended=True)

    def _work(self, task: _Task) -> None:
        call, task.call = task.call, None
        assert call is not None
        sys.settrace(self._trace_call)
        try:
            call()
        except Injected:
            # CPython delivers asynchronous exceptions after calls and at back
            # edges only, so that `with` always leaves; ours may hit its exit.
            for lock in self._locks:
                lock.break_open(task)
        except _Abandoned:
            pass
        except BaseException as error:
            self._run.errors[task.index] = error
        finally:
            sys.settrace(None)

    # -- at each step ------------------------------------------------------

    def _trace_call(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code not in self._traced:
            return None
        if self._opcodes:
            frame.f_trace_opcodes = True
        return self._trace_step

    def _trace_step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == self._event and not self._aborting:
            self._step(frame)
        return self._trace_step

    def _step(self, frame: FrameType) -> None:
        task, run = self._current, self._run
        assert task is not None
        task.steps += 1
        self._look()
        if self._recording:
            run.story.append(f"{task.index}: {_place(frame)}")
        plan = run.plan
        if plan.fault == (task.index, task.steps):
            run.faulted = True
            raise Injected
        if plan.intrusion == (task.index, task.steps):
            self._intruder()
            self._look()
        others = 0
        for other in self._active:
            if other is not task and not other.done and (other.ready is None or other.ready()):
                others |= 1 << other.index
        target = self._switches.get(len(run.choices))
        run.choices.append(others)
        if plan.walk is not None and others and plan.walk.random() < 0.15:
            target = plan.walk.choice(_bits(others))
        if target is not None and others >> target & 1:
            self._switch(task, self._active[target])

    def _look(self) -> None:
        problem = self._watch()
        if problem is not None and problem not in self._run.problems:
            self._run.problems.append(problem)

    def _hand_over(self, task: _Task, *, ended: bool = False) -> None:
        """Let another thread go on, since this one has ended or is blocked."""
        runnable = [other for other in self._active if other.is_runnable()]
        if not runnable and not all(other.done for other in self._active):
            runnable = self._expire()
        if not runnable:
            self._run.stuck = self._aborting = not all(other.done for other in self._active)
            self._finished.release()
            if not ended:
                # The run unwinds this thread with the others.
                task.baton.acquire()
                raise _Abandoned
            return
        walk = self._run.plan.walk
        target = runnable[0] if walk is None else walk.choice(runnable)
        if target is task:
            return
        if ended:
            self._pass_to(target)
        else:
            self._switch(task, target)

    def _expire(self) -> list[_Task]:
        if self._run.expired >= self._run.plan.expiries:
            return []
        for task in self._active:
            if not task.done and task.may_expire and task.ready is not None:
                self._run.expired += 1
                task.expired = True
                return [task]
        return []

    def _switch(self, task: _Task, target: _Task) -> None:
        self._pass_to(target)
        task.baton.acquire()
        if self._aborting:
            raise _Abandoned

    def _pass_to(self, target: _Task) -> None:
        self._current = target
        target.baton.release()


class CoopLock:
    """A lock that may be re-entered; who waits for it is not runnable."""

    def __init__(self, interleaver: Interleaver) -> None:
        self._interleaver = interleaver
        self._owner: object = None
        self._depth = 0

    @property
    def is_free(self) -> bool:
        return not self._depth

    def __enter__(self) -> bool:
        me = self._interleaver.current
        if self._depth and self._owner is not me:
            self._interleaver.wait_for(lambda: not self._depth)
        self._owner = me
        self._depth += 1
        return True

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1

    def break_open(self, task: object) -> None:
        """Free the lock if this thread has it."""
        if self._owner is task:
            self._depth = 0


class CoopGate:
    """A lock at which a waiter waits; waits of at most 0.01 s time out at once."""

    def __init__(self, interleaver: Interleaver) -> None:
        self._interleaver = interleaver
        self._shut = False
        self.on_expiry: Callable[[float], object] = lambda seconds: None

    def acquire(self, timeout: float = -1) -> bool:
        if self._shut:
            hasty = 0 <= timeout <= 0.01
            if hasty or not self._interleaver.wait_for(lambda: not self._shut, may_expire=True):
                self.on_expiry(timeout)
                return False
        self._shut = True
        return True

    def release(self) -> None:
        if not self._shut:
            raise RuntimeError("release unlocked lock")
        self._shut = False


def plans(run: Run, bound: int) -> Iterator[Plan]:
    """Yield the plans that follow this run's up to one more switch, if that is within bounds."""
    plan = run.plan
    if len(plan.switches) >= bound:
        return
    begin = plan.switches[-1][0] + 1 if plan.switches else 1
    for step in range(begin, len(run.choices)):
        for target in _bits(run.choices[step]):
            yield Plan(
                plan.first,
                (*plan.switches, (step, target)),
                fault=plan.fault,
                intrusion=plan.intrusion,
                expiries=plan.expiries,
            )


def code_of(*owners: Any) -> Iterator[CodeType]:
    """Yield the code of functions, and of all methods and properties of classes."""
    for owner in owners:
        members = vars(owner).values() if isinstance(owner, type) else [owner]
        for member in members:
            code = getattr(getattr(member, "fget", member), "__code__", None)
            if isinstance(code, CodeType):
                yield code


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def _place(frame: FrameType) -> str:
    code = frame.f_code
    text = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_name}:{frame.f_lineno}  {text}"
