"""What becomes of the pools, and of those who borrow, when something breaks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from psycopg2_pool2.contrib.embedded import Server
from tests.bench.harness import Aim, Bench, Case, Column, Rows, Sample, Scenario, Trial
from tests.bench.healing import (
    APP,
    Administrator,
    Crowd,
    FirstAnswer,
    administrator,
    in_child,
    poll,
    silence,
)
from tests.bench.peers import GROWING, PSYCOPG2, Lender, Plan, ask, lending
from tests.support.middlebox import Middlebox

DEAD = 50
FEW_DEAD = 8
FLOWS = 10
TEST_TIMEOUT = 1.0
RESTART_THREADS = 32
RESTART_SIZE = 20
OUTAGE = 0.5
LONG_OUTAGE = 3.0
REFUSED_THREADS = 200
REFUSED_SIZE = 20
SESSIONS = 5
SLOTS = 2

PATIENCE_WITHOUT_BORROWERS = 1.0
PATIENCE = 5.0
PATIENCE_AFTER_RESTART = 3.0
WARM_UP = 1.0

REPLACED = f"{DEAD} closed, nobody borrows"
FIRST = f"first borrow after {DEAD} died"
FIRST_OF_FEW = f"first borrow after {FEW_DEAD} died"
BLACK_HOLE = f"{FLOWS} flows forgotten"
RESTART = f"down for {OUTAGE:g} s"
LONG_RESTART = f"down for {LONG_OUTAGE:g} s"
REFUSED = f"{REFUSED_THREADS} threads"
FORK = "child closes the pool"
DEATH = "backend dies in a transaction"

Measure = Callable[[str], Sample]
"""Measures one peer, on a pool of its own."""


def _dsn(place: Server | Middlebox) -> str:
    return f"{place.dsn} application_name={APP}"


def _case(label: str, measure: Measure, rounds: int) -> Case:
    def open_all(stack: ExitStack) -> dict[str, Trial]:
        stack.enter_context(silence())
        return {peer: partial(measure, peer) for peer in GROWING}

    return Case(label, open_all, rounds)


def _rounds(bench: Bench) -> int:
    return 1 if bench.quick else min(bench.rounds, 3)


# -- dead connections ------------------------------------------------------


def _replaced(server: Server, peer: str) -> Sample:
    plan = Plan(_dsn(server), idle=DEAD, size=DEAD, test=True)
    with lending(peer, plan), administrator(server) as admin:
        poll(lambda: len(admin.sessions()) == DEAD, PATIENCE)
        began = time.perf_counter()
        dead = admin.end_sessions()
        told = (time.perf_counter() - began) * 1e3

        def are_replaced() -> bool:
            sessions = admin.sessions()
            return len(sessions) == DEAD and not sessions & dead

        ms, gave_up = poll(are_replaced, PATIENCE_WITHOUT_BORROWERS)
    return {"ms": ms if gave_up else told + ms, "gave_up": gave_up}


def _first_answer(server: Server, dead: int, peer: str) -> Sample:
    plan = Plan(_dsn(server), idle=dead, size=dead, test=True, timeout=PATIENCE)
    with lending(peer, plan) as lender, administrator(server) as admin:
        _end_all(admin)
        return _measure_first(lender, lambda: None)


def _end_all(admin: Administrator) -> None:
    dead = admin.end_sessions()
    poll(lambda: not dead & admin.sessions(), PATIENCE)


def _black_hole(server: Server, peer: str) -> Sample:
    with Middlebox((server.host, server.port)) as middlebox:
        plan = Plan(
            _dsn(middlebox),
            idle=FLOWS,
            size=FLOWS,
            test=True,
            timeout=PATIENCE,
            test_timeout=TEST_TIMEOUT,
        )

        def mend() -> None:
            middlebox.cut()
            middlebox.forward()

        with lending(peer, plan) as lender:
            middlebox.forget_flows()
            return _measure_first(lender, mend)


def _measure_first(lender: Lender, mend: Callable[[], object]) -> Sample:
    borrower = FirstAnswer(lender)
    sample = borrower.measure(PATIENCE)
    mend()
    borrower.finish()
    return sample


def _dead_cases(bench: Bench) -> list[Case]:
    server, rounds = bench.server, _rounds(bench)
    return [
        _case(REPLACED, partial(_replaced, server), rounds),
        _case(FIRST, partial(_first_answer, server, DEAD), rounds),
        _case(FIRST_OF_FEW, partial(_first_answer, server, FEW_DEAD), 1),
        _case(BLACK_HOLE, partial(_black_hole, server), 1),
    ]


def _dead_aims(rows: Rows) -> list[Aim]:
    return [
        Aim(f"{REPLACED}: ms until all are replaced", rows.figure(REPLACED, "ms"), 250),
        Aim(f"{FIRST}: ms", rows.figure(FIRST, "ms"), 100),
        Aim(
            f"{BLACK_HOLE}: time of the next borrow / test_timeout",
            rows.figure(BLACK_HOLE, "ms") / TEST_TIMEOUT / 1e3,
            1.1,
        ),
    ]


DEAD_CONNECTIONS = Scenario(
    name="healing-dead",
    title="Idle connections that died",
    note=f"{DEAD} or {FEW_DEAD} idle connections are ended by the server (pg_terminate_backend):"
    " the time until the server has as many new sessions while nobody borrows, and the time until"
    " a thread has borrowed and got the answer to a SELECT 1, which begins when the last backend"
    f" has gone. Then {FLOWS} idle connections through a middlebox that lets nothing more through"
    " on them and tells nobody, while new connections work: the time until such a thread has its"
    f" answer. Our test_timeout is {TEST_TIMEOUT:g} s there; the other pools have no such setting."
    " Errors are those that the thread met, at the borrow or at the statement; it tries again"
    f" after each. > means: given up after {PATIENCE_WITHOUT_BORROWERS:g} s where nobody borrows,"
    f" and else after {PATIENCE:g} s.",
    columns=(
        Column("ms", "ms", ",.0f", gave_up="gave_up"),
        Column("errors", "errors", ",.0f"),
    ),
    plots=(),
    cases=_dead_cases,
    aims=_dead_aims,
)


# -- a restart -------------------------------------------------------------


def _restart(server: Server, outage: float, peer: str) -> Sample:
    # psycopg2's own pool has no waiting: it gets a connection for each thread.
    size = RESTART_THREADS if peer == PSYCOPG2 else RESTART_SIZE
    plan = Plan(_dsn(server), idle=RESTART_SIZE, size=size, test=True, timeout=30)
    with lending(peer, plan) as lender:
        crowd = Crowd(lender, RESTART_THREADS)
        try:
            poll(lambda: crowd.all_served(3), WARM_UP)
            errors = crowd.borrow_errors, crowd.statement_errors
            server.stop("fast")
            time.sleep(outage)
            crowd.forget()
            server.start()
            accepts = time.perf_counter()
            _, gave_up = poll(lambda: crowd.all_served(1), PATIENCE_AFTER_RESTART)
        finally:
            served = crowd.served_since(accepts)
            crowd.finish()
    half, full = (
        min(seconds, PATIENCE_AFTER_RESTART) * 1e3
        for seconds in (served[RESTART_THREADS // 2], served[-1])
    )
    return {
        "ms": full,
        "longest": full,
        "half": half,
        "gave_up": gave_up,
        "borrow_errors": crowd.borrow_errors - errors[0],
        "statement_errors": crowd.statement_errors - errors[1],
    }


def _restart_cases(bench: Bench) -> list[Case]:
    def open_all(stack: ExitStack, outage: float) -> dict[str, Trial]:
        stack.enter_context(silence())
        server = stack.enter_context(Server.create())
        return {peer: partial(_restart, server, outage, peer) for peer in GROWING}

    cases = [Case(RESTART, partial(open_all, outage=OUTAGE), _rounds(bench))]
    if not bench.quick:
        cases.append(Case(LONG_RESTART, partial(open_all, outage=LONG_OUTAGE), 1))
    return cases


def _restart_aims(rows: Rows) -> list[Aim]:
    return [
        aim
        for case in (RESTART, LONG_RESTART)
        for aim in (
            Aim(f"{case}: errors at borrow", rows.figure(case, "borrow_errors"), 0),
            Aim(f"{case}: ms until all were served, longest", rows.figure(case, "longest"), 300),
        )
    ]


SERVER_RESTART = Scenario(
    name="healing-restart",
    title="A restart of the server",
    note=f"{RESTART_THREADS} threads borrow all the time from a pool of {RESTART_SIZE} connections"
    " and run a statement of 2 ms; a borrower waits up to 30 s. The server is stopped (fast), and"
    f" started {OUTAGE:g} s, or {LONG_OUTAGE:g} s, after its end. The time is from its accepting"
    " connections until each thread was served once more, and until half of them were; longest is"
    " that of the slowest round. A thread that met an error pauses for 0.1 s. psycopg2.pool, which"
    " cannot wait, has"
    f" {RESTART_THREADS} connections. > means: given up after {PATIENCE_AFTER_RESTART:g} s.",
    columns=(
        Column("half", "half served ms", ",.0f"),
        Column("ms", "all served ms", ",.0f", gave_up="gave_up"),
        Column("longest", "longest", ",.0f", gave_up="gave_up"),
        Column("borrow_errors", "errors at borrow", ",.0f"),
        Column("statement_errors", "at a statement", ",.0f"),
    ),
    plots=(),
    cases=_restart_cases,
    aims=_restart_aims,
)


# -- a server that refuses -------------------------------------------------


def _refused(server: Server, seconds: float, peer: str) -> Sample:
    with Middlebox((server.host, server.port)) as middlebox:
        plan = Plan(_dsn(middlebox), idle=SESSIONS, size=REFUSED_SIZE, test=True, timeout=30)
        with lending(peer, plan) as lender:
            middlebox.refuse()
            middlebox.cut()
            before = len(plan.opened)
            crowd = Crowd(lender, REFUSED_THREADS)
            try:
                time.sleep(seconds)
                attempts = len(plan.opened) - before
                errors = crowd.borrow_errors + crowd.statement_errors
                middlebox.forward()
            finally:
                crowd.finish()
    return {"attempts": attempts, "scaled": attempts * 10 / seconds, "errors": errors}


def _refused_cases(bench: Bench) -> list[Case]:
    return [_case(REFUSED, partial(_refused, bench.server, 3 if bench.quick else 5), 1)]


def _refused_aims(rows: Rows) -> list[Aim]:
    return [Aim("attempts to connect in 10 s", rows.figure(REFUSED, "scaled"), 50)]


REFUSING_SERVER = Scenario(
    name="healing-refused",
    title="A port that refuses connections",
    note=f"{REFUSED_THREADS} threads borrow from a pool of at most {REFUSED_SIZE} connections, all"
    " of which were cut, while the port refuses new ones; a borrower waits up to 30 s where the"
    " pool lets him, and pauses for 0.1 s after an error. Attempts to connect are counted by the"
    " class of the connections, for 5 s (quick: 3 s); what they would be in 10 s is that figure,"
    " scaled. Errors are what the threads met in that time, at the borrow or at the statement.",
    columns=(
        Column("attempts", "attempts", ",.0f"),
        Column("scaled", "in 10 s", ",.0f"),
        Column("errors", "errors", ",.0f"),
    ),
    plots=(),
    cases=_refused_cases,
    aims=_refused_aims,
)


# -- accidents in the program ----------------------------------------------


def _fork(server: Server, peer: str) -> Sample:
    plan = Plan(_dsn(server), idle=SESSIONS, size=SESSIONS, test=True)
    with lending(peer, plan) as lender, administrator(server) as admin:
        poll(lambda: len(admin.sessions()) == SESSIONS, PATIENCE)
        before = admin.sessions()
        in_child(lender.close, patience=10)
        # What the child has sent is in the sockets when it has ended; nothing may come of it.
        poll(lambda: not before & admin.sessions(), 0.3)
        return {"sessions": len(before & admin.sessions())}


def _death(server: Server, peer: str) -> Sample:
    plan = Plan(_dsn(server), idle=SLOTS, size=SLOTS, test=True, autocommit=False, timeout=1)
    with lending(peer, plan) as lender, administrator(server) as admin:
        conn = lender.borrow()
        ask(conn)
        admin.end(_backend(conn))
        raised = 0
        try:
            lender.give_back(conn)
        except Exception:  # whatever the pool and its driver raise
            raised = 1
        del conn
        return {"raised": raised, "slots": _slots(lender)}


def _backend(conn: Any) -> int:
    cursor = conn.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    pid: int = cursor.fetchone()[0]
    cursor.close()
    return pid


def _slots(lender: Lender) -> int:
    """Return how many can be borrowed at a time, and answer."""
    conns: list[Any] = []
    with contextlib.suppress(Exception):  # there are no more
        for _ in range(SLOTS):
            conn = lender.borrow()
            ask(conn)
            conns.append(conn)
    for conn in conns:
        lender.give_back(conn)
    return len(conns)


def _accident_cases(bench: Bench) -> list[Case]:
    return [
        _case(FORK, partial(_fork, bench.server), 1),
        _case(DEATH, partial(_death, bench.server), 1),
    ]


def _accident_aims(rows: Rows) -> list[Aim]:
    return [
        Aim(
            f"{FORK}: sessions left of {SESSIONS}",
            rows.figure(FORK, "sessions"),
            SESSIONS,
            at_least=True,
        ),
        Aim(f"{DEATH}: slots left of {SLOTS}", rows.figure(DEATH, "slots"), SLOTS, at_least=True),
    ]


ACCIDENTS = Scenario(
    name="healing-accidents",
    title="A fork, and a backend that dies in a transaction",
    note=f"A forked child closes the pool that it inherited, which has {SESSIONS} idle connections:"
    " how many of the parent's sessions are left? And: a connection of a pool of at most"
    f" {SLOTS} is returned after its backend died in a transaction; did the return raise (1), and"
    " how many that answer can be borrowed at a time after it?",
    columns=(
        Column("sessions", f"sessions left of {SESSIONS}", ",.0f"),
        Column("raised", "return raised", ",.0f"),
        Column("slots", f"slots left of {SLOTS}", ",.0f"),
    ),
    plots=(),
    cases=_accident_cases,
    aims=_accident_aims,
)

SCENARIOS = (DEAD_CONNECTIONS, SERVER_RESTART, REFUSING_SERVER, ACCIDENTS)
