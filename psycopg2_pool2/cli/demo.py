"""Show the pool at work on a real server, through a burst, killed backends and a restart.

Threads move money between accounts all the time. What befalls them is counted, and at the end
the accounts are checked.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import psycopg2

from psycopg2_pool2 import ConnectionPool, PoolClosed

if TYPE_CHECKING:
    from psycopg2_pool2.contrib.embedded import Server

_SECONDS = 11.0
_MAXCONN = 8
_FEW, _MANY = 6, 100
_PATIENCE = 30.0
"""How long a worker waits for a connection."""
_ATTEMPTS = 20
_REST = 0.01
"""The longest rest of a worker between two transfers."""
_ACCOUNTS, _BALANCE = 1000, 1000
# libpq's variables that say which server is meant; the others only say how to talk to it.
_SERVER_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE")
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the demo takes."""
    parser.add_argument(
        "dsn",
        nargs="?",
        help="a server to use: its sessions are ended only if they are the demo's own, and it is"
        " not restarted. Without it, that of DATABASE_URL or of libpq's PG* variables is used,"
        " and without these a new one, made for the demo and removed after it",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=_SECONDS,
        help="how long the workers work, all in all (%(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play all scenes; return 0 if no borrow failed and the accounts are right."""
    screen = Screen(sys.stdout)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_log_shown(screen))
        params, server = _place(arguments.dsn, screen, stack)
        name = f"psycopg2_pool2_demo_{token_hex(4)}"
        pool = stack.enter_context(_open_pool({**params, "application_name": name}))
        admin = Admin(params, name)
        bank = stack.enter_context(_open_bank(pool, admin, name, keep=server is not None))
        demo = Demo(screen, pool, bank, admin, server, arguments.seconds / _SECONDS)
        demo.play()
        right = demo.check()
        demo.show_figures()
    screen.say(f"\nThe demo took {time.monotonic() - started:.1f} s.")
    return 0 if right else 1


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError("must be between 0 and 3600")
    return seconds


@contextlib.contextmanager
def _log_shown(screen: Screen) -> Iterator[None]:
    logger, handler = logging.getLogger("psycopg2_pool2"), LogLines(screen)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _open_pool(params: Mapping[str, Any]) -> ConnectionPool:
    """Open two connections now, so that a wrong address or password is told at once."""
    return ConnectionPool(
        2, _MAXCONN, timeout=_PATIENCE, background_prewarm=False, name="demo", **params
    )


def _place(
    dsn: str | None, screen: Screen, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Server | None]:
    """Say which server is used; return how to reach it, and the server if it is ours."""
    if dsn is not None:
        screen.say("Server: the one given; it is not restarted.")
        return {"dsn": dsn}, None
    if os.environ.get("DATABASE_URL"):
        screen.say("Server: the one of DATABASE_URL; it is not restarted.")
        return {"dsn": os.environ["DATABASE_URL"]}, None
    if named := [name for name in _SERVER_VARIABLES if os.environ.get(name)]:
        screen.say(f"Server: the one of {', '.join(named)}; it is not restarted.")
        return {}, None
    screen.show("Starting a PostgreSQL server ...")
    server = stack.enter_context(_new_server())
    screen.say(f"Server: a new one for this demo, on {server.host} port {server.port}.")
    return {**server.params, "sslmode": "disable"}, server


def _new_server() -> Server:
    try:
        from psycopg2_pool2.contrib.embedded import Server
    except ImportError as error:
        raise RuntimeError(f"a server of its own needs Unix ({error}); name one") from error
    return Server.create()


class Screen:
    """Where the demo writes: on a terminal with a line that changes, elsewhere line by line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._lock = threading.Lock()
        self.interval = 0.2 if self._terminal else 1.0

    def say(self, text: str) -> None:
        """Write something that stays."""
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """Write what holds now: it is replaced by the next text, where that is possible."""
        if self._terminal:
            # A line that wraps could not be replaced.
            self._write(text[: shutil.get_terminal_size().columns - 1])
        else:
            self.say(text)

    def _write(self, text: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""
        with self._lock:
            self._stream.write(start + text)
            self._stream.flush()


class LogLines(logging.Handler):
    """Writes what the pool logs between the demo's own lines."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, in one line."""
        self._screen.say(f"  log: {' '.join(record.getMessage().split())}")


class Admin:
    """Somebody with connections beside the pool's, who looks at its sessions and ends them."""

    def __init__(self, params: Mapping[str, Any], pool_name: str) -> None:
        self._pool_name = pool_name
        self._params = {**params, "application_name": f"{pool_name}_admin"}

    def execute(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own; return its rows."""
        conn = psycopg2.connect(**self._params)
        try:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(sql, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            conn.close()

    def sessions(self) -> int:
        """Count the pool's sessions, as the server sees them."""
        return len(self._pids())

    def end_all(self) -> int:
        """End the pool's sessions; return how many, when they are gone."""
        pids = self._pids()
        self.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", pids)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and set(pids).intersection(self._pids()):
            time.sleep(0.005)
        return len(pids)

    def _pids(self) -> list[int]:
        sql = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return [pid for (pid,) in self.execute(sql, self._pool_name)]


@dataclass(frozen=True)
class Transfer:
    """One movement of money; its number makes sure that it is not done twice."""

    number: int
    source: int
    target: int
    amount: int


class Bank:
    """Accounts, and the transfers between them, in two tables of the demo's own."""

    def __init__(self, pool: ConnectionPool, name: str) -> None:
        self.pool = pool
        self.accounts = f"{name}_accounts"
        self.transfers = f"{name}_transfers"
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Make the tables, and give everybody the same."""
        with self.pool.transaction() as conn, conn.cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE {self.accounts} (id int PRIMARY KEY, balance bigint NOT NULL);"
                f"CREATE TABLE {self.transfers} (number bigint PRIMARY KEY, source int NOT NULL,"
                " target int NOT NULL, amount bigint NOT NULL);"
                f"INSERT INTO {self.accounts} SELECT n, %s FROM generate_series(1, %s) n",
                [_BALANCE, _ACCOUNTS],
            )

    def invent(self) -> Transfer:
        """Return a transfer between two accounts."""
        source, target = random.sample(range(1, _ACCOUNTS + 1), 2)
        return Transfer(next(self._numbers), source, target, random.randint(1, 100))

    def move(self, conn: Any, transfer: Transfer) -> None:
        """Do a transfer, or nothing if it has been done, in the transaction that is open."""
        changes = [(transfer.source, -transfer.amount), (transfer.target, transfer.amount)]
        with conn.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {self.transfers} VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [transfer.number, transfer.source, transfer.target, transfer.amount],
            )
            # In the order of their numbers, so that two transfers never wait for each other.
            for account, amount in sorted(changes) if cursor.rowcount else ():
                cursor.execute(
                    f"UPDATE {self.accounts} SET balance = balance + %s WHERE id = %s",
                    [amount, account],
                )

    def audit(self) -> tuple[int, int]:
        """Return the money in all accounts, and the number of transfers."""
        with self.pool.conn() as conn, conn.cursor() as cursor:
            cursor.execute(
                f"SELECT (SELECT sum(balance)::bigint FROM {self.accounts}),"
                f" (SELECT count(*) FROM {self.transfers})"
            )
            total, transfers = cursor.fetchone()
            return total, transfers


@contextlib.contextmanager
def _open_bank(pool: ConnectionPool, admin: Admin, name: str, *, keep: bool) -> Iterator[Bank]:
    """Open a bank, and remove its tables at the end, unless the whole server goes then."""
    bank = Bank(pool, name)
    bank.open()
    try:
        yield bank
    finally:
        if not keep:
            # An interrupt may have come before the workers were told to end.
            pool.shutdown(timeout=5)
            admin.execute(f"DROP TABLE {bank.accounts}, {bank.transfers}")


@dataclass
class Tally:
    """What befell the workers."""

    transfers: int = 0
    repeated: int = 0
    borrow_errors: int = 0
    longest_wait: float = 0.0
    failures: list[BaseException] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, transfers: int = 0, repeated: int = 0, borrow_errors: int = 0) -> None:
        """Count one more of something."""
        with self._lock:
            self.transfers += transfers
            self.repeated += repeated
            self.borrow_errors += borrow_errors

    def waited(self, seconds: float) -> None:
        """Note how long a borrow took."""
        with self._lock:
            self.longest_wait = max(self.longest_wait, seconds)

    def absorb(self, other: Tally) -> None:
        """Add what another one has counted."""
        self.add(
            transfers=other.transfers, repeated=other.repeated, borrow_errors=other.borrow_errors
        )
        self.waited(other.longest_wait)

    def __str__(self) -> str:
        return (
            f"{self.transfers:,} transfers, borrow errors: {self.borrow_errors},"
            f" transactions repeated: {self.repeated},"
            f" longest wait: {self.longest_wait * 1000:,.0f} ms"
        )


class Team:
    """Workers, each a thread, who transfer money from the block's beginning to its end."""

    def __init__(self, bank: Bank, size: int) -> None:
        self.tally = Tally()
        self._bank = bank
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(size)]

    def __enter__(self) -> Team:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        if exc is not None:
            self._bank.pool.shutdown()  # sends home who waits for a connection
        for thread in self._threads:
            thread.join()
        if exc is None and self.tally.failures:
            failure = self.tally.failures[0]
            raise RuntimeError(f"a worker failed: {failure!r}") from failure

    def _work(self) -> None:
        try:
            while not self._end.wait(random.uniform(0, _REST)):
                self._complete(self._bank.invent())
        except PoolClosed:
            pass
        except BaseException as error:
            self.tally.failures.append(error)

    def _complete(self, transfer: Transfer) -> None:
        """Try until it is done: the pool finds connections, but repeating is for who knows how."""
        for _ in range(_ATTEMPTS):
            if self._try(transfer):
                self.tally.add(transfers=1)
                return
        raise RuntimeError(f"transfer {transfer.number} was given up after {_ATTEMPTS} attempts")

    def _try(self, transfer: Transfer) -> bool:
        """Tell whether it was done; false when its connection, or the borrow of one, failed."""
        conn: Any = None
        started = time.monotonic()
        try:
            with self._bank.pool.transaction() as conn:
                self.tally.waited(time.monotonic() - started)
                self._bank.move(conn, transfer)
            return True
        except PoolClosed:
            raise
        except psycopg2.Error:
            if conn is None:
                self.tally.add(borrow_errors=1)
            elif conn.closed:
                self.tally.add(repeated=1)
            else:
                raise
            return False


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
            f"PostgreSQL {version}: {_ACCOUNTS:,} accounts hold {_BALANCE:,} each;"
            f" the pool may open {_MAXCONN} connections."
        )
        self._daily_work()
        self._burst()
        self._killed_while_idle()
        self._killed_at_work()
        self._restart()

    def check(self) -> bool:
        """Say whether the accounts are right and every borrow succeeded."""
        total, transfers = self._bank.audit()
        held = total == _ACCOUNTS * _BALANCE
        counted = transfers == self._all.transfers
        self._screen.say(f"\nAll in all: {self._all}.")
        self._screen.say(
            f"The total {'held' if held else 'DID NOT HOLD'}: {total:,} in the accounts,"
            f" {_ACCOUNTS * _BALANCE:,} at the beginning."
        )
        self._screen.say(
            f"Every transfer was made {'once' if counted else 'NOT EXACTLY ONCE'}:"
            f" {transfers:,} in the table, {self._all.transfers:,} counted by the workers."
        )
        return held and counted and not self._all.borrow_errors

    def show_figures(self) -> None:
        """Write what the pool says of itself."""
        self._screen.say("\nThe pool's own figures, of get_stats():")
        for name, value in self._pool.get_stats().items():
            self._screen.say(f"  {name:<21}{value:>10,}  {_FIGURES.get(name, '')}".rstrip())

    def _daily_work(self) -> None:
        with self._scene(f"{_FEW} workers, fewer than there may be connections", _FEW) as team:
            self._watch(team, 2)

    def _burst(self) -> None:
        with self._scene(f"A burst: {_MANY} workers share {_MAXCONN} connections", _MANY) as team:
            self._watch(team, 1.5)
            sessions = self._admin.sessions()
            self._screen.say(f"  in the midst of it the server counts {sessions} sessions")
            self._watch(team, 1)

    def _killed_while_idle(self) -> None:
        self._screen.say("\nNobody works, and all idle connections are killed on the server")
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
            self._screen.say("\nA restart of the server is left out, as the server is not ours.")
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
        self._screen.say(f"\n{title}")
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
            f"  [{bar:.<{_MAXCONN}}]  in use {stats.in_use}  idle {stats.idle}"
            f"  waiting {waiting:>3}  {rate:>6,.0f} transfers/s"
        )

    def _until_next_transfer(self, tally: Tally) -> float:
        started, before = time.monotonic(), tally.transfers
        while tally.transfers == before and time.monotonic() - started < _PATIENCE:
            time.sleep(0.001)
        return time.monotonic() - started
