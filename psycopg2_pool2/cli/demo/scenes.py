"""The scenes of the demo: what is done to the workers, and what is told of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg2

from psycopg2_pool2 import ConnectionPool

from .admin import Admin
from .bank import ACCOUNTS, BALANCE, Bank
from .screen import Screen
from .team import Tally, Team

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server

SECONDS = 11.0
"""How long all scenes take at a pace of 1."""
MAXCONN = 8
PATIENCE = 30.0
"""How long a worker waits for a connection."""
_FEW, _MANY = 6, 100
_FIGURES = {
    "pool_min": "connections kept open at least",
    "pool_max": "connections open at most",
    "pool_size": "open now",
    "pool_available": "idle now",
    "pool_in_use": "in use now",
    "pool_opening": "being opened now",
    "requests_num": "borrows",
    "requests_queued": "borrows that had to wait",
    "requests_wait_ms": "ms waited, all together",
    "requests_waiting": "waiting now",
    "requests_errors": "borrows that failed",
    "returns_bad": "connections that came back broken",
    "usage_ms": "ms in use, all together",
    "connections_num": "connections opened, or tried to",
    "connections_ms": "ms spent opening",
    "connections_errors": "attempts to open that failed",
    "connections_lost": "idle connections found dead",
    "connections_leaked": "dropped without being returned",
    "connections_detached": "taken out of the pool for good",
    "connections_reaped": "closed for idleness",
    "connections_retired": "closed for age, uses or a borrower's wish",
    "tests_failed": "tests that failed",
}


class Demo:
    """The scenes, one after the other."""

    def __init__(
        self,
        screen: Screen,
        pool: ConnectionPool,
        bank: Bank,
        admin: Admin,
        server: Server | None,
        pace: float,
    ) -> None:
        self._screen = screen
        self._pool = pool
        self._bank = bank
        self._admin = admin
        self._server = server
        self._pace = pace
        self._all = Tally()

    def play(self) -> None:
        """Play them all."""
        [(version,)] = self._admin.execute("SHOW server_version")
        self._screen.say(
            f"PostgreSQL {version}: {ACCOUNTS:,} accounts hold {BALANCE:,} each;"
            f" the pool may open {MAXCONN} connections."
        )
        self._daily_work()
        self._burst()
        self._killed_while_idle()
        self._killed_at_work()
        self._restart()

    def check(self) -> bool:
        """Say whether the accounts are right and every borrow succeeded."""
        total, transfers = self._bank.audit()
        held = total == ACCOUNTS * BALANCE
        counted = transfers == self._all.transfers
        self._screen.say(f"All in all: {self._all}.", gap=True)
        self._screen.say(
            f"The total {'held' if held else 'DID NOT HOLD'}: {total:,} in the accounts,"
            f" {ACCOUNTS * BALANCE:,} at the beginning."
        )
        self._screen.say(
            f"Every transfer was made {'once' if counted else 'NOT EXACTLY ONCE'}:"
            f" {transfers:,} in the table, {self._all.transfers:,} counted by the workers."
        )
        return held and counted and not self._all.borrow_errors

    def show_figures(self) -> None:
        """Write what the pool says of itself."""
        self._screen.say("The pool's own figures, of get_stats():", gap=True)
        for name, value in self._pool.get_stats().items():
            self._screen.say(f"  {name:<21}{value:>10,}  {_FIGURES.get(name, '')}".rstrip())

    def _daily_work(self) -> None:
        with self._scene(f"{_FEW} workers, fewer than there may be connections", _FEW) as team:
            self._watch(team, 2)

    def _burst(self) -> None:
        with self._scene(f"A burst: {_MANY} workers share {MAXCONN} connections", _MANY) as team:
            self._watch(team, 1.5)
            sessions = self._admin.sessions()
            self._screen.say(f"  in the midst of it the server counts {sessions} sessions")
            self._watch(team, 1)

    def _killed_while_idle(self) -> None:
        self._screen.say(
            "Nobody works, and all idle connections are killed on the server", gap=True
        )
        if not self._kill():
            return
        with self._scene(f"{_FEW} workers come back and should notice nothing", _FEW) as team:
            self._watch(team, 1)

    def _killed_at_work(self) -> None:
        title = f"{_MANY} workers: all connections are killed, what that interrupts is repeated"
        with self._scene(title, _MANY) as team:
            self._watch(team, 0.5)
            self._kill()
            self._watch(team, 1)

    def _kill(self) -> bool:
        try:
            number = self._admin.end_all()
        except psycopg2.errors.InsufficientPrivilege:
            self._screen.say("  (left out: this user may not end sessions)")
            return False
        self._screen.say(f"  killed by pg_terminate_backend: {number}")
        return True

    def _restart(self) -> None:
        if self._server is None:
            self._screen.say(
                "A restart of the server is left out, as the server is not ours.", gap=True
            )
            return
        title = f"{_MANY} workers: the server is restarted, what it interrupts is repeated"
        with self._scene(title, _MANY) as team:
            self._watch(team, 0.5)
            self._server.stop()
            self._screen.say("  the server is down")
            self._watch(team, 1.5)
            self._server.start()
            pause = self._until_next_transfer(team.tally)
            self._screen.say(
                f"  the server is up; the next transfer is {pause * 1000:.0f} ms later"
            )
            self._watch(team, 1.5)

    @contextlib.contextmanager
    def _scene(self, title: str, workers: int) -> Iterator[Team]:
        self._screen.say(title, gap=True)
        team = Team(self._bank, workers)
        with team:
            yield team
        self._all.absorb(team.tally)
        self._screen.say(f"  {team.tally}")

    def _watch(self, team: Team, seconds: float) -> None:
        """Show what goes on, for so long."""
        end = time.monotonic() + seconds * self._pace
        while (remaining := end - time.monotonic()) > 0:
            started, before = time.monotonic(), team.tally.transfers
            time.sleep(min(self._screen.interval, remaining))
            rate = (team.tally.transfers - before) / (time.monotonic() - started)
            self._screen.show(self._state(rate))

    def _state(self, rate: float) -> str:
        stats = self._pool.stats()
        bar = "#" * stats.in_use + "-" * stats.idle
        waiting = self._pool.get_stats()["requests_waiting"]
        return (
            f"  [{bar:.<{MAXCONN}}]  in use {stats.in_use}  idle {stats.idle}"
            f"  waiting {waiting:>3}  {rate:>6,.0f} transfers/s"
        )

    def _until_next_transfer(self, tally: Tally) -> float:
        started, before = time.monotonic(), tally.transfers
        while tally.transfers == before and time.monotonic() - started < PATIENCE:
            time.sleep(0.001)
        return time.monotonic() - started
