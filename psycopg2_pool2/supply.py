"""Open the missing connections and close the superfluous ones, backing off while servers fail.

Every connection is opened under a permit of the store and struck out of its
books only when its socket is closed.  While opening fails there is one attempt
in flight for an endpoint, whoever waits; its circuit breaker spaces them; after
the first success 1, 2, 4, ... run at once, up to ``num_workers``.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from .bell import Bell
from .care import Care
from .connection import InheritedError
from .connector import Connection, Connector
from .dialer import Dialer, NotNowError
from .endpoints import Endpoint, Endpoints
from .errors import PoolUnavailable
from .failure_kinds import FailureKind
from .failures import classify, copy_error, is_interruption
from .interruptions import let_through
from .monitor import Monitor, Timer
from .outage import Outage
from .sockets import owns_socket
from .stats import Counters
from .store import Permit, Record, Store
from .threads import is_own_thread
from .timing import Clock

if TYPE_CHECKING:
    from .snapshots import EndpointStats

SHORTEST_PATIENCE = 0.25
"""Seconds that every opening has before it counts as stalled, however quick others are ..."""
USUAL_TIMES = 3.0
"""... and so many times what the last connect took, if that is longer ..."""
FIRST_PATIENCE = 2.0
"""... or so many seconds if none has succeeded yet; only where nobody can look."""


class Listener(Protocol):
    """What is told of connections as they come; held weakly, called under no lock."""

    def on_opened(self, conn: Connection, record: Record) -> None:
        """Note that a connection has been opened; its opener has it in hand."""

    def on_connect_failed(self) -> None:
        """Note that an attempt has failed."""

    def on_hung_up_in_hand(self, record: Record) -> None:
        """Note that a connection was hung up while the pool had it in hand; it is idle now."""


class _News:
    """Passes news on to a listener, if there is one; apart from the supply, which holds others."""

    __slots__ = ("_listener",)

    def __init__(self) -> None:
        self._listener: weakref.ref[Listener] | None = None

    def pass_to(self, listener: Listener) -> None:
        self._listener = weakref.ref(listener)

    @property
    def listener(self) -> Listener | None:
        return None if self._listener is None else self._listener()

    def connect_failed(self) -> None:
        listener = self.listener
        if listener is not None:
            listener.on_connect_failed()


class Supply:
    """Opens and closes the connections of one pool.

    ``monitor`` None means that there is no thread of ours: then :meth:`grow`
    opens nothing, and a borrower calls :meth:`open` itself.  So it does while
    ``is_stranded``: while no thread can be started.
    """

    def __init__(
        self,
        name: str,
        store: Store[Connection],
        connector: Connector,
        care: Care,
        endpoints: Endpoints,
        monitor: Monitor | None,
        num_workers: int,
        test_timeout: float,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self.name = name
        self._store = store
        self._connector = connector
        self.tell = connector.tell
        self._endpoints = endpoints
        self._news = _News()
        # Nothing that leads back here: a pool goes with its last reference.
        self._dialer = Dialer(
            name,
            connector,
            care,
            endpoints,
            functools.partial(_load, store),
            self._news.connect_failed,
            monitor,
            clock,
        )
        self._monitor = monitor
        self.is_stranded = monitor is None
        self._most_at_once = num_workers or sys.maxsize  # without workers each opens his own
        self._test_timeout = test_timeout
        self._counters = counters
        self._clock = clock
        self.opened = Bell()  # rung whenever one has been opened and kept
        self.emptied = Bell()  # rung when nothing is open any more
        self._outage = Outage(name, connector.tell, clock)
        self._lock = threading.RLock()  # guards what follows
        self._retry: Timer | None = None
        self._drains = 0
        self._replacing: set[Record] = set()

    def report_to(self, listener: Listener) -> None:
        """Tell a listener of connections from now on; it is held weakly."""
        self._news.pass_to(listener)

    @property
    def watches(self) -> bool:
        """Whether a connection is marked as soon as its server hangs up."""
        monitor = self._monitor
        return monitor is not None and monitor.watches and monitor.is_running

    @property
    def has_workers(self) -> bool:
        """Whether there are threads of ours to open and close connections."""
        return self._monitor is not None

    # -- how many ----------------------------------------------------------

    def grow(self) -> None:
        """Schedule the missing connections; from any thread, never blocks."""
        if not self._store.has_room():
            return
        if self._monitor is None:
            self._store.nudge()
            return
        self.note_stalled()
        taken: list[Permit] = []  # until the loop ends, whatever becomes of the jobs
        while True:
            limit, pause = self.allowance()
            permit = self._store.take_permit(limit)
            if permit is None:
                break
            taken.append(permit)
            if not self._monitor.offer(functools.partial(self._open_and_keep, permit)):
                self._strand(permit)
                return
            self.is_stranded = False
        wanted = len(self._store.waiters) > self._store.helping or self._store.missing
        if wanted:
            self._tell_if_hopeless()
        # With a limit of more than none: those that may be tried later.
        self._retry_in(min(pause if wanted else math.inf, self.note_stalled()))

    def note_stalled(self) -> float:
        """Note which openings make no progress; return in how many seconds more may be none."""
        if not self._store.helping or not self._store.waiters:
            return math.inf
        usual = self._endpoints.longest_connect()
        if usual is not None:
            return self._store.stall_older_than(max(SHORTEST_PATIENCE, USUAL_TIMES * usual))
        # Where somebody looks, a slow login is told from silence.
        return math.inf if self._dialer.looks else self._store.stall_older_than(FIRST_PATIENCE)

    def _stalled(self, permit: Permit) -> None:
        self._store.stall(permit)
        self.grow()

    def _strand(self, permit: Permit) -> None:
        """Leave it to a borrower to open what no thread can be had for."""
        self.is_stranded = True
        self._store.drop_permit(permit)
        self._store.nudge()

    def allowance(self) -> tuple[int, float]:
        """Return how many may be opened at once now, and in how many seconds more may be."""
        outlook = self._endpoints.outlook()
        rest = self._outage.rest()
        if rest or not outlook.limit:
            return 0, rest if outlook.limit else max(outlook.pause, rest)
        return min(outlook.limit, self._most_at_once), outlook.pause

    def _retry_in(self, seconds: float) -> None:
        if seconds == math.inf:
            return
        assert self._monitor is not None
        with self._lock:
            at = self._clock() + seconds
            if self._retry is not None and self._clock() < self._retry.when <= at:
                return
            self._retry = self._monitor.call_later(seconds, self.grow)

    # -- opening -----------------------------------------------------------

    def open(
        self, permit: Permit, seconds: float | None = None, at: Endpoint | None = None
    ) -> Connection:
        """Open one connection in the pool's books, in hand of the caller.

        At the endpoint that has most need of one, or ``at`` that and no other.
        Takes at most about ``seconds``.  An error is told to those who wait for
        it before it is raised.
        """
        self._counters.add("connections_num")
        started = self._clock()
        conn = None
        try:
            drains = self._drains
            conn, endpoint = self._dial(permit, seconds, at)
            self._admit(permit, conn, endpoint, is_outdated=drains != self._drains)
            self._counters.observers.connected(self._clock() - started)
            listener = self._news.listener
            if listener is not None:
                listener.on_opened(conn, conn.pool_record)
        except BaseException as error:
            if conn is not None:
                self._connector.close(conn)
                self._store.forget_item(conn)
            self._give_up(permit, error, others_serve=at is not None)
            raise
        self._counters.add("connections_ms", (self._clock() - started) * 1000)
        if endpoint.unproven:
            conn.pool_record.attention = True  # so that its first loan proves something
        else:
            self._outage.end()
        return conn

    def _dial(
        self, permit: Permit, seconds: float | None, at: Endpoint | None
    ) -> tuple[Connection, Endpoint]:
        on_stall = functools.partial(self._stalled, permit)
        if at is None:
            return self._dialer.dial(seconds, on_stall)
        return self._dialer.dial_at(at, seconds, on_stall)

    def _admit(
        self, permit: Permit, conn: Connection, endpoint: Endpoint, *, is_outdated: bool
    ) -> None:
        record = self._store.admit(permit, conn)
        record.endpoint = endpoint
        conn.pool_lent = self._store.lent
        if is_outdated:  # it was begun before a drain
            record.retired = record.attention = True

    def _give_up(self, permit: Permit, error: BaseException, *, others_serve: bool) -> None:
        """Free the permit of an opening that failed, and tell its error."""
        if not others_serve and classify(error) is FailureKind.CALLBACK:
            self._tell_one_waiter(error)  # while the permit keeps it from a second opening
        self._store.drop_permit(permit)
        if not isinstance(error, (NotNowError, InheritedError)):
            self._failed(error, others_serve=others_serve)

    def keep(self, conn: Connection) -> None:
        """Give a connection that was opened to the first who waits, or to the idle queue."""
        self.close_all(self._store.keep(conn))
        self.opened.ring()
        self.look_again(conn.pool_record)

    def look_again(self, record: Record) -> None:
        """Have a connection examined that was hung up while the pool had it in hand.

        It was not in the idle queue then, so that nobody could take it out.  The
        mark is set *before* the monitor looks there, and it is read here *after*
        the connection is queued: so one of them sees the other.
        """
        listener = self._news.listener
        if record.hung_up and listener is not None:
            listener.on_hung_up_in_hand(record)

    def _open_and_keep(self, permit: Permit) -> None:
        try:
            conn = self.open(permit)
        except BaseException:
            pass  # told to whom it concerns: a callback's SystemExit is the borrower's too
        else:
            self.keep(conn)
        self.grow()

    def lookup_failed(self, error: BaseException) -> None:
        """Note that a name could not be looked up and there is nowhere to connect to."""
        self._failed(error)

    def load(self) -> Counter[Endpoint]:
        """Return how many connections each endpoint has, but for those that are to go."""
        return _load(self._store)

    # -- outcomes ----------------------------------------------------------

    def _failed(self, error: BaseException, *, others_serve: bool = False) -> None:
        kind = classify(error)
        if not (others_serve and kind is FailureKind.ROLE):
            self._counters.add("connections_errors")
        if others_serve or (not self._by_worker() and is_interruption(error)):
            return  # not the end of the search, or this borrower was interrupted
        self._outage.note(error)
        if kind is not FailureKind.CALLBACK:
            is_final = kind is FailureKind.MISTAKE or self._is_hopeless()
            self._fail_waiters(error, patient=is_final)

    def _tell_one_waiter(self, error: BaseException) -> None:
        """Tell a callback's error to one waiter without time: it was called for one of them."""
        if self._by_worker():
            self._fail_waiters(error, patient=False, most=1)

    def _by_worker(self) -> bool:
        return self.has_workers and is_own_thread()

    def _fail_waiters(
        self, error: BaseException, *, patient: bool, most: int | None = None
    ) -> None:
        kept = copy_error(error)
        self._store.fail_waiters(lambda: copy_error(kept), patient=patient, most=most)

    def _is_hopeless(self) -> bool:
        """Tell whether every server refuses the login and nothing of the pool can serve."""
        return self._endpoints.refuse_all_logins() and not self._store.can_serve()

    def _tell_if_hopeless(self) -> None:
        """Tell those who wait, since what could have served them is gone."""
        last = self._outage.last_error
        if last is not None and self._is_hopeless():
            self._fail_waiters(last, patient=True)

    def first_test_failed(self, error: BaseException, record: Record) -> None:
        """Note that a new connection failed its first test: as if it had not been opened."""
        self._dialer.first_test_failed(record.endpoint, error)
        self._failed(error)

    def mark_proven(self, record: Record) -> None:
        """Note that a connection has passed a test, or a loan."""
        if record.endpoint.unproven:
            self._dialer.mark_proven(record.endpoint)
            self._outage.end()

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last attempt, if it failed; or why there is none yet."""
        return self._outage.last_error or self._endpoints.unanswered()

    def refusal(self, patient: bool) -> BaseException | None:
        """Return what to raise to a borrower whom nothing idle can serve, if anything."""
        mistake, last = self._outage.mistake, self._outage.last_error
        if mistake is not None:
            return copy_error(mistake)
        if last is not None and self._is_hopeless():
            return copy_error(last)
        if patient or last is None:
            return None
        outlook = self._endpoints.outlook()
        if outlook.is_full:
            return copy_error(last)
        if not outlook.is_hopeless:
            return None  # this borrower's attempt may be a probe
        if not outlook.is_failing:
            return copy_error(last)
        if self._store.lent:
            return copy_error(last)  # it is growth that fails, and what is lent will serve
        due = (
            "an attempt is under way"
            if outlook.pause == math.inf
            else f"the next attempt is due in {outlook.pause:.2f} s"
        )
        told = self.tell(last)
        refusal = PoolUnavailable(
            f"pool {self.name!r}: the server is unavailable, {due}; the last error: {told}"
        )
        refusal.__cause__ = copy_error(last)
        return refusal

    def endpoints(self) -> list[EndpointStats]:
        """Return what is known of the places that the pool connects to."""
        from .snapshots import EndpointStats  # see there

        load = self.load()
        return [
            EndpointStats(
                host=e.host,
                address=e.address,
                port=e.port,
                state=e.state,
                connections=load[e],
                failures=e.failures,
                last_error=None if e.last_error is None else self.tell(e.last_error),
                connect_seconds=e.connect_seconds,
            )
            for e in self._endpoints.current()
        ]

    # -- closing -----------------------------------------------------------

    def discard(self, conn: Connection, *, at_once: bool = False) -> None:
        """Close a connection that is in the caller's hands, by a worker unless ``at_once``.

        One that is in the middle of something is always closed by a worker, if
        there are any, and its statement cancelled first, within ``test_timeout``.
        """
        self._store.condemn(conn.pool_record)
        is_busy = self._connector.is_busy(conn)
        how = self._abort if is_busy else self._connector.close
        if self._monitor is None or (at_once and not is_busy):
            self._close(conn, how)
        elif not self._monitor.offer(functools.partial(self._close, conn, how)):
            self._close(conn, how)  # its slot is not to wait until there is a thread

    def _abort(self, conn: Connection) -> None:
        self._connector.abort(conn, self._test_timeout)

    def replace(self, record: Record) -> bool:
        """Retire a connection, after its replacement is open if there is room for that.

        It stays while no other can be had; returns whether it was retired.  Of
        several threads one does it: who comes meanwhile finds the record among
        those being replaced, who comes later finds it retired, which it is before
        it leaves them.
        """
        conn = self._store.item_of(record)
        with self._lock:
            if conn is None or record.retired or record in self._replacing:
                return True
            self._replacing.add(record)
        try:
            if not self._open_replacement(record):
                return False
            record.retired = record.attention = True
            if self._store.withdraw(conn, leaving=True):
                self._counters.add("connections_retired")
                self.discard(conn, at_once=True)
            return True
        finally:
            with self._lock:
                self._replacing.discard(record)

    def _open_replacement(self, record: Record) -> bool:
        if self._store.closed or (record in self._store.lent and self._store.idle):
            return True  # nobody will miss it
        limit, _ = self.allowance()
        if not limit:
            return False
        permit = self._store.take_permit(limit, spare=True)
        if permit is None:
            return not self._store.has_room()  # it has to make some
        try:
            self.keep(self.open(permit))
        except Exception as error:
            let_through(error)
            return False  # logged
        return True

    def move(self, conn: Connection, to: Endpoint) -> bool:
        """Close a connection in the caller's hands and open one there in its room."""
        self._store.condemn(conn.pool_record)
        try:
            self.unwatch(conn)
        finally:
            self._connector.close(conn)
        permit = self._store.exchange(conn.pool_record)
        try:
            self.keep(self.open(permit, at=to))
        except Exception as error:
            let_through(error)
            return False  # noted on the endpoint
        else:
            return True
        finally:
            self.grow()

    def drain(self) -> None:
        """Retire every connection, those that are being opened too, and look names up anew."""
        self._endpoints.start_anew()
        self._drains += 1  # after it: what began between is retired, and not led astray
        for record in self._store.all_records():
            record.retired = record.attention = True

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
        # Its number may be that of another socket, which is watched.
        if self._monitor is not None and not conn.closed and owns_socket(conn):
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


def _load(store: Store[Connection]) -> Counter[Endpoint]:
    records = store.all_records()
    return Counter(r.endpoint for r in records if r.endpoint is not None and not r.retired)
