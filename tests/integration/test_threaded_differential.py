"""ThreadedConnectionPool beside psycopg2's own: the same operations, the same outcomes.

Left out is where they differ on purpose; each such case has a test of its own in
`test_threaded`: psycopg2's automatic keys are numbers, so the keys here are none
that it would give; connections keep their settings there, and what a COMMIT as a
statement makes of them; misuse with a key, a dropped reference and a lowered
maxconn leave its books wrong.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.pool
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from psycopg2_pool2 import ThreadedConnectionPool
from psycopg2_pool2.contrib.embedded import Server, free_port

KEYS: list[Hashable] = ["a", "b", "", 0, -1, ("t", 1), 2.5, frozenset("k")]
STATEMENTS = [
    "SELECT 1",
    "SELECT nonsense",
    "CREATE TEMP TABLE IF NOT EXISTS t ()",
    "SET work_mem = 100",
]
WHICH = st.integers(0, 99)
"""Which of those that there are: which these are may depend on the moment."""


@dataclass(eq=False)
class Pair:
    """What the two pools did in answer to one call."""

    theirs: Any
    ours: Any
    key: Hashable | None = None


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def compare(theirs: Any, ours: Any) -> None:
    """See that an error of psycopg2's pool is one here too, with the same text; and no other."""
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert isinstance(ours, type(theirs)), (theirs, ours)
        assert str(ours) == str(theirs)


def state_of(conn: Any) -> tuple[object, ...]:
    """Return what a borrower can see of a connection."""
    if conn.closed:
        return ("closed",)
    return (conn.status, conn.info.transaction_status, conn.autocommit, conn.isolation_level)


class Differential(RuleBasedStateMachine):
    """Both pools on one server; what is in use is held in pairs, what was seen is counted."""

    def __init__(self, dsn: str, seen: Counter[str], **options: Any) -> None:
        super().__init__()
        self._dsn = dsn
        self._seen = seen
        self._options = options
        self._stranger = psycopg2.connect(dsn)

    @initialize(
        minconn=st.integers(0, 2), more=st.integers(1, 2), spell=st.sampled_from([int, str, float])
    )
    def make(self, minconn: int, more: int, spell: Callable[[int], Any]) -> None:
        sizes = (spell(minconn), spell(minconn + more))
        self.theirs: Any = psycopg2.pool.ThreadedConnectionPool(*sizes, self._dsn)
        self.ours = ThreadedConnectionPool(*sizes, self._dsn, **self._options)
        self.in_use: list[Pair] = []
        self.returned: list[Pair] = []

    def both(self, call: Callable[[Any], Any], key: Hashable | None = None) -> Pair:
        pair = Pair(outcome(lambda: call(self.theirs)), outcome(lambda: call(self.ours)), key)
        compare(pair.theirs, pair.ours)
        self._seen[str(pair.ours)] += isinstance(pair.ours, Exception)
        return pair

    # -- what a program does ----------------------------------------------

    @rule()
    def borrow(self) -> None:
        self._note_loan(self.both(lambda pool: pool.getconn()))

    @rule(key=st.sampled_from(KEYS))
    def borrow_with_key(self, key: Hashable) -> None:
        lent = [pair for pair in self.in_use if pair.key == key]
        pair = self.both(lambda pool: pool.getconn(key), key)
        if lent and not self.theirs.closed:
            assert (pair.theirs, pair.ours) == (lent[0].theirs, lent[0].ours)
        else:
            self._note_loan(pair)

    def _one_in_use(self, which: int) -> Pair:
        return self.in_use[which % len(self.in_use)]

    def _note_loan(self, pair: Pair) -> None:
        if not isinstance(pair.theirs, Exception):
            for known in self.in_use:
                assert known.theirs is not pair.theirs
                assert known.ours is not pair.ours
            self.in_use.append(pair)

    @rule()
    def borrow_with_a_list_for_a_key(self) -> None:
        if not self.theirs.closed:
            assert isinstance(self.both(lambda pool: pool.getconn([])).theirs, TypeError)

    @precondition(lambda self: self.in_use)
    @rule(which=WHICH, sql=st.sampled_from(STATEMENTS))
    def execute(self, which: int, sql: str) -> None:
        pair = self._one_in_use(which)
        compare(
            outcome(lambda: pair.theirs.cursor().execute(sql)),
            outcome(lambda: pair.ours.cursor().execute(sql)),
        )

    @precondition(lambda self: self.in_use)
    @rule(which=WHICH, name=st.sampled_from(["commit", "rollback", "close"]))
    def call(self, which: int, name: str) -> None:
        pair = self._one_in_use(which)
        compare(*(outcome(getattr(conn, name)) for conn in (pair.theirs, pair.ours)))

    @precondition(lambda self: self.in_use)
    @rule(which=WHICH, with_key=st.booleans(), close=st.booleans())
    def give_back(self, which: int, with_key: bool, close: bool) -> None:
        pair = self._one_in_use(which)
        key = pair.key if with_key else None
        back = Pair(
            outcome(lambda: self.theirs.putconn(pair.theirs, key, close)),
            outcome(lambda: self.ours.putconn(pair.ours, key, close)),
        )
        compare(back.theirs, back.ours)
        if back.theirs is None:
            self.in_use.remove(pair)
            self.returned.append(pair)

    @rule(which=WHICH)
    def give_back_again(self, which: int) -> None:
        lent = {id(conn) for pair in self.in_use for conn in (pair.theirs, pair.ours)}
        # One that was lent again meanwhile is not given back twice.
        free = [p for p in self.returned if not lent & {id(p.theirs), id(p.ours)}]
        if free:
            pair = free[which % len(free)]
            compare(
                outcome(lambda: self.theirs.putconn(pair.theirs)),
                outcome(lambda: self.ours.putconn(pair.ours)),
            )

    @rule()
    def give_back_a_stranger(self) -> None:
        self.both(lambda pool: pool.putconn(self._stranger))
        assert not self._stranger.closed

    @rule()
    def give_back_nothing(self) -> None:
        self.both(lambda pool: pool.putconn())

    @precondition(lambda self: not self.theirs.closed)
    @rule(minconn=st.integers(0, 3), more=st.booleans())
    def set_sizes(self, minconn: int, more: bool) -> None:
        maxconn = self.theirs.maxconn + more
        minconn = min(minconn, maxconn)
        for pool in (self.theirs, self.ours):
            pool.maxconn = maxconn
            pool.minconn = minconn

    @precondition(lambda self: len(self.returned) > 2)  # not too early
    @rule()
    def close_all(self) -> None:
        self.both(lambda pool: pool.closeall())

    # -- what is to be seen -----------------------------------------------

    @invariant()
    def attributes_are_the_same(self) -> None:
        for name in ("minconn", "maxconn", "closed"):
            assert getattr(self.ours, name) == getattr(self.theirs, name), name
            assert type(getattr(self.ours, name)) is type(getattr(self.theirs, name)), name

    @invariant()
    def what_is_in_use_is_in_the_same_state(self) -> None:
        for pair in self.in_use:
            assert state_of(pair.ours) == state_of(pair.theirs)
        if not self.theirs.closed:
            assert self.ours.stats().in_use == len(self.theirs._used) == len(self.in_use)

    @invariant()
    def never_are_more_open_than_may_be(self) -> None:
        assert self.ours.get_stats()["pool_size"] <= self.ours.maxconn

    def teardown(self) -> None:
        self._stranger.close()
        for pool in (self.theirs, self.ours) if hasattr(self, "ours") else ():
            if not pool.closed:
                pool.closeall()


# The pool's workers draw random numbers while hypothesis draws the operations.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 0}, {"test_on_borrow": False}],
    ids=["default", "no-workers", "no-test"],
)
def test_any_sequence_of_operations_has_the_same_outcomes(
    server: Server, options: dict[str, Any]
) -> None:
    seen: Counter[str] = Counter()
    run_state_machine_as_test(
        lambda: Differential(server.dsn, seen, **options),  # type: ignore[arg-type]
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            database=None,
        ),
    )
    for text in ("pool exhausted", "pool is closed", "trying to put unkeyed connection"):
        assert sum(number for told, number in seen.items() if text in told) > 3, "seldom"


@pytest.mark.parametrize(
    ("args", "same_text"),
    [
        ((1, "x", "DSN"), False),
        (("x", 1, "DSN"), False),
        ((None, 1, "DSN"), False),
        ((1, [], "DSN"), False),
        ((1, math.inf, "DSN"), False),
        ((1, math.nan, "DSN"), False),
        ((1, 2, "DSN dbname=nowhere"), True),
        ((1, 2, "DSN user=nobody"), True),
        ((1, 2, "host=127.0.0.1 port=PORT user=postgres dbname=postgres"), True),
        ((1, 2, "DSN nonsense=1"), False),
        ((1, 2, "nonsense"), False),
        ((1, 2, "DSN", None, None, None), False),
        ((1, 2, 7), False),
        ((1, 2, "DSN", "no callable"), False),
        ((1,), False),
        ((), False),
    ],
)
def test_the_constructor_refuses_the_same(
    server: Server, args: tuple[Any, ...], same_text: bool
) -> None:
    port = str(free_port())
    given: list[Any] = [
        arg.replace("DSN", server.dsn).replace("PORT", port) if isinstance(arg, str) else arg
        for arg in args
    ]
    theirs = outcome(lambda: psycopg2.pool.ThreadedConnectionPool(*given))
    ours = outcome(lambda: ThreadedConnectionPool(*given))
    assert isinstance(theirs, Exception), "a case of its own"
    assert isinstance(ours, type(theirs)), (theirs, ours)
    if same_text:
        assert str(ours).split() == str(theirs).split()  # we indent what a server may have said


@pytest.mark.parametrize("sizes", [("1", "3"), (1.9, 3.9), (True, 3), (b"1", 3)])
def test_the_constructor_accepts_the_same_sizes(server: Server, sizes: tuple[Any, Any]) -> None:
    made = [
        psycopg2.pool.ThreadedConnectionPool(*sizes, server.dsn),
        ThreadedConnectionPool(*sizes, server.dsn),
    ]
    try:
        assert [(pool.minconn, pool.maxconn) for pool in made] == [(1, 3), (1, 3)]
    finally:
        for pool in made:
            with contextlib.suppress(psycopg2.Error):
                pool.closeall()
