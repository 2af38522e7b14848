"""Lending and taking back, whenever it is not as simple as it mostly is.

The pool itself lends an idle connection that needs no test, and takes back one
that needs no cleaning.  Everything else comes here: waiting, testing, cleaning,
and deciding what is kept.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .care import Care
from .connection import Tracked
from .connector import Connection
from .cursors import end as end_cursors
from .errors import PoolClosed, PoolError, PoolExhausted, PoolTimeout, TooManyRequests
from .failure_kinds import FailureKind
from .failures import classify, copy_error, is_interruption
from .handles import LoanHandle, record_of, told_of, unwrapped
from .keyed import KeyedLoans
from .loans import Loan, borrower, call_site
from .log import logger
from .options import PoolOptions
from .proxies import StandIn, find_record
from .report import Report
from .stats import Counters
from .steps import Steps, run_blocking
from .store import Permit, Record, Store, ThreadWaiter, Waiter
from .supply import Supply
from .timing import Clock, Deadline
from .upkeep import Upkeep

_CLOSED_BY_PROGRAM = 1  # psycopg2's connection.closed; 2 if the server has gone
_LOOK_AGAIN = 0.5
"""Seconds after which a waiter looks around by itself, whatever became of his wake-up."""
_CROWD = 32
"""Waiters of whom each looks around so often; more of them take it in turn ..."""
_LOOK_AGAIN_IN_CROWD = 5.0
"""... but each at least so often."""


MakeWaiter = Callable[[bool], Waiter[Connection]]
"""Returns a waiter for somebody who is patient, or not."""
MakeThreadWaiter = Callable[[bool], ThreadWaiter[Connection]]


class _TooOldError(Exception):
    """Nothing is wrong with a connection but its age."""


class Desk:
    """The borrow loop, and what is done with a connection that comes back."""

    def __init__(
        self,
        name: str,
        options: PoolOptions,
        store: Store[Connection],
        care: Care,
        supply: Supply,
        upkeep: Upkeep,
        report: Report,
        counters: Counters,
        clock: Clock,
    ) -> None:
        self._name = name
        self._options = options
        self._store = store
        self._care = care
        self._supply = supply
        self._upkeep = upkeep
        self._report = report
        self._counters = counters
        self._observers = counters.observers
        self._clock = clock
        self._keyed = KeyedLoans(
            store.lent.__contains__, functools.partial(find_record, records=store.lent)
        )
        self._has_workers = supply.has_workers
        # Read for every loan.
        self._tests = options.test_on_borrow is not False
        self._tests_always = options.test_on_borrow is not False and not options.test_idle_after
        self._test_timeout = options.test_timeout
        self._tracks_loans = options.tracks_loans
        self._lends_plainly = not options.debug
        #: Whether a hang-up marks the connection, so that it need not be probed.
        self.watched = supply.watches
        # Whether a thread that waits has nothing to do before its first pause.
        self._pauses_first = supply.has_workers and not options.debug
        self._waiter: MakeThreadWaiter = _known_waiter if options.debug else ThreadWaiter

    # -- lending -----------------------------------------------------------

    def lend(self, conn: Connection | None, timeout: float | None) -> Connection:
        """Return a connection that is fit for use, ``conn`` if that is; wait for one if need be."""
        try:
            if conn is None:
                conn = self._store.borrow()
            started = now = self._clock()
            if conn is None:
                conn = self._wait_here(timeout, started)
                now = self._clock()
            if self._tests or conn.pool_record.attention or not self.watched:
                # Not by a step, which would cost a tenth of the test.
                fault = self._fault(conn, timeout - (now - started) if timeout else None, now)
                if fault is not None:
                    deadline = Deadline(timeout, self._clock, started)
                    conn = run_blocking(self._lend_another(conn, fault, deadline, self._waiter))
        except BaseException as error:
            self._count_failure(error)
            raise
        if self._observers.all:
            self._tell_wait(conn, started)
        if self._tracks_loans:
            self._note_loan(conn, Loan(self._clock()))
        return conn if conn.pool_proxy is None and self._lends_plainly else self._hand_out(conn)

    def lending(self, timeout: float | None, make_waiter: MakeWaiter) -> Steps[Connection]:
        """Do in steps what :meth:`lend` does; ``make_waiter`` is called if there is a wait."""
        loan = Loan(self._clock()) if self._tracks_loans else None  # here, in the borrower's thread
        deadline = Deadline(timeout, self._clock, self._clock())
        try:
            conn = self._store.borrow()
            if conn is None:
                conn = yield from self._wait(deadline, make_waiter)
            fault = yield from self._look_over(conn, deadline)
            if fault is not None:
                conn = yield from self._lend_another(conn, fault, deadline, make_waiter)
        except BaseException as error:
            self._count_failure(error)
            raise
        if self._observers.all:
            self._tell_wait(conn, deadline.started)
        if loan is not None:
            self._note_loan(conn, loan)
        return conn if conn.pool_proxy is None and self._lends_plainly else self._hand_out(conn)

    def _hand_out(self, conn: Connection) -> Connection:
        """Return what is lent in a connection's place."""
        lent = conn if conn.pool_proxy is None else conn.pool_proxy.hand_out(conn)
        if self._lends_plainly or isinstance(conn, StandIn):
            return lent
        return LoanHandle(lent, conn.pool_record)

    def _count_failure(self, error: BaseException) -> None:
        self._counters.add("requests_errors")
        if isinstance(error, (PoolExhausted, PoolTimeout)):
            self._counters.add("requests_timeouts")

    def _tell_wait(self, conn: Connection, started: float) -> None:
        try:
            now = self._clock()
            conn.pool_record.lent_at = now
            self._observers.waited(now - started)
        except BaseException:
            self.put_back(conn)
            raise

    def _note_loan(self, conn: Connection, loan: Loan) -> None:
        loan.since = self._clock()
        conn.pool_record.loan = loan
        if not self._has_workers:
            try:
                self._upkeep.warn_of_leaks_in_passing()
            except BaseException:
                self.put_back(conn)
                raise

    def _lend_another(
        self,
        conn: Connection | None,
        fault: Exception | None,
        deadline: Deadline,
        make_waiter: MakeWaiter,
    ) -> Steps[Connection]:
        """Return ``conn`` if that is fit for use; if it is at fault or None, another."""
        while True:
            if fault is not None:
                self._reject(conn, fault, deadline)
                conn = self._store.borrow()
            if conn is None:
                conn = yield from self._wait(deadline, make_waiter)
            fault = yield from self._look_over(conn, deadline)
            if fault is None:
                return conn

    def _look_over(self, conn: Connection, deadline: Deadline) -> Steps[Exception | None]:
        """Do in a step, if it may block, what :meth:`_fault` does."""
        most = deadline.remaining() if deadline.is_patient else None
        if not self._tests_always and not self._needs_test(conn.pool_record):
            return self._fault(conn, most, self._clock(), test=False)
        try:
            fault: Exception | None = yield functools.partial(
                self._fault, conn, most, self._clock()
            )
        except GeneratorExit:  # the borrower gave up; it may have failed already
            self._drop(conn)
            raise
        return fault

    def lend_keyed(self, key: Hashable, timeout: float | None) -> Connection:
        """Return the connection in use under ``key``; lend one if there is none."""
        if self._store.closed:
            raise PoolClosed(f"connection pool is closed: {self._name!r}")
        deadline = Deadline(timeout or None, self._clock, self._clock())
        conn = self._keyed.get(key, lambda: self.lend(None, timeout), deadline)
        if conn is None:
            error = self._report.timed_out(deadline)
            try:
                self._count_failure(error)
                raise error
            finally:
                del error  # its traceback refers to this frame
        return conn

    def _wait(self, deadline: Deadline, make_waiter: MakeWaiter) -> Steps[Connection]:
        """Queue up until a connection is handed over."""
        waiter = make_waiter(deadline.is_patient)
        try:
            self._request(waiter)
            yield from self._be_served(waiter, deadline)
            conn, waiter.item = waiter.item, None
            return conn
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            self._counters.add_wait(self._clock() - deadline.started)

    def _wait_here(self, timeout: float | None, started: float) -> Connection:
        """Do in this thread what :meth:`_wait` does in steps.

        Most are served in the first pause, which is not a step: under contention
        every borrow goes this way, and steps would make it a third longer.
        """
        waiter = self._waiter(timeout != 0)
        try:
            self._request(waiter)
            first = timeout if timeout and timeout < _LOOK_AGAIN else _LOOK_AGAIN
            pauses = self._pauses_first and not self._supply.is_stranded
            if pauses and not waiter.wait(first):
                self._look_around(waiter, Deadline(timeout, self._clock, started))
            if waiter.item is None:
                run_blocking(self._be_served(waiter, Deadline(timeout, self._clock, started)))
            conn, waiter.item = waiter.item, None
            return conn
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            self._counters.add_wait(self._clock() - started)

    def _be_served(self, waiter: Waiter[Connection], deadline: Deadline) -> Steps[None]:
        """Pause, and look around, until a connection was handed over to a waiter in the queue."""
        while waiter.item is None:
            waiter.seconds = self._pause(waiter, deadline)
            if self._supply.is_stranded:
                waiter.seconds = yield from self._open_for(waiter, deadline)
            if not (yield waiter):
                self._look_around(waiter, deadline)

    def _leave(self, waiter: Waiter[Connection]) -> None:
        # He may have been served in the very moment in which he gave up.
        conn = self._store.leave(waiter)
        if conn is not None:
            self.put_back(conn)
        elif self._supply.is_stranded:
            self._supply.grow()  # the next one may use the room that he was about to

    def _request(self, waiter: Waiter[Connection]) -> None:
        """Enter the queue, and have one opened if there is room; refuse whom nothing can help."""
        store = self._store
        if store.lost:
            self._upkeep.collect_lost()
        if not store.idle and store.has_room() and not store.closed:
            _raise_if(self._supply.refusal(waiter.patient))
        try:
            store.request(waiter, self._options.max_waiting)
        except PoolClosed as error:
            raise PoolClosed(f"{error}: {self._name!r}") from None
        except (PoolExhausted, TooManyRequests) as error:
            raise type(error)(f"{error}: {self._report.explain()}") from None
        if self._has_workers and store.has_room():
            self._supply.grow()

    def _pause(self, waiter: Waiter[Connection], deadline: Deadline) -> float:
        """Return how long to wait before looking around; raise if there is no sense in waiting."""
        if waiter.error is not None:
            try:
                raise waiter.error
            finally:
                waiter.error = None  # its traceback refers to the waiting frame
        if self._options.debug:
            _raise_if(self._report.deadlock())
        if not waiter.patient:
            return _LOOK_AGAIN
        crowd = len(self._store.waiters) / _CROWD
        return deadline.slice(min(_LOOK_AGAIN * max(1.0, crowd), _LOOK_AGAIN_IN_CROWD))

    def _look_around(self, waiter: Waiter[Connection], deadline: Deadline) -> None:
        """Do again what others should have done for this waiter, unless its time is over.

        Normally nobody came because there is nothing to bring.  But a thread
        that was interrupted may have left its work half done.
        """
        if waiter.patient and deadline.remaining() == 0:
            raise self._report.given_up(deadline)
        self._upkeep.collect_lost()
        self._supply.close_all(self._store.settle())
        if self._has_workers:
            self._supply.grow()
        else:
            self._upkeep.warn_of_leaks_in_passing()
        if waiter.item is not None:
            return
        if self._store.closed:  # by a thread that was interrupted before it told
            raise PoolClosed(f"connection pool is closed: {self._name!r}")
        opening = bool(self._store.opening)
        if self._store.has_room():
            _raise_if(self._supply.refusal(patient=waiter.patient or opening))
        if waiter.patient or opening:
            return
        if len(self._store.lent) >= self._store.maxconn:
            raise PoolExhausted(f"connection pool exhausted: {self._report.explain()}")

    def _open_for(self, waiter: Waiter[Connection], deadline: Deadline) -> Steps[float]:
        """Without workers: open one oneself if there is room; return how long to wait then."""
        self._supply.note_stalled()
        limit, until_allowed = self._supply.allowance()
        if not limit:
            return min(waiter.seconds, until_allowed)
        permit = self._store.take_permit(limit)
        if permit is None:
            return waiter.seconds
        try:
            waiter.opens = True
            if self._store.has_room():
                self._store.nudge()  # of several wake-ups this waiter may have had all
            error = yield functools.partial(
                self._open_and_keep, permit, deadline.remaining() if waiter.patient else None
            )
        finally:
            # Unused if the borrower's task was cancelled; whoever keeps the error keeps the step.
            self._store.drop_permit(permit)
            waiter.opens = False
        try:
            if error is not None and not waiter.patient:
                raise error
        finally:
            del error  # its traceback refers to this frame
        return 0.0

    def _open_and_keep(self, permit: Permit, seconds: float | None) -> Exception | None:
        """Open one; return the error of a callback of the program, which is this borrower's.

        Other errors are told to all who wait.
        """
        try:
            self._supply.keep(self._supply.open(permit, seconds))
        except Exception as error:
            if is_interruption(error):
                raise
            return error if classify(error) is FailureKind.CALLBACK else None
        self._supply.grow()  # after an outage more may be opened at once than before
        return None

    def _fault(
        self, conn: Connection, most: float | None, now: float, test: bool | None = None
    ) -> Exception | None:
        """Return why a connection may not be lent, None if it may.

        The test may take ``most`` seconds, if given, and at most ``test_timeout``;
        whether there is one is found out here unless it is told.
        """
        record: Record = conn.pool_record
        try:
            marked = record.attention
            if marked:
                record.attention = False  # before the reasons are read
            if record.retired or record.expires_at <= now:
                return _TooOldError("its time is over")
            if test is None:
                test = self._tests_always or self._needs_test(record)
            if not test and not marked and self.watched:
                return None
            seconds = self._test_timeout
            if most is not None and most < seconds:
                seconds = max(0.001, most)
            fault = self._care.fault(conn, test=test, seconds=seconds)
            if fault is None and not record.uses:
                self._prove(record, test)
            return fault
        except BaseException:
            self._drop(conn)
            raise

    def _prove(self, record: Record, test: bool) -> None:
        """Note that a connection that was never lent before is good."""
        if test:
            self._supply.mark_proven(record)
        elif record.endpoint.unproven:
            record.attention = True  # its loan will tell

    def _reject(self, conn: Connection, fault: Exception, deadline: Deadline) -> None:
        """Close a connection that may not be lent; raise if there is no sense in another one."""
        record: Record = conn.pool_record
        new = record.uses == 0 and record.born >= deadline.started
        self._drop(conn)
        if not isinstance(fault, _TooOldError):
            self._counters.add("connections_lost")
            if new:
                # The next one would fare no better: not at once, that is.
                self._supply.first_test_failed(fault, record)
                if not deadline.is_patient:
                    raise copy_error(fault)
            else:
                self._upkeep.suspect_others(fault, record)
        if deadline.is_patient and deadline.remaining() == 0:
            raise self._report.given_up(deadline)

    def _needs_test(self, record: Record) -> bool:
        options = self._options
        if options.test_on_borrow is False:
            return False
        if record.suspect or self._upkeep.notices_jump():
            return True
        return self._clock() - record.idle_since >= options.test_idle_after

    def _drop(self, conn: Connection) -> None:
        """Close a connection that was about to be lent."""
        with contextlib.suppress(KeyError):
            self._store.claim(conn.pool_record)
        self._supply.discard(conn)

    def put_back(self, conn: Connection) -> None:
        """Take a connection back that was handed over to nobody."""
        with contextlib.suppress(KeyError):
            self._store.claim(conn.pool_record)
            self._supply.close_all(self._store.keep(conn, oldest=True))
            self._supply.look_again(conn.pool_record)

    # -- taking back -------------------------------------------------------

    def find_record(self, lent: Any) -> Record | None:
        """Return the record of what was lent; None if it belongs to no pool."""
        record: Record | None = find_record(lent, self._store.lent)
        return record

    def give_back(self, lent: Connection, record: Record) -> Sequence[Connection]:
        """Do what :meth:`Store.give_back` does, and tell how long the connection was used."""
        used = self._used(record)
        try:
            return self._store.give_back(_taken_in(lent, record), record)
        finally:
            self._tell_use(used)

    def take_back(self, lent: Connection, record: Record, close: bool) -> None:
        """Clean and keep a connection that the pool has claimed, or close it."""
        used = self._used(record)
        try:
            self._take_back(_taken_in(lent, record), record, close)
        finally:
            self._tell_use(used)

    def _used(self, record: Record) -> float | None:
        """Return for how many seconds a connection was lent, if that was observed."""
        return None if record.lent_at is None else self._clock() - record.lent_at

    def _tell_use(self, seconds: float | None) -> None:
        # Only now: nobody waits for this connection on behalf of an observer.
        if seconds is not None:
            self._observers.used(seconds)

    def _take_back(self, conn: Connection, record: Record, close: bool) -> None:
        record.attention = record.touched = False  # before the reasons are read
        try:
            if record.cursors and not self._care.is_busy(conn):
                end_cursors(record)
            self._end_loan(record)
            worthy = not close and self._is_worth_keeping(record)
            fault = self._care.tidy(conn, record) if worthy else None
        except BaseException:
            record.uses += 1
            self._supply.discard(conn)
            raise
        if worthy and fault is None:
            if not record.uses:
                self._supply.mark_proven(record)
            self._supply.close_all(self._store.give_back(conn, record))
            self._supply.look_again(record)
        elif worthy:
            self._counters.add("returns_bad")
            record.uses += 1
            lost = conn.closed != _CLOSED_BY_PROGRAM
            self._supply.discard(conn, at_once=True)
            if lost:
                self._upkeep.suspect_others(fault, record)
        else:
            record.uses += 1
            self._counters.add("connections_retired")
            at_once = close or self._store.closed or self._options.idle_timeout == 0
            self._supply.discard(conn, at_once=at_once)
        if not self._has_workers:
            self._upkeep.warn_of_leaks_in_passing()
            self._upkeep.run_without_thread()

    def detach(self, lent: Connection, record: Record) -> None:
        """Strike a connection that the pool has claimed out of the books."""
        loan = record.loan
        lent = unwrapped(lent)
        conn = lent if issubclass(type(lent), Tracked) else record.item()
        record.uses += 1
        if conn is not None:
            conn.pool_lent = None
        record.cursors.clear()
        record.held.clear()
        self._supply.unwatch(lent if conn is None else conn)
        self._counters.add("connections_detached")
        self._supply.release(record)
        self._end_loan(record)  # last: it may log
        record.loan = loan  # which does not end: its handle goes on working

    def _end_loan(self, record: Record) -> None:
        if record.key is not None:
            self._keyed.end(record)
        loan, record.loan = record.loan, None
        if loan is None:
            return
        loan.who = None  # a finished task must not be kept
        if self._options.debug:
            loan.returned = loan.returned or call_site()  # where a task did, if a worker is here
            record.last_loan = loan
        timeout = self._options.leak_timeout
        if loan.warned or (timeout and self._clock() - loan.since >= timeout):
            logger.info(
                "pool %r: a connection came back after %.1f s in use by thread %r",
                self._name,
                self._clock() - loan.since,
                loan.thread,
            )

    def _is_worth_keeping(self, record: Record) -> bool:
        options = self._options
        if self._store.closed or record.retired or options.lifetime_timeout == 0:
            return False
        if options.max_uses is not None and record.uses + 1 >= options.max_uses:
            return False
        if options.idle_timeout == 0 and not self._store.waiters and self._store.is_above_floor():
            return False
        return record.expires_at > self._clock()

    def refuse(self, conn: object) -> PoolError:
        """Return the error for a connection that is not in use here."""
        record = record_of(conn) or getattr(conn, "pool_record", None)
        known = isinstance(record, Record) and record in self._store.all_records()
        why = "it was returned before" if known else "it does not, or no longer, belong here"
        where = told_of(conn, record) if known else ""
        return PoolError(f"trying to put unkeyed connection: {why}: pool {self._name!r}{where}")


def _known_waiter(patient: bool) -> ThreadWaiter[Connection]:
    return ThreadWaiter(patient, borrower())


def _taken_in(lent: Connection, record: Record) -> Connection:
    """Return the pool's connection of a borrower's that has come back, or stands for it."""
    lent = unwrapped(lent)
    conn: Connection = lent if issubclass(type(lent), Tracked) else record.item()
    if conn is None:
        return lent
    if conn.pool_proxy is not None:
        conn.pool_proxy.take_in(conn, lent)
    return conn


def _raise_if(error: BaseException | None) -> None:
    try:
        if error is not None:
            raise error
    finally:
        del error  # its traceback refers to this frame
