"""Open what is wanted and close what is not, with as much zeal as the servers bear.

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
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import psycopg2

from .bell import Bell
from .breaker import Attempt
from .care import Care
from .connection import InheritedError
from .connector import Connection, Connector
from .endpoints import Choice, Endpoint, Endpoints
from .errors import PoolUnavailable
from .failures import Verdict, judge, reissue
from .log import logger
from .monitor import Monitor, Timer
from .outage import Outage
from .stats import Counters
from .store import Permit, Record, Store
from .threads import is_own_thread
from .timing import Clock

if TYPE_CHECKING:
    from .snapshots import EndpointStats

LOOKUP_TIMEOUT = 5.0
"""Seconds that looking a name up may take, and half of what a borrower has left."""
SHORT_LOOKUP = 1.0
"""Seconds that it may take if there are endpoints to try already."""
FIRST_TRY = 2.0
"""Seconds that an attempt may take while there are other endpoints to try."""
NEXT_TRY = 1.0
"""The same for an endpoint whose last attempt failed."""


class _NotNowError(psycopg2.OperationalError):
    """Between the permit and the attempt the last breaker opened: nothing was tried."""


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
        self._care = care
        self._endpoints = endpoints
        self._monitor = monitor
        self.is_stranded = monitor is None
        self._most_at_once = num_workers or sys.maxsize  # without workers each opens his own
        self._test_timeout = test_timeout
        self._counters = counters
        self._clock = clock
        self._welcome: weakref.WeakMethod[Callable[[Connection, Record], None]] | None = None
        self._worry: weakref.WeakMethod[Callable[[], None]] | None = None
        self.opened = Bell()  # rung whenever one has been opened and kept
        self.emptied = Bell()  # rung when nothing is open any more
        self._outage = Outage(name, connector.tell, clock)
        self._lock = threading.RLock()  # guards what follows
        self._retry: Timer | None = None
        self._drains = 0
        self._replacing: set[Record] = set()

    def introduce_to(
        self, welcome: Callable[[Connection, Record], None], worry: Callable[[], None]
    ) -> None:
        """Call one method with each new connection, and one when an attempt fails; held weakly."""
        self._welcome = weakref.WeakMethod(welcome)
        self._worry = weakref.WeakMethod(worry)

    def _introduce(self, conn: Connection, record: Record) -> None:
        welcome = None if self._welcome is None else self._welcome()
        if welcome is not None:
            welcome(conn, record)

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
            if not self._monitor.offer(functools.partial(self._open_and_keep, permit)):
                self._strand(permit)
                return
            self.is_stranded = False
        # With a limit of more than none: those that may be tried later.
        wanted = len(self._store.waiters) > self._store.opening or self._store.missing
        if wanted and pause < math.inf:
            self._retry_in(pause)

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
        drains = self._drains
        conn = None
        try:
            if at is None:
                conn, endpoint = self._connect(seconds)
            else:
                attempt = self._endpoints.begin_at(at)
                role = self._endpoints.role_to_ask(at)
                conn, endpoint = self._attempt(attempt, seconds, role)
            record = self._store.admit(permit, conn)
            record.endpoint = endpoint
            if drains != self._drains:  # it is of the old kind
                record.retired = record.attention = True
            self._counters.observers.connected(self._clock() - started)
            self._introduce(conn, record)
        except BaseException as error:
            if conn is not None:
                self._connector.close(conn)
                self._store.forget_item(conn)
            self._store.drop_permit(permit)
            if not isinstance(error, (_NotNowError, InheritedError)):
                self._failed(error, others_serve=at is not None)
            raise
        self._counters.add("connections_ms", (self._clock() - started) * 1000)
        if endpoint.doubtful:
            record.attention = True  # so that its first loan proves something
        else:
            self._outage.end()
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

    def _connect(self, seconds: float | None) -> tuple[Connection, Endpoint]:
        """Try one endpoint after the other, as libpq tries its addresses."""
        until = None if seconds is None else self._clock() + seconds
        self._look_names_up(seconds)
        tried: dict[Choice, BaseException] = {}
        while (attempt := self._endpoints.begin(tried, self.load())) is not None:
            role = self._endpoints.role_to_ask(attempt.endpoint)
            choice = attempt.endpoint, role
            left = None if until is None else max(0.0, until - self._clock())
            others = self._endpoints.count_others([*tried, choice])
            if others:
                most = NEXT_TRY if attempt.endpoint.breaker.failing else FIRST_TRY
                # libpq counts in whole seconds: rounded down, the last one has some left.
                left = most if left is None else min(most, float(int(left / (others + 1))))
            try:
                found = self._attempt(attempt, left, role)
            except Exception as error:
                # libpq does not go on either when a server answers with one.
                if judge(error) is Verdict.FINAL:
                    raise
                # Without its traceback, whose frames refer to this dictionary.
                tried[choice] = reissue(error)
                if until is not None and self._clock() >= until:
                    break
            else:
                self._tell_of(tried)
                return found
        if not tried:
            raise _NotNowError
        raise _joined(list(tried.values()))

    def lookup_failed(self, error: BaseException) -> None:
        """Note that a name could not be looked up and there is nowhere to connect to."""
        self._failed(error)

    def _look_names_up(self, seconds: float | None) -> None:
        """Look up what there is no way without; the rest is done in the background, if any."""
        most = LOOKUP_TIMEOUT if seconds is None else min(LOOKUP_TIMEOUT, seconds / 2)
        if not self._endpoints.current():
            self._endpoints.refresh(most, unknown=True)
        elif not self.has_workers:
            self._endpoints.refresh(min(most, SHORT_LOOKUP))

    def _tell_of(self, tried: dict[Choice, BaseException]) -> None:
        failed = {endpoint: error for (endpoint, _), error in tried.items()}
        for endpoint in self._endpoints.failures_to_report(failed):
            logger.warning(
                "pool %r: cannot connect to %s, others serve: %s",
                self.name,
                endpoint,
                self.tell(failed[endpoint]),
            )

    def _attempt(
        self, attempt: Attempt, seconds: float | None, role: str | None
    ) -> tuple[Connection, Endpoint]:
        """Make an attempt that has begun."""
        try:
            return self._connect_to(attempt, seconds, role)
        finally:
            # If its outcome could not be noted: somebody may keep the exception,
            # and with it the frames that hold the attempt.
            self._endpoints.end(attempt)

    def _connect_to(
        self, attempt: Attempt, seconds: float | None, role: str | None
    ) -> tuple[Connection, Endpoint]:
        started = self._clock()
        endpoint: Endpoint = attempt.endpoint
        keywords = endpoint.keywords
        if role is not None and keywords:
            keywords = {**keywords, "target_session_attrs": role}
        try:
            conn = self._open_prepared(keywords, seconds)
        except BaseException as error:
            self._endpoints.failed(attempt, error, self._judge(error))
            worry = None if self._worry is None else self._worry()
            if worry is not None:
                worry()
            raise
        if role != "any":
            self._endpoints.in_role(endpoint, True)
        self._recovered(endpoint, self._endpoints.succeeded(attempt, self._clock() - started))
        return conn, endpoint

    def _open_prepared(self, keywords: Mapping[str, Any], seconds: float | None) -> Connection:
        conn = self._connector.open(keywords, seconds)
        try:
            self._care.prepare(conn)
        except BaseException:
            self._connector.close(conn)
            raise
        return conn

    def _recovered(self, endpoint: Endpoint, reported: bool) -> None:
        if reported:
            logger.info("pool %r: connected again to %s", self.name, endpoint)

    def _judge(self, error: BaseException) -> Verdict:
        if self._is_interruption(error):
            return Verdict.FINAL  # this borrower was interrupted; the server is not to blame
        verdict = judge(error)
        if verdict is Verdict.FULL and not self._store.all_records():
            return Verdict.REFUSED  # nothing of ours can come back
        return verdict

    def load(self) -> Counter[Endpoint]:
        """Return how many connections each endpoint has, but for those that are to go."""
        records = self._store.all_records()
        return Counter(r.endpoint for r in records if r.endpoint is not None and not r.retired)

    # -- outcomes ----------------------------------------------------------

    def _is_interruption(self, error: BaseException) -> bool:
        """Tell whether an error is meant for the borrower in whose thread it was raised."""
        in_worker = self.has_workers and is_own_thread()
        return not isinstance(error, Exception) and not in_worker

    def _failed(self, error: BaseException, *, others_serve: bool = False) -> None:
        asked_for_role = others_serve and judge(error) is Verdict.ROLE
        if not asked_for_role:
            self._counters.add("connections_errors")
        if others_serve or self._is_interruption(error):
            return  # not the end of the search, or this borrower was interrupted
        self._outage.note(error)
        kept, is_final = reissue(error), judge(error) is Verdict.FINAL
        self._store.fail_waiters(lambda: reissue(kept), patient=is_final)

    def disappointed(self, error: BaseException, record: Record) -> None:
        """Note that a new connection failed its first test: as if it had not been opened."""
        self._endpoints.disappointed(record.endpoint, error, self._judge(error))
        self._failed(error)

    def proved(self, record: Record) -> None:
        """Note that a connection has passed a test, or a loan."""
        if record.endpoint.doubtful:
            self._recovered(record.endpoint, self._endpoints.proved(record.endpoint))
            self._outage.end()

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last attempt, if it failed; or why there is none yet."""
        return self._outage.last_error or self._endpoints.unanswered()

    def refusal(self, patient: bool) -> BaseException | None:
        """Return what to raise to a borrower whom nothing idle can serve, if anything."""
        final, last = self._outage.final_error, self._outage.last_error
        if final is not None:
            return reissue(final)
        if patient or last is None:
            return None
        outlook = self._endpoints.outlook()
        if outlook.is_full:
            return reissue(last)
        if not outlook.is_hopeless:
            return None  # this borrower's attempt may be a probe
        if not outlook.is_failing:
            return reissue(last)
        if self._store.lent:
            return reissue(last)  # it is growth that fails, and what is lent will serve
        due = (
            "an attempt is under way"
            if outlook.pause == math.inf
            else f"the next attempt is due in {outlook.pause:.2f} s"
        )
        told = self.tell(last)
        refusal = PoolUnavailable(
            f"pool {self.name!r}: the server is unavailable, {due}; the last error: {told}"
        )
        refusal.__cause__ = reissue(last)
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
                state=e.breaker.state(),
                connections=load[e],
                failures=e.breaker.failures,
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
        conn = record()
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
        except Exception:
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
        except Exception:  # noted on the endpoint
            return False
        else:
            return True
        finally:
            self.grow()

    def drain(self) -> None:
        """Have every connection closed when it comes back, those that are being opened too."""
        self._drains += 1
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


def _joined(errors: list[BaseException]) -> BaseException:
    """Return one error that tells all of them, one place a line."""
    if len(errors) == 1:
        return errors[0]
    return psycopg2.OperationalError("\n".join(str(error) for error in errors))
