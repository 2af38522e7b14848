"""An SQLAlchemy engine that borrows its connections from a pool.

Needs SQLAlchemy 2.0 or newer: ``pip install 'psycopg2_pool2[sqlalchemy]'``.
"""

from __future__ import annotations

import weakref
from operator import attrgetter
from typing import Any

import psycopg2
import sqlalchemy
from sqlalchemy import event, exc
from sqlalchemy.engine import Engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord

from ..connector import ACTIVE, UNKNOWN, Connection, restore_casters
from ..errors import PoolDeadlock, PoolError, PoolExhausted, PoolTimeout, TooManyRequests
from ..handles import unwrapped
from ..pool import ConnectionPool

_URL = "postgresql+psycopg2://"
# In the order of the pool's own baseline; the encoding comes after them.
_SETTINGS = ("autocommit", "isolation_level", "readonly", "deferrable", "cursor_factory")
_settings = attrgetter(*_SETTINGS)
# To SQLAlchemy, all these are time-outs of its pool.
_NONE_TO_BE_HAD = (PoolDeadlock, PoolExhausted, PoolTimeout, TooManyRequests)
_OPTIONS_OF_THE_POOL = {
    "connect_args": "psycopg2's keywords",
    "max_overflow": "maxconn",
    "pool_pre_ping": "test_on_borrow",
    "pool_recycle": "lifetime_timeout",
    "pool_size": "maxconn",
    "pool_timeout": "timeout",
    "pool_use_lifo": "idle_timeout",
}


def create_engine(pool: ConnectionPool, **engine_options: Any) -> Engine:
    """Make an SQLAlchemy engine that borrows its connections from a pool.

    ``engine_options`` are those of :func:`sqlalchemy.create_engine` that do not
    say how connections are made or kept: that is the pool's business.  Several
    engines may use one pool, beside other borrowers: what an engine registers or
    sets on a connection (``json_deserializer``, ``use_native_hstore``,
    ``client_encoding``) holds in its own loans.  An engine's ``client_encoding``, if
    it differs from the pool's, costs two round trips for each loan; the pool's
    own costs nothing.  The pool is yours:
    ``engine.dispose()`` has its connections replaced as
    :meth:`psycopg2_pool2.ConnectionPool.drain` does, and nothing but you closes it.

    When all connections are in use for too long, the engine raises
    :class:`sqlalchemy.exc.TimeoutError`, and when none could be opened meanwhile,
    :class:`sqlalchemy.exc.OperationalError`.  What else the pool raises is wrapped
    as psycopg2's errors are.

    Raises :class:`TypeError` for an option that is the pool's, or unknown.
    """
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"pool must be a ConnectionPool, not {type(pool).__name__}")
    for name in engine_options:
        if name in _OPTIONS_OF_THE_POOL:
            ours = _OPTIONS_OF_THE_POOL[name]
            raise TypeError(f"{name} is not an option of this engine: give {ours} to the pool")
    return sqlalchemy.create_engine(_URL, poolclass=EnginePool, creator=pool, **engine_options)


class EnginePool(Pool):
    """What an engine has for its pool: borrows from another pool, keeps nothing itself.

    For those who cannot call :func:`create_engine`: :func:`sqlalchemy.create_engine`
    takes this class as ``poolclass``, and as ``creator`` the pool to borrow from.
    ``options`` are those of :class:`sqlalchemy.pool.Pool`.
    """

    # Loggers below "sqlalchemy" are what ``echo_pool`` shows.
    _sqla_logger_namespace = "sqlalchemy.pool.EnginePool"

    def __init__(self, creator: ConnectionPool, **options: Any) -> None:
        super().__init__(self._hand_over, **options)
        self._lender = creator
        # Of connections that are not borrowed from here at the moment.
        self._records: weakref.WeakKeyDictionary[Connection, _Record] = weakref.WeakKeyDictionary()
        event.listen(self, "detach", self._detach)

    # -- what SQLAlchemy's pools do ----------------------------------------

    def status(self) -> str:
        """Return the pool's counts."""
        return repr(self._lender)

    def dispose(self) -> None:
        """Have idle connections closed, and those in use when they come back."""
        self._lender.drain()

    def recreate(self) -> EnginePool:
        """Return this: it is as good as new after :meth:`dispose`."""
        return self

    def _do_get(self) -> ConnectionPoolEntry:
        conn = self._borrow()
        record = self._records.pop(conn, None)
        if record is None:
            return _Record(self, conn)
        record.dbapi_connection = conn
        return record

    def _do_return_conn(self, record: Any) -> None:
        conn, is_stale = record.dbapi_connection, record._is_hard_or_soft_invalidated()
        if conn is not None:  # else it was invalidated, or detached
            record.dbapi_connection = None
            self._records[conn] = record
            if getattr(conn, "pool_casters", None):
                restore_casters(conn)  # here, so that the pool has nothing to clean
            self._lender.putconn(conn, close=is_stale)

    def _close_connection(self, connection: Connection, *, terminate: bool = False) -> None:
        """Have the pool discard a connection, or close one that was detached."""
        try:
            # One that is lost or busy it discards by itself; it knows how.
            self._lender.putconn(connection, close=not _is_in_doubt(connection))
        except PoolError:
            super()._close_connection(connection, terminate=terminate)

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """Discard a connection, and see to those that may be no better.

        Where it is lost the pool knows what to do, and doubts the others by
        itself.  Else it is a handler of the program that says so, for reasons
        that no test of the pool's would find.
        """
        conn = connection.dbapi_connection
        if conn is None:
            return  # another thread has given it up meanwhile
        if not _checkin or not _is_in_doubt(conn):
            self._lender.drain()
        if _checkin:
            connection.invalidate(exception)

    # -- helpers -----------------------------------------------------------

    def _borrow(self) -> Connection:
        try:
            return unwrapped(self._lender.getconn())  # what SQLAlchemy lends is a loan's own object
        except _NONE_TO_BE_HAD as error:
            if isinstance(error.__cause__, psycopg2.OperationalError):
                # The server is to blame: SQLAlchemy wraps this as it does when it connects itself.
                raise psycopg2.OperationalError(str(error)) from error
            raise exc.TimeoutError(str(error)) from error

    def _hand_over(self, rec: Any) -> Connection:
        """Return the connection of a record that has none; the ``connect`` handlers run next.

        It is the one that the record was made for.  When a ``checkout`` handler
        has refused that, SQLAlchemy asks for another one, and what the handlers
        have seen before is closed until one comes that they have not.
        """
        conn, rec.borrowed = rec.borrowed, None
        if conn is not None:
            return conn
        while (conn := self._borrow()) in self._records:
            self._lender.putconn(conn, close=True)
        return conn

    def _detach(self, conn: Connection, record: ConnectionPoolEntry) -> None:
        self._lender.detach(conn)


class _Record(_ConnectionRecord):
    """What SQLAlchemy keeps of one connection, for as long as that is open.

    While the connection is not borrowed, the record does not refer to it.
    """

    def __init__(self, pool: EnginePool, conn: Connection) -> None:
        super().__init__(pool, connect=False)
        self.borrowed = conn
        self._settings: dict[str, Any] = {}
        self._casters: dict[int, Any] = {}
        self._encoding: str | None = None

    def get_connection(self) -> Any:
        """Return the connection, with what the ``connect`` handlers set and registered.

        The pool puts its own back on every return.
        """
        is_new = self.dbapi_connection is None
        conn: Any = super().get_connection()
        if is_new:
            self._remember(conn)
        else:
            self._apply(conn)
        return conn

    def _remember(self, conn: Any) -> None:
        *before, encoding = conn.pool_baseline
        made = zip(_SETTINGS, before, _settings(conn), strict=True)
        self._settings = {name: value for name, before, value in made if value != before}
        configured = conn.pool_configured_casters or {}
        casters = (conn.pool_casters or {}).items()
        # By identity: casters of the same types are equal.
        self._casters = {oid: made for oid, made in casters if made is not configured.get(oid)}
        self._encoding = None if conn.encoding == encoding else conn.encoding

    def _apply(self, conn: Any) -> None:
        if self._encoding is not None:
            conn.set_client_encoding(self._encoding)
        for name, value in self._settings.items():
            setattr(conn, name, value)
        if self._casters:
            conn.pool_casters.update(self._casters)


def _is_in_doubt(conn: Connection) -> bool:
    """Tell whether a connection is lost, or in the middle of something."""
    return conn.get_transaction_status() in (ACTIVE, UNKNOWN)
