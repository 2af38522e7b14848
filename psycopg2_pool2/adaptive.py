"""A pool that keeps as many warm as recent demand asks for.

Of a database that has become slow every loan lasts longer, so that more
connections are in use although nobody asks more often.  Who answers that by
opening still more makes a slow database slower.  So what counts here is not
what is in use but what is asked for: by Little's law the mean number in use is
borrows per second times the mean duration of a loan, and only the first of the
two is demand.  A peak in use counts for as much less as loans last longer than
they usually do.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import Any

from .hidden import HiddenDict
from .log import logger
from .pool import ConnectionPool
from .store import Store
from .supply import Supply
from .timing import Clock
from .upkeep import Upkeep

LOOK_INTERVAL = 1.0
"""Seconds between two looks at what is in use, at most; a tenth of ``idle_timeout`` if shorter."""
DEFAULT_SPAN = 300.0
"""Seconds for which a peak counts where ``idle_timeout`` says nothing."""
SHRINK_SHARE = 0.1
"""A target shrinks by this part of itself, at least by one, in this part of the span."""
SLACK = 0.9
"""A target stays as long as more than this part of it is wanted."""
TELLING_EXCESS = 2.0
"""How many times as long as usual loans must last for it to be told that growth was refused."""


class LoanTimes:
    """How long loans last now, against how long they usually do.

    Nobody times a loan.  What was in use, summed over time, divided by the
    borrows in that time is their mean duration.  The usual one is the lower
    quartile of the measurements of about the last hour: what was slow for less
    than three quarters of that time does not count as usual.
    """

    SHORTEST = 60.0
    """Seconds that a measurement of the usual takes at least."""
    ENOUGH = 20
    """Borrows, and sightings of a connection in use, that it takes at least."""
    KEPT = 60
    """How many are kept."""
    RECENT = 10
    """How many looks make up the present."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT)
        self._usual: deque[float] = deque(maxlen=self.KEPT)
        self._start_measurement()

    def _start_measurement(self) -> None:
        self._seconds = self._busy = 0.0
        self._seen = self._borrows = 0

    def add(self, seconds: float, in_use: int, borrows: int) -> None:
        """Note a look: the seconds since the last one, how many are in use, the borrows since."""
        busy = seconds * in_use
        self._recent.append((busy, borrows))
        self._seconds += seconds
        self._busy += busy
        self._seen += in_use
        self._borrows += borrows
        if self._seconds >= self.SHORTEST and min(self._seen, self._borrows) >= self.ENOUGH:
            self._usual.append(self._busy / self._borrows)
            self._start_measurement()

    @property
    def usual(self) -> float | None:
        """Seconds that a loan usually lasts; None as long as too little was seen."""
        if not self._usual:
            return None
        return sorted(self._usual)[len(self._usual) // 4]

    def excess(self) -> float:
        """Return how many times as long as usual loans last now, at least 1.

        By the last two looks if they agree, which notices it at once, or by the
        last ten but for the busiest, which is sure.  So one look alone, which
        happened to see a crowd, says nothing.
        """
        usual = self.usual
        if usual is None:
            return 1.0
        looks = list(self._recent)
        at_once = min(_each(*look) for look in looks[-2:])
        looks.remove(max(looks))
        surely = _each(sum(busy for busy, _ in looks), sum(borrows for _, borrows in looks))
        return max(1.0, at_once / usual, surely / usual)


def _each(busy: float, borrows: float) -> float:
    if borrows:
        return busy / borrows
    return math.inf if busy else 0.0


class SlidingPeak:
    """The largest of the values of the last ``span`` seconds."""

    def __init__(self, span: float) -> None:
        self.span = span
        self._falling: deque[tuple[float, float]] = deque()  # (when, value), each less than before

    def add(self, now: float, value: float) -> float:
        """Note a value; return the largest."""
        falling = self._falling
        while falling and falling[-1][1] <= value:
            falling.pop()
        falling.append((now, value))
        while falling[0][0] < now - self.span:
            falling.popleft()
        return falling[0][1]


class WarmTarget:
    """How many connections to keep open: a policy that takes what was seen and the time.

    Rises at once to what is wanted, ``ceil(peak / utilization)`` between
    ``minconn`` and ``maxconn``, where the peak is that of the last ``span``
    seconds.  Falls when the peak has been lower for so long, by a tenth at a
    time, and not for a difference of a tenth.
    """

    def __init__(
        self, minconn: int, maxconn: float, utilization: float, span: float, now: float
    ) -> None:
        self.value = minconn
        self.reason = f"is {minconn}: minconn"
        self._minconn = minconn
        self._maxconn = maxconn
        self._utilization = utilization
        self._span = span
        self._peaks = SlidingPeak(span)
        self._times = LoanTimes()
        self._looked_at = now
        self._borrows = 0
        self._last_peak = 0
        self._falls_at = now
        self._refusing = False

    def resize(self, minconn: int, maxconn: float) -> None:
        """Set both limits."""
        self._minconn, self._maxconn = minconn, maxconn
        value = self._within(self.value)
        if value != self.value:
            self._move(value, "the limits were changed")

    def observe(self, now: float, peak: int, in_use: int, borrows: int) -> bool:
        """Take a look into account; return whether :attr:`reason` is new.

        ``peak`` is the most that were in use at a time since the last look,
        ``in_use`` how many are now, ``borrows`` how many there have been ever.
        What a peak counts is known one look later: what a crowd had in use is
        back by then, what waits for a slow database is not.
        """
        self._times.add(now - self._looked_at, in_use, max(0, borrows - self._borrows))
        self._looked_at, self._borrows = now, max(borrows, self._borrows)
        excess = self._times.excess()
        peak, self._last_peak = self._last_peak, peak
        highest = self._peaks.add(now, peak / excess)
        wanted = self._wanted(highest)
        if wanted > self.value:
            self._falls_at = now + self._span * SHRINK_SHARE
            self._move(wanted, f"up to {highest:.3g} in use{_because(excess)}")
        elif self._wanted(peak) > self.value and excess >= TELLING_EXCESS:
            return self._refuse(peak, excess)
        elif now >= self._falls_at and wanted < self.value * SLACK:
            self._falls_at = now + self._span * SHRINK_SHARE
            least = self.value - max(1, int(self.value * SHRINK_SHARE))
            self._move(
                max(wanted, least), f"no more than {highest:.3g} in use for {self._span:g} s"
            )
        else:
            self._refusing = self._refusing and excess >= TELLING_EXCESS
            return False
        self._refusing = False
        return True

    def _wanted(self, peak: float) -> int:
        # What division adds to a whole number is not a connection.
        return self._within(math.ceil(peak / self._utilization - 1e-9))

    def _within(self, number: int) -> int:
        return int(max(self._minconn, min(self._maxconn, number)))

    def _move(self, value: int, why: str) -> None:
        how = "rose" if value > self.value else "fell"
        self.reason = f"{how} from {self.value} to {value}: {why}"
        self.value = value

    def _refuse(self, peak: int, excess: float) -> bool:
        is_news, self._refusing = not self._refusing, True
        self.reason = f"stays at {self.value}: up to {peak} in use{_because(excess)}"
        return is_news


def _because(excess: float) -> str:
    if excess < 1.05:
        return ""
    if math.isinf(excess):
        return "; nobody has borrowed one of late"
    return f"; loans last {excess:.1f} times as long as usual, each counts as much less"


class Keeper:
    """Looks at a pool from time to time, and sets the floor of its store."""

    def __init__(
        self,
        name: str,
        store: Store[Any],
        supply: Supply,
        upkeep: Upkeep,
        target: WarmTarget,
        clock: Clock,
    ) -> None:
        self.target = target
        self._name = name
        self._store = store
        self._supply = supply
        self._upkeep = upkeep
        self._clock = clock
        self._lock = threading.Lock()

    def look(self) -> None:
        """See what is in use, and has been, and keep as many open as that asks for."""
        # Waits for nobody: whoever comes second has nothing to add.
        if not self._lock.acquire(blocking=False):
            return
        try:
            store = self._store
            fewest = self._upkeep.fewest_idle()
            in_use = len(store.lent)
            peak = max(in_use, in_use + len(store.idle) - fewest)
            is_news = self.target.observe(self._clock(), peak, in_use, store.requests())
            store.floor = self.target.value
        finally:
            self._lock.release()
        if is_news:
            self._supply.grow()
            logger.debug("pool %r: the warm target %s", self._name, self.target.reason)

    def resize(self, minconn: int, maxconn: float) -> None:
        """Set both limits of the target."""
        with self._lock:
            self.target.resize(minconn, maxconn)
            self._store.floor = self.target.value


class AdaptiveConnectionPool(ConnectionPool):
    """A :class:`ConnectionPool` that keeps as many connections warm as recent demand asks for.

    ``target_utilization``
        Keep so many open that the peak in use of the last ``idle_timeout``
        seconds is this part of them, between ``minconn`` and ``maxconn``.

    All other arguments are those of :class:`ConnectionPool`.  The number grows
    at once when the peak does, and shrinks slowly.  It does not grow because
    loans last longer than usual: where the database has become slow, more
    connections would make it slower.  Borrowers for whom none is idle still get
    one opened, up to ``maxconn``, as in every pool.

    :meth:`get_stats` tells the number as ``pool_target``, and why it is what it
    is as ``pool_target_reason``; each move is logged at level DEBUG.  Without
    workers (``num_workers=0``) nothing is opened in advance but by
    :meth:`~ConnectionPool.reap_idle_connections`; the number keeps connections from being closed.
    """

    def __init__(self, *args: Any, target_utilization: float = 0.7, **kwargs: Any) -> None:
        self._target_utilization = _share("target_utilization", target_utilization)
        arguments = HiddenDict(kwargs)
        del kwargs  # so that no traceback shows it
        super().__init__(*args, **arguments)

    def _build(self, minconn: int, maxconn: float) -> None:
        super()._build(minconn, maxconn)
        span = self._options.idle_timeout or DEFAULT_SPAN
        now = self._clock()
        target = WarmTarget(minconn, maxconn, self._target_utilization, span, now)
        self._keeper = Keeper(
            self.name, self._store, self._supply, self._upkeep, target, self._clock
        )
        self._upkeep.also(min(LOOK_INTERVAL, span / 10), self._keeper.look)

    @property
    def target_utilization(self) -> float:
        """Which part of the connections kept open the peak in use is to be."""
        return self._target_utilization

    def resize(self, minconn: int, maxconn: float) -> None:
        """Set both limits, within which the number kept open moves; as in ConnectionPool."""
        super().resize(minconn, maxconn)
        self._keeper.resize(minconn, maxconn)

    def get_stats(self) -> dict[str, Any]:
        """Return ConnectionPool's figures, ``pool_target`` and ``pool_target_reason``."""
        return {**super().get_stats(), **self._told()}

    def pop_stats(self) -> dict[str, Any]:
        """Return :meth:`get_stats` with the counters as they grew since the last such call."""
        return {**super().pop_stats(), **self._told()}

    def _told(self) -> dict[str, Any]:
        target = self._keeper.target
        return {"pool_target": target.value, "pool_target_reason": target.reason}


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not a {type(value).__name__}")
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, not {value!r}")
    return float(value)
