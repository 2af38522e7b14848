"""One pool under a load of hours or a day: a simulation in simulated time.

Nothing here connects or sleeps. The books (the store), the reaping and the warm target are the
pool's own; simulated are the connections, the borrowers, and the thread. Each load is recorded
once, as arrivals and the work that each brings, and replayed to every policy.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from psycopg2_pool2 import timing
from psycopg2_pool2.adaptive import LOOK_INTERVAL, Keeper, WarmTarget
from psycopg2_pool2.monitor import Timer
from psycopg2_pool2.stats import Counters
from psycopg2_pool2.store import Permit, Store, Waiter
from psycopg2_pool2.timing import ClockJumps
from psycopg2_pool2.upkeep import Upkeep
from tests.support.fakes import options

MINUTE = 60.0
HOUR = 3600.0
CONNECT = 0.05
"""Seconds that opening a connection takes."""
WORKERS = 3
IDLE_TIMEOUT = 300.0
WORK = 0.1
"""Seconds that a loan lasts on average; they are distributed log-normally."""
SPREAD = 0.8
"""Standard deviation of the logarithm of the work."""


# -- loads -----------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Who comes when; times are in seconds."""

    hours: float
    rate: Callable[[float], float]
    """Borrows per second at a time, on average; each comes by itself."""
    crowds: Callable[[float], Iterator[tuple[float, int]]] = lambda end: iter(())
    """When how many come at once, beside those."""
    slow: tuple[float, float] = (math.inf, math.inf)
    """Between these two times the database is slow,"""
    slowness: float = 10.0
    """so many times."""

    @property
    def end(self) -> float:
        """When it is over."""
        return self.hours * HOUR


@dataclass(frozen=True)
class Recording:
    """What a load came to: when each borrower arrives, and the work that he brings."""

    load: Load
    arrivals: array[float]
    work: array[float]


def record(load: Load, seed: int = 1) -> Recording:
    """Draw the arrivals and the work of a load."""
    dice = random.Random(seed)
    arrivals = array("d", heapq.merge(_steady(load, dice), _crowded(load)))
    mu = math.log(WORK) - SPREAD**2 / 2
    work = array("d", (dice.lognormvariate(mu, SPREAD) for _ in arrivals))
    return Recording(load, arrivals, work)


def _steady(load: Load, dice: random.Random) -> Iterator[float]:
    now = 0.0
    while (now := now + dice.expovariate(load.rate(now))) < load.end:
        yield now


def _crowded(load: Load) -> Iterator[float]:
    for when, number in load.crowds(load.end):
        yield from itertools.repeat(when, number)


def _every(interval: float, number: int, end: float) -> Iterator[tuple[float, int]]:
    when = interval
    while when < end:
        yield when, number
        when += interval


def _wave(hours: float, now: float) -> float:
    """Return the rate of a day: most at half of its length, next to nothing at night."""
    return 0.5 + 20.0 * math.sin(math.pi * now / (hours * HOUR)) ** 4


STEADY, DAY, BURSTS, SLOW = "steady", "a day", "bursts", "a slow database"


def loads(quick: bool = False) -> dict[str, Load]:
    """Return the loads; the quick ones are shorter."""
    day = 2.0 if quick else 24.0
    hours = 1.0 if quick else 3.0
    return {
        STEADY: Load(hours, lambda now: 20.0),
        DAY: Load(day, partial(_wave, day)),
        BURSTS: Load(hours, lambda now: 5.0, partial(_every, 4 * MINUTE, 25)),
        SLOW: Load(1.5, lambda now: 20.0, slow=(40 * MINUTE, 50 * MINUTE)),
    }


# -- policies --------------------------------------------------------------


class PeakAlone(WarmTarget):
    """What the target would be if a peak counted whatever it comes from: for comparison."""

    def observe(self, now: float, peak: int, in_use: int, borrows: int) -> bool:
        """Take a look into account, as if it had not been seen how long the loans last."""
        return super().observe(now, peak, 0, borrows)


@dataclass(frozen=True)
class Policy:
    """The sizes of a pool, and its target if it has one."""

    minconn: int
    maxconn: int
    target: type[WarmTarget] | None = None


ADAPTIVE = "adaptive 0.7"
PLAIN = "plain, minconn=1"
PEAK_ALONE = "adaptive, peak alone"
SMALL, LARGE = 5, 60
FIXED_SMALL, FIXED_LARGE = f"fixed at {SMALL}", f"fixed at {LARGE}"
POLICIES = {
    ADAPTIVE: Policy(1, LARGE, WarmTarget),
    PLAIN: Policy(1, LARGE),
    FIXED_SMALL: Policy(SMALL, SMALL),
    FIXED_LARGE: Policy(LARGE, LARGE),
    PEAK_ALONE: Policy(1, LARGE, PeakAlone),
}


# -- the parts that are simulated ------------------------------------------


class Events:
    """The clock, and what happens when; in the place of the monitor."""

    watches = True

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()

    def clock(self) -> float:
        """Return the simulated time in seconds."""
        return self.now

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Have something done at a time."""
        heapq.heappush(self._queue, (when, next(self._sequence), action))

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        """Have a bound method called in ``seconds``."""
        timer = Timer(self.now + seconds, method)
        self.at(timer.when, timer.fire)
        return timer

    def run_until(self, end: float) -> None:
        """Let everything happen that is due up to ``end``."""
        queue = self._queue
        while queue and queue[0][0] <= end:
            self.now, _, action = heapq.heappop(queue)
            action()
        self.now = end


class Session:
    """A connection, as far as the store looks at it."""

    __slots__ = ("__weakref__", "pool_record", "pool_token")

    pool_record: Any
    pool_token: object


class Opener:
    """In the place of the supply: opens in so many seconds, closes at once."""

    def __init__(self, store: Store[Session], events: Events) -> None:
        self._store = store
        self._events = events
        self.connects = 0

    def grow(self) -> None:
        """Have opened what is wanted."""
        while (permit := self._store.take_permit(WORKERS)) is not None:
            self._events.at(self._events.now + CONNECT, partial(self._opened, permit))

    def _opened(self, permit: Permit) -> None:
        self.connects += 1
        session = Session()
        self._store.admit(permit, session)
        self.close_all(self._store.keep(session))
        self.grow()

    def close_all(self, sessions: Any) -> None:
        """Close what the store gave out for closing."""
        for session in sessions:
            self._store.forget(session.pool_record)


class Borrower(Waiter[Session]):
    """Waits for a connection, works with it, and returns it."""

    def __init__(self, pool: SimulatedPool, work: float) -> None:
        super().__init__(patient=True)
        self._pool = pool
        self._work = work

    def wake(self) -> None:
        """Begin to work."""
        if self.item is not None:
            self._pool.begin(self.item, self._work)
            self.item = None


@dataclass
class History:
    """What was seen; once in ten seconds: in use, open, and the warm target."""

    load: Load
    borrows: int = 0
    waits: int = 0
    connects: int = 0
    sizes: list[tuple[int, int, int]] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return what it comes to."""
        before = int(self.load.slow[0] // STEP) if self.load.slow[0] < self.load.end else None
        targets = [target for _, _, target in self.sizes]
        return {
            "connects": self.connects / self.load.hours,
            "waited": 100.0 * self.waits / self.borrows,
            "mean": sum(size for _, size, _ in self.sizes) / len(self.sizes),
            "most": max(size for _, size, _ in self.sizes),
            "target": max(targets),
            "target_early": max(targets[:before]),
            "target_late": max(targets[before or 0 :]),
        }


STEP = 10.0
"""Seconds between two entries of a history."""


class SimulatedPool:
    """A pool under a policy, and its borrowers."""

    def __init__(self, policy: Policy, recording: Recording) -> None:
        self.events = events = Events()
        self._load = recording.load
        self._coming = zip(recording.arrivals, recording.work, strict=True)
        self._history = History(recording.load, len(recording.arrivals))
        self.store: Store[Session] = Store(policy.minconn, policy.maxconn, events.clock)
        self._opener = Opener(self.store, events)
        nobody: Any = None  # there is nothing to test
        no_balance: Any = type("NoBalance", (), {"is_needed": False})
        monitor: Any = events
        opener: Any = self._opener
        chosen = options(idle_timeout=IDLE_TIMEOUT, health_check_interval=0)
        jumps = ClockJumps(events.clock, events.clock)
        self._upkeep = Upkeep(
            "simulated",
            chosen,
            self.store,
            nobody,
            opener,
            no_balance,
            monitor,
            Counters(),
            events.clock,
            jumps,
        )
        self.target = None if policy.target is None else self._adapt(policy.target, policy)

    def _adapt(self, kind: type[WarmTarget], policy: Policy) -> WarmTarget:
        target = kind(policy.minconn, policy.maxconn, 0.7, IDLE_TIMEOUT, self.events.now)
        opener: Any = self._opener
        self._keeper = Keeper(
            "simulated", self.store, opener, self._upkeep, target, self.events.clock
        )
        self._upkeep.also(LOOK_INTERVAL, self._keeper.look)
        return target

    def start(self) -> None:
        """Begin what happens by itself."""
        self._upkeep.start()
        self._opener.grow()
        self.events.at(STEP, self._note)
        self._expect_next()

    def run(self) -> History:
        """Let the load come, and return what was seen."""
        self.start()
        self.events.run_until(self._load.end)
        self._history.connects = self._opener.connects
        return self._history

    def _note(self) -> None:
        store = self.store
        self._history.sizes.append((len(store.lent), store.size, store.floor))
        self.events.at(self.events.now + STEP, self._note)

    def _expect_next(self) -> None:
        when, work = next(self._coming, (math.inf, 0.0))
        self.events.at(when, partial(self._arrive, work))

    def _arrive(self, work: float) -> None:
        session = self.store.borrow()
        if session is not None:
            self.begin(session, work)
        else:
            self._history.waits += 1
            self.store.request(Borrower(self, work), None)
            self._opener.grow()
        self._expect_next()

    def begin(self, session: Session, work: float) -> None:
        """Have a session in use as long as the work takes."""
        now = self.events.now
        begin, end = self._load.slow
        slowness = self._load.slowness if begin <= now < end else 1.0
        self.events.at(now + work * slowness, partial(self._return, session))

    def _return(self, session: Session) -> None:
        self.store.claim(session.pool_record)
        self._opener.close_all(self.store.give_back(session, session.pool_record))


def simulate(policy: Policy, recording: Recording) -> History:
    """Replay a load to a pool of its own."""
    with _seeded():
        return SimulatedPool(policy, recording).run()


@contextmanager
def _seeded() -> Iterator[None]:
    """Have the pool's own jitter the same in each run."""
    dice, chance = random.Random(1), timing.chance
    timing.chance = dice.random
    try:
        yield
    finally:
        timing.chance = chance


@cache
def history(load: str, policy: str, quick: bool) -> History:
    """Return what comes of a policy under a load; computed once."""
    return simulate(POLICIES[policy], _recording(load, quick))


@cache
def _recording(load: str, quick: bool) -> Recording:
    return record(loads(quick)[load])
