"""The connection pool."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import itertools
import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from types import TracebackType
from typing import Any, NoReturn

import psycopg2
from psycopg2.extensions import STATUS_READY

from . import checks
from .breaker import CircuitBreaker
from .care import Care
from .connector import ACTIVE, Connection, Connector, Reset, Test
from .errors import (
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolExhausted,
    PoolTimeout,
    TooManyRequests,
)
from .failures import says_lost
from .keyed import KeyedLoans
from .loan import LoanBlock, TransactionBlock
from .loans import Loan, borrower
from .monitor import Monitor, get_monitor
from .stats import Counters, PoolStats
from .store import Record, Store, Waiter
from .supply import EndpointStats, Supply
from .timing import Clock, Deadline
from .upkeep import Limits, Upkeep

logger = logging.getLogger("psycopg2_pool2")

_POOL_DEFAULT: Any = type("POOL_DEFAULT", (), {"__repr__": lambda self: "the pool's timeout"})()
_LOOK_AGAIN = 0.5
"""Seconds after which a waiter looks around by itself, whatever became of his wake-up."""

_numbers = itertools.count(1)
_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()


class ConnectionPool:
    """A pool of psycopg2 connections, safe to use from any thread.

    A pool lends at most ``maxconn`` connections at a time, first come, first
    served, the one that has been idle longest first.  What it lends is open,
    outside any transaction, with the settings it had after ``configure``, and
    tested as configured.  All times are in seconds.

    ``minconn``
        How many to keep open, idle and in use together.
    ``maxconn``
        How many may be open at a time, those being opened and closed included.
    ``idle_timeout``
        Close what has been idle for so long, and what nobody needed for so
        long, down to ``minconn``.  None: never.  0: close on return what is
        above ``minconn``.
    ``reap_idle_interval``
        How often to do that.  0: only when :meth:`reap_idle_connections` is called.
    ``lifetime_timeout``
        Replace a connection when it is so old, give or take a tenth.  None:
        never.  0: close it on return.
    ``test_on_borrow``
        True: ``SELECT 1`` in one round trip before a connection is lent.
        False: no query.  A callable gets the connection and raises if it is no good.
    ``background_prewarm``
        True: ``minconn`` are opened in the background.  False: the constructor
        opens them, or raises.
    ``timeout``
        How long a borrower waits.  0: raise :class:`PoolExhausted` when all are
        in use.  None: for ever.
    ``max_waiting``
        Raise :class:`TooManyRequests` when so many wait already.
    ``max_uses``
        Close a connection on return after so many loans.
    ``test_idle_after``
        Test on borrow only what has been idle for so long.  0: always.
    ``test_timeout``
        How long a test or a clean-up may take before the connection is given up.
    ``health_check_interval``
        How often to test what stays idle.  0: never.
    ``configure``
        Called with each new connection before its first use; a transaction that
        it leaves open is committed.  What it raises reaches the borrowers.
    ``reset``
        What is done on return beside ROLLBACK and putting psycopg2's settings
        back.  ``"session"``: DISCARD ALL.  A callable gets the connection; if it
        raises, the connection is closed and the error logged.
    ``connect_params``
        Called at every connect; returns keywords that are merged over
        ``connect_kwargs``.
    ``leak_timeout``
        Warn, with the place of the borrow, of a connection in use for so long.
    ``close_returns``
        Have the connections' ``close()`` give them back.
    ``debug``
        Remember who borrowed what where, tell it in errors, and raise
        :class:`PoolDeadlock`.
    ``num_workers``
        How many connections to open at once.  0: use no thread, do everything
        at borrow and return.
    ``address_timeout``, ``resolver``
        How long an address stays known, and how names are resolved.
    ``breaker``
        A :class:`CircuitBreaker` to copy.
    ``name``
        What the pool is called in errors and logs.
    ``connect_kwargs``
        Passed to :func:`psycopg2.connect`.  ``connect_timeout`` is 5 unless
        given; keepalives and ``tcp_user_timeout`` are set too.

    Raises :class:`ValueError` or :class:`TypeError` for a bad argument, and
    :class:`psycopg2.ProgrammingError` for a dsn that libpq cannot read.
    """

    _clock: Clock = staticmethod(time.monotonic)

    def __init__(
        self,
        minconn: int = 1,
        maxconn: float = math.inf,
        idle_timeout: float | None = 300,
        reap_idle_interval: float = 300,
        lifetime_timeout: float | None = 86400,
        *,
        test_on_borrow: Test = True,
        background_prewarm: bool = True,
        timeout: float | None = 0,
        max_waiting: int | None = None,
        max_uses: int | None = None,
        test_idle_after: float = 0,
        test_timeout: float = 5,
        health_check_interval: float = 30,
        configure: Callable[[Connection], object] | None = None,
        reset: Reset = None,
        connect_params: Callable[[], Mapping[str, Any]] | None = None,
        leak_timeout: float | None = None,
        close_returns: bool = False,
        debug: bool = False,
        num_workers: int = 3,
        address_timeout: float = 60,
        resolver: Any = None,
        breaker: CircuitBreaker | None = None,
        name: str | None = None,
        **connect_kwargs: Any,
    ) -> None:
        sizes = checks.sizes(minconn, maxconn)
        self._limits = Limits(
            idle_timeout=checks.seconds("idle_timeout", idle_timeout, optional=True),
            reap_idle_interval=checks.seconds("reap_idle_interval", reap_idle_interval),
            lifetime_timeout=checks.seconds("lifetime_timeout", lifetime_timeout, optional=True),
            health_check_interval=checks.seconds("health_check_interval", health_check_interval),
            leak_timeout=checks.seconds("leak_timeout", leak_timeout, optional=True, positive=True),
        )
        if not isinstance(test_on_borrow, bool):
            checks.function("test_on_borrow", test_on_borrow)
        checks.flag("background_prewarm", background_prewarm)
        self.timeout = checks.seconds("timeout", timeout, optional=True)
        self.max_waiting = checks.count("max_waiting", max_waiting, optional=True)
        self.max_uses = checks.count("max_uses", max_uses, least=1, optional=True)
        self.test_idle_after = checks.seconds("test_idle_after", test_idle_after)
        self.test_timeout = checks.seconds("test_timeout", test_timeout, positive=True)
        checks.function("configure", configure, None)
        checks.function("reset", reset, None, "session")
        checks.function("connect_params", connect_params, None)
        checks.flag("close_returns", close_returns)
        self._debug = checks.flag("debug", debug)
        self._num_workers = checks.count("num_workers", num_workers)
        self.address_timeout = checks.seconds("address_timeout", address_timeout)
        if resolver is not None and not callable(resolver) and not hasattr(resolver, "resolve"):
            raise TypeError(f"resolver must be a Resolver or a callable, not {resolver!r}")
        self._resolver = resolver
        if breaker is not None and not isinstance(breaker, CircuitBreaker):
            raise TypeError(f"breaker must be a CircuitBreaker, not {breaker!r}")
        self._breaker = breaker or CircuitBreaker()
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r}")
        self.name = name or f"pool-{next(_numbers)}"
        self._connector = Connector(
            connect_kwargs,
            connect_params=connect_params,
            configure=configure,
            test=test_on_borrow,
            reset=reset,
            home=weakref.ref(self) if close_returns else None,
        )
        connect_kwargs.setdefault("dsn", "")
        if "connect_timeout" not in self._connector.parameters:
            connect_kwargs.setdefault("connect_timeout", 5)
        self.connect_kwargs = connect_kwargs
        self._prewarmed = False
        self._build(*sizes)
        _pools.add(self)
        self._start(background_prewarm)

    def _build(self, minconn: int, maxconn: float) -> None:
        """Make the parts; again in a forked child, which starts empty."""
        limits = self._limits
        monitor: Monitor | None = get_monitor() if self._num_workers else None
        self._monitor = monitor
        self._counters = Counters()
        self._popped = dict[str, Any]()
        self._keyed = KeyedLoans()
        self._store: Store[Connection] = Store(minconn, maxconn, self._clock)
        self._care = Care(
            self.name, self._connector, monitor, self.test_timeout, self._counters
        )
        self._supply = Supply(
            self.name,
            self._store,
            self._connector,
            self._breaker.copy(),
            monitor,
            self._num_workers,
            self._counters,
            self._clock,
        )
        self._upkeep = Upkeep(
            self.name,
            self._store,
            self._care,
            self._supply,
            monitor,
            limits,
            self._counters,
            self._clock,
        )
        self._supply.introduce_to(self._upkeep.welcome)
        self._tracks = self._debug or limits.leak_timeout is not None
        # Where the monitor watches the sockets, a connection without marks on its
        # record may be lent as it is; elsewhere it is probed first.
        self._trusting = (
            self._connector.test_on_borrow is False
            and monitor is not None
            and monitor.watches
            and not self._tracks
        )
        # What has to be weighed at every return, and not only when a mark says so.
        self._weighing = (
            self.max_uses is not None
            or limits.lifetime_timeout == 0
            or limits.idle_timeout == 0
            or monitor is None
            or self._tracks
            or self._connector.reset is not None
        )
        # Bound once: attribute look-ups are a sixth of the idle cycle.
        self._borrow_idle = self._store.borrow
        self._claim = self._store.claim
        self._give_back = self._store.give_back

    def _start(self, in_background: bool) -> None:
        if not in_background:
            try:
                while self._open_missing():
                    pass
            except BaseException:
                self.shutdown()
                raise
        if self._monitor is not None:
            self._monitor.workers.base = max(self._monitor.workers.base, self._num_workers)
            self._monitor.add_client(self)
            self._upkeep.start()
            self._supply.grow()

    # -- borrowing ---------------------------------------------------------

    def getconn(
        self, key: Hashable | None = None, *, timeout: float | None = _POOL_DEFAULT
    ) -> Connection:
        """Borrow a connection; give it back with :meth:`putconn`.

        ``timeout`` overrides the pool's for this call: seconds, 0 to raise at
        once when all are in use, None to wait for ever.  It covers waiting,
        connecting and testing.  With a ``key`` the connection that is in use
        under that key is returned, if there is one, as in psycopg2.

        Raises :class:`PoolExhausted`, :class:`PoolTimeout`,
        :class:`TooManyRequests`, :class:`PoolClosed`, :class:`PoolUnavailable`,
        or what psycopg2 or ``configure`` raised when a connection was opened.
        """
        if self._trusting and key is None:
            conn = self._borrow_idle()
            if conn is not None and not conn.pool_record.attention:
                return conn
            return self._getconn(conn, timeout)
        if key is None:
            return self._getconn(None, timeout)
        return self._getconn_keyed(key, timeout)

    def conn(self, *, timeout: float | None = _POOL_DEFAULT) -> LoanBlock:
        """Return a context manager that borrows a connection and gives it back.

        Commits nothing; what is open at the end is rolled back.
        """
        return LoanBlock(self, timeout)

    def transaction(self, *, timeout: float | None = _POOL_DEFAULT) -> TransactionBlock:
        """Return a context manager like :meth:`conn` that commits, or rolls back on an exception."""
        return TransactionBlock(self, timeout)

    def _getconn(self, conn: Connection | None, timeout: Any) -> Connection:
        if timeout is _POOL_DEFAULT:
            timeout = self.timeout
        else:
            checks.seconds("timeout", timeout, optional=True)
        deadline = Deadline(timeout, self._clock)
        try:
            while True:
                if conn is None:
                    conn = self._borrow_idle()
                if conn is None:
                    conn = self._wait(deadline, patient=timeout != 0)
                if self._is_fit(conn, deadline if timeout else None):
                    break
                conn = None
        except BaseException:
            self._counters.add("requests_errors")
            raise
        if self._tracks:
            conn.pool_record.loan = Loan(self._clock())
        return conn

    def _getconn_keyed(self, key: Hashable, timeout: Any) -> Connection:
        seconds = self.timeout if timeout is _POOL_DEFAULT else timeout
        deadline = Deadline(seconds or None, self._clock)
        conn = self._keyed.get(key, lambda: self._getconn(None, timeout), deadline)
        if conn is None:
            raise self._timed_out(deadline)
        return conn

    def _wait(self, deadline: Deadline, *, patient: bool) -> Connection:
        """Queue up until a connection is handed over."""
        self._report_lost()
        waiter: Waiter[Connection] = Waiter(patient, borrower() if self._debug else None)
        try:
            if not self._store.idle and self._store.size < self._store.maxconn:
                self._raise_if(self._supply.refusal(patient))
            self._request(waiter)
            self._supply.grow()
            while waiter.item is None:
                self._raise_if(waiter.error)
                self._wait_a_while(waiter, deadline)
            conn, waiter.item = waiter.item, None
            return conn
        except BaseException:
            conn = self._store.leave(waiter)
            if conn is not None:
                self._put_back(conn)
            raise
        finally:
            self._counters.add("requests_queued")
            self._counters.add("requests_wait_ms", deadline.elapsed() * 1000)

    def _request(self, waiter: Waiter[Connection]) -> None:
        """Enter the queue; add to a refusal what explains it."""
        try:
            self._store.request(waiter, self.max_waiting)
        except (PoolExhausted, TooManyRequests) as error:
            raise type(error)(f"{error}: {self._describe()}{self._loans()}") from None
        except PoolClosed as error:
            raise PoolClosed(f"{error}: {self.name!r}") from None

    def _wait_a_while(self, waiter: Waiter[Connection], deadline: Deadline) -> None:
        if self._debug and waiter.item is None:
            self._raise_if(self._deadlock())
        pause = deadline.slice(_LOOK_AGAIN) if waiter.patient else _LOOK_AGAIN
        if self._monitor is None:
            pause = self._open_for(waiter, deadline, pause)
        if waiter.item is not None or waiter.error is not None:
            return
        if waiter.patient and deadline.remaining() == 0:
            raise self._timed_out(deadline)
        if waiter.wait(pause):
            return
        # Nobody came.  Normally that is so because there is nothing to bring;
        # but a thread that was interrupted may have left its work half done.
        self._report_lost()
        self._supply.close_all(self._store.settle())
        self._supply.grow()
        if not waiter.patient and waiter.item is None:
            if self._store.size < self._store.maxconn:
                self._raise_if(self._supply.refusal(patient=False))
            if len(self._store.lent) >= self._store.maxconn:
                raise PoolExhausted(f"connection pool exhausted: {self._describe()}")

    def _open_for(
        self, waiter: Waiter[Connection], deadline: Deadline, pause: float
    ) -> float:
        """Without workers: open a connection oneself if there is room; return how long to wait."""
        limit, until_allowed = self._supply.allowance()
        if not limit:
            return min(pause, until_allowed)
        permit = self._store.take_permit(math.inf)
        if permit is None:
            return pause
        try:
            conn = self._supply.open(permit, deadline.remaining() if waiter.patient else None)
        except Exception:
            return 0.0  # the waiter has been told if it concerns him
        self._supply.close_all(self._store.keep(conn))
        return 0.0

    def _is_fit(self, conn: Connection, deadline: Deadline | None) -> bool:
        """Tell whether a connection may be lent; one that may not is closed.

        ``deadline`` bounds the test beside ``test_timeout``.
        """
        record: Record = conn.pool_record
        try:
            record.attention = False  # before the reasons are read
            if not record.retired and record.expires_at > self._clock():
                limit = self.test_timeout
                if deadline is not None:
                    limit = max(0.001, deadline.slice(limit))
                if self._care.is_good(conn, test=self._needs_test(record), seconds=limit):
                    return True
                self._counters.add("connections_lost")
        except BaseException:
            self._drop(conn)
            raise
        self._drop(conn)
        return False

    def _needs_test(self, record: Record) -> bool:
        if not self._connector.test_on_borrow:
            return False
        if record.suspect or not self.test_idle_after:
            return True
        return self._clock() - record.idle_since >= self.test_idle_after

    def _drop(self, conn: Connection) -> None:
        """Close a connection that was about to be lent."""
        with contextlib.suppress(KeyError):
            self._claim(conn.pool_record)
        self._supply.discard(conn)

    def _put_back(self, conn: Connection) -> None:
        """Return a connection that was handed over but not used."""
        with contextlib.suppress(KeyError):
            self._claim(conn.pool_record)
            self._supply.close_all(self._store.keep(conn, oldest=True))

    # -- returning ---------------------------------------------------------

    def putconn(self, conn: Connection, key: Hashable | None = None, close: bool = False) -> None:
        """Give a borrowed connection back; with ``close`` it is closed.

        A transaction that is open is rolled back.  A connection that is lost, or
        in the middle of something, is closed: never an error.  Costs nothing on
        the network when no transaction is open, one round trip otherwise, and
        one more with ``reset="session"``.

        Raises :class:`PoolError` for a connection that is not in use, such as
        one of another pool or one that was returned before.
        """
        try:
            record = conn.pool_record
            self._claim(record)
        except (AttributeError, KeyError):
            self._refuse(conn)
            return
        if (
            record.attention
            or close
            or self._weighing
            or conn.get_transaction_status()
            or conn.status != STATUS_READY
            or conn.notices
            or conn.notifies
        ):
            self._return_with_care(conn, record, key, close)
        else:
            leftovers = self._give_back(conn, record)
            if leftovers:
                self._supply.close_all(leftovers)

    def _return_with_care(
        self, conn: Connection, record: Record, key: Hashable | None, close: bool
    ) -> None:
        try:
            if record.key is not None:
                self._keyed.end(record)
            loan, record.loan = record.loan, None
            if loan is not None and loan.warned:
                logger.info(
                    "pool %r: a connection came back after %.1f s in use by thread %r",
                    self.name,
                    self._clock() - loan.since,
                    loan.thread,
                )
            keep = None
            if self._is_worth_keeping(record, close):
                keep = self._care.tidy(conn, record)
        except BaseException:
            self._retire(conn, record)
            raise
        if keep:
            self._supply.close_all(self._give_back(conn, record))
            if self._monitor is None:
                self._upkeep.run_without_thread()
        elif keep is None:
            at_once = close or self._limits.idle_timeout == 0 or self._store.closed
            self._retire(conn, record, at_once=at_once)
        else:
            self._counters.add("returns_bad")
            self._discard_lost(conn, record)

    def _is_worth_keeping(self, record: Record, close: bool) -> bool:
        if close or self._store.closed or record.retired:
            return False
        if self.max_uses is not None and record.uses + 1 >= self.max_uses:
            return False
        if self._limits.lifetime_timeout == 0 or record.expires_at <= self._clock():
            return False
        if self._limits.idle_timeout == 0 and not self._store.waiters:
            return not self._store.is_above_floor()
        return True

    def _discard_lost(self, conn: Connection, record: Record) -> None:
        record.uses += 1
        if not conn.closed and conn.get_transaction_status() == ACTIVE:
            self._supply.abort(conn)
        else:
            self._supply.discard(conn, at_once=True)

    def _retire(self, conn: Connection, record: Record, *, at_once: bool = False) -> None:
        record.uses += 1
        self._counters.add("connections_retired")
        self._supply.discard(conn, at_once=at_once)

    def _refuse(self, conn: Any) -> None:
        """Raise for a connection that is not in use, unless this process only inherited it."""
        record = getattr(conn, "pool_record", None)
        if isinstance(record, Record) and record.pid != os.getpid():
            return
        if not isinstance(record, Record):
            raise PoolError(
                f"trying to put unkeyed connection: it does not belong to pool {self.name!r}"
            )
        if record not in self._store.all_records():
            raise PoolError(
                "trying to put unkeyed connection: it does not, or no longer,"
                f" belong to pool {self.name!r}"
            )
        raise PoolError(
            f"trying to put unkeyed connection: it was returned to pool {self.name!r} before"
        )

    def _end_block(
        self, conn: Connection, uses: int, since: float, error: BaseException | None
    ) -> None:
        """Return the connection of a ``with`` block."""
        record: Record = conn.pool_record
        if record.pid != os.getpid() or record not in self._store.lent or record.uses != uses:
            if record.pid == os.getpid() and record.uses != uses and error is None:
                raise PoolError(f"a connection of pool {self.name!r} was returned inside its block")
            return
        self._counters.add("usage_ms", (self._clock() - since) * 1000)
        if error is not None and says_lost(error):
            self.putconn(conn, close=True)
        else:
            self.putconn(conn)

    def _take_back(self, conn: Connection) -> bool:
        """Serve ``conn.close()`` under ``close_returns``; False if it is to be closed really."""
        record: Record = conn.pool_record
        if record not in self._store.lent:
            # Closing twice is harmless in psycopg2 too.
            return record in self._store.all_records()
        self.putconn(conn)
        return True

    # -- the whole pool ----------------------------------------------------

    def reap_idle_connections(self) -> int:
        """Close what has been idle for ``idle_timeout``, and the surplus; return how many.

        Surplus is what stood idle at every moment of the last ``idle_timeout``.
        Keeps ``minconn``.  Safe to call from any thread; a pool without workers
        also replaces here what is too old or missing.
        """
        self._report_lost()
        reaped = self._upkeep.reap()
        if self._monitor is None:
            self._upkeep.rotate()
            with contextlib.suppress(psycopg2.Error):
                self._open_missing()
        return reaped

    def check(self) -> int:
        """Test every idle connection now, and discard the bad; return how many."""
        bad = self._upkeep.check()
        self._supply.grow()
        return bad

    def wait(self, timeout: float = 30) -> None:
        """Block until ``minconn`` are open; raise :class:`PoolTimeout` after ``timeout`` seconds."""
        deadline = Deadline(checks.seconds("timeout", timeout), self._clock)
        while not self.prewarmed_now():
            if self._store.closed:
                raise PoolClosed(f"connection pool is closed: {self.name!r}")
            if deadline.remaining() == 0:
                raise self._timed_out(deadline)
            if self._monitor is None:
                self._open_missing()
            else:
                self._supply.grow()
                self._supply.opened.clear()
                if not self.prewarmed_now():
                    self._supply.opened.wait(deadline.slice(_LOOK_AGAIN))

    def resize(self, minconn: int, maxconn: float) -> None:
        """Set both limits; grows in the background, shrinks as connections come back."""
        self._supply.close_all(self._store.resize(*checks.sizes(minconn, maxconn)))
        self._supply.grow()

    def discard_all_idle(self) -> None:
        """Close all idle connections, whatever ``minconn`` says; they are replaced as needed."""
        self._supply.close_all(self._store.withdraw_all())

    clear = discard_all_idle

    def drain(self) -> None:
        """Replace every connection: the idle ones now, those in use when they come back."""
        for record in self._store.all_records():
            record.retired = record.attention = True
        self.discard_all_idle()

    def detach(self, conn: Connection) -> Connection:
        """Take a borrowed connection out of the pool for good, and return it.

        Its slot is free at once; closing it is the caller's business.  Raises
        :class:`PoolError` if it is not in use.
        """
        try:
            record = conn.pool_record
            self._claim(record)
        except (AttributeError, KeyError):
            self._refuse(conn)
            return conn
        if record.key is not None:
            self._keyed.end(record)
        self._supply.unwatch(conn)
        record.uses += 1
        self._counters.add("connections_detached")
        self._supply.release(record)
        return conn

    def shutdown(self, timeout: float | None = None) -> None:
        """Close the pool; harmless when repeated.

        Nobody can borrow any more, waiters get :class:`PoolClosed`.  Idle
        connections are closed before this returns, those in use when they come
        back; ``timeout`` waits for them, at most so many seconds.
        """
        checks.seconds("timeout", timeout, optional=True)
        leftovers = self._store.close()
        self._upkeep.stop()
        self._supply.stop()
        self._supply.close_all(leftovers)
        self._report_lost()
        if self._monitor is not None:
            self._monitor.remove_client(self)
        if timeout is not None:
            deadline = Deadline(timeout, self._clock)
            while self._store.size and deadline.remaining():
                self._supply.emptied.wait(deadline.slice(_LOOK_AGAIN))
                self._report_lost()

    close = shutdown
    closeall = shutdown

    def __enter__(self) -> ConnectionPool:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    @classmethod
    def from_env(cls, **overrides: Any) -> ConnectionPool:
        """Make a pool from ``DATABASE_URL``, or else from libpq's ``PG*`` variables."""
        url = os.environ.get("DATABASE_URL")
        if url:
            overrides.setdefault("dsn", url)
        return cls(**overrides)

    # -- what it tells -----------------------------------------------------

    @property
    def minconn(self) -> int:
        """How many connections are kept open."""
        return self._store.minconn

    @property
    def maxconn(self) -> float:
        """How many connections may be open at a time."""
        return self._store.maxconn

    @property
    def idle_timeout(self) -> float | None:
        """Seconds of idleness, or of being needed by nobody, after which one is closed."""
        return self._limits.idle_timeout

    @property
    def lifetime_timeout(self) -> float | None:
        """Seconds after which a connection is replaced."""
        return self._limits.lifetime_timeout

    @property
    def reap_idle_interval(self) -> float:
        """Seconds between two reapings; 0 if only from outside."""
        return self._limits.reap_idle_interval

    @property
    def test_on_borrow(self) -> Test:
        """What is done before a connection is lent."""
        return self._connector.test_on_borrow

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._store.closed

    @property
    def prewarmed(self) -> bool:
        """Whether ``minconn`` have been open at some time."""
        self._prewarmed = self._prewarmed or self.prewarmed_now()
        return self._prewarmed

    def prewarmed_now(self) -> bool:
        """Tell whether ``minconn`` are open now."""
        return not self._store.missing

    @property
    def hostname(self) -> str | None:
        """The host name that is looked up, None for addresses, sockets and lists."""
        host = self._connector.parameters.get("host")
        if not host or "hostaddr" in self._connector.parameters:
            return None
        if host.startswith(("/", "@")) or "," in host:
            return None
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return str(host)
        return None

    @property
    def connections_in_use(self) -> weakref.WeakSet[Connection]:
        """The connections in use at this moment."""
        conns = (record() for record in self._store.lent.copy())
        return weakref.WeakSet(conn for conn in conns if conn is not None)

    def stats(self) -> PoolStats:
        """Return how many are in use and how many are idle."""
        self._report_lost()
        return PoolStats(len(self._store.lent), len(self._store.idle))

    def get_stats(self) -> dict[str, Any]:
        """Return gauges and counters under psycopg_pool's names, and this pool's own after them."""
        self._report_lost()
        store, sums = self._store, self._counters.read()
        stats: dict[str, Any] = {
            "pool_min": store.minconn,
            "pool_max": store.maxconn,
            "pool_size": store.size,
            "pool_available": len(store.idle),
            "requests_waiting": len(store.waiters),
            "requests_num": store.requests(),
        }
        stats.update(sums)
        stats["pool_in_use"] = len(store.lent)
        stats["pool_opening"] = store.opening
        return stats

    def pop_stats(self) -> dict[str, Any]:
        """Return :meth:`get_stats` with the counters as they grew since the last such call."""
        stats = self.get_stats()
        counters = {"requests_num", *Counters.NAMES}
        popped, self._popped = self._popped, {name: stats[name] for name in counters}
        return {name: value - popped.get(name, 0) for name, value in stats.items()}

    def endpoints(self) -> list[EndpointStats]:
        """Return what is known of the places that the pool connects to."""
        return [self._supply.endpoint()]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._describe()}>"

    # -- helpers -----------------------------------------------------------

    def _describe(self) -> str:
        store = self._store
        return (
            f"pool {self.name!r} (in use {len(store.lent)}, idle {len(store.idle)},"
            f" opening {store.opening}, waiting {len(store.waiters)}, maxconn {store.maxconn})"
        )

    def _loans(self) -> str:
        """Tell who has the connections, in debug mode."""
        if not self._debug:
            return ""
        loans = [record.loan for record in self._store.lent.copy() if record.loan]
        told = [f"\nin use for {self._clock() - x.since:.1f} s by {x.thread!r}:\n{x.site}" for x in loans]
        return "".join(told)

    def _timed_out(self, deadline: Deadline) -> PoolTimeout:
        cause = self._supply.last_error
        told = f"; the last error: {cause}" if cause is not None else ""
        error = PoolTimeout(
            f"no connection within {deadline.elapsed():.2f} s: {self._describe()}{told}{self._loans()}"
        )
        error.__cause__ = cause
        return error

    def _deadlock(self) -> PoolDeadlock | None:
        """Return the error if every connection is held by somebody who waits for another one."""
        store = self._store
        waiting = {waiter.borrower for waiter in list(store.waiters)}
        loans = [record.loan for record in store.lent.copy()]
        if len(loans) < store.maxconn or not all(x and x.who in waiting for x in loans):
            return None
        return PoolDeadlock(
            f"every borrower waits for another connection: {self._describe()}{self._loans()}"
        )

    def _raise_if(self, error: BaseException | None) -> None:
        if error is not None:
            raise error

    def _open_missing(self) -> bool:
        """Open one connection in this thread if fewer than ``minconn`` are; tell whether it did."""
        if not self._store.missing:
            return False
        permit = self._store.take_permit(math.inf)
        if permit is None:
            return False
        self._supply.close_all(self._store.keep(self._supply.open(permit)))
        return True

    def _report_lost(self) -> None:
        """Free the slots of connections that were collected, and tell of those in use."""
        for record, was_lent in self._store.collect_lost():
            self._counters.add("connections_leaked" if was_lent else "connections_lost")
            if was_lent:
                where = f", borrowed at:\n{record.loan.site}" if record.loan else ""
                logger.warning(
                    "pool %r: a connection was dropped without being returned;"
                    " its slot is free again%s",
                    self.name,
                    where,
                )
            self._supply.grow()

    def _after_fork_in_child(self) -> None:
        """Start empty: the parent's sessions are neither used nor closed."""
        inherited = self._store
        closed = inherited.closed
        for conn in list(inherited.idle):
            with contextlib.suppress(Exception):
                os.close(conn.fileno())  # this process's copy only
        self._build(inherited.minconn, inherited.maxconn)
        if closed:
            self._store.close()
        elif self._monitor is not None:
            self._monitor.add_client(self)


def _close_all_pools() -> None:
    for pool in list(_pools):
        pool.shutdown()


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork_in_child()


atexit.register(_close_all_pools)
os.register_at_fork(after_in_child=_after_fork_in_child)
