"""Open what is wanted and close what is not, with as much zeal as the server bears.

Every connection is opened under a permit of the store and struck out of its
books only when its socket is closed.  While opening fails there is one attempt
in flight, whoever waits; the circuit breaker spaces the attempts; after the
first success 1, 2, 4, ... run at once, up to ``num_workers``.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .bell import Bell
from .breaker import CircuitBreaker
from .connector import Connection, Connector
from .errors import PoolUnavailable
from .failures import Verdict, judge, reissue
from .monitor import Monitor, Timer
from .stats import Counters
from .store import Permit, Record, Store
from .timing import Clock, jitter

if TYPE_CHECKING:
    from .snapshots import EndpointStats

logger = logging.getLogger("psycopg2_pool2")

REMEMBERED = 0.25
"""Seconds that a final error is told to newcomers instead of being asked for again."""
LONGEST_FINAL_PAUSE = 60.0
"""Seconds between attempts that nobody waits for, when the last error was final."""
FULL_PAUSE = 1.0
"""Seconds without growth after the server said that it has no more room."""


class Supply:
    """Opens and closes the connections of one pool.

    ``monitor`` None means that there is no thread of ours: then :meth:`grow`
    does nothing, and who needs a connection calls :meth:`open` himself.
    """

    def __init__(
        self,
        name: str,
        store: Store[Connection],
        connector: Connector,
        breaker: CircuitBreaker,
        monitor: Monitor | None,
        num_workers: int,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self.name = name
        self._store = store
        self._connector = connector
        self._monitor = monitor
        self._most_at_once = num_workers or sys.maxsize  # without workers each opens his own
        self._counters = counters
        self._clock = clock
        self._welcome: weakref.WeakMethod[Callable[[Connection, Record], None]] | None = None
        self.opened = Bell()  # rung whenever one has been opened and kept
        self.emptied = Bell()  # rung when nothing is open any more
        self._lock = threading.RLock()  # guards what follows
        self._breaker = breaker
        self._at_once = self._most_at_once
        self._last_error: BaseException | None = None
        self._final_error: BaseException | None = None
        self._final_since = 0.0
        self._final_pause = REMEMBERED
        self._full_until = 0.0
        self._down_since: float | None = None
        self._failed_attempts = 0
        self._connect_seconds: float | None = None
        self._retry: Timer | None = None

    def introduce_to(self, welcome: Callable[[Connection, Record], None]) -> None:
        """Call a method, held weakly, with each new connection."""
        self._welcome = weakref.WeakMethod(welcome)

    def _introduce(self, conn: Connection, record: Record) -> None:
        welcome = None if self._welcome is None else self._welcome()
        if welcome is not None:
            welcome(conn, record)

    @property
    def watches(self) -> bool:
        """Whether a connection is marked as soon as its server hangs up."""
        return self._monitor is not None and self._monitor.watches

    @property
    def has_workers(self) -> bool:
        """Whether there are threads of ours to open and close connections."""
        return self._monitor is not None

    # -- opening -----------------------------------------------------------

    def grow(self) -> None:
        """Have opened what is wanted; from any thread, never blocks."""
        if not self._store.has_room():
            return
        if self._monitor is None:
            self._store.nudge()
            return
        while True:
            limit, pause = self.allowance()
            permit = self._store.take_permit(limit)
            if permit is None:
                break
            self._monitor.submit(functools.partial(self._open_and_keep, permit))
        if not limit and (self._store.waiters or self._store.missing):
            self._retry_in(pause)

    def allowance(self) -> tuple[int, float]:
        """Return how many may be opened at once now, and if none, in how many seconds to ask."""
        with self._lock:
            now = self._clock()
            pause = max(self._breaker.wait(now), self._full_until - now)
            if self._final_error is not None and now < self._final_since + REMEMBERED:
                pause = max(pause, self._final_since + self._final_pause - now)
            if pause > 0:
                return 0, pause
            return 1 if self._breaker.failing else self._at_once, 0.0

    def open(self, permit: Permit, seconds: float | None = None) -> Connection:
        """Open one connection in the pool's books, in hand of the caller.

        Takes at most about ``seconds``.  An error is told to those who wait for
        it before it is raised.
        """
        started = self._clock()
        with self._lock:
            self._breaker.begin()
        self._counters.add("connections_num")
        conn = None
        try:
            conn = self._connector.open(seconds)
            record = self._store.admit(permit, conn)
            self._introduce(conn, record)
        except BaseException as error:
            if conn is not None:
                self._connector.close(conn)
                self._store.forget_item(conn)
            self._store.drop_permit(permit)
            self._failed(error)
            raise
        self._succeeded(self._clock() - started)
        return conn

    def keep(self, conn: Connection) -> None:
        """Give a connection that was opened to the first who waits, or to the idle queue."""
        self.close_all(self._store.keep(conn))
        self.opened.ring()

    def _open_and_keep(self, permit: Permit) -> None:
        try:
            conn = self.open(permit)
        except BaseException:
            pass  # told to whom it concerns: a callback's SystemExit is the borrower's too
        else:
            self.keep(conn)
        self.grow()

    def _retry_in(self, seconds: float) -> None:
        assert self._monitor is not None
        with self._lock:
            at = self._clock() + seconds
            if self._retry is not None and self._clock() < self._retry.when <= at:
                return
            self._retry = self._monitor.call_later(seconds, self.grow)

    # -- outcomes ----------------------------------------------------------

    def _succeeded(self, seconds: float) -> None:
        self._counters.add("connections_ms", seconds * 1000)
        with self._lock:
            self._at_once = min(self._most_at_once, self._at_once * 2)
            self._breaker.succeed()
            self._connect_seconds = seconds
            self._last_error = self._final_error = None
            self._final_pause = REMEMBERED
            self._full_until = 0.0
            down_since, self._down_since = self._down_since, None
            attempts, self._failed_attempts = self._failed_attempts, 0
        if down_since is not None:
            logger.info(
                "pool %r: connected again after %.1f s and %d failed attempts",
                self.name,
                self._clock() - down_since,
                attempts,
            )

    def _failed(self, error: BaseException) -> None:
        self._counters.add("connections_errors")
        if not isinstance(error, Exception) and not self.has_workers:
            # This borrower was interrupted; the server is not to blame.
            with self._lock:
                self._breaker.abandon()
            return
        kept = reissue(error)
        verdict = judge(error)
        if verdict is Verdict.FULL and not self._store.size:
            verdict = Verdict.REFUSED  # nothing of ours can come back
        with self._lock:
            now = self._clock()
            self._last_error = kept
            self._at_once = 1
            if verdict is Verdict.FINAL:
                self._breaker.abandon()
                if self._final_error is not None:
                    self._final_pause = min(self._final_pause * 2, LONGEST_FINAL_PAUSE)
                self._final_error, self._final_since = kept, now
            elif verdict is Verdict.FULL:
                self._breaker.abandon()
                self._full_until = now + jitter(FULL_PAUSE, 0.2)
            else:
                self._breaker.fail(now, prompt=verdict is Verdict.REFUSED)
            self._failed_attempts += 1
            first, self._down_since = self._down_since is None, self._down_since or now
        level = logging.WARNING if first else logging.DEBUG
        logger.log(level, "pool %r: cannot connect: %s", self.name, kept)
        self._store.fail_waiters(lambda: reissue(kept), patient=verdict is Verdict.FINAL)

    def disappointed(self, error: BaseException) -> None:
        """Note that a new connection failed its first test: as if it had not been opened."""
        with self._lock:
            self._breaker.begin()
        self._failed(error)

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last attempt, if it failed."""
        return self._last_error

    def refusal(self, patient: bool) -> BaseException | None:
        """Return what to raise to a borrower whom nothing idle can serve, if anything."""
        with self._lock:
            now = self._clock()
            final, last = self._final_error, self._last_error
            if final is not None and now < self._final_since + REMEMBERED:
                return reissue(final)
            if patient or last is None:
                return None
            if self._full_until > now:
                return reissue(last)
            if self._breaker.state() == "closed":
                return None
            pause = self._breaker.wait(now)
            if not pause and self._breaker.state() == "open":
                return None  # this borrower's attempt is the probe
        refusal = PoolUnavailable(
            f"pool {self.name!r}: the server is unavailable,"
            f" the next attempt is due in {pause:.2f} s; the last error: {last}"
        )
        refusal.__cause__ = reissue(last)
        return refusal

    def endpoint(self) -> EndpointStats:
        """Return what is known of the place that the pool connects to."""
        from .snapshots import EndpointStats  # see there

        parameters = self._connector.parameters
        port = parameters.get("port")
        with self._lock:
            return EndpointStats(
                host=parameters.get("host"),
                address=parameters.get("hostaddr"),
                port=int(port) if port is not None and str(port).isdigit() else None,
                state=self._breaker.state(),
                connections=len(self._store.all_records()),
                failures=self._breaker.failures,
                last_error=None if self._last_error is None else str(self._last_error),
                connect_seconds=self._connect_seconds,
            )

    # -- closing -----------------------------------------------------------

    def discard(self, conn: Connection, *, at_once: bool = False) -> None:
        """Close a connection that is in the caller's hands, by a worker unless ``at_once``."""
        self._store.condemn(conn.pool_record)
        if at_once or self._monitor is None:
            self._close(conn, self._connector.close)
        else:
            self._monitor.submit(functools.partial(self._close, conn, self._connector.close))

    def discard_broken(self, conn: Connection) -> None:
        """Like :meth:`discard`, for one that is lost or in the middle of something."""
        if not self._connector.is_busy(conn):
            self.discard(conn, at_once=True)
            return
        self._store.condemn(conn.pool_record)
        if self._monitor is None:
            self._close(conn, self._connector.abort)
        else:
            self._monitor.submit(functools.partial(self._close, conn, self._connector.abort))

    def close_all(self, conns: Iterable[Connection]) -> None:
        """Close connections that the store gave out for closing."""
        for conn in conns:
            self.discard(conn, at_once=True)

    def release(self, record: Record) -> None:
        """Free the slot of a connection that is closed or no longer the pool's."""
        self._store.forget(record)
        if not self._store.size:
            self.emptied.ring()
        self.grow()

    def unwatch(self, conn: Connection) -> None:
        """Take its socket from the monitor; before the socket is closed."""
        if self._monitor is not None and not conn.closed:
            self._monitor.unwatch(conn.fileno())

    def _close(self, conn: Connection, how: Any) -> None:
        try:
            self.unwatch(conn)
        finally:
            how(conn)
            self.release(conn.pool_record)

    def stop(self) -> None:
        """Schedule nothing more."""
        with self._lock:
            if self._retry is not None:
                self._retry.cancel()
