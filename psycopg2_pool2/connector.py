"""Open, test, tidy and close connections: the only caller of driver methods.

Nothing here takes a lock or knows a pool; everything here may block for as long
as the network lets it, which is why the pool guards and never locks around it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import weakref
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Literal

import psycopg2
from psycopg2 import extensions as ext

from .connection import Messages, pooled_factory, really_close
from .failures import censored

Connection = Any  # a psycopg2 connection of the class that pooled_factory makes
Test = bool | Callable[[Connection], object]
Reset = Literal["session"] | Callable[[Connection], object] | None

IDLE = ext.TRANSACTION_STATUS_IDLE
ACTIVE = ext.TRANSACTION_STATUS_ACTIVE
INERROR = ext.TRANSACTION_STATUS_INERROR

DEFAULTS: Mapping[str, object] = {
    # Seconds for each address; libpq waits for ever.
    "connect_timeout": 5,
    # Notice within a minute that the peer of an idle connection has gone; Linux
    # waits for two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    # Milliseconds.  While a statement is unacknowledged keepalives do not run,
    # and without this it hangs for a quarter of an hour in a black hole.
    "tcp_user_timeout": 30_000,
}
"""libpq settings added where the program is silent; none needs support from the server."""

_settings = attrgetter("autocommit", "isolation_level", "readonly", "deferrable", "cursor_factory")
# psycopg2's own setters, which the pool is not told of.
_set_autocommit = ext.connection.autocommit.__set__  # type: ignore[attr-defined]
_set_cursor_factory = ext.connection.cursor_factory.__set__  # type: ignore[attr-defined]
_set_notices = ext.connection.notices.__set__  # type: ignore[attr-defined]
_set_notifies = ext.connection.notifies.__set__  # type: ignore[attr-defined]
_set_session = ext.connection.set_session
_DEFAULTS: Any = ("DEFAULT", "DEFAULT", "DEFAULT")
# A NOTIFY is one message; so many at once mean that somebody keeps sending them.
_MOST_POLLS = 1000


class Connector:
    """How this pool's connections are made and kept good.

    ``connect_kwargs`` are psycopg2.connect's.  Raises at once what libpq or
    psycopg2 cannot read: :class:`psycopg2.ProgrammingError` or TypeError.
    """

    def __init__(
        self,
        connect_kwargs: Mapping[str, Any],
        *,
        connect_params: Callable[[], Mapping[str, Any]] | None,
        configure: Callable[[Connection], object] | None,
        test: Test,
        reset: Reset,
        home: weakref.ref[Any] | None,
    ) -> None:
        self._connect_kwargs = dict(connect_kwargs)
        self._connect_params = connect_params
        self._configure = configure
        self._home = home  # the pool, where the connections' close() gives them back
        self.test_on_borrow = test
        self.reset = reset
        factory = self._connect_kwargs.pop("connection_factory", None)
        if factory is not None and not callable(factory):
            raise TypeError(f"connection_factory must be callable, not a {type(factory).__name__}")
        cursor_factory = self._connect_kwargs.get("cursor_factory")
        if cursor_factory is not None and not callable(cursor_factory):
            raise TypeError(
                f"cursor_factory must be callable, not a {type(cursor_factory).__name__}"
            )
        for name in ("async", "async_"):
            if self._connect_kwargs.get(name):
                raise ValueError(f"{name} connections cannot be pooled")
        self._factory = pooled_factory(factory, home is not None)
        self.parameters = self._parse(self._connect_kwargs)

    # -- opening -----------------------------------------------------------

    def open(self, seconds: float | None = None) -> Connection:
        """Return a new connection, configured and outside any transaction.

        Blocks for at most ``connect_timeout``, or ``seconds`` if that is less,
        for each address, and for as long as ``connect_params`` and
        ``configure`` take.  Raises what they or psycopg2 raise, without passwords.
        """
        kwargs = dict(self._connect_kwargs)
        if self._connect_params is not None:
            kwargs.update(self._connect_params())
        parameters = self._parse(kwargs)
        kwargs |= {
            name: value
            for name, value in DEFAULTS.items()
            if name not in parameters and not _in_environment(name)
        }
        if seconds is not None:
            kwargs["connect_timeout"] = _shorter(kwargs.get("connect_timeout"), seconds)
        try:
            conn = psycopg2.connect(connection_factory=self._factory, **kwargs)
        except psycopg2.Error as error:
            raise censored(error, _secrets(parameters)) from None
        try:
            self.prepare(conn)
        except BaseException:
            self.close(conn)
            raise
        return conn

    def prepare(self, conn: Connection) -> None:
        """Run ``configure``, commit what it left open, and remember the settings it made."""
        if self._configure is not None:
            self._configure(conn)
            status = conn.get_transaction_status()
            if conn.closed:
                raise psycopg2.OperationalError("the connection was lost in configure")
            if status == INERROR:
                raise psycopg2.ProgrammingError("configure left a failed transaction behind")
            if status != IDLE:
                _end_transaction(conn, "commit")
        if not isinstance(conn.notices, list):
            raise TypeError("configure must leave conn.notices a list")
        _forget_messages(conn)
        conn.pool_baseline = _settings(conn)
        conn.pool_home = self._home

    def _parse(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return libpq's parameters as dsn and keywords give them."""
        own = {"dsn", "connection_factory", "cursor_factory", "async", "async_"}
        dsn = kwargs.get("dsn") or ""
        if not isinstance(dsn, (str, bytes)):
            raise TypeError(f"dsn must be a str, not {type(dsn).__name__}")
        keywords = {k: v for k, v in kwargs.items() if k not in own and v is not None}
        if "database" in keywords:
            keywords.setdefault("dbname", keywords.pop("database"))
        try:
            return dict(ext.parse_dsn(ext.make_dsn(dsn, **keywords)))
        except psycopg2.ProgrammingError as error:
            raise psycopg2.ProgrammingError(_without_quotes(str(error), keywords)) from None

    def is_busy(self, conn: Connection) -> bool:
        """Tell whether a statement may still be running."""
        return not conn.closed and bool(conn.get_transaction_status() == ACTIVE)

    # -- testing -----------------------------------------------------------

    def probe(self, conn: Connection) -> bool:
        """Tell without a round trip whether an idle connection may still be alive.

        Its socket is readable when the server has said something: farewell, or
        a notification of a LISTEN that a borrower left behind.  libpq takes the
        farewell for a notice and fails only at the end of the stream, which may
        come a moment later; so a notice is enough, as idle sessions get no others.
        """
        if conn.closed:
            return False
        try:
            for _ in range(_MOST_POLLS):
                if not _readable(conn.fileno()):
                    return bool(conn.get_transaction_status() == IDLE)
                conn.poll()
                if conn.notices:
                    return False
                _set_notifies(conn, Messages(conn))
        except (psycopg2.Error, OSError, ValueError):
            return False
        return True

    def test(self, conn: Connection) -> None:
        """Ask the server one question; raise if the connection is no good.

        ``SELECT 1`` in one round trip, or the user's callable.
        """
        if callable(self.test_on_borrow):
            self.test_on_borrow(conn)
            if conn.get_transaction_status() != IDLE:
                _end_transaction(conn, "rollback")
        else:
            _execute_alone(conn, "SELECT 1")

    # -- after a loan ------------------------------------------------------

    def tidy(self, conn: Connection) -> bool:
        """Bring an idle or aborted session back to what it was after ``configure``.

        Returns False if the connection must be closed instead: lost, or in the
        middle of something.  Costs a ROLLBACK if a transaction is open and
        nothing else, unless ``reset`` asks for more.  What ``reset`` raises is
        raised.
        """
        status = conn.get_transaction_status()
        if conn.closed or status in (ext.TRANSACTION_STATUS_UNKNOWN, ACTIVE):
            return False
        if status != IDLE or conn.status != ext.STATUS_READY:
            _end_transaction(conn, "rollback")
        if _settings(conn) != conn.pool_baseline:
            _restore_settings(conn)
        if callable(self.reset):
            self.reset(conn)
            if conn.get_transaction_status() != IDLE:
                _end_transaction(conn, "rollback")
            if _settings(conn) != conn.pool_baseline:
                _restore_settings(conn)
        elif self.reset == "session":
            self._discard_session_state(conn)
        _forget_messages(conn)
        return bool(conn.get_transaction_status() == IDLE)

    def _discard_session_state(self, conn: Connection) -> None:
        _execute_alone(conn, "DISCARD ALL")
        # psycopg2 reads dates in this style only, and set it when it connected.
        if not (conn.get_parameter_status("DateStyle") or "ISO").startswith("ISO"):
            _execute_alone(conn, "SET datestyle TO 'ISO'")
        if self._configure is not None:
            self.prepare(conn)

    # -- closing -----------------------------------------------------------

    def close(self, conn: Connection) -> None:
        """Close the socket; never blocks on the network and never raises an ordinary error."""
        with contextlib.suppress(Exception):
            really_close(conn)

    def abort(self, conn: Connection) -> None:
        """Close a connection that may be in the middle of something.

        The server is asked to stop what it does, since it would not notice the
        closed socket before it has finished.  May block.
        """
        with contextlib.suppress(Exception):
            conn.cancel()
        with contextlib.suppress(Exception):
            shut_down(conn.fileno())  # releases a thread that still waits for an answer
        self.close(conn)


def shut_down(fd: int) -> None:
    """Shut a socket down under whoever is blocked on it, which then fails at once."""
    import socket  # for this alone

    with socket.socket(fileno=os.dup(fd)) as twin:
        twin.shutdown(socket.SHUT_RDWR)


def _execute(conn: Connection, sql: str) -> None:
    # psycopg2's own class: the user's may log, count or fetch.
    with ext.cursor(conn) as cursor:
        cursor.execute(sql)


def _execute_alone(conn: Connection, sql: str) -> None:
    """Execute a statement without a BEGIN before it, in one round trip.

    Outside autocommit the session's characteristics are kept by psycopg2 alone.
    Leaving autocommit it would reset those that are set with a statement each,
    so they are put aside meanwhile.
    """
    if conn.autocommit:
        _execute(conn, sql)
        return
    _, *characteristics, _ = _settings(conn)
    aside = characteristics != [None, None, None]
    if aside:
        _set_session(conn, *_DEFAULTS)
    _set_autocommit(conn, True)
    try:
        _execute(conn, sql)
    finally:
        if not conn.closed:
            _set_autocommit(conn, False)
            if aside:
                _set_characteristics(conn, *characteristics)


def _set_characteristics(conn: Connection, isolation: Any, readonly: Any, deferrable: Any) -> None:
    _set_session(
        conn,
        isolation if isolation is not None else _DEFAULTS[0],
        readonly if readonly is not None else _DEFAULTS[1],
        deferrable if deferrable is not None else _DEFAULTS[2],
    )


def _restore_settings(conn: Connection) -> None:
    """Put back what the borrower changed on the client's side.

    The order matters.  psycopg2 sends a SET for a characteristic only while it
    is in autocommit and only when its own copy changes; so the copies are
    cleared first, or a copy that happens to be right would hide a session that
    is not.
    """
    autocommit, isolation, readonly, deferrable, cursor_factory = conn.pool_baseline
    if not conn.autocommit:
        _set_session(conn, *_DEFAULTS)
    _set_autocommit(conn, autocommit)
    _set_characteristics(conn, isolation, readonly, deferrable)
    _set_cursor_factory(conn, cursor_factory)


def _forget_messages(conn: Connection) -> None:
    # New lists: the borrower may have kept the old ones to read them.
    _set_notices(conn, Messages(conn))
    _set_notifies(conn, Messages(conn))


def _end_transaction(conn: Connection, how: Literal["commit", "rollback"]) -> None:
    """End the transaction, one that psycopg2 does not know of too."""
    getattr(ext.connection, how)(conn)
    if conn.get_transaction_status() != IDLE:
        # Begun by an explicit BEGIN under autocommit, where psycopg2's commit
        # and rollback do nothing.
        _execute(conn, how.upper())


def _readable(fd: int) -> bool:
    if hasattr(select, "poll"):
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))
    return bool(select.select([fd], [], [], 0)[0])


def _shorter(connect_timeout: Any, seconds: float) -> Any:
    """Return the shorter of libpq's ``connect_timeout`` and ``seconds``, in whole seconds."""
    most = max(1, math.ceil(seconds))
    try:
        given = int(connect_timeout)
    except (TypeError, ValueError):  # unset or unreadable, which libpq tells better
        return most if connect_timeout is None else connect_timeout
    return most if given <= 0 else min(given, most)  # zero is for ever


def _in_environment(name: str) -> bool:
    # The only one of DEFAULTS that libpq reads from there.
    return name == "connect_timeout" and bool(os.environ.get("PGCONNECT_TIMEOUT"))


def _secrets(parameters: Mapping[str, Any]) -> list[str]:
    secrets = [parameters.get("password"), parameters.get("sslpassword")]
    return [str(secret) for secret in secrets if secret]


def _without_quotes(message: str, keywords: Mapping[str, Any]) -> str:
    """Blank what libpq quotes from a dsn it cannot read: it may be a password."""

    def blank(match: re.Match[str]) -> str:
        return match.group() if match.group(1) in keywords else '"…"'

    told = re.sub(r'"([^"]*)"', blank, message.strip())
    return told.replace('missing "…" after', "missing = after")
