"""The pools that are measured, behind one interface."""

from __future__ import annotations

import operator
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2.pool
from psycopg2.extensions import connection

from psycopg2_pool2 import ConnectionPool

OURS = "psycopg2_pool2"
PSYCOPG2 = "psycopg2.pool"
PSYCOPG_POOL = "psycopg_pool"
SQLALCHEMY = "SQLAlchemy"
DBUTILS = "DBUtils"
QUEUE = "SimpleQueue"
"""No pool: what handing connections over costs when nothing is looked after."""
FAIR = "fair queue"
"""No pool either: the least that serving waiters in their order costs in Python."""


@dataclass(frozen=True)
class Plan:
    """The pool that a peer shall make; times are in seconds."""

    dsn: str
    idle: int
    size: int
    test: bool = False
    connect_seconds: float = 0.0
    autocommit: bool = True
    timeout: float = 60
    """How long a borrower waits, where a pool lets him wait."""
    test_timeout: float = 5
    """How long a test may take: ours alone has a limit."""
    opened: list[float] = field(default_factory=list)
    """When each connection was opened: the clock's reading."""

    def connect(self) -> Any:
        """Open a connection as all pools of psycopg2 connections do here."""
        return psycopg2.connect(self.dsn, connection_factory=self.factory())

    def factory(self) -> type[connection]:
        """Return the class of the connections: slow to connect, and counted."""
        plan = self

        class Counted(connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                plan.arrive()
                super().__init__(*args, **kwargs)
                self.autocommit = plan.autocommit

        return Counted

    def arrive(self) -> None:
        """Take the time that connecting shall take, and count."""
        if self.connect_seconds:
            time.sleep(self.connect_seconds)
        self.opened.append(time.perf_counter())


@dataclass(frozen=True)
class Lender:
    """A pool as the benchmark sees it: bound methods of the pool's own, to add nothing to them."""

    borrow: Callable[[], Any]
    give_back: Callable[[Any], object]
    close: Callable[[], object]


Opener = Callable[[Plan], Lender]


def _ours(plan: Plan) -> Lender:
    pool = ConnectionPool(
        plan.idle,
        plan.size,
        timeout=plan.timeout,
        test_on_borrow=plan.test,
        test_timeout=plan.test_timeout,
        dsn=plan.dsn,
        connection_factory=plan.factory(),
    )
    return Lender(pool.getconn, pool.putconn, pool.shutdown)


def _psycopg2_pool(plan: Plan) -> Lender:
    pool = psycopg2.pool.ThreadedConnectionPool(
        plan.idle, plan.size, plan.dsn, connection_factory=plan.factory()
    )
    return Lender(pool.getconn, pool.putconn, pool.closeall)


def _psycopg_pool(plan: Plan) -> Lender:
    import psycopg
    import psycopg_pool

    class Counted(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            plan.arrive()
            return super().connect(*args, **kwargs)

    pool = psycopg_pool.ConnectionPool(
        plan.dsn,
        connection_class=Counted,
        kwargs={"autocommit": plan.autocommit},
        min_size=plan.idle,
        max_size=plan.size,
        timeout=plan.timeout,
        check=psycopg_pool.ConnectionPool.check_connection if plan.test else None,
        open=True,
    )
    return Lender(pool.getconn, pool.putconn, pool.close)


def _sqlalchemy(plan: Plan) -> Lender:
    from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(
        plan.connect,
        pool_size=plan.size,
        max_overflow=0,
        timeout=plan.timeout,
        pre_ping=plan.test,
        dialect=PGDialect_psycopg2(dbapi=psycopg2),  # type: ignore[no-untyped-call]
    )
    return Lender(pool.connect, operator.methodcaller("close"), pool.dispose)


def _dbutils(plan: Plan) -> Lender:
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(
        psycopg2,
        mincached=plan.idle,
        maxcached=plan.size,
        maxconnections=plan.size,
        blocking=True,
        dsn=plan.dsn,
        connection_factory=plan.factory(),
    )
    return Lender(pool.connection, operator.methodcaller("close"), pool.close)


class FairQueue:
    """Connections handed straight to whoever has waited longest, and nothing else.

    A thread that gives one back to somebody waiting has to wait itself the next
    time, so each borrow costs a switch between threads; a queue that lets it
    overtake saves that, and starves the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: deque[Any] = deque()
        self._waiting: deque[tuple[threading.Lock, list[Any]]] = deque()

    def get(self) -> Any:
        """Take a connection, waiting for one if there is none."""
        with self._lock:
            if self._idle:
                return self._idle.popleft()
            gate, hand = threading.Lock(), list[Any]()
            gate.acquire()
            self._waiting.append((gate, hand))
        gate.acquire()
        return hand[0]

    def put(self, conn: Any) -> None:
        """Hand the connection over, or keep it."""
        with self._lock:
            if self._waiting:
                gate, hand = self._waiting.popleft()
                hand.append(conn)
                gate.release()
            else:
                self._idle.append(conn)


def _fair_queue(plan: Plan) -> Lender:
    conns = FairQueue()
    for _ in range(plan.size):
        conns.put(plan.connect())

    def close() -> None:
        for _ in range(plan.size):
            conns.get().close()

    return Lender(conns.get, conns.put, close)


def _simple_queue(plan: Plan) -> Lender:
    conns: queue.SimpleQueue[connection] = queue.SimpleQueue()
    for _ in range(plan.size):
        conns.put(plan.connect())

    def close() -> None:
        while not conns.empty():
            conns.get().close()

    return Lender(conns.get, conns.put, close)


OPENERS: dict[str, Opener] = {
    OURS: _ours,
    PSYCOPG2: _psycopg2_pool,
    PSYCOPG_POOL: _psycopg_pool,
    SQLALCHEMY: _sqlalchemy,
    DBUTILS: _dbutils,
    QUEUE: _simple_queue,
    FAIR: _fair_queue,
}
ALL = (OURS, PSYCOPG2, PSYCOPG_POOL, SQLALCHEMY, DBUTILS, QUEUE)
GROWING = (OURS, PSYCOPG2, PSYCOPG_POOL, SQLALCHEMY, DBUTILS)
TESTING = (OURS, PSYCOPG_POOL, SQLALCHEMY)
WAITING = (OURS, PSYCOPG_POOL, SQLALCHEMY, DBUTILS, QUEUE, FAIR)
"""psycopg2's own pool raises an error when all connections are in use."""


@contextmanager
def lending(peer: str, plan: Plan) -> Iterator[Lender]:
    """Open a peer's pool with its idle connections there; close it at the end."""
    lender = OPENERS[peer](plan)
    try:
        for conn in [lender.borrow() for _ in range(plan.idle)]:
            lender.give_back(conn)
        yield lender
    finally:
        lender.close()


def ask(conn: Any, sql: str = "SELECT 1") -> None:
    """Run a statement on a connection of any pool."""
    cursor = conn.cursor()
    cursor.execute(sql)
    cursor.close()
