"""Many processes whose server is away, and later logs them all in: a simulation.

Nothing here opens a socket or sleeps, and time is simulated.  A borrower waits in each process,
which therefore tries as often as its pace allows.  Our pace is the pool's own circuit breaker;
psycopg_pool's is its own class too.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from psycopg2_pool2 import CircuitBreaker
from tests.bench.peers import OURS, PSYCOPG_POOL
from tests.bench.simulation import Events, seeded

FIXED = "every 0.25 s"
ANSWER = 0.001
"""Seconds until a refusal arrives."""
NOTICED = 0.1
"""Seconds within which all processes have noticed that the server is away."""
RECONNECT_TIMEOUT = 300.0
"""psycopg_pool's default; after it has given up, the next borrower starts another attempt."""


class Pace(Protocol):
    """When one process tries again."""

    def next_after(self, began: float) -> float:
        """Return when to try again after an attempt that began then and was refused."""


class OurPace:
    """A circuit breaker with its default limits."""

    def __init__(self) -> None:
        self._breaker = CircuitBreaker()

    def next_after(self, began: float) -> float:
        """Return when the breaker lets the next attempt begin."""
        now = began + ANSWER
        self._breaker.fail(self._breaker.begin(), now, prompt=True)
        return now + self._breaker.wait(now)


class FixedPace:
    """A pause of a quarter of a second (±20 %), after three attempts at once."""

    def __init__(self) -> None:
        self._at_once = 2

    def next_after(self, began: float) -> float:
        """Return when the pause is over."""
        if self._at_once:
            self._at_once -= 1
            return began + ANSWER
        return began + ANSWER + random.uniform(0.2, 0.3)


class PsycopgPoolPace:
    """What psycopg_pool does for one connection: 1, 2, 4, ... s, starting over after 5 min."""

    def __init__(self) -> None:
        from psycopg_pool.base import AttemptWithBackoff  # slow to import, needed here only

        self._new_attempt = functools.partial(AttemptWithBackoff, timeout=RECONNECT_TIMEOUT)
        self._attempt = self._new_attempt()

    def next_after(self, began: float) -> float:
        """Return when the delay is over; at once after giving up."""
        if self._attempt.time_to_give_up(began):
            self._attempt = self._new_attempt()
            return began + ANSWER
        self._attempt.update_delay(began)
        return began + ANSWER + self._attempt.delay


PACES: dict[str, Callable[[], Pace]] = {
    OURS: OurPace,
    FIXED: FixedPace,
    PSYCOPG_POOL: PsycopgPoolPace,
}


class Story(NamedTuple):
    """What happens in a run."""

    processes: int
    outage: int  # seconds
    logins: int = 500  # that the server can answer in a second, once it is back

    @property
    def own_time(self) -> float:
        """The seconds that the server needs to log all in, if all come at once."""
        return self.processes / self.logins


@dataclass
class History:
    """What was seen; the outage begins at 0."""

    story: Story
    attempts: Counter[int] = field(default_factory=Counter)  # by the second of their beginning
    served: list[float] = field(default_factory=list)  # when each process was logged in

    @property
    def rates(self) -> list[int]:
        """The attempts in each second of the outage, without its first minute if it is longer."""
        since = 60 if self.story.outage > 60 else 0
        return [self.attempts[second] for second in range(since, self.story.outage)]

    @property
    def refused(self) -> int:
        """All attempts of the outage."""
        return sum(self.attempts[second] for second in range(self.story.outage))

    @property
    def last_served(self) -> float:
        """The seconds from the server's return until it has logged the last process in."""
        return max(self.served) - self.story.outage


class Server:
    """Refuses while it is away; then logs processes in, one by one, first come, first served.

    Each attempt costs it a process, refused or not.
    """

    def __init__(self, events: Events, history: History) -> None:
        self._events = events
        self._history = history
        self._free_at = float(history.story.outage)

    def log_in(self) -> bool:
        """Take an attempt that begins now; return False if it is refused."""
        history, now = self._history, self._events.now
        history.attempts[int(now)] += 1
        if now < history.story.outage:
            return False
        self._free_at = max(self._free_at, now) + 1 / history.story.logins
        history.served.append(self._free_at)
        return True


class Process:
    """A client that tries until it is logged in."""

    def __init__(self, events: Events, server: Server, pace: Pace) -> None:
        self._events = events
        self._server = server
        self._pace = pace

    def attempt(self) -> None:
        """Try to log in; after a refusal, try again later."""
        if not self._server.log_in():
            self._events.at(self._pace.next_after(self._events.now), self.attempt)


def simulate(story: Story, pace: str, seed: int = 1) -> History:
    """Run an outage and the recovery with one kind of pace in every process."""
    history, events = History(story), Events()
    server = Server(events, history)
    with seeded(seed):
        for _ in range(story.processes):
            process = Process(events, server, PACES[pace]())
            events.at(random.uniform(0.0, NOTICED), process.attempt)
        while len(history.served) < story.processes:
            events.run_until(events.now + 1.0)
    return history
