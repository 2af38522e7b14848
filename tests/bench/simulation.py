"""Many processes that connect to replicas behind one name: a simulation in simulated time.

Nothing here opens a socket or sleeps.  A pool of ours is made of its real parts, the store, the
endpoints, the supply, the balance and the upkeep; only the driver, the tests of connections, the
monitor and the name server are simulated.  All its connections are idle.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol
from unittest import mock

import psycopg2

from psycopg2_pool2 import CircuitBreaker, balance, dialer, timing
from psycopg2_pool2.addresses import Answer, Place
from psycopg2_pool2.balance import Balance
from psycopg2_pool2.endpoints import Endpoints
from psycopg2_pool2.monitor import Timer
from psycopg2_pool2.options import PoolOptions
from psycopg2_pool2.resolver import Resolver
from psycopg2_pool2.stats import Counters
from psycopg2_pool2.store import Store
from psycopg2_pool2.supply import Supply
from psycopg2_pool2.timing import ClockJumps, jitter
from psycopg2_pool2.upkeep import LIFETIME_JITTER, Upkeep

NAME = "replicas.example"
FIRST = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
FOURTH = "192.0.2.4"
VICTIM = FIRST[0]

TTL = 5.0
"""Seconds that an answer of the name server is valid."""
WORK = 0.02
"""Seconds from a job's submission until a worker has done it, connecting included."""
RETRY = 1.0
"""Seconds until a pool without any wits tries again after a refusal."""
DAY = 86400.0
HOUR = 3600.0


class Events:
    """The clock, and what happens when; in the place of the monitor and of its workers."""

    watches = is_running = True

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = itertools.count()
        self._watched: dict[int, Callable[[], object]] = {}

    def clock(self) -> float:
        """Return the simulated time in seconds."""
        return self.now

    def at(self, when: float, action: Callable[[], object]) -> None:
        """Have something done at a time."""
        heapq.heappush(self._queue, (when, next(self._sequence), action))

    def run_until(self, end: float) -> None:
        """Let everything happen that is due up to ``end``."""
        while self._queue and self._queue[0][0] <= end:
            when, _, action = heapq.heappop(self._queue)
            self.now = max(self.now, when)
            action()
        self.now = end

    # -- as a monitor ------------------------------------------------------

    def submit(self, job: Callable[[], object]) -> None:
        """Have a worker do it."""
        self.at(self.now + WORK, job)

    def offer(self, job: Callable[[], object]) -> bool:
        """Have a worker do it; there is one."""
        self.submit(job)
        return True

    def call_later(self, seconds: float, method: Callable[[], object]) -> Timer:
        """Have a bound method called in ``seconds``."""
        timer = Timer(self.now + seconds, method)
        self.at(timer.when, timer.fire)
        return timer

    def watch(self, number: int, on_hangup: Callable[[], object]) -> None:
        """Tell when the server closes a session."""
        self._watched[number] = on_hangup

    def unwatch(self, number: int) -> None:
        """Forget a session."""
        self._watched.pop(number, None)

    def hang_up(self, number: int) -> None:
        """Tell that the server has closed a session."""
        on_hangup = self._watched.pop(number, None)
        if on_hangup is not None:
            on_hangup()


class Session:
    """A connection, as far as the pools' parts look at it."""

    __slots__ = (
        "__weakref__",
        "_number",
        "address",
        "closed",
        "is_lost",
        "pool_lent",
        "pool_record",
        "pool_token",
    )

    pool_lent: Any
    pool_record: Any
    pool_token: object

    def __init__(self, address: str, number: int) -> None:
        self.address = address
        self._number = number
        self.closed = 0
        self.is_lost = False

    def fileno(self) -> int:
        """Return a number that no other session has."""
        return self._number


class Cluster:
    """The replicas: which serve, and who is connected to them."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._numbers = itertools.count()
        self._down: set[str] = set()
        self.sessions: dict[str, set[Session]] = defaultdict(set)
        self.attempts: Counter[int] = Counter()  # by the second in which they were made

    def connect(self, address: str) -> Session:
        """Return a new session; raise if nobody listens there."""
        self.attempts[int(self._events.now)] += 1
        if address in self._down:
            raise psycopg2.OperationalError(f"{address}: Connection refused")
        session = Session(address, next(self._numbers))
        self.sessions[address].add(session)
        return session

    def close(self, session: Session) -> None:
        """Close a session from the client's side; harmless when repeated."""
        session.closed = 1
        self.sessions[session.address].discard(session)

    def serves(self, address: str) -> bool:
        """Tell whether somebody listens there."""
        return address not in self._down

    def stop(self, address: str) -> None:
        """Kill a replica: its sessions end, and it refuses new ones."""
        self._down.add(address)
        lost, self.sessions[address] = self.sessions[address], set()
        for session in sorted(lost, key=Session.fileno):
            session.is_lost = True
            self._events.hang_up(session.fileno())

    def start(self, address: str) -> None:
        """Let a replica serve again."""
        self._down.discard(address)

    def counts(self, addresses: tuple[str, ...]) -> tuple[int, ...]:
        """Return how many sessions each has."""
        return tuple(len(self.sessions[address]) for address in addresses)


class NameServer:
    """Answers with one replica at a time, as Amazon Aurora's reader endpoint does.

    The same for everybody during a TTL, then the next: as if all asked one cache, which tells how
    long its answer is valid still.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.addresses: tuple[str, ...] = FIRST

    def answer(self) -> Answer:
        """Return what somebody who asks now is told."""
        turns, spent = divmod(self._clock(), TTL)
        address = self.addresses[int(turns) % len(self.addresses)]
        return Answer((Place(address),), TTL - spent)


class RandomNameServer(NameServer):
    """Answers every question with a replica drawn at random."""

    def answer(self) -> Answer:
        """Return what somebody who asks now is told."""
        return Answer((Place(random.choice(self.addresses)),), TTL)


class SimulatedResolver(Resolver):
    """Asks a simulated name server; takes no time."""

    def __init__(self, names: NameServer) -> None:
        super().__init__()
        self._names = names

    def lookup(self, name: str, seconds: float) -> Answer:
        """Return the answer."""
        return self._names.answer()


# -- the pools -------------------------------------------------------------


class World(NamedTuple):
    """What all pools of a run share."""

    events: Events
    cluster: Cluster
    names: NameServer
    size: int


class Pool(Protocol):
    """The pool of one process."""

    def start(self) -> None:
        """Open the connections, and keep them."""


class SimulatedDriver:
    """Opens and closes sessions, and looks whether they are alive: Connector and Care in one."""

    tell = staticmethod(str)
    parameters: dict[str, str] = {}  # noqa: RUF012
    user_timeout = 0  # so that no socket is looked for

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def open(self, keywords: Mapping[str, Any], seconds: float | None = None) -> Session:
        """Connect to the address that the endpoint says."""
        return self._cluster.connect(keywords["hostaddr"])

    def is_busy(self, session: Session) -> bool:
        """Tell that nobody uses a session here."""
        return False

    def close(self, session: Session) -> None:
        """Close a session."""
        self._cluster.close(session)

    def prepare(self, session: Session) -> None:
        """Nothing is to be configured."""

    def fault(self, session: Session, *, test: bool) -> Exception | None:
        """Tell whether the server has hung up."""
        session.pool_record.hung_up = False
        return psycopg2.OperationalError("the connection was lost") if session.is_lost else None


class OurPool:
    """The parts of a ConnectionPool, put together as it does it, on a simulated driver."""

    def __init__(
        self, world: World, address_timeout: float = 60.0, maxconn: float = math.inf
    ) -> None:
        clock, name = world.events.clock, "simulated"
        monitor: Any = world.events
        driver: Any = SimulatedDriver(world.cluster)
        options = _options(address_timeout)
        counters = Counters()
        self.store: Store[Any] = Store(world.size, maxconn, clock)
        self.endpoints = Endpoints(
            {"host": NAME, "port": "5432"},
            SimulatedResolver(world.names),
            address_timeout,
            CircuitBreaker(),
            options.num_workers,
            True,
            clock,
        )
        self._supply = Supply(
            name,
            self.store,
            driver,
            driver,
            self.endpoints,
            monitor,
            options.num_workers,
            options.test_timeout,
            counters,
            clock,
        )
        jumps = ClockJumps(clock, clock)
        mover = Balance(name, self.store, self._supply, driver, self.endpoints, counters)
        self._upkeep = Upkeep(
            name, options, self.store, driver, self._supply, mover, monitor, counters, clock, jumps
        )
        self._supply.report_to(self._upkeep)

    def start(self) -> None:
        """Begin what a pool does in the background."""
        self._upkeep.start()
        self._supply.grow()


def _options(address_timeout: float) -> PoolOptions:
    """Return the defaults, but for the health checks: no connection is lost unnoticed here."""
    return PoolOptions(
        idle_timeout=300,
        reap_idle_interval=300,
        lifetime_timeout=DAY,
        test_on_borrow=True,
        background_prewarm=True,
        timeout=0,
        max_waiting=None,
        max_uses=None,
        test_idle_after=0,
        test_timeout=5,
        health_check_interval=0,
        configure=None,
        reset=None,
        leak_timeout=None,
        close_returns=False,
        debug=False,
        num_workers=3,
        address_timeout=address_timeout,
        resolver=None,
        breaker=None,
        name=None,
    )


class PlainPool:
    """A pool that leaves the choice of the address to ``choices``, and moves nothing.

    A connection that is lost, or whose lifetime is over, is replaced at once.
    """

    def __init__(
        self, world: World, choices: Callable[[NameServer], list[str]], lifetime: float
    ) -> None:
        self._world = world
        self._choices = choices
        self._lifetime = lifetime

    def start(self) -> None:
        """Open the connections."""
        for _ in range(self._world.size):
            self._open()

    def _open(self) -> None:
        events = self._world.events
        session = self._connect()
        if session is None:
            events.at(events.now + RETRY, self._open)
            return
        events.watch(session.fileno(), self._open)
        events.at(
            events.now + jitter(self._lifetime, LIFETIME_JITTER), lambda: self._expire(session)
        )

    def _connect(self) -> Session | None:
        for address in self._choices(self._world.names):
            with contextlib.suppress(psycopg2.OperationalError):
                return self._world.cluster.connect(address)
        return None

    def _expire(self, session: Session) -> None:
        if not session.is_lost:
            self._world.events.unwatch(session.fileno())
            self._world.cluster.close(session)
            self._open()


def answered(names: NameServer) -> list[str]:
    """Choose as libpq does: the addresses of a new answer, shuffled; here there is only one."""
    return [place.address for place in names.answer().places]


def shuffled(names: NameServer) -> list[str]:
    """Choose at random, among all the addresses that the name stands for."""
    return random.sample(names.addresses, len(names.addresses))


Maker = Callable[[World], Pool]
PATIENT = "psycopg2_pool2, address_timeout=300"

METHODS: dict[str, Maker] = {
    "psycopg2_pool2": OurPool,
    PATIENT: lambda world: OurPool(world, address_timeout=300.0),
    "libpq, 24 h": lambda world: PlainPool(world, answered, DAY),
    "libpq, 1 h": lambda world: PlainPool(world, answered, HOUR),
    "random, 24 h": lambda world: PlainPool(world, shuffled, DAY),
    "random, 1 h": lambda world: PlainPool(world, shuffled, HOUR),
}


# -- the story -------------------------------------------------------------


class Story(NamedTuple):
    """What happens in a run; all times in seconds."""

    processes: int = 500
    size: int = 10
    names: type[NameServer] = NameServer
    deployment: float = 60.0  # the processes start spread over this
    fourth_comes: int = 600
    one_dies: int = 1200
    it_returns: int = 1320
    end: int = 4500


@dataclass
class History:
    """What was seen: once a second, how many sessions each replica had, the fourth last."""

    story: Story
    counts: list[tuple[int, ...]] = field(default_factory=list)
    attempts: Counter[int] = field(default_factory=Counter)

    def spread(self, second: int) -> int:
        """Return the sessions of the busiest less those of the least busy that serves."""
        story, counts = self.story, self.counts[second]
        is_down = story.one_dies <= second < story.it_returns
        is_fourth_there = second >= story.fourth_comes
        counts = counts[1 if is_down else 0 : 4 if is_fourth_there else 3]
        return max(counts) - min(counts)

    def arrival(self, share: float) -> float:
        """Return the seconds until the fourth replica had so much of its share; infinite: never."""
        return self._until_it_has(share, 3, self.story.fourth_comes, self.story.one_dies)

    def restoration(self, share: float) -> float:
        """Return the seconds until the one that had died had so much of its share again."""
        return self._until_it_has(share, 0, self.story.it_returns, self.story.end)

    def _until_it_has(self, share: float, replica: int, since: int, until: int) -> float:
        enough = share * self.story.processes * self.story.size / 4
        seconds = range(since, min(until, len(self.counts)))
        found = (s - since for s in seconds if self.counts[s][replica] >= enough)
        return next(found, math.inf)

    def busiest_second(self, since: int, until: int) -> int:
        """Return the most attempts to connect in one second of a span."""
        return max((self.attempts[second] for second in range(since, until)), default=0)

    def attempts_in(self, since: int, until: int) -> int:
        """Return how many attempts to connect there were in a span."""
        return sum(self.attempts[second] for second in range(since, until))


def simulate(story: Story, make: Maker, seed: int = 1) -> History:
    """Run a story with one kind of pool in every process."""
    events = Events()
    world = World(events, Cluster(events), story.names(events.clock), story.size)
    history = History(story, attempts=world.cluster.attempts)
    with _simulated(world.cluster, seed):
        pools = [make(world) for _ in range(story.processes)]
        for pool in pools:
            events.at(random.uniform(0.0, story.deployment), pool.start)
        _tell(story, world)
        for second in range(story.end):
            events.run_until(second)
            history.counts.append(world.cluster.counts((*FIRST, FOURTH)))
    return history


def _tell(story: Story, world: World) -> None:
    """Enter what happens into the calendar."""
    names, cluster = world.names, world.cluster

    def grow() -> None:
        names.addresses = (*FIRST, FOURTH)

    world.events.at(story.fourth_comes, grow)
    world.events.at(story.one_dies, lambda: cluster.stop(VICTIM))
    world.events.at(story.it_returns, lambda: cluster.start(VICTIM))


@contextlib.contextmanager
def _simulated(cluster: Cluster, seed: int) -> Iterator[None]:
    """Choose as the seed says, ask no real server, and log nothing."""
    logger = logging.getLogger("psycopg2_pool2")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    looks = mock.patch.object(
        balance, "answers", lambda host, address, port, seconds: cluster.serves(address)
    )
    passes = mock.patch.object(dialer, "answers", return_value=True)  # connecting tells
    try:
        with looks, passes, seeded(seed):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw all random numbers as the seed says, the pool's own too."""
    state = random.getstate()
    random.seed(seed)
    # The pool draws its numbers past the generator that can be seeded.
    draws = mock.patch.object(timing, "os", SimpleNamespace(urandom=random.randbytes))
    try:
        with draws:
            yield
    finally:
        random.setstate(state)
