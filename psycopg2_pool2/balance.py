"""Keep the connections spread over the endpoints as they come, go, fail and recover."""

from __future__ import annotations

import math

from .care import Care
from .connector import Connection
from .dialer import LOOKUP_TIMEOUT
from .endpoints import Endpoint, Endpoints
from .errors import HostResolutionError
from .interruptions import let_through
from .log import logger
from .sockets import answers
from .stats import Counters
from .store import Permit, Record, Store
from .supply import Supply

STEP = 1.0
"""Seconds between two steps while anything is to be moved or tried again."""
SHARE_OF_A_STEP = 10
"""A step moves the tenth part of the connections, at least one."""
ANSWER_TIMEOUT = 1.0
PATIENCE = 10
"""Looks for a connection to close that is neither idle nor in use for the moment."""


class Balance:
    """Moves the connections of one pool.

    A replacement is opened first where ``maxconn`` leaves room for it, so that
    no borrower has to wait for it.
    """

    def __init__(
        self,
        name: str,
        store: Store[Connection],
        supply: Supply,
        care: Care,
        endpoints: Endpoints,
        counters: Counters,
    ) -> None:
        self.name = name
        self._store = store
        self._supply = supply
        self._care = care
        self._endpoints = endpoints
        self._counters = counters
        self._total = 0  # how many connections there were a step before

    @property
    def is_needed(self) -> bool:
        """Whether there may ever be more than one endpoint."""
        return not self._endpoints.are_fixed

    def step(self) -> float:
        """Do what is due now; return the seconds until something is again."""
        if not self._store.records and not self._store.waiters and not self._store.minconn:
            return math.inf  # nobody uses this pool: with the first connection it begins
        if self._endpoints.refresh_in() <= 0:
            self._refresh()
        unsettled = self._retire_unlisted()
        for endpoint in self._endpoints.lagging():
            self._revisit(endpoint)
        unsettled |= self._even_out() or self._endpoints.any_lags()
        return min(STEP if unsettled else math.inf, max(0.1, self._endpoints.refresh_in()))

    def _refresh(self) -> None:
        try:
            self._endpoints.refresh(LOOKUP_TIMEOUT)
        except HostResolutionError as error:
            self._supply.lookup_failed(error)
        except Exception as error:  # of the program's resolver; borrowers are told
            let_through(error)
            logger.debug("pool %r: the resolver failed: %s", self.name, type(error).__name__)

    # -- what left ---------------------------------------------------------

    def _retire_unlisted(self) -> bool:
        """Replace the connections to addresses that the name stands for no more.

        Returns whether some have to wait.
        """
        listed = set(self._endpoints.current())
        left = [
            record
            for record in self._store.all_records()
            if record.endpoint is not None and record.endpoint not in listed and not record.retired
        ]
        waiting = False
        for record in left:
            waiting |= not self._supply.replace(record)
            logger.debug("pool %r: %s has left", self.name, record.endpoint)
        return waiting

    # -- what fails --------------------------------------------------------

    def _revisit(self, endpoint: Endpoint) -> None:
        """Try an endpoint again that has failed, while others serve.

        Not unless the endpoint would come to have a connection, nor before
        somebody answers there: an attempt takes a connection's place.  In a full
        pool it costs one: not for a mere question of role.
        """
        self._endpoints.postpone(endpoint)
        load = self._supply.load()
        busiest = max(load, key=lambda e: load[e], default=endpoint)
        if load[busiest] <= load[endpoint] + 1:
            return
        if not (endpoint.is_failing or self._store.has_room()):
            return
        if answers(endpoint.host, endpoint.address, endpoint.port, ANSWER_TIMEOUT):
            self._endpoints.expect(endpoint)
            self._move(busiest, endpoint)

    # -- even shares -------------------------------------------------------

    def _even_out(self) -> bool:
        """Move some connections to where there are too few; return whether there are more to do."""
        total = self._supply.load().total()
        settled, self._total = total == self._total, total
        for _ in range(max(1, total // SHARE_OF_A_STEP)):
            pair = self._unequal_pair(exactly=settled)
            if pair is None:
                break
            if not self._move(*pair):
                return True
        else:
            return True  # more, perhaps, with the next step
        return not settled

    def _unequal_pair(self, *, exactly: bool) -> tuple[Endpoint, Endpoint] | None:
        """Return endpoints with too many and with too few connections, if there are such.

        Unless ``exactly``, one more or less than its due is not too many or few:
        while borrowers come and go that changes all the time.
        """
        load, due = self._supply.load(), self._due()
        if not due:
            return None
        givers = [e for e in self._endpoints.current() if not e.is_failing and load[e]]
        excess = {e: load[e] - due.get(e, 0) for e in {*givers, *due}}
        over = max(givers, key=lambda e: excess[e], default=None)
        under = min(due, key=lambda e: excess[e])
        if over is None or excess[over] < 1 or excess[under] > -1:
            return None
        if not exactly and excess[over] - excess[under] <= 2:
            return None
        return over, under

    def _due(self) -> dict[Endpoint, int]:
        """Return how many connections each of the endpoints should have, in whole numbers.

        What is left over when they do not divide evenly goes to those that have
        drawn the best lots (Efraimidis and Spirakis: in proportion to what each
        lacks), so that over many processes it is even.
        """
        wanted = self._endpoints.wanted()
        load = self._supply.load()
        givers = [e for e in self._endpoints.current() if not e.is_failing]
        total = sum(load[e] for e in {*givers, *wanted})
        weights = sum(e.weight for e in wanted)
        shares = {e: total * (e.weight / weights if weights else 1.0 / len(wanted)) for e in wanted}
        due = {e: int(share + 1e-9) for e, share in shares.items()}
        lacking = [e for e in wanted if shares[e] - due[e] > 1e-9]
        lacking.sort(key=lambda e: e.lot ** (1.0 / (shares[e] - due[e])), reverse=True)
        for e in lacking[: total - sum(due.values())]:
            due[e] += 1
        return due

    def _move(self, over: Endpoint, under: Endpoint) -> bool:
        """Move one connection; return whether that was possible at once."""
        permit = self._store.take_permit(math.inf, spare=True)
        if permit is not None:
            return self._open(permit, under) and self._retire_one(over)
        conn = self._take_idle(over)
        if conn is None:
            return self._mark_one_in_use(over)
        return self._supply.move(conn, under)  # in its room, since there is no other

    def _retire_one(self, endpoint: Endpoint) -> bool:
        """Close one there whose replacement is open, or have it closed when it comes back."""
        # Between the two looks a borrower may bring it back, or take it.
        for _ in range(PATIENCE):
            conn = self._take_idle(endpoint)
            if conn is not None:
                self._supply.discard(conn, at_once=True)
                return True
            if self._mark_one_in_use(endpoint):
                return True
        return False

    def _take_idle(self, endpoint: Endpoint) -> Connection | None:
        """Withdraw an idle connection to this endpoint, the one that would be lent last."""
        for conn in reversed(list(self._store.idle)):
            record: Record = conn.pool_record
            if record.endpoint is endpoint and self._store.withdraw(conn, leaving=True):
                record.retired = True
                self._counters.add("connections_retired")
                return conn
        return None

    def _mark_one_in_use(self, endpoint: Endpoint) -> bool:
        """Have one that is in use there closed when it comes back."""
        for record in self._store.lent.copy():
            if record.endpoint is endpoint and not record.retired:
                record.retired = record.attention = True
                return True
        return False

    def _open(self, permit: Permit, endpoint: Endpoint) -> bool:
        try:
            conn = self._supply.open(permit, at=endpoint)
        except Exception as error:
            let_through(error)
            return False  # noted on the endpoint
        if endpoint.unproven and not self._proves_itself(conn):
            return False
        self._supply.keep(conn)
        return True

    def _proves_itself(self, conn: Connection) -> bool:
        """Test a connection to where they fail as soon as they are open; discard it if it does."""
        try:
            fault = self._care.fault(conn, test=True)
        except BaseException:
            self._supply.discard(conn)
            raise
        if fault is None:
            self._supply.mark_proven(conn.pool_record)
            return True
        self._supply.first_test_failed(fault, conn.pool_record)
        self._supply.discard(conn)
        return False
