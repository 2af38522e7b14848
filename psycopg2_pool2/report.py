"""What a pool tells of itself: in errors, as figures, and in debug mode of its borrowers."""

from __future__ import annotations

from typing import Any

import psycopg2

from .connector import Connection
from .errors import PoolDeadlock, PoolTimeout, _ServerTimeout
from .failure_kinds import FailureKind
from .failures import classify, copy_error
from .stats import Counters
from .store import Store
from .supply import Supply
from .timing import Clock, Deadline


class Report:
    """Describes one pool; changes nothing."""

    def __init__(
        self,
        name: str,
        store: Store[Connection],
        supply: Supply,
        counters: Counters,
        debug: bool,
        clock: Clock,
    ) -> None:
        self._name = name
        self._store = store
        self._supply = supply
        self._counters = counters
        self._debug = debug
        self._clock = clock
        self._popped: dict[str, Any] = {}

    def describe(self) -> str:
        """Return the pool's name and counts."""
        store = self._store
        return (
            f"pool {self._name!r} (in use {len(store.lent)}, idle {len(store.idle)},"
            f" opening {store.opening}, waiting {len(store.waiters)}, maxconn {store.maxconn})"
        )

    def explain(self) -> str:
        """Return the counts and, in debug mode, who has the connections and since when."""
        if not self._debug:
            return self.describe()
        loans = [record.loan for record in self._store.lent.copy() if record.loan]
        now = self._clock()
        told = [
            f"\nin use for {now - x.since:.1f} s by thread {x.thread!r}:\n{x.site}" for x in loans
        ]
        return self.describe() + "".join(told)

    def timed_out(self, deadline: Deadline) -> PoolTimeout:
        """Return the error for a borrower whose time is over; its cause is the last failure."""
        cause = self._supply.last_error
        because = "" if cause is None else f"; the last error: {self._supply.tell(cause)}"
        is_servers = isinstance(cause, psycopg2.OperationalError) and not _is_callbacks(cause)
        error = (_ServerTimeout if is_servers else PoolTimeout)(
            f"no connection within {deadline.elapsed():.2f} s: {self.explain()}{because}"
        )
        error.__cause__ = cause
        return error

    def given_up(self, deadline: Deadline) -> BaseException:
        """Return what to raise to a borrower whose time is over.

        That is the error of the program's own callback, as it is, if the last
        connection that could have been opened for it failed because of that.
        """
        cause = self._supply.last_error
        if cause is not None and _is_callbacks(cause) and self._store.has_room():
            return copy_error(cause)
        return self.timed_out(deadline)

    def deadlock(self) -> PoolDeadlock | None:
        """Return the error if every connection is held by somebody who waits for another one."""
        waiting = {waiter.borrower for waiter in list(self._store.waiters)}
        loans = [record.loan for record in self._store.lent.copy()]
        if len(loans) < self._store.maxconn or not all(x and x.who in waiting for x in loans):
            return None
        return PoolDeadlock(f"every borrower waits for another connection: {self.explain()}")

    def figures(self) -> dict[str, Any]:
        """Return gauges and counters: psycopg_pool's names, then our own."""
        store, sums = self._store, self._counters.read()
        return {
            "pool_min": store.minconn,
            "pool_max": store.maxconn,
            "pool_size": store.size,
            "pool_available": len(store.idle),
            "requests_waiting": len(store.waiters),
            "requests_num": store.requests(),
            **sums,
            "pool_in_use": len(store.lent),
            "pool_opening": store.opening,
        }

    def pop_figures(self) -> dict[str, Any]:
        """Return the figures, counters as they grew since the last call."""
        figures = self.figures()
        counters = ("requests_num", *Counters.NAMES)
        before, self._popped = self._popped, {name: figures[name] for name in counters}
        return {name: value - before.get(name, 0) for name, value in figures.items()}


def _is_callbacks(error: BaseException) -> bool:
    """Tell whether a callback of the program raised an error."""
    return classify(error) is FailureKind.CALLBACK
