"""Run real operations in real threads, one at a time, and switch between them where told.

The threads run traced.  Before every line (or bytecode) of the code under test
the one that runs asks the *plan* whether another one goes on instead.  Locks
and gates are replaced by ones that the scheduler knows: who would block is not
runnable, and when nobody is, the run is *stuck*: a deadlock or a lost wake-up.
So every run is repeatable: the same plan gives the same run.

At a chosen step a run can also have an exception raised in a thread, as a
signal or `PyThreadState_SetAsyncExc` would, or a call made in it, as the
garbage collector does when it runs a ``__del__``.  Both happen only where they
can: CPython looks for them when a function begins, when a call has returned,
and at the back edge of a loop.
"""

from __future__ import annotations

import dis
import functools
import linecache
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType, FrameType, TracebackType
from typing import Any

Call = Callable[[], object]
HAS_BYTECODES = sys.version_info < (3, 12)
"""Whether bytecodes can be traced: 3.12 crashes on it, 3.13 misses some."""
_PATIENCE = 30.0
"""Seconds of real time after which a run is given up: a fault of the scheduler itself."""


class Injected(BaseException):
    """The asynchronous exception that a run raises in a thread."""


class InjectedError(Exception):
    """The same as an ordinary exception: what a time limit raises, for example."""


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
    """Raise `error` in this thread at the so manieth moment where it can come (from 1)."""
    error: type[Injected | InjectedError] = Injected
    intrusion: tuple[int, int] | None = None
    """Make the run's extra call in this thread at the so manieth such moment (from 1)."""
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
    moments: list[int] = field(default_factory=list)
    """How many moments each thread had for an exception, or for an intrusion."""
    problems: list[str] = field(default_factory=list)
    errors: list[BaseException | None] = field(default_factory=list)
    stuck: bool = False
    faulted: bool = False
    arrived: bool = False
    """Whether the exception that was raised has ended the thread's program."""
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
        self.moments = 0
        self.ready: Callable[[], bool] | None = None  # None: not blocked
        self.may_expire = False
        self.expired = False

    def is_runnable(self) -> bool:
        return not self.done and (self.ready is None or self.expired or self.ready())


class Interleaver:
    """The scheduler: it owns the threads and hands the baton from one to the next."""

    def __init__(self, traced: Iterable[CodeType], *, threads: int) -> None:
        self._traced = frozenset(traced)
        self.by_bytecode = False
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
        return CoopLock(self)

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
            task.call, task.done, task.steps, task.moments = call, False, 0, 0
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
        run.steps = [task.steps for task in self._active]
        run.moments = [task.moments for task in self._active]
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
        except (Injected, InjectedError):
            self._run.arrived = True
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
        if not self.by_bytecode:
            return self._trace_line
        frame.f_trace_opcodes = True
        return _FrameTracer(self._step, self._moment)

    def _trace_line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and not self._aborting:
            self._step(frame)
        return self._trace_line

    def _moment(self) -> None:
        """Let come what can come from outside at this moment."""
        task, plan = self._current, self._run.plan
        if task is None or self._aborting:
            return
        task.moments += 1
        if plan.fault == (task.index, task.moments):
            self._run.faulted = True
            raise plan.error
        if plan.intrusion == (task.index, task.moments):
            self._intruder()
            self._look()

    def _step(self, frame: FrameType) -> None:
        task, run = self._current, self._run
        if task is None or self._aborting:
            return
        task.steps += 1
        self._look()
        if self._recording:
            run.story.append(f"{task.index}: {_place(frame)}")
        plan = run.plan
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


class _FrameTracer:
    """Reports the steps of one call by bytecode, and the moments for what comes from outside."""

    def __init__(self, step: Callable[[FrameType], None], moment: Callable[[], None]) -> None:
        self._step = step
        self._moment = moment
        self._last = -1

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            last, self._last = self._last, frame.f_lasti
            if self._last in _moments(frame.f_code).get(last, ()):
                self._moment()
            self._step(frame)
        return self


@functools.cache
def _moments(code: CodeType) -> dict[int, set[int]]:
    """Return between which bytecodes an exception can come from outside, with the same handler.

    Where the handler is another one, as at the end of a `with` block, it would
    be handled as if it had come before; the next moment has the same effect.
    """
    instructions = [i for i in dis.get_instructions(code) if i.opname != "CACHE"]
    offsets = [i.offset for i in instructions]
    found: dict[int, set[int]] = {-1: set(offsets[:2])}
    for instruction in instructions:
        if instruction.opname.startswith("CALL"):
            found[instruction.offset] = {o for o in offsets if o > instruction.offset}
        elif instruction.opname.startswith("JUMP") and "FORWARD" not in instruction.opname:
            found[instruction.offset] = set(offsets)
    parse = getattr(dis, "_parse_exception_table", None)  # since Python 3.11
    if parse is not None:
        entries = list(parse(code))

        def handler(offset: int) -> int | None:
            inner = [e.target for e in entries if e.start <= offset < e.end]
            return inner[-1] if inner else None

        for last, following in found.items():
            if last >= 0:
                found[last] = {o for o in following if handler(o) == handler(last)}
    return found


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


class CoopGate:
    """A lock at which a waiter waits; waits of at most 0.01 s time out at once."""

    def __init__(self, interleaver: Interleaver) -> None:
        self._interleaver = interleaver
        self._shut = False
        self.on_expiry: Callable[[float], object] = lambda seconds: None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
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
    """Yield the code of functions, of all methods and properties of classes, and within."""
    for owner in owners:
        members = vars(owner).values() if isinstance(owner, type) else [owner]
        for member in members:
            code = getattr(getattr(member, "fget", member), "__code__", None)
            if isinstance(code, CodeType):
                yield from _with_inner(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _with_inner(inner)


def _bits(mask: int) -> list[int]:
    return [index for index in range(mask.bit_length()) if mask >> index & 1]


def _place(frame: FrameType) -> str:
    code = frame.f_code
    text = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return f"{code.co_name}:{frame.f_lineno}  {text}"
