"""The connection pool."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import sys
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2.extensions import STATUS_READY

from . import checks
from .balance import Balance
from .blocks import LoanBlock, TransactionBlock
from .breaker import CircuitBreaker
from .care import Care
from .connection import Tracked
from .connector import Borrowed, Connection, Connector, Reset, Test, has_casters_left
from .cursors import CURSORS
from .cursors import end as end_cursors
from .desk import Desk, MakeWaiter
from .endpoints import Endpoints
from .errors import PoolClosed, PoolError
from .failures import says_lost
from .handles import unwrapped
from .hidden import hidden
from .monitor import Monitor, get_monitor
from .observers import Observer, Observers
from .options import PoolOptions
from .processes import NO_MARK, ThisProcess, process_lock
from .proxies import lent_instead, real_connection
from .report import Report
from .resolver import Resolver
from .sockets import cut_off, owns_socket
from .stats import Counters
from .steps import Steps
from .store import Record, Store
from .supply import Supply
from .threads import has_stopped_others
from .timing import Clock, ClockJumps, Deadline, monotonic, wakeful_clock
from .under_uwsgi import may_run_threads, warn_of_missing_threads
from .upkeep import Upkeep

if TYPE_CHECKING:
    import socket

    from .snapshots import EndpointStats, PoolStats

#: Stands for the pool's own timeout.
POOL_DEFAULT: Any = type("POOL_DEFAULT", (), {"__repr__": lambda self: "the pool's timeout"})()
_LOOK_AGAIN = 0.5

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
        it leaves open is committed.  If it raises, another connection is tried
        until the borrower's time is over, which then gets that error as it is.
    ``reset``
        What is done on return beside ROLLBACK and putting back what psycopg2 keeps:
        its settings, type casters, the encoding.  None: what was committed in the
        session on the server, such as a role, stays for the next borrower.
        ``"session"``: DISCARD ALL.  A callable gets the connection; a transaction
        that it leaves open is committed; if it raises, the connection is closed and
        the error logged.
    ``connect_params``
        Called at every connect; returns keywords that are merged over
        ``connect_kwargs``.
    ``leak_timeout``
        Warn, with the place of the borrow, of a connection in use for so long.
    ``close_returns``
        Have the connections' ``close()`` give them back.
    ``debug``
        Remember who borrowed what where, tell it in errors, and raise
        :class:`PoolDeadlock`.  What is lent is an object for each loan that
        stands for the connection; it raises :class:`ConnectionReturned` when it
        is used after its return.
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

    _clock: Clock = staticmethod(monotonic)
    _wakeful_clock: Clock = staticmethod(wakeful_clock)

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
        self.connect_kwargs = connect_kwargs
        del connect_kwargs  # so that no traceback shows it: see hidden
        sizes = checks.sizes(minconn, maxconn)
        self._options = PoolOptions(
            idle_timeout=idle_timeout,
            reap_idle_interval=reap_idle_interval,
            lifetime_timeout=lifetime_timeout,
            test_on_borrow=test_on_borrow,
            background_prewarm=background_prewarm,
            timeout=timeout,
            max_waiting=max_waiting,
            max_uses=max_uses,
            test_idle_after=test_idle_after,
            test_timeout=test_timeout,
            health_check_interval=health_check_interval,
            configure=configure,
            reset=reset,
            leak_timeout=leak_timeout,
            close_returns=close_returns,
            debug=debug,
            num_workers=num_workers,
            address_timeout=address_timeout,
            resolver=resolver,
            breaker=breaker,
            name=name,
        ).checked()
        self._connector = Connector(
            hidden(self.connect_kwargs),
            connect_params=checks.function("connect_params", connect_params, None),
            configure=configure,
            test=test_on_borrow,
            reset=reset,
            home=weakref.ref(self) if close_returns else None,
            on_proxy=functools.partial(_lend_proxies, weakref.ref(self)),
        )
        self._lends_proxies = False
        self.connect_kwargs.setdefault("dsn", "")
        if "connect_timeout" not in self._connector.parameters:
            self.connect_kwargs.setdefault("connect_timeout", 5)
        self.name = name or f"pool-{next(_numbers)}"
        self._observers = Observers(self.name)
        self._build_here(*sizes)
        _pools.add(self)
        self._open(background_prewarm)

    def _build_here(self, minconn: int, maxconn: float, closed: bool = False) -> None:
        """Put the parts together; *then* note that they are this process's.

        In a child that was forked without Python's hooks other threads look at
        the note meanwhile, and wait as long as it names the parent.
        """
        self._build(minconn, maxconn)
        if closed:
            self._store.close()
        self._process = ThisProcess()
        with self._observers.lock:
            self._choose_path()

    def _build(self, minconn: int, maxconn: float) -> None:
        """Put the parts together; again in a forked child, which starts empty."""
        options, clock = self._options_here(), self._clock
        monitor: Monitor | None = get_monitor() if options.num_workers else None
        counters = Counters(self._observers)
        store: Store[Connection] = Store(minconn, maxconn, clock)
        endpoints = self._make_endpoints(options.num_workers)
        care = Care(self.name, self._connector, monitor, options.test_timeout, counters)
        supply = Supply(
            self.name,
            store,
            self._connector,
            care,
            endpoints,
            monitor,
            options.num_workers,
            options.test_timeout,
            counters,
            clock,
        )
        jumps = ClockJumps(clock, self._wakeful_clock)
        balance = Balance(self.name, store, supply, care, endpoints, counters)
        upkeep = Upkeep(
            self.name, options, store, care, supply, balance, monitor, counters, clock, jumps
        )
        supply.report_to(upkeep)
        report = Report(self.name, store, supply, counters, options.debug, clock)
        self._desk = Desk(self.name, options, store, care, supply, upkeep, report, counters, clock)
        self._monitor, self._counters, self._store = monitor, counters, store
        self._supply, self._upkeep, self._report = supply, upkeep, report
        self._started = self._prewarmed = False
        self._decides_at_return = options.decides_at_return
        self._num_workers = options.num_workers
        # Bound once: looking them up is a sixth of the idle cycle.
        self._popleft = store.idle.popleft
        self._lend = store.lent.add
        self._claim = store.claim

    def _options_here(self) -> PoolOptions:
        """Return the options, without workers where uWSGI lets no thread run."""
        options = self._options
        if not options.num_workers or may_run_threads():
            return options
        warn_of_missing_threads()
        return options._replace(num_workers=0)

    def _make_endpoints(self, num_workers: int) -> Endpoints:
        options = self._options
        return Endpoints(
            self._connector.parameters,
            Resolver(options.resolver, may_wait=num_workers > 0),
            options.address_timeout,
            options.breaker or CircuitBreaker(),
            num_workers or sys.maxsize,  # without workers each opens his own
            num_workers > 0,
            self._clock,
        )

    def _choose_path(self) -> None:
        """Let borrow and return go by the desk where it has something to note."""
        observed = bool(self._observers.all)
        # Where the monitor watches the sockets, an idle connection without a mark
        # on its record may be lent as it is; elsewhere it is probed first.
        self._desk.watched = self._started and self._supply.watches
        lends_untested = (
            self._options.test_on_borrow is False
            and self._desk.watched
            and not self._options.tracks_loans
            and not observed
            and not self._lends_proxies
        )
        # Empty in a child, however it was forked, until the pool is its own.
        self._lends_untested = self._process.mark if lends_untested else NO_MARK
        at_desk = observed or self._lends_proxies
        desk_of = functools.partial(_give_back_at_desk, weakref.ref(self))
        self._give_back = desk_of if at_desk else self._store.give_back

    def _open(self, in_background: bool) -> None:
        """Begin to keep ``minconn`` open; unless in the background, open them here or raise."""
        if not in_background:
            self._prewarm()
        self._start_if_needed()  # else with the first borrow: no thread runs before that

    def _prewarm(self) -> None:
        try:
            while self._open_missing():
                pass
        except BaseException:
            self.shutdown()
            raise

    def _start(self) -> None:
        """Begin what goes on in the background; with the next borrow, if it cannot begin now."""
        if self._store.closed:
            return
        if self._monitor is not None and self._monitor is not get_monitor():
            self._rebuild()  # gevent has patched the process since
        if self._monitor is not None:
            if not self._monitor.serve(self, self._num_workers):
                return  # no thread can be started
            if self.closed:  # since: it may have been dismissed before it was served
                self._monitor.dismiss(self)
                return
            self._upkeep.start()
            self._supply.grow()
        self._started = True  # only now: whoever is interrupted leaves it to the next one
        with self._observers.lock:
            self._choose_path()

    def _start_if_needed(self) -> None:
        if self._store.minconn and not self._started:
            self._start()

    # -- borrowing and returning -------------------------------------------

    def getconn(
        self, key: Hashable | None = None, *, timeout: float | None = POOL_DEFAULT
    ) -> Borrowed:
        """Borrow a connection; give it back with :meth:`putconn`.

        ``timeout`` overrides the pool's for this call: seconds, 0 to raise at
        once when all are in use, None to wait for ever.  It covers waiting,
        connecting and testing.  With a ``key`` the connection that is in use
        under that key is returned, if there is one, as in psycopg2.

        Raises :class:`PoolExhausted`, :class:`PoolTimeout`,
        :class:`TooManyRequests`, :class:`PoolClosed`, :class:`PoolUnavailable`,
        or what psycopg2 or ``configure`` raised when a connection was opened.
        """
        conn = None
        store = self._store
        if key is None and not store.attention:
            # Store.borrow, written out: the call would be a tenth of the idle cycle.
            try:
                conn = self._popleft()
                record = conn.pool_record
                self._lend(record)
                if len(store.idle) < store.low:
                    store.low = len(store.idle)
                # In this order: see _after_fork_in_child.
                if self._lends_untested[0] and not record.attention:
                    return conn  # type: ignore[no-any-return]  # a cast would take time
            except IndexError:
                pass  # none is idle
        return self._getconn(conn, key, timeout)  # type: ignore[no-any-return]

    def _getconn(self, conn: Connection | None, key: Hashable | None, timeout: Any) -> Connection:
        if has_stopped_others():  # nor could psycopg2 do anything
            raise PoolClosed(f"the interpreter has ended: {self.name!r}")
        if self._notice_fork():
            conn = None
        try:
            timeout = self._begin_borrow(timeout)
        except BaseException:
            if conn is not None:
                self._desk.put_back(conn)
            raise
        if key is None:
            return self._desk.lend(conn, timeout)
        return self._desk.lend_keyed(key, timeout)

    def _lending(self, timeout: Any, make_waiter: MakeWaiter) -> Steps[Connection]:
        """Return the steps of a borrow; the borrower waits as what ``make_waiter`` returns."""
        self._notice_fork()
        return self._desk.lending(self._begin_borrow(timeout), make_waiter)

    def _begin_borrow(self, timeout: Any) -> float | None:
        if not self._started:
            self._start()
        if timeout is POOL_DEFAULT:
            return self._options.timeout
        seconds: float | None = checks.seconds("timeout", timeout, optional=True)
        return seconds

    def putconn(self, conn: Connection, key: Hashable | None = None, close: bool = False) -> None:
        """Give a borrowed connection back; with ``close`` it is closed.

        Its cursors are closed, and a transaction that is open is rolled back.  A
        connection that is lost, or in the middle of something, is closed: never an
        error.  Costs nothing on the network when no transaction is open, one
        round trip otherwise, and one more with ``reset="session"`` or after
        ``set_client_encoding()``.  ``key`` is accepted for psycopg2's sake; the
        pool knows it.

        Raises :class:`PoolError` for a connection that is not in use, such as
        one of another pool or one that was returned before.
        """
        try:
            record = conn.pool_record
            self._claim(record)
        except (AttributeError, KeyError):
            self._putconn_by_proxy(conn, close)
            return
        # The driver is asked here and not in the connector, whose call would be
        # a tenth of the idle cycle.
        if (
            record.attention
            or close
            or self._decides_at_return
            or conn.get_transaction_status()
            or conn.status != STATUS_READY
            # As has_casters_left, written out.
            or (
                conn.pool_casters
                and [*map(id, conn.pool_casters.values())] != conn.pool_configured_ids
            )
        ) and self._needs_care(conn, record, close):
            has_ended = has_stopped_others() or self._notice_fork()
            if not (has_ended or (record.retired and _is_inherited(conn))):
                self._desk.take_back(conn, record, close)
        else:
            leftovers = self._give_back(conn, record)
            if leftovers:
                self._supply.close_all(leftovers)

    def _needs_care(self, conn: Connection, record: Record, close: bool) -> bool:
        """Tell whether a connection that comes back needs more than that its cursors are ended.

        If not, that is done.
        """
        if (
            record.attention != CURSORS
            or close
            or self._decides_at_return
            or conn.get_transaction_status()
            or conn.status != STATUS_READY
            or has_casters_left(conn)
        ):
            return True
        record.attention = False  # before the reasons are read
        return (
            not end_cursors(record)
            or record.touched
            or record.retired
            or record.hung_up
            or record.suspect
            or record.key is not None
        )

    def _putconn_by_proxy(self, lent: Any, close: bool) -> None:
        """Take back what does not lead to its record, such as a mock; raise if it is not in use."""
        record = self._claim_proxy(lent)
        if record is not None and not self._notice_fork():
            self._desk.take_back(lent, record, close)

    def _claim_proxy(self, lent: Any) -> Record | None:
        """Claim what does not lead to its record; None if this process only inherited it."""
        record = None if _leads_to_record(lent) else self._desk.find_record(lent)
        if record is not None:
            with contextlib.suppress(KeyError):  # another thread was faster
                self._claim(record)
                return record
        self._refuse(lent)
        return None

    def _returns_at_once(self, lent: Any) -> bool:
        """Tell whether giving it back needs neither the network nor the program's callbacks."""
        record = self._desk.find_record(lent)
        conn = None if record is None else record.item()
        return (
            record is None
            or conn is None
            or not (
                self._decides_at_return
                or record.attention not in (False, CURSORS)
                or conn.get_transaction_status()
                or conn.status != STATUS_READY
                or has_casters_left(conn)
            )
        )

    def _interrupt(self, conn: Connection, twin: socket.socket) -> None:
        """End what another thread does with a connection; ``twin`` is a copy of its socket."""
        self._connector.interrupt(conn, twin, self._options.test_timeout)

    def _refuse(self, conn: Any) -> None:
        """Raise for a connection that is not in use, unless it is no fault of the borrower's.

        This process may only have inherited it, or the pool has struck it out,
        since its descriptor was closed.
        """
        if not _is_inherited(conn) and owns_socket(unwrapped(conn)):
            raise self._desk.refuse(conn)

    def conn(self, timeout: float | None = POOL_DEFAULT) -> LoanBlock:
        """Return a context manager that borrows a connection and gives it back.

        Commits nothing; what is open at the end is rolled back.  ``timeout`` is
        that of :meth:`getconn`.
        """
        return LoanBlock(self, timeout)

    def transaction(self, timeout: float | None = POOL_DEFAULT) -> TransactionBlock:
        """Return a context manager like :meth:`conn`: commits, or rolls back on an exception.

        Raises :class:`CommitUncertain` if the answer to COMMIT is lost.
        """
        return TransactionBlock(self, timeout)

    def _end_block(
        self, conn: Connection, uses: int, since: float, error: BaseException | None
    ) -> None:
        """Return the connection of a ``with`` block, unless it was detached or inherited."""
        conn = unwrapped(conn)
        record: Any = getattr(conn, "pool_record", None)
        if has_stopped_others() or _is_inherited(conn):
            return
        self._counters.add("usage_ms", (self._clock() - since) * 1000)
        if record in self._store.lent and record.uses == uses:
            lost = error is not None and says_lost(error)
            if error is not None:
                record.touched = record.attention = (
                    True  # to be looked at: the server may have lost its role
                )
            self.putconn(conn, close=lost)
            if lost:
                self._upkeep.suspect_all()
        elif not isinstance(record, Record):
            self._end_block_of_proxy(conn)
        elif record in self._store.all_records() and error is None:
            raise PoolError(f"a connection of pool {self.name!r} was returned inside its block")

    def _end_block_of_proxy(self, lent: Any) -> None:
        """Return what does not lead to its record, unless it was detached."""
        if self._desk.find_record(lent) is not None:
            self.putconn(lent)

    def _take_back(self, conn: Connection) -> bool:
        """Serve ``conn.close()`` under ``close_returns``; False if it is to be closed really."""
        record: Record = conn.pool_record
        if record not in self._store.lent:
            # Closing twice is harmless, as in psycopg2.
            return record in self._store.all_records()
        self.putconn(conn)
        return True

    def detach(self, conn: Connection) -> Borrowed:
        """Take a borrowed connection out of the pool for good, and return it.

        Its slot is free at once; closing it is the caller's business.  What is
        returned is what was given: a tracer's proxy if that was lent.  Raises
        :class:`PoolError` if it is not in use.
        """
        try:
            record = conn.pool_record
            self._claim(record)
        except (AttributeError, KeyError):
            record = self._claim_proxy(conn)
        if record is not None:
            self._desk.detach(conn, record)
        return conn  # type: ignore[no-any-return]

    # -- the whole pool ----------------------------------------------------

    def reap_idle_connections(self) -> int:
        """Close what has been idle for ``idle_timeout``, and the surplus; return how many.

        Surplus is what stood idle at every moment of the last ``idle_timeout``.
        Keeps ``minconn``.  Safe to call from any thread; a pool without workers
        also replaces here what is too old or missing.
        """
        self._notice_fork()
        self._upkeep.collect_lost()
        reaped = self._upkeep.reap()
        if self._monitor is None:
            self._upkeep.rotate()
            self._upkeep.balance()
            self._upkeep.warn_of_leaks()
            with contextlib.suppress(psycopg2.Error):
                while self._open_missing():
                    pass
        return reaped

    def check(self) -> int:
        """Test every idle connection now, and discard the bad; return how many."""
        self._notice_fork()
        bad = self._upkeep.check()
        self._supply.grow()
        return bad

    def wait(self, timeout: float = 30) -> None:
        """Block until ``minconn`` are open, or raise :class:`PoolTimeout` after so many seconds."""
        self._notice_fork()
        deadline = Deadline(checks.seconds("timeout", timeout), self._clock, self._clock())
        self._start_if_needed()
        while self._store.closed or not self._is_warm():
            if self._store.closed:
                raise PoolClosed(f"connection pool is closed: {self.name!r}")
            if deadline.remaining() == 0:
                raise self._report.timed_out(deadline)
            if self._supply.is_stranded:
                with contextlib.suppress(psycopg2.Error):  # told if time runs out
                    while self._open_missing():
                        pass
            self._supply.grow()
            self._supply.opened.wait(deadline.slice(_LOOK_AGAIN), self._is_warm)

    def resize(self, minconn: int, maxconn: float) -> None:
        """Set both limits; grows in the background, shrinks as connections come back."""
        self._notice_fork()
        self._supply.close_all(self._store.resize(*checks.sizes(minconn, maxconn)))
        self._start_if_needed()
        self._supply.grow()

    def discard_all_idle(self) -> None:
        """Close all idle connections, whatever ``minconn`` says; they are replaced as needed."""
        self._notice_fork()
        self._supply.close_all(self._store.withdraw_all())

    clear = discard_all_idle

    def drain(self) -> None:
        """Replace every connection: the idle ones now, those in use when they come back.

        To be called when something has changed: host names are looked up anew,
        and only what that answer names counts; logins that were refused are
        tried again at once.
        """
        self._notice_fork()
        self._supply.drain()
        self.discard_all_idle()
        if self._started:
            self._upkeep.balance()
            self._supply.grow()

    def shutdown(self, timeout: float | None = None) -> None:
        """Close the pool; harmless when repeated.

        Nobody can borrow any more, waiters get :class:`PoolClosed`.  Idle
        connections are closed before this returns, those in use when they come
        back; ``timeout`` waits for them, at most so many seconds.
        """
        checks.seconds("timeout", timeout, optional=True)
        if has_stopped_others():
            self._store.idle.clear()
            return
        self._notice_fork()
        leftovers = self._store.close()
        self._upkeep.stop()
        self._supply.stop()
        self._supply.close_all(leftovers)
        self._upkeep.collect_lost()
        if self._monitor is not None:
            self._monitor.dismiss(self)
        if timeout is not None:
            deadline = Deadline(timeout, self._clock, self._clock())
            while self._store.size and deadline.remaining():
                self._supply.emptied.wait(deadline.slice(_LOOK_AGAIN), self._is_empty)
                self._upkeep.collect_lost()

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
        return cls(**from_environment(overrides))

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
        return self._options.idle_timeout

    @property
    def lifetime_timeout(self) -> float | None:
        """Seconds after which a connection is replaced."""
        return self._options.lifetime_timeout

    @property
    def reap_idle_interval(self) -> float:
        """Seconds between two reapings; 0 if only from outside."""
        return self._options.reap_idle_interval

    @property
    def test_on_borrow(self) -> Test:
        """What is done before a connection is lent."""
        return self._options.test_on_borrow

    @property
    def closed(self) -> bool:
        """Whether the pool is closed."""
        return self._store.closed

    @property
    def prewarmed(self) -> bool:
        """Whether ``minconn`` have been open at some time."""
        self._prewarmed = self._prewarmed or self._is_warm()
        return self._prewarmed

    def _is_empty(self) -> bool:
        return not self._store.size

    def _is_warm(self) -> bool:
        return len(self._store.idle) + len(self._store.lent) >= self._store.minconn

    @property
    def hostname(self) -> str | None:
        """The host name that is looked up, None for addresses, sockets and lists."""
        host = self._connector.parameters.get("host")
        if not host or "hostaddr" in self._connector.parameters:
            return None
        if host.startswith(("/", "@")) or "," in host:
            return None
        import ipaddress  # for this alone

        try:
            ipaddress.ip_address(host)
        except ValueError:
            return str(host)
        return None

    @property
    def connections_in_use(self) -> weakref.WeakSet[Borrowed]:
        """The connections in use at this moment."""
        conns = (self._store.item_of(record) for record in self._store.lent.copy())
        return weakref.WeakSet(lent_instead(conn) for conn in conns if conn is not None)

    def stats(self) -> PoolStats:
        """Return how many are in use and how many are idle."""
        from .snapshots import PoolStats  # see there

        self._notice_fork()
        self._upkeep.collect_lost()
        return PoolStats(len(self._store.lent), len(self._store.idle))

    def get_stats(self) -> dict[str, Any]:
        """Return gauges and counters under psycopg_pool's names, and this pool's own after them."""
        self._notice_fork()
        self._upkeep.collect_lost()
        return self._report.figures()

    def pop_stats(self) -> dict[str, Any]:
        """Return :meth:`get_stats` with the counters as they grew since the last such call."""
        self._notice_fork()
        self._upkeep.collect_lost()
        return self._report.pop_figures()

    def endpoints(self) -> list[EndpointStats]:
        """Return what is known of the places that the pool connects to."""
        return self._supply.endpoints()

    def __repr__(self) -> str:
        report: Report | None = getattr(self, "_report", None)
        told = "that could not be made" if report is None else report.describe()
        return f"<{type(self).__name__} {told}>"

    # -- helpers -----------------------------------------------------------

    def _observe(self, observer: Observer) -> None:
        """Tell an observer of all durations, of loans that begin from now on."""
        with self._observers.lock:
            if not self._observers.all:
                for record in self._store.all_records():
                    record.lent_at = None  # of a loan that nobody saw end
            self._observers.add(observer)
            self._choose_path()

    def _unobserve(self, observer: Observer) -> None:
        """Tell an observer no more; harmless when repeated."""
        with self._observers.lock:
            self._observers.remove(observer)
            self._choose_path()

    def _open_missing(self) -> bool:
        """Open one connection in this thread if fewer than ``minconn`` are; tell whether it did."""
        if not self._store.missing:
            return False
        limit, _ = self._supply.allowance()
        permit = self._store.take_permit(limit)
        if permit is None:
            return False
        self._supply.keep(self._supply.open(permit))
        return True

    def _notice_fork(self) -> bool:
        """Start anew in a child of a fork that Python was not told of; tell whether it is one.

        Not called where an idle connection is lent without a test: there only the
        process's mark is read.  Nor where one is taken back without a look at it:
        if it is an inherited one it enters the parent's queue, as this process
        knows it, from which nothing is lent here.
        """
        if self._process.mark[0] or self._process.is_current():
            return False
        with process_lock():
            if not self._process.is_current():  # else another thread was faster
                self._after_fork_in_child()
        return True

    def _after_fork_in_child(self) -> None:
        """Start empty: the parent's sessions are neither used nor closed.

        What is done in this process with a connection that it inherited while
        in use, by the program or by psycopg2, ends at a dead socket.

        After a fork without hooks other threads may borrow and return meanwhile.
        Here the parent's connections are retired *before* the pool is noted as
        this process's; a borrower reads that note *before* it looks at the record.
        So one that has a connection of the parent in hand finds either that the
        note is missing or that the connection is retired; and one that is
        returned to the new parts is never lent.
        """
        for record in self._store.records.copy():
            record.retired = True
            record.attention = True
            conn: Connection = self._store.item_of(record)
            with contextlib.suppress(Exception):
                cut_off(conn)
        self._observers = self._observers.in_child()
        self._rebuild()

    def _rebuild(self) -> None:
        """Put the parts together anew, with the sizes that there are now."""
        before = self._store
        self._build_here(before.minconn, before.maxconn, before.closed)


def from_environment(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pool's arguments: ``DATABASE_URL`` is the dsn, unless one is among ``overrides``."""
    url = os.environ.get("DATABASE_URL")
    return {"dsn": url, **overrides} if url else dict(overrides)


def _is_inherited(lent: Any) -> bool:
    conn = lent if isinstance(lent, Tracked) else real_connection(lent)
    return isinstance(conn, Tracked) and conn.is_inherited()


def _give_back_at_desk(
    ref: weakref.ref[ConnectionPool], conn: Connection, record: Record
) -> Sequence[Connection]:
    pool = ref()
    if pool is None or pool._notice_fork():
        return ()  # a loan of the parent's
    return pool._desk.give_back(conn, record)


def _leads_to_record(lent: Any) -> bool:
    return isinstance(getattr(lent, "pool_record", None), Record)


def _lend_proxies(ref: weakref.ref[ConnectionPool]) -> None:
    """Have a pool's loans and returns go by the desk from now on, which knows of proxies."""
    pool = ref()
    if pool is not None:
        with pool._observers.lock:
            pool._lends_proxies = True
            pool._choose_path()


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork_in_child()


# Nothing is done at exit, since exit handlers may borrow to the last.  The connections
# are closed with the objects or by the system, and idle sessions end with them.
os.register_at_fork(after_in_child=_after_fork_in_child)
