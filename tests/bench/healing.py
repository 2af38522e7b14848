"""What a borrower sees of a failure: how long, and how many errors."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2

from psycopg2_pool2.contrib.embedded import Server
from tests.bench.harness import Sample
from tests.bench.peers import Lender, ask

APP = "healing"
_POLITE_PAUSE = 0.1
_LONGEST_END = 30.0


class Administrator:
    """A session beside the pools, that sees theirs and ends them."""

    def __init__(self, server: Server) -> None:
        self._conn = psycopg2.connect(**server.params, application_name="administrator")
        self._conn.autocommit = True

    def close(self) -> None:
        """End the session."""
        self._conn.close()

    def sessions(self) -> set[int]:
        """Return the backends of the pool that is being measured."""
        return self._pids("SELECT pid FROM pg_stat_activity WHERE application_name = %s", APP)

    def end_sessions(self) -> set[int]:
        """Tell all of them to end; return which they were."""
        return self._pids(
            "SELECT pid FROM unnest(%s::int[]) pid WHERE pg_terminate_backend(pid)",
            list(self.sessions()),
        )

    def end(self, pid: int) -> None:
        """End one, and wait for its end."""
        self._pids("SELECT 0 FROM pg_terminate_backend(%s, 5000)", pid)

    def _pids(self, sql: str, *params: object) -> set[int]:
        with self._conn.cursor() as cursor:
            cursor.execute(sql, params)
            return {pid for (pid,) in cursor}


@contextlib.contextmanager
def administrator(server: Server) -> Iterator[Administrator]:
    """Open the administrator's session for a block."""
    with contextlib.closing(Administrator(server)) as opened:
        yield opened


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep what the pools log of the failures off the screen."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def poll(state: Callable[[], object], patience: float) -> tuple[float, bool]:
    """Wait for a state; return the milliseconds it took, and whether that was too long."""
    began = time.perf_counter()
    while not state():
        if time.perf_counter() - began > patience:
            return patience * 1e3, True
        time.sleep(0.002)
    return (time.perf_counter() - began) * 1e3, False


class FirstAnswer:
    """A borrower who borrows and asks, again after every error, until he has an answer."""

    def __init__(self, lender: Lender) -> None:
        self.errors = 0
        self._lender = lender
        self._answered = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def measure(self, patience: float) -> Sample:
        """Return the milliseconds until then, and the errors; give up after ``patience``."""
        began = time.perf_counter()
        self._thread.start()
        answered = self._answered.wait(patience)
        seconds = time.perf_counter() - began if answered else patience
        return {"ms": seconds * 1e3, "errors": self.errors, "gave_up": not answered}

    def finish(self) -> None:
        """Wait for his end, which comes when what he waits for is mended."""
        self._over = True
        self._thread.join(_LONGEST_END)

    def _run(self) -> None:
        while not self._over and not self._is_answered():
            self.errors += 1
        self._answered.set()

    def _is_answered(self) -> bool:
        try:
            borrow_and_ask(self._lender)
        except Exception:  # whatever the pool and its driver raise
            return False
        return True


def borrow_and_ask(lender: Lender, sql: str = "SELECT 1") -> None:
    """Borrow, ask and give back; raise what the borrow or the statement raises."""
    conn = lender.borrow()
    try:
        ask(conn, sql)
    finally:
        with contextlib.suppress(Exception):  # some pools raise for a connection that was lost
            lender.give_back(conn)


class Crowd:
    """Threads that borrow and work all the time, and pause politely after an error."""

    def __init__(self, lender: Lender, threads: int) -> None:
        self.borrow_errors = self.statement_errors = 0
        self._lender = lender
        self._served = [0] * threads
        self._served_at = [0.0] * threads
        self._over = threading.Event()
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait for the end of all."""
        self._over.set()
        for thread in self._threads:
            thread.join(_LONGEST_END)

    def all_served(self, times: int) -> bool:
        """Tell whether everybody was served so often."""
        return min(self._served) >= times

    def forget(self) -> None:
        """Count anew."""
        self._served = [0] * len(self._served)
        self._served_at = [0.0] * len(self._served)

    def served_since(self, began: float) -> list[float]:
        """Return when each was served first, in seconds since then; infinity if not yet."""
        return sorted(max(0.0, at - began) if at else math.inf for at in self._served_at)

    def _run(self, number: int) -> None:
        while not self._over.is_set():
            if not self._work():
                self._over.wait(_POLITE_PAUSE)
            elif not self._served[number]:
                self._served_at[number] = time.perf_counter()
                self._served[number] = 1
            else:
                self._served[number] += 1

    def _work(self) -> bool:
        try:
            conn = self._lender.borrow()
        except Exception:  # whatever the pool and its driver raise
            with self._counting:
                self.borrow_errors += 1
            return False
        try:
            ask(conn, "SELECT pg_sleep(0.002)")
        except Exception:
            with self._counting:
                self.statement_errors += 1
            return False
        finally:
            with contextlib.suppress(Exception):
                self._lender.give_back(conn)
        return True


def in_child(call: Callable[[], Any], patience: int) -> None:
    """Fork, make a call there, and see the child end within so many seconds."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(patience)
        with contextlib.suppress(BaseException):
            call()
        os._exit(0)
    os.waitpid(child, 0)
