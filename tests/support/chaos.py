"""Threads that move money through a pool while everything around it breaks.

The world is real: a server, a middlebox before it, a pool, 16 threads.  One more
thread disturbs it in ways drawn with a seed, one after the other, and goes on
only when every worker has got something done since.  In the end the books are
compared with what each thread knows:

* *acknowledged*: the commit returned; the transfer is there, once;
* *failed*: an error came before the commit was sent; it is not there;
* *uncertain*: the commit raised; it is there once or not at all.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg2

from psycopg2_pool2 import ConnectionPool, PoolStats
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.timing import wakeful_clock
from tests.support.bank import Bank, Ledger, Worker, assert_none
from tests.support.census import SessionSampler, Tally
from tests.support.middlebox import Middlebox
from tests.support.pools import assert_whole, round_trip
from tests.support.processes import in_child
from tests.support.waiting import Running, in_thread, wait_until

APP = "chaos"
THREADS = 16
MAXCONN = 8
TIMEOUT = 30.0
"""Seconds that a borrower waits: more than any disturbance lasts, so that none may fail."""

SERVER_SETTINGS: dict[str, Any] = {
    # What was acknowledged is in the WAL, handed to the system: that outlives every process, and
    # with fsync off only the machine's own crash would lose it.
    "synchronous_commit": True,
    "max_connections": 60,
}
POOL_OPTIONS: dict[str, Any] = {
    "timeout": TIMEOUT,
    "test_timeout": 0.25,
    "idle_timeout": 1,
    "reap_idle_interval": 0.3,
    "health_check_interval": 0.2,
    "lifetime_timeout": 3,
}


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted, f"{found!r}, not {wanted!r}"


class WakefulClock:
    """A clock that goes on while the machine is suspended: as if it had been, for `suspended` s."""

    def __init__(self) -> None:
        self.suspended = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return wakeful_clock() + self.suspended


def _pool_class(clock: WakefulClock) -> type[ConnectionPool]:
    class Suspendable(ConnectionPool):
        _wakeful_clock = staticmethod(clock)

    return Suspendable


class Chaos:
    """What is done to the world; each method has undone it when it returns."""

    def __init__(
        self,
        server: Server,
        middlebox: Middlebox,
        pool: ConnectionPool,
        clock: WakefulClock,
        draw: random.Random,
    ) -> None:
        self._server = server
        self._middlebox = middlebox
        self._pool = pool
        self._clock = clock
        self._draw = draw
        self.disturbances: list[Callable[[], None]] = [
            self.terminate_one,
            self.terminate_all,
            self.crash_one,
            self.restart_fast,
            self.restart_immediate,
            self.freeze_backend,
            self.freeze_network,
            self.forget_flows,
            self.cut_all,
            self.cut_after_some_bytes,
            self.swallow_answers,
            self.refuse,
            self.accept_and_close,
            self.jump_clock,
            self.suspend,
            self.fork,
            self.fork_and_close,
            self.resize,
            self.drain,
            self.discard_idle,
            self.check,
            self.reap,
        ]

    def program(self) -> Iterator[Callable[[], None]]:
        """Yield disturbances for ever: each once, in an order drawn, before any comes again."""
        while True:
            yield from self._draw.sample(self.disturbances, len(self.disturbances))

    # -- the server --------------------------------------------------------

    def terminate_one(self) -> None:
        for pid in self._some_backend():
            self._server.terminate_backend(pid)

    def terminate_all(self) -> None:
        self._server.terminate_all(APP)

    def crash_one(self) -> None:
        """Kill a backend: the server takes all its sessions down, and recovers."""
        for pid in self._some_backend():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(partial(self._is_gone, pid), timeout=30)

    def restart_fast(self) -> None:
        self._server.restart("fast")

    def restart_immediate(self) -> None:
        self._server.stop("immediate")
        self._hold(0.3)
        self._server.start()

    def freeze_backend(self) -> None:
        for pid in self._some_backend():
            self._server.freeze_backend(pid)
            self._hold(0.5)
            self._server.thaw_backend(pid)

    # -- the network -------------------------------------------------------

    def freeze_network(self) -> None:
        self._middlebox.freeze()
        self._hold(0.5)
        self._middlebox.forward()

    def forget_flows(self) -> None:
        self._middlebox.forget_flows()
        self._hold(0.5)
        self._middlebox.cut()  # those in the middle of a statement would wait for ever
        self._middlebox.forward()

    def cut_all(self) -> None:
        self._middlebox.cut(reset=self._draw.random() < 0.5)

    def cut_after_some_bytes(self) -> None:
        self._cut_after(to_server=self._draw.randrange(600))

    def swallow_answers(self) -> None:
        """Let the server do what it is asked, and the borrower never hear of it."""
        self._cut_after(to_client=self._draw.randrange(200))

    def refuse(self) -> None:
        self._middlebox.refuse()
        self._middlebox.cut()
        self._hold(0.4)
        self._middlebox.forward()

    def accept_and_close(self) -> None:
        self._middlebox.accept_and_close()
        self._middlebox.cut()
        self._hold(0.4)
        self._middlebox.forward()

    # -- the machine and the process ---------------------------------------

    def jump_clock(self) -> None:
        self._clock.suspended += self._draw.choice([-3600, 3600])

    def suspend(self) -> None:
        """Sleep for an hour, in which the network forgets the connections."""
        self._clock.suspended += 3600
        self.forget_flows()

    def fork(self) -> None:
        assert int(in_child(lambda: round_trip(self._pool, timeout=10)))

    def fork_and_close(self) -> None:
        def child() -> str:
            pid = round_trip(self._pool, timeout=10)
            self._pool.shutdown()
            return str(pid)

        assert int(in_child(child))

    # -- the pool ----------------------------------------------------------

    def resize(self) -> None:
        self._pool.resize(self._draw.randrange(3), self._draw.randrange(3, MAXCONN))
        self._hold(0.1)
        self._pool.resize(2, MAXCONN)

    def drain(self) -> None:
        self._pool.drain()

    def discard_idle(self) -> None:
        self._pool.discard_all_idle()

    def check(self) -> None:
        self._pool.check()

    def reap(self) -> None:
        self._pool.reap_idle_connections()

    # -- helpers -----------------------------------------------------------

    def _some_backend(self) -> list[int]:
        """Return one of the pool's sessions, none if it has none."""
        pids = self._server.backends(APP)
        return [self._draw.choice(pids)] if pids else []

    def _is_gone(self, pid: int) -> bool:
        try:
            return pid not in self._server.backends(APP)
        except psycopg2.Error:  # in recovery
            return False

    def _cut_after(self, *, to_server: int | None = None, to_client: int | None = None) -> None:
        self._middlebox.cut_after(
            to_server=to_server, to_client=to_client, reset=self._draw.random() < 0.5
        )
        self._hold(0.3)
        self._middlebox.forward()

    def _hold(self, longest: float) -> None:
        """Leave it so for a while: shorter than the pool's timeouts or longer."""
        time.sleep(self._draw.uniform(0, longest))


class World:
    """A bank behind a server and a middlebox, a pool, and its workers."""

    def __init__(self, server: Server, middlebox: Middlebox, seed: int, **options: Any) -> None:
        creator = os.getpid()
        self.bank = Bank(server)
        self.server = server
        self.seed = seed
        self.tally = Tally()
        clock = WakefulClock()
        # A forked child's sessions are not the pool's: they go by another name.
        self.pool = _pool_class(clock)(
            2,
            MAXCONN,
            connect_params=lambda: {
                "application_name": APP if os.getpid() == creator else "child of chaos"
            },
            connection_factory=self.tally.factory(),
            name=APP,
            **{**POOL_OPTIONS, **middlebox.params, **options},
        )
        self.chaos = Chaos(server, middlebox, self.pool, clock, random.Random(seed))
        held: set[int] = set()
        self.workers = [Worker(self.pool, seed * 1000 + number, held) for number in range(THREADS)]
        self.sampler = SessionSampler(server, middlebox, APP, MAXCONN)
        self.done: Counter[str] = Counter()

    def close(self) -> None:
        """End what is left."""
        self.sampler.finish()
        self.pool.shutdown()

    def run(self, seconds: float = 0) -> None:
        """Disturb the workers in every way, and for so long; then see that nothing is wrong."""
        over = threading.Event()
        runs = [in_thread(worker.run, over) for worker in self.workers]
        try:
            self._disturb(seconds, runs)
        finally:
            over.set()
            for run in runs:
                run.result(timeout=60)
        self.check()

    def _disturb(self, seconds: float, runs: list[Running[None]]) -> None:
        end = time.monotonic() + seconds
        self._await_progress(runs, "the beginning")
        for disturb in self.chaos.program():
            disturb()
            self.done[disturb.__name__] += 1
            self._await_progress(runs, disturb.__name__)
            if len(self.done) == len(self.chaos.disturbances) and time.monotonic() > end:
                return

    def _await_progress(self, runs: list[Running[None]], event: str) -> None:
        """Wait until every worker has finished a transfer that it began after this."""
        before = [worker.ledger.steps for worker in self.workers]

        def has_gone_on() -> bool:
            for run in runs:
                if run.done:
                    run.result()
            # The first may have been under way already.
            return all(
                worker.ledger.steps >= steps + 2
                for worker, steps in zip(self.workers, before, strict=True)
            )

        wait_until(has_gone_on, timeout=TIMEOUT, message=f"every worker goes on after {event}")

    @property
    def ledger(self) -> Ledger:
        """What all workers know."""
        ledger = Ledger()
        for worker in self.workers:
            ledger.add(worker.ledger)
        return ledger

    def check(self) -> None:
        """See that the books are right, nobody was failed, and the pool is full and idle."""
        ledger = self.ledger
        assert_none(ledger.borrow_errors, "errors at borrow")
        assert_none(ledger.wrong, "wrong")
        assert len(ledger.acknowledged) > THREADS, "next to nothing was done"
        self.bank.audit(ledger)
        self._check_pool()
        self.sampler.finish()
        assert self.sampler.samples, "the sessions were never counted"
        assert self.tally.most <= MAXCONN, f"{self.tally.most} connections at once"
        assert self.sampler.most <= MAXCONN, f"{self.sampler.most} sessions at once"
        # What a statement met, not that the rollback after it found the connection closed.
        assert "statement: InterfaceError" not in ledger.errors, ledger.errors

    def _check_pool(self) -> None:
        _assert_equal(self.pool.stats().in_use, 0)
        self.pool.resize(MAXCONN, MAXCONN)
        wait_until(self._is_full, message="the pool is full and idle")
        _assert_equal(self.pool.get_stats()["requests_waiting"], 0)
        assert_whole(self.pool)
        wait_until(lambda: self._is_full() and len(self.server.backends(APP)) == MAXCONN)
        _assert_equal(self.server.backends("child of chaos"), [])

    def _is_full(self) -> bool:
        """Ask whether all are open and idle; where there are no workers, open what is missing."""
        self.pool.wait()
        return self.pool.stats() == PoolStats(in_use=0, idle=MAXCONN)

    def story(self) -> str:
        """Tell in a line what was done and what came of it."""
        ledger = self.ledger
        return (
            f"CHAOS_SEED={self.seed}: {dict(self.done)}; {len(ledger.acknowledged)} acknowledged,"
            f" {len(ledger.failed)} failed, {len(ledger.uncertain)} uncertain,"
            f" {dict(ledger.errors)}; at most {self.tally.most} connections and"
            f" {self.sampler.most} sessions in {self.sampler.samples} samples"
        )


@contextlib.contextmanager
def new_world(server: Server, seed: int, **options: Any) -> Iterator[World]:
    """Make a world on a server of its own; tell its seed at once and its story at the end."""
    print(f"CHAOS_SEED={seed}")
    with Middlebox((server.host, server.port)) as middlebox:
        world = World(server, middlebox, seed, **options)
        try:
            yield world
        finally:
            print(world.story())
            world.close()


def seed_of_the_run(default: int) -> int:
    """Return the seed to repeat a run with, or the default."""
    return int(os.environ.get("CHAOS_SEED", default))
