"""The pool for asyncio: the same pool, awaited.

Whatever may block is done by worker threads; what only decides is done by the
loop's own thread.  A borrow is the generator that threads use too
(:meth:`Desk.lending`), driven here so that a test of a connection costs a
worker for its round trip and waiting costs a future.

**Cancellation.**  A task can be cancelled wherever it awaits: while it borrows
(see :mod:`.tasks`), and

1. while a worker runs its statement: the connection is marked to be closed when
   it comes back, *then* the statement is cancelled and the socket shut down, so
   that the worker is free soon.  The connection is never lent again, so a worker
   that still holds it cannot meet its next borrower;
2. while a worker takes its connection back: that goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import operator
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import psycopg2
from psycopg2 import extensions as ext

from . import checks
from .blocks import LoanBlock, TransactionBlock
from .connector import Borrowed, Connection
from .errors import CommitUncertain
from .hidden import HiddenDict
from .loans import call_site
from .offload import Offload, finished, outcome
from .pool import POOL_DEFAULT, ConnectionPool, from_environment
from .sockets import twin_of
from .steps import Steps
from .tasks import TaskBorrower, drive
from .transactions import Transaction

if TYPE_CHECKING:
    import weakref

    from .connector import Test
    from .snapshots import EndpointStats, PoolStats

T = TypeVar("T")
P = ParamSpec("P")

SPARE_THREADS = 16
"""Worker threads beside those that have a connection of the pool in hand.

For what has none, or no longer: a connection that was taken out of the pool, a
call that goes on after its task was cancelled, opening and closing the pool.
"""


class AsyncLoanBlock:
    """The block of ``async with pool.conn()`` and ``async with pool.transaction()``.

    It is the thread's block, entered with a connection that was awaited and left
    by a worker if that needs the network.
    """

    __slots__ = ("_block", "_conn", "_kind", "_pool", "_timeout")

    def __init__(self, pool: AsyncConnectionPool, kind: type[LoanBlock], timeout: Any) -> None:
        self._pool = pool
        self._conn: Connection = None
        self._kind = kind
        self._timeout = timeout

    async def __aenter__(self) -> Borrowed:
        self._conn = await self._pool.getconn(timeout=self._timeout)
        self._block = self._kind(self._pool.pool, None, self._conn)
        return self._block.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        conn, self._conn = self._conn, None
        end = functools.partial(self._block.__exit__, exc_type, exc, traceback)
        commits = exc is None and self._kind is TransactionBlock and is_in_transaction(conn)
        try:
            await self._pool._give_back(end, conn, False)
        except asyncio.CancelledError as cancelled:
            if not commits:
                raise
            raise cancelled from cancelled_commit()

    def drop(self) -> None:
        """Return the connection if that was not done, its loop having ended; in a worker."""
        self._block.drop()


def _same(name: str) -> Any:
    """Return a property that is the one of the pool below."""
    doc = getattr(ConnectionPool, name).__doc__
    return property(operator.attrgetter(f"pool.{name}"), doc=doc)


class AsyncConnectionPool:
    """A :class:`ConnectionPool` for asyncio.

    Takes the same arguments, ``timeout`` being 30 unless given.  It never blocks
    the event loop: waiting for a connection costs a future, and what the network
    is needed for runs in worker threads of its own, one for each connection that
    something is done with.  An idle connection that need not be tested is lent
    without leaving the loop's thread.

    One pool may serve several event loops, and threads by its attribute
    ``pool``.  A task that is cancelled anywhere loses nothing: what it was about
    to get goes to the next one.

    psycopg2's connections block.  Use :meth:`run` for work on one, or
    :meth:`run_on` inside a block; a statement run in another way stalls the
    loop, and ``asyncio.to_thread`` goes on using the connection after its task
    was cancelled and has returned it.

    With ``background_prewarm=False`` it is ``async with`` that opens ``minconn``
    connections, or raises.
    """

    #: The pool itself: for threads, and for what is not awaited.
    pool: ConnectionPool

    minconn: int = _same("minconn")
    maxconn: float = _same("maxconn")
    idle_timeout: float | None = _same("idle_timeout")
    lifetime_timeout: float | None = _same("lifetime_timeout")
    reap_idle_interval: float = _same("reap_idle_interval")
    test_on_borrow: Test = _same("test_on_borrow")
    hostname: str | None = _same("hostname")
    prewarmed: bool = _same("prewarmed")
    closed: bool = _same("closed")
    connections_in_use: weakref.WeakSet[Borrowed] = _same("connections_in_use")

    def __init__(
        self,
        *args: Any,
        timeout: float | None = 30,
        background_prewarm: bool = True,
        **kwargs: Any,
    ) -> None:
        self._opens_later = not checks.flag("background_prewarm", background_prewarm)
        kind = _UnopenedPool if self._opens_later else ConnectionPool
        arguments = HiddenDict(kwargs)
        del kwargs  # so that no traceback shows it
        self.pool = kind(*args, timeout=timeout, **arguments)
        most = functools.partial(_most_threads, self.pool)
        self._threads = Offload(most)
        self._other_threads = Offload(most)  # which is free when the first is not

    @property
    def name(self) -> str:
        """What the pool is called in errors and logs."""
        return self.pool.name

    @property
    def connect_kwargs(self) -> dict[str, Any]:
        """What is passed to :func:`psycopg2.connect`."""
        return self.pool.connect_kwargs

    @classmethod
    def from_env(cls, **overrides: Any) -> AsyncConnectionPool:
        """Make a pool from ``DATABASE_URL``, or else from libpq's ``PG*`` variables."""
        return cls(**from_environment(overrides))

    # -- borrowing and returning -------------------------------------------

    async def getconn(self, *, timeout: float | None = POOL_DEFAULT) -> Borrowed:
        """Borrow a connection; give it back with :meth:`putconn`.

        As :meth:`ConnectionPool.getconn`, and raises what that raises.
        """
        tests = self.pool.test_on_borrow is not False
        return await drive(self._lending(timeout, tests), self._threads, self._put_back)

    def _lending(self, timeout: float | None, needs_worker: bool) -> Steps[Connection]:
        return self.pool._lending(timeout, TaskBorrower(self._threads, needs_worker))

    def _put_back(self, conn: Connection) -> None:
        """Return a connection that its task does not want any more."""
        if self.pool._returns_at_once(conn):
            self.pool.putconn(conn)
        else:
            self._threads.submit(functools.partial(self.pool.putconn, conn))

    async def putconn(self, conn: Connection, close: bool = False) -> None:
        """Give a borrowed connection back; with ``close`` it is closed.

        As :meth:`ConnectionPool.putconn`.  Goes on by itself if the task is
        cancelled.
        """
        give_back = functools.partial(self.pool.putconn, conn, close=close)
        await self._give_back(give_back, conn, close)

    async def _give_back(self, act: Callable[[], T], conn: Connection, close: bool) -> T:
        """Do what returns a connection, in a worker if it may block."""
        if not close and self.pool._returns_at_once(conn):
            return act()
        _note_return(conn)
        return await self._threads.finish(functools.partial(self._end_by, act))

    def _end_by(self, act: Callable[[], T]) -> T:
        """End a worker's call by what returns its connection."""
        self._threads.about_to_end()
        return act()

    def conn(self, timeout: float | None = POOL_DEFAULT) -> AsyncLoanBlock:
        """Return an async context manager that borrows a connection and gives it back.

        Commits nothing; what is open at the end is rolled back.
        """
        return AsyncLoanBlock(self, LoanBlock, timeout)

    def transaction(self, timeout: float | None = POOL_DEFAULT) -> AsyncLoanBlock:
        """Return one like :meth:`conn` that commits, or rolls back on an exception.

        Raises :class:`CommitUncertain` if the answer to COMMIT is lost.  A task that
        is cancelled during the COMMIT does not learn whether it was done: the cause of
        its ``CancelledError`` is a :class:`CommitUncertain`.  The COMMIT itself goes on.
        """
        return AsyncLoanBlock(self, TransactionBlock, timeout)

    def detach(self, conn: Connection) -> Borrowed:
        """Take a borrowed connection out of the pool for good, and return it."""
        return self.pool.detach(conn)

    async def run(
        self,
        fn: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Borrow a connection, return what ``fn(conn, *args)`` returns in a worker, and commit.

        Rolls back if it raises, and if the task is cancelled before the COMMIT.
        Raises :class:`CommitUncertain` if the connection is lost during the COMMIT.
        """
        checks.function("fn", fn)
        return await self._work(_transact, fn, args, kwargs)

    def _work(self, act: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        """Borrow a connection, return what ``act(conn, *args)`` returns in a worker.

        The worker gives the connection back.  All that is one call of it, if there
        is nothing to wait for.
        """
        work = _Work(self, act, args)
        return drive(self._lending(POOL_DEFAULT, True), self._threads, self._put_back, work)

    async def run_on(
        self,
        conn: Connection,
        fn: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what ``fn(conn, *args)`` returns in a worker; ``conn`` is one in use by the task.

        If the task is cancelled meanwhile, the statement is cancelled too, and
        the connection will be closed when it is returned.
        """
        checks.function("fn", fn)
        if self.pool._desk.find_record(conn) is None:
            raise TypeError(f"conn must be a pool's connection, not a {type(conn).__name__}")
        return await self._hold(lambda hold: hold.use(conn, _plain_call, fn, args, kwargs))

    async def _hold(self, act: Callable[[_Hold], T]) -> T:
        """Have a worker call this; what it holds when the task is cancelled is interrupted."""
        hold = _Hold(self)
        context = contextvars.copy_context()
        call = self._threads.submit(lambda: context.run(act, hold))
        try:
            await finished(call)
        except BaseException:
            call.cancel()
            hold.give_up()
            raise
        try:
            return await outcome(call)
        finally:
            del call  # an error's traceback refers to this frame

    async def _end_on(self, conn: Connection, act: Callable[[], T], commits: bool = False) -> T:
        """Have a worker end a block on a connection in use by the task.

        If the task is cancelled meanwhile nothing can be done with the connection
        any more: its end may not have been reached.  The cause of the cancellation tells
        so if that is the end of a transaction.
        """
        commits = commits and is_in_transaction(conn)
        call = self._threads.submit(act)
        try:
            await finished(call)
        except BaseException as error:
            self._interrupt(_interruption(self.pool, conn))
            if commits and isinstance(error, asyncio.CancelledError):
                raise error from cancelled_commit()
            raise
        try:
            return await outcome(call)
        finally:
            del call  # an error's traceback refers to this frame

    def _interrupt(self, interruption: Callable[[], None] | None) -> None:
        if interruption is not None:
            self._other_threads.submit(interruption)

    # -- the whole pool ----------------------------------------------------

    async def wait(self, timeout: float = 30) -> None:
        """Wait until ``minconn`` are open, or raise :class:`PoolTimeout` after so many seconds."""
        await self._do(self.pool.wait, timeout)

    async def check(self) -> int:
        """Test every idle connection now, and discard the bad; return how many."""
        return await self._do(self.pool.check)

    async def reap_idle_connections(self) -> int:
        """See :meth:`ConnectionPool.reap_idle_connections`."""
        return await self._do(self.pool.reap_idle_connections)

    async def resize(self, minconn: int, maxconn: float) -> None:
        """See :meth:`ConnectionPool.resize`."""
        await self._do(self.pool.resize, minconn, maxconn)

    async def discard_all_idle(self) -> None:
        """See :meth:`ConnectionPool.discard_all_idle`."""
        await self._do(self.pool.discard_all_idle)

    clear = discard_all_idle

    async def drain(self) -> None:
        """See :meth:`ConnectionPool.drain`."""
        await self._do(self.pool.drain)

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close the pool; see :meth:`ConnectionPool.shutdown`."""
        await self._do(self.pool.shutdown, timeout)

    close = shutdown
    closeall = shutdown

    async def _do(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._other_threads.finish(functools.partial(act, *args, **kwargs))

    async def __aenter__(self) -> AsyncConnectionPool:
        if self._opens_later:
            try:
                await self._do(ConnectionPool._open, self.pool, False)
            except BaseException:  # a cancelled one is not entered, so nobody would close it
                self._other_threads.submit(self.pool.shutdown)
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    # -- what it tells -----------------------------------------------------

    def stats(self) -> PoolStats:
        """Return how many are in use and how many are idle."""
        return self.pool.stats()

    def get_stats(self) -> dict[str, Any]:
        """See :meth:`ConnectionPool.get_stats`."""
        return self.pool.get_stats()

    def pop_stats(self) -> dict[str, Any]:
        """See :meth:`ConnectionPool.pop_stats`."""
        return self.pool.pop_stats()

    def endpoints(self) -> list[EndpointStats]:
        """Return what is known of the places that the pool connects to."""
        return self.pool.endpoints()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pool._report.describe()}>"


class _UnopenedPool(ConnectionPool):
    """A pool that begins when it is entered, or with the first borrow."""

    def _open(self, in_background: bool) -> None:
        pass


class _Hold:
    """The connection on which a worker is doing something for a task.

    1. The worker notes the connection under the lock, unless the task has given
       up already: then it does nothing.
    2. When it has done what there is to do it forgets the connection under the
       lock, *then* anybody may return it.
    3. A task that gives up marks the connection under the lock, to be closed, and
       only while it is noted.  So it never marks one that is another borrower's.
    """

    __slots__ = ("_conn", "_given_up", "_lock", "_pool")

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._conn: Connection | None = None
        self._given_up = False

    def use(self, conn: Connection, act: Callable[..., T], *args: Any) -> T:
        """Return ``act(conn, *args)``; to be called by the worker."""
        with self._lock:
            if self._given_up:
                raise asyncio.CancelledError
            self._conn = conn
        try:
            return act(conn, *args)
        finally:
            with self._lock:
                self._conn = None

    def give_up(self) -> None:
        """Have the connection closed, and what the worker does with it ended; by the task."""
        with self._lock:
            self._given_up, conn = True, self._conn
            interruption = None if conn is None else _interruption(self._pool.pool, conn)
        self._pool._interrupt(interruption)


class _Work(_Hold, Generic[T]):
    """What a worker does on a connection that was borrowed for a task, and returns."""

    __slots__ = ("_act", "_args", "_context")

    def __init__(
        self, pool: AsyncConnectionPool, act: Callable[..., T], args: tuple[Any, ...]
    ) -> None:
        super().__init__(pool)
        self._act = act
        self._args = args
        self._context = contextvars.copy_context()

    def __call__(self, conn: Connection) -> T:
        with LoanBlock(self._pool.pool, None, conn):
            try:
                return self._context.run(self.use, conn, self._act, *self._args)
            finally:
                self._pool._threads.about_to_end()


def is_in_transaction(conn: Connection) -> bool:
    """Tell whether there is something to commit."""
    status = getattr(conn, "get_transaction_status", lambda: None)()
    return bool(status == ext.TRANSACTION_STATUS_INTRANS)


def cancelled_commit() -> CommitUncertain:
    """Return the cause of a cancellation that came while a worker was committing."""
    return CommitUncertain("the task was cancelled during COMMIT, which may have been done or not")


def _note_return(conn: Connection) -> None:
    """Note for the debug mode where a task returns what a worker will take back."""
    loan = getattr(getattr(conn, "pool_record", None), "loan", None)
    if loan is not None:
        loan.returned = call_site()


def _transact(
    conn: Connection, fn: Callable[..., T], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> T:
    with Transaction(conn):
        return _plain(fn(conn, *args, **kwargs))


def _plain_call(
    conn: Connection, fn: Callable[..., T], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> T:
    return _plain(fn(conn, *args, **kwargs))


def _plain(result: T) -> T:
    """Return what a function returned in a worker, unless that is to be awaited."""
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("fn must be a plain function: a worker calls it, and cannot await it")
    return result


def _most_threads(pool: ConnectionPool) -> int:
    return int(min(pool.maxconn, sys.maxsize)) + SPARE_THREADS


def _interruption(pool: ConnectionPool, conn: Connection) -> Callable[[], None] | None:
    """Have a connection closed when it comes back; return what ends that which it is doing."""
    record = pool._desk.find_record(conn)
    if record is None:
        return None  # it came back meanwhile
    record.retired = record.attention = True
    conn = record.item()
    try:
        # A copy, since later its descriptor may be another connection's.
        twin = twin_of(conn)
    except (psycopg2.Error, OSError):
        return None  # it is closed
    return functools.partial(pool._interrupt, conn, twin)
