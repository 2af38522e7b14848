"""What has to be done for a pool from time to time, whether anybody borrows or not.

Each duty is a plain method that takes what it needs out of the store, acts, and
puts it back; so it may be called by a timer, by a worker, or from outside
(:meth:`Upkeep.reap`), at once and by several.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .balance import STEP, Balance
from .care import Care
from .connector import Connection
from .failures import SilenceError, WrongRoleError
from .log import logger
from .monitor import Monitor, Timer
from .options import PoolOptions
from .sockets import owns_socket
from .stats import Counters
from .store import Record, Store
from .supply import Supply
from .timing import Clock, ClockJumps, jitter

REFILL_INTERVAL = 60.0
"""Seconds between looks whether ``minconn`` are open, beside those that events cause."""
SWEEP_INTERVAL = 1.0
"""Seconds between probes of idle sockets where they cannot be watched."""
SHORTEST_INTERVAL = 0.01
"""Seconds between two rounds of a duty, however short the time is that it looks after."""
LIFETIME_JITTER = 0.1
POSTPONED = 1.0
"""Seconds by which a lifetime is prolonged while no replacement can be opened."""
EARLY = 0.25
"""Seconds within which a connection that was never lent must not be lost."""
LONGEST_LEAD = 5.0
"""Seconds, at most, by which a replacement is opened before its predecessor's time is over."""


class Duty:
    """Something to do at an interval: a method of the upkeep, unbound.

    For what is bound would keep the pool until a garbage collection.
    """

    __slots__ = ("act", "due", "interval")

    def __init__(self, interval: float, act: Callable[[Upkeep], object], now: float) -> None:
        self.interval = max(interval, SHORTEST_INTERVAL)
        self.act = act
        self.due = now + self.interval


class Upkeep:
    """The duties of one pool.

    ``care`` tells whether a connection is good.
    """

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        store: Store[Connection],
        care: Care,
        supply: Supply,
        balance: Balance,
        monitor: Monitor | None,
        counters: Counters,
        clock: Clock,
        jumps: ClockJumps,
    ) -> None:
        self.name = name
        self._store = store
        self._care = care
        self._supply = supply
        self._balance = balance
        self._monitor = monitor
        self._options = options
        self._counters = counters
        self._clock = clock
        self._jumps = jumps
        self._lock = threading.RLock()  # guards the schedule and the low-water marks
        self._duties: list[Duty] = []
        self._rotation = Duty(math.inf, Upkeep.rotate, clock())
        self._balancing = Duty(math.inf, Upkeep.balance, clock())
        self._is_balancing = False
        self._timer: Timer | None = None
        self._stopped = False
        self._inline_reap_due = self._inline_leaks_due = 0.0
        # Fewest idle in each stretch of time: (from, to, fewest).
        self._marks: deque[tuple[float, float, int]] = deque()
        self._marked_at = clock()
        self._low = 0  # fewest idle since then, but for what the store has noted since
        self._extra: Duty | None = None

    # -- the schedule ------------------------------------------------------

    def also(self, interval: float, act: Callable[[], object]) -> None:
        """Add a duty, done at a return where there is no thread; call this before the start.

        ``act`` is a bound method, whose object is held weakly.
        """
        extra = functools.partial(_do_extra, weakref.WeakMethod(act))
        self._extra = Duty(interval, extra, self._clock())

    def start(self) -> None:
        """Begin to do the duties."""
        now = self._clock()
        options = self._options
        plan: list[tuple[float | None, Callable[[Upkeep], object]]] = [
            (REFILL_INTERVAL, Upkeep.refill),
            (options.reap_idle_interval, Upkeep.reap),
            (options.idle_timeout and options.idle_timeout / 4, Upkeep.mark_low_water),
            (options.health_check_interval, Upkeep.check_health),
            (options.leak_timeout and options.leak_timeout / 4, Upkeep.warn_of_leaks),
        ]
        if self._monitor is not None and not self._monitor.watches:
            plan.append((SWEEP_INTERVAL, Upkeep.sweep))
        self._duties = [Duty(interval, act, now) for interval, act in plan if interval]
        self._duties.append(self._rotation)
        if self._extra is not None:
            self._duties.append(self._extra)
        if self._balance.is_needed:
            # Else it begins with the first connection.
            self._balancing.due = now if self._store.minconn else math.inf
            self._duties.append(self._balancing)
        self._schedule()

    def stop(self) -> None:
        """Schedule nothing more."""
        with self._lock:
            self._stopped = True
            if self._timer is not None:
                self._timer.cancel()

    def run_without_thread(self) -> None:
        """Close the connection that has been idle longest, if its time is over."""
        extra = self._extra
        if extra is not None and extra.due <= self._clock():
            extra.due = self._clock() + extra.interval
            extra.act(self)
        try:
            conn = self._store.idle[0]
        except IndexError:
            return
        record, now = conn.pool_record, self._clock()
        if record.retired or record.expires_at <= now:
            if self._store.withdraw(conn, leaving=True):
                self._supply.discard(conn)
        elif self._options.reap_idle_interval and now >= self._inline_reap_due:
            self._inline_reap_due = now + min(1.0, (self._options.idle_timeout or 0.0) / 4)
            self.reap(most=1)

    def run(self) -> None:
        """Do what is due."""
        if self._stopped:
            return
        self.notices_jump()
        now = self._clock()
        try:
            for duty in self._duties:
                if duty.due <= now:
                    duty.due = now + jitter(duty.interval, 0.05)
                    duty.act(self)
        finally:
            self._schedule()

    def _schedule(self) -> None:
        if self._monitor is None:
            return
        with self._lock:
            if self._stopped or not self._duties:
                return
            pause = max(0.0, min(duty.due for duty in self._duties) - self._clock())
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._monitor.call_later(pause, self.run)

    def refill(self) -> None:
        """See that ``minconn`` are open, what was lost unnoticed included."""
        self.collect_lost()
        self._supply.grow()

    # -- new connections ---------------------------------------------------

    def on_opened(self, conn: Connection, record: Record) -> None:
        """Take a new connection into care: its lifetime begins, its socket is watched."""
        lifetime = self._options.lifetime_timeout
        if lifetime:
            record.expires_at = record.born + jitter(lifetime, LIFETIME_JITTER)
            with self._lock:
                due = record.expires_at - self._lead()
                sooner = due < self._rotation.due
                self._rotation.due = min(self._rotation.due, due)
            if sooner and self._duties:
                self._schedule()
        self.balance_soon()  # it may not be where it is needed most
        fd = -1 if self._monitor is None else conn.fileno()
        if self._monitor is not None and fd >= 0:  # a mock has none
            self._monitor.watch(fd, functools.partial(_hung_up, weakref.ref(self), record))

    def examine(self, record: Record) -> None:
        """Look whether a connection whose server hung up, as it seems, is dead; replace it then.

        One in use is looked at when it comes back; unless its descriptor was
        closed by somebody else, so that it must not be freed when it is dropped.
        That is asked only where descriptors have been closed: while libpq closes a
        socket by itself, its number is for a moment nobody's, or another file's.
        """
        conn = self._store.item_of(record)
        if conn is None:
            return
        if self._store.withdraw(conn):
            self._keep_if_good(conn, test=False)
        elif self._is_struck(conn):
            with contextlib.suppress(KeyError):  # else it has just come back
                self._store.claim(record)
                record.uses += 1
                self._counters.add("connections_lost")
                self._supply.discard(conn)

    def _is_struck(self, conn: Connection) -> bool:
        monitor = self._monitor
        return monitor is not None and monitor.has_lost_descriptors and not owns_socket(conn)

    def sweep(self) -> None:
        """Probe all idle connections."""
        # Newest first: each goes back to the head, so that the order stays.
        for conn in reversed(list(self._store.idle)):
            if self._store.withdraw(conn):
                self._keep_if_good(conn, test=False)

    def suspect_others(self, fault: BaseException | None, of: Record) -> int:
        """Doubt every idle connection, since one was found dead; return how many were discarded.

        What kills one connection kills others: a restart, a failover, a
        firewall.  All are probed now, and tested before they are lent.  Where a
        server has been *silent* no probe tells, and to test each would cost
        ``test_timeout`` each; so those on the same endpoint that have not been
        used since that silence began are discarded.  So are all on an endpoint
        that has lost its role, where that would be found out by a test only.
        """
        gone = 0
        if isinstance(fault, SilenceError):
            gone = self._discard_idle(of.endpoint, fault.since)
        elif isinstance(fault, WrongRoleError):
            # All first: one may be lent now and idle when those are looked at, or the reverse.
            self._retire_all(of.endpoint)
            gone = self._discard_idle(of.endpoint, math.inf)
        self.suspect_all()
        return gone

    def notices_jump(self) -> bool:
        """Doubt every idle connection if the machine was suspended meanwhile; tell whether."""
        if not self._jumps.happened():
            return False
        self.suspect_all()
        logger.debug("pool %r: the clocks have jumped, idle connections are suspect", self.name)
        return True

    def suspect_all(self) -> None:
        """Have idle connections probed now, and each there is tested before it is lent again."""
        for record in self._store.all_records():
            record.suspect = True
        for conn in list(self._store.idle):
            conn.pool_record.attention = True
        if self._monitor is not None:
            self._monitor.submit(self.sweep)

    def _retire_all(self, endpoint: object) -> None:
        for record in self._store.all_records():
            if record.endpoint == endpoint:
                record.retired = record.attention = True

    def _discard_idle(self, endpoint: object, since: float) -> int:
        gone = 0
        for conn in list(self._store.idle):
            record = conn.pool_record
            unheard = record.idle_since < since and record.endpoint == endpoint
            if unheard and self._store.withdraw(conn, leaving=True):
                self._counters.add("connections_lost")
                self._supply.discard(conn)
                gone += 1
        return gone

    def on_connect_failed(self) -> None:
        """Look soon whether the endpoint that failed answers again."""
        self.balance_soon()

    def on_hung_up_in_hand(self, record: Record) -> None:
        """Examine a connection that was hung up when nobody could take it out to do so."""
        if self._monitor is not None:
            self._monitor.submit(functools.partial(self.examine, record))

    def balance_soon(self) -> None:
        """Have :meth:`balance` called with the next step."""
        if not self._balance.is_needed:
            return
        with self._lock:
            due = self._clock() + STEP
            sooner = due < self._balancing.due
            self._balancing.due = min(self._balancing.due, due)
        if sooner and self._duties:
            self._schedule()

    def balance(self) -> None:
        """Spread the connections over the endpoints, and look names up again.

        By a worker of its own: a silent server or name server holds up no other duty.
        """
        if self._monitor is None:
            self._take_step()
        else:
            self._monitor.submit(self._take_step)

    def _take_step(self) -> None:
        if self._is_balancing:
            return
        self._is_balancing = True
        pause = STEP
        try:
            pause = self._balance.step()
        finally:
            self._is_balancing = False
            with self._lock:
                self._balancing.due = self._clock() + pause
            self._schedule()

    # -- idleness ----------------------------------------------------------

    def reap(self, most: float = math.inf) -> int:
        """Close what has been idle too long, and what nobody needed; return how many."""
        idle_timeout = self._options.idle_timeout
        if idle_timeout is None:
            return 0
        now = self._clock()
        surplus = self.mark_low_water()
        reaped: list[Connection] = []
        for conn in list(self._store.idle):
            expendable = conn.pool_record.idle_since <= now - idle_timeout or len(reaped) < surplus
            if expendable and len(reaped) < most and self._store.withdraw_surplus(conn):
                reaped.append(conn)
        if reaped:
            self._lower_marks(len(reaped))
        self._supply.close_all(reaped)
        self._counters.add("connections_reaped", len(reaped))
        if reaped:
            logger.debug("pool %r: reaped %d idle connections", self.name, len(reaped))
        return len(reaped)

    def _lower_marks(self, gone: int) -> None:
        with self._lock:
            self._marks = deque(
                (since, until, max(0, low - gone)) for since, until, low in self._marks
            )

    def mark_low_water(self) -> int:
        """Return how many stood idle at every moment of the last ``idle_timeout``.

        With FIFO borrowing every connection is used in turn, so that none is
        ever idle for long although most are needed by nobody.
        """
        span = self._options.idle_timeout
        if not span:
            return 0
        with self._lock:
            now = self._clock()
            self.fewest_idle()
            self._marks.append((self._marked_at, now, self._low))
            self._marked_at, self._low = now, len(self._store.idle)
            while self._marks and self._marks[0][1] <= now - span:
                self._marks.popleft()
            if not self._marks or self._marks[0][0] > now - span:
                return 0  # not observed for so long yet
            return min(low for _, _, low in self._marks)

    def fewest_idle(self) -> int:
        """Return how many stood idle at every moment since the last call or low-water mark."""
        with self._lock:
            low, self._store.low = self._store.low, len(self._store.idle)
            self._low = min(self._low, low)
            return low

    # -- age ---------------------------------------------------------------

    def rotate(self) -> None:
        """Retire what reaches the end of its lifetime, each after its replacement is open."""
        now = self._clock()
        lead = self._lead()
        upcoming = now + POSTPONED  # unless this round reaches its end
        try:
            dues = [self._rotate_one(record, now, lead) for record in self._store.all_records()]
            upcoming = min(dues, default=math.inf)
        finally:
            with self._lock:
                self._rotation.due = min(upcoming, self._rotation.due)

    def _rotate_one(self, record: Record, now: float, lead: float) -> float:
        """Retire one whose time has come, if it can be replaced; return when to look again."""
        if record.retired:
            return math.inf
        if record.expires_at - lead > now:
            return record.expires_at - lead
        try:
            # It is lent past its lifetime until another is open, however long that takes.
            record.expires_at = math.inf
            self._supply.replace(record)
        finally:
            if not record.retired:  # another thread may be replacing it, and fail
                record.expires_at = self._clock() + lead + POSTPONED
        return math.inf if record.retired else record.expires_at - lead

    def _lead(self) -> float:
        return min(LONGEST_LEAD, (self._options.lifetime_timeout or 0.0) * 0.02)

    # -- health ------------------------------------------------------------

    def check_health(self) -> int:
        """Test what has been idle for ``health_check_interval``; return how many were bad."""
        return self.check(self._clock() - self._options.health_check_interval)

    def check(self, idle_since: float = math.inf) -> int:
        """Test all idle connections that have been idle since then; return how many were bad.

        They keep their age and their idle time.
        """
        bad = 0
        for conn in reversed(list(self._store.idle)):  # as in sweep
            if conn.pool_record.idle_since <= idle_since and self._store.withdraw(conn):
                bad += self._keep_if_good(conn, test=True)
        return bad

    def _keep_if_good(self, conn: Connection, *, test: bool) -> int:
        """Examine a connection that was withdrawn; return how many were discarded for it."""
        record: Record = conn.pool_record
        try:
            fault = self._care.fault(conn, test=test)
        except BaseException:
            self._supply.discard(conn)
            raise
        if fault is None:
            if test:
                self._supply.mark_proven(record)
            self._supply.close_all(self._store.keep(conn, oldest=True))
            self._supply.look_again(record)
            return 0
        if not record.uses and self._clock() - record.born < EARLY:
            self._supply.first_test_failed(fault, record)
        self._counters.add("connections_lost")
        self._supply.discard(conn, at_once=True)
        gone = 1 if record.suspect else 1 + self.suspect_others(fault, record)
        logger.debug("pool %r: discarded a connection that was lost while idle", self.name)
        return gone

    # -- leaks -------------------------------------------------------------

    def collect_lost(self) -> None:
        """Free the slots of connections that were collected, and tell of those in use."""
        lost = self._store.collect_lost()
        for _, was_lent in lost:
            self._counters.add("connections_leaked" if was_lent else "connections_lost")
            self._supply.grow()
        for record, was_lent in lost:
            if was_lent:
                logger.warning(
                    "pool %r: a connection was dropped without being returned;"
                    " its slot is free again%s",
                    self.name,
                    f"; it was borrowed at:\n{record.loan.site}" if record.loan else "",
                )

    def warn_of_leaks_in_passing(self) -> None:
        """Without a thread: do that when it is due."""
        now = self._clock()
        if self._options.leak_timeout and now >= self._inline_leaks_due:
            self._inline_leaks_due = now + self._options.leak_timeout / 4
            self.warn_of_leaks()

    def warn_of_leaks(self) -> None:
        """Log each loan that has lasted for ``leak_timeout``, once, with its origin."""
        timeout = self._options.leak_timeout
        now = self._clock()
        for record in self._store.lent.copy():
            loan: Any = record.loan
            if timeout and loan and not loan.warned and now - loan.since >= timeout:
                loan.warned = True
                logger.warning(
                    "pool %r: a connection has been in use for %.1f s by thread %r;"
                    " it was borrowed at:\n%s",
                    self.name,
                    now - loan.since,
                    loan.thread,
                    loan.site,
                )


def _do_extra(act: weakref.WeakMethod[Callable[[], object]], upkeep: Upkeep) -> None:
    method = act()
    if method is not None:
        method()


def _hung_up(upkeep: weakref.ref[Upkeep], record: Record) -> None:
    """Pass a hang-up on to a worker; the mark keeps a borrower from using it meanwhile."""
    record.hung_up = record.attention = True
    keeper = upkeep()
    if keeper is not None and keeper._monitor is not None:
        keeper._monitor.submit(functools.partial(keeper.examine, record))
