"""Open, test, tidy and close connections: the only caller of driver methods.

Nothing here takes a lock or knows a pool; everything here may block for as long
as the network lets it, which is why the pool guards and never locks around it.
"""

from __future__ import annotations

import functools
import math
import re
import select
import weakref
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import psycopg2
from psycopg2 import extensions as ext

from . import cursors
from .arguments import ConnectArguments
from .cancelling import cancel_request
from .connection import Messages, Tracked, inner_connection, pooled_factory, really_close
from .descriptors import identity, limit, none_left
from .failure_kinds import FailureKind, never_connected, recognise
from .failures import WrongRoleError, call_back, mark
from .forks import gate
from .hidden import clear_driver_frames
from .interruptions import let_through, suppress
from .log import logger
from .proxies import LentProxy, StandIn, connect_is_mock
from .session_reset import SessionReset
from .sockets import shut_down
from .targets import DEFAULT_PORT, effective
from .timing import monotonic
from .waits import Limit, ask_to_stop, keeps_limits, may_close

if TYPE_CHECKING:
    import socket

Connection = Any  # a psycopg2 connection of the class that pooled_factory makes
Borrowed = ext.connection
"""What a borrower gets, to type checkers; it may be of the program's class, or a tracer's proxy."""

Test = bool | Callable[[Connection], object]
Reset = Literal["session"] | Callable[[Connection], object] | None

IDLE = ext.TRANSACTION_STATUS_IDLE
ACTIVE = ext.TRANSACTION_STATUS_ACTIVE
UNKNOWN = ext.TRANSACTION_STATUS_UNKNOWN
INERROR = ext.TRANSACTION_STATUS_INERROR

DEFAULTS: Mapping[str, int] = {
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

_settings = attrgetter(
    "autocommit", "isolation_level", "readonly", "deferrable", "cursor_factory", "encoding"
)
# psycopg2's own setters, which the pool is not told of.
_set_autocommit = ext.connection.autocommit.__set__  # type: ignore[attr-defined]
_set_cursor_factory = ext.connection.cursor_factory.__set__  # type: ignore[attr-defined]
_set_notices = ext.connection.notices.__set__  # type: ignore[attr-defined]
_set_notifies = ext.connection.notifies.__set__  # type: ignore[attr-defined]
_set_session = ext.connection.set_session
_DEFAULTS: Any = ("DEFAULT", "DEFAULT", "DEFAULT")
_UNSET = [None, None, None]
_NOWHERE: Mapping[str, Any] = {}
# How libpq tells from in_hot_standby and default_transaction_read_only that a server
# is in the wrong role for each of its target_session_attrs.
_ROLES: Mapping[str, Callable[[str, str], bool]] = {
    "primary": lambda standby, read_only: standby == "on",
    "read-write": lambda standby, read_only: "on" in (standby, read_only),
    "standby": lambda standby, read_only: standby == "off",
    "read-only": lambda standby, read_only: standby == read_only == "off",
}
# What libpq (13 and newer) says of a key that it cannot decrypt, among others.  Without
# ``sslpassword`` OpenSSL has asked for the pass phrase at the terminal: once is enough.  Any
# pass phrase keeps it from that, and matters to no key that needs none.
_KEY_UNREADABLE = "could not load private key file"
_ANY_PASS_PHRASE = "none"
# A NOTIFY is one message; so many at once mean that somebody keeps sending them.
_MOST_POLLS = 1000


class Connector:
    """How this pool's connections are made and kept good.

    ``connect_kwargs`` are psycopg2.connect's.  ``on_proxy`` is called, maybe
    repeatedly, before the first connection is returned that has to be lent by
    its ``pool_proxy``.

    Raises at once what libpq or psycopg2 cannot read:
    :class:`psycopg2.ProgrammingError` or TypeError.
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
        on_proxy: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_proxy = on_proxy
        self._meets_proxies = False
        self._untold = [True]  # until it is logged that connections are none of ours
        self._arguments = ConnectArguments(connect_kwargs, connect_params)
        self._configure = configure
        self._home = home  # the pool, where the connections' close() gives them back
        self.test_on_borrow = test
        self.reset = reset
        self._session_reset = SessionReset()
        self._factory = pooled_factory(self._arguments.connection_factory, home is not None)
        self.parameters = self._arguments.parameters
        self.tell = self._arguments.tell
        self.user_timeout = self._user_timeout()
        self._session_attrs = self._arguments.effective("target_session_attrs") or "any"
        self._has_asked_terminal = False  # for a pass phrase, perhaps

    # -- opening -----------------------------------------------------------

    def _user_timeout(self) -> int:
        """Return ``tcp_user_timeout`` in milliseconds, 0 if the kernel's own limit is wanted."""
        given = self._arguments.effective("tcp_user_timeout")
        try:
            return int(given) if given else int(DEFAULTS["tcp_user_timeout"])
        except ValueError:
            return 0  # which libpq tells better

    def open(self, where: Mapping[str, Any] = _NOWHERE, seconds: float | None = None) -> Connection:
        """Return a new connection, which is to be prepared.

        ``where`` are keywords that say where to, beside the pool's own; what
        ``connect_params`` returns goes before both.  Blocks for at most
        ``connect_timeout``, or ``seconds`` if that is less, and for as long as
        ``connect_params`` takes.  Raises what that or psycopg2 raises, without
        passwords.
        """
        kwargs, parameters = self._arguments.merged(where)
        # An empty one (PGCONNECT_TIMEOUT= in the environment) is none, and libpq refuses it.
        kwargs |= self._additions(parameters)
        given = kwargs.get("connect_timeout", effective(parameters, "connect_timeout"))
        if seconds is not None:
            kwargs["connect_timeout"] = _shorter(given, seconds)
        keeps_limits()
        connecting = gate.enter()  # what is interrupted here holds up no fork for long
        limit = Limit(_deadline(given, seconds))
        factory = _OneConnect(self._factory)
        returned = failure = None
        try:
            returned = psycopg2.connect(connection_factory=factory, **kwargs)
        except psycopg2.Error as error:
            failure = self._failure(error, parameters)
        except UnicodeDecodeError as error:
            failure = self._arguments.censored(_readable_error(error))
        except BaseException as error:
            clear_driver_frames(error)
            if isinstance(error, TypeError):  # of the connection_factory, or of the arguments
                mark(error, FailureKind.MISTAKE)
            raise
        finally:
            limit.end()
            gate.leave(connecting)
            conn = factory.finish(failed=returned is None)
        if failure is not None:
            try:
                raise failure  # outside of its handler: the error itself would be its context
            finally:
                del failure  # its traceback refers to this frame
        return self._adopt(conn, returned)

    def _adopt(self, conn: Connection | None, returned: Any) -> Connection:
        """Return the connection that was made, ready to be lent as what the driver returned."""
        if conn is None and issubclass(type(returned), Tracked):
            conn = returned
        if conn is None:
            return self._stand_in(returned)
        conn.pool_socket = identity(conn.fileno())
        conn.pool_cancel_request = cancel_request(conn)
        if conn is not returned:
            conn.pool_proxy = LentProxy(returned, _wrapped_again)
            self._note_proxy()
        return conn

    def _failure(self, error: psycopg2.Error, parameters: Mapping[str, str]) -> psycopg2.Error:
        """Return libpq's error as it is told, with what it means where its text does not say."""
        failure = self._arguments.censored(error)
        self._has_asked_terminal |= _KEY_UNREADABLE in str(failure)
        shortage = _shortage(failure)
        if shortage is not None:
            return shortage
        if _was_never_sent(error, parameters):
            mark(failure, FailureKind.MISTAKE)
        return failure

    def _additions(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return what is added where the program is silent."""
        added: dict[str, Any] = {
            name: value for name, value in DEFAULTS.items() if not effective(parameters, name)
        }
        if self._has_asked_terminal and not effective(parameters, "sslpassword"):
            added["sslpassword"] = _ANY_PASS_PHRASE
        return added

    def _stand_in(self, foreign: Any) -> StandIn:
        try:
            stand_in = StandIn(foreign)
        except TypeError as error:
            mark(error, FailureKind.MISTAKE)
            raise
        if self._is_first_stand_in() and not connect_is_mock():
            logger.warning(
                "psycopg2.connect was replaced and returned a %s without a connection of the pool"
                " inside: it is lent, but neither tested nor reset",
                type(foreign).__name__,
            )
        self._note_proxy()
        return stand_in

    def _is_first_stand_in(self) -> bool:
        try:
            self._untold.pop()  # one thread gets it
        except IndexError:
            return False
        return True

    def _note_proxy(self) -> None:
        if not self._meets_proxies:
            self._on_proxy()
            self._meets_proxies = True  # after it: another thread must not return before

    def prepare(self, conn: Connection) -> None:
        """Run ``configure``, commit what it left open, and remember the settings it made."""
        if isinstance(conn, StandIn):
            conn.prepare(self._configure)
            return
        if self._configure is not None:
            _call_back(self._configure, conn)
            if conn.is_inherited():
                raise psycopg2.OperationalError("the process was forked in configure")
            status = conn.get_transaction_status()
            if conn.closed:
                raise psycopg2.OperationalError("the connection was lost in configure")
            if status == INERROR:
                raise _configure_failed("it left a failed transaction behind")
            if status != IDLE:
                _end_transaction(conn, "commit")
        if not isinstance(conn.notices, list):
            raise _configure_failed("it must leave conn.notices a list")
        _forget_messages(conn)
        conn.pool_baseline = _settings(conn)
        conn.pool_casters = conn.string_types  # the connection's own, not a copy
        conn.pool_configured_casters = dict(conn.string_types)
        conn.pool_configured_ids = [*map(id, conn.pool_configured_casters.values())]
        conn.pool_home = self._home

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
        if isinstance(conn, StandIn):
            return True
        try:
            for _ in range(_MOST_POLLS):
                if not _readable(conn.fileno()):
                    return bool(conn.get_transaction_status() == IDLE)
                conn.poll()
                if conn.notices:
                    return False
                _set_notifies(conn, Messages(conn))
        except (psycopg2.Error, OSError, ValueError) as error:
            let_through(error)
            return False
        return True

    def test(self, conn: Connection) -> None:
        """Ask the server one question; raise if the connection is no good.

        ``SELECT 1`` in one round trip, or the user's callable.
        """
        if isinstance(conn, StandIn):
            conn.validate(self.test_on_borrow)
            return
        if callable(self.test_on_borrow):
            _call_back(self.test_on_borrow, conn)
            if conn.get_transaction_status() != IDLE:
                _end_transaction(conn, "rollback")
        else:
            _execute_alone(conn, "SELECT 1")
        if self._session_attrs in _ROLES and self.has_lost_role(conn):
            raise WrongRoleError(f"the server is no longer {self._session_attrs}")

    def has_lost_role(self, conn: Connection) -> bool:
        """Tell whether its server is not in the role any more that the pool is for.

        As the last answer said; servers before PostgreSQL 14 do not say.
        """
        if self._session_attrs not in _ROLES or conn.closed or isinstance(conn, StandIn):
            return False
        standby = conn.get_parameter_status("in_hot_standby") or ""
        read_only = conn.get_parameter_status("default_transaction_read_only") or ""
        return bool(_ROLES[self._session_attrs](standby, read_only))

    def forget_messages(self, conn: Connection) -> None:
        """Drop notices and notifications that came while the connection was idle."""
        if not isinstance(conn, StandIn):
            _forget_messages(conn)

    # -- after a loan ------------------------------------------------------

    def tidy(self, conn: Connection) -> None:
        """Bring an idle or aborted session back to what it was after ``configure``.

        Costs a ROLLBACK if a transaction is open and nothing else, unless
        ``reset`` asks for more.  What ``reset`` raises is raised.
        """
        if isinstance(conn, StandIn):
            conn.clean(self.reset)
            return
        _end_work(conn)
        _restore_client_side(conn, encoding_too=self.reset != "session")
        if conn.pool_record.held:
            self._close_held(conn)
        if callable(self.reset):
            self._call_reset(self.reset, conn)
        elif self.reset == "session":
            self._discard_session_state(conn)
        _forget_messages(conn)

    def _close_held(self, conn: Connection) -> None:
        """Close the cursors WITH HOLD of a loan; some may have gone with their transactions."""
        names, held = [*conn.pool_record.held], conn.pool_record.held
        if self.reset != "session":  # which closes them too
            _close_on_server(conn, names)
        held.difference_update(names)

    def _call_reset(self, reset: Callable[[Connection], object], conn: Connection) -> None:
        """Call the program's own function, and commit what it left open, as with ``configure``."""
        _call_back(reset, conn)
        if conn.closed:
            raise psycopg2.OperationalError("the connection was lost in reset")
        status = conn.get_transaction_status()
        if status == INERROR:
            raise psycopg2.ProgrammingError("reset failed: it left a failed transaction behind")
        if status != IDLE or conn.status != ext.STATUS_READY:
            _end_transaction(conn, "commit")
        _match_encoding(conn)
        _restore_client_side(conn)

    def _discard_session_state(self, conn: Connection) -> None:
        self._session_reset.send(
            functools.partial(_execute_alone, conn),
            lambda: not conn.closed and conn.get_transaction_status() == IDLE,
        )
        _match_encoding(conn)
        # psycopg2 reads dates in this style only, and set it when it connected.
        if not (conn.get_parameter_status("DateStyle") or "ISO").startswith("ISO"):
            _execute_alone(conn, "SET datestyle TO 'ISO'")
        if self._configure is not None:
            # Whether that has undone anything cannot be told: parameters of the
            # program's own, for one, are in no catalogue.
            self.prepare(conn)
        else:
            _restore_encoding(conn)

    # -- closing -----------------------------------------------------------

    def close(self, conn: Connection) -> None:
        """Close the socket; never blocks on the network, and raises no error of the driver."""
        with suppress(psycopg2.Error, OSError):
            really_close(conn)
        if conn.pool_proxy is not None:
            conn.pool_proxy.release()  # a cycle otherwise

    def abort(self, conn: Connection, seconds: float) -> None:
        """Close a connection that may be in the middle of something, within ``seconds``.

        The server is asked to stop what it does.
        """
        ask_to_stop(conn, seconds)
        with suppress(psycopg2.Error, OSError):
            shut_down(conn)  # releases a thread that still waits for an answer
        if may_close(conn, seconds):
            self.close(conn)

    def interrupt(self, conn: Connection, twin: socket.socket, seconds: float) -> None:
        """End within ``seconds`` what another thread does with a connection, and leave it to that.

        ``twin`` is a copy of its socket, made when it could not be closed yet; it
        is closed here.
        """
        with twin:
            ask_to_stop(conn, seconds)
            with suppress(OSError):
                twin.shutdown(2)  # both ways


class _OneConnect:
    """The connection factory of one connect: remembers the connection that it made.

    A tracer may keep it, in the arguments of the connect, and use it again.
    """

    __slots__ = ("_factory", "_finished", "_made")

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory
        self._finished = False
        self._made: Connection | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        returned = self._factory(*args, **kwargs)
        if not self._finished:
            self._made = inner_connection(returned)
        return returned

    def finish(self, *, failed: bool) -> Connection | None:
        """Forget the connection and return it; close it if the connect ``failed`` afterwards."""
        self._finished, made, self._made = True, self._made, None
        if failed and made is not None:
            really_close(made)
        return made


def _wrapped_again(conn: Connection) -> Any:
    """Return what a tracer puts around an existing connection, which it takes for a new one."""
    return psycopg2.connect(connection_factory=lambda *_, **__: conn, **conn.get_dsn_parameters())


def _execute(conn: Connection, sql: str, *params: Any) -> Any:
    # psycopg2's own class: the user's may log, count or fetch.
    cursor = ext.cursor(conn)
    cursor.execute(sql, *params)
    return cursor


def _close_on_server(conn: Connection, names: list[str]) -> None:
    asked = "SELECT name FROM pg_catalog.pg_cursors WHERE is_holdable AND name = ANY(%s)"
    quoted = [ext.quote_ident(name, conn) for (name,) in _execute_alone(conn, asked, [names])]
    if quoted:
        _execute_alone(conn, "; ".join(f"CLOSE {name}" for name in quoted))


def _execute_alone(conn: Connection, sql: str, *params: Any) -> Any:
    """Execute a statement without a BEGIN before it, in one round trip; return its cursor.

    The settings are those after ``configure``.  Outside autocommit psycopg2
    keeps the session's characteristics itself; leaving autocommit it would reset
    those that are set with a statement each, so they are put aside meanwhile.
    """
    autocommit, *characteristics, _, _ = conn.pool_baseline
    if autocommit:
        return _execute(conn, sql, *params)
    aside = characteristics != _UNSET
    if aside:
        _set_session(conn, *_DEFAULTS)
    _set_autocommit(conn, True)
    try:
        return _execute(conn, sql, *params)
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


def has_casters_left(conn: Connection) -> bool:
    """Tell whether type casters were registered on a connection, or replaced, since ``configure``.

    It costs a truth test where ``configure`` registers none.  Others are compared by
    their identity, since casters of the same types are equal.  A stand-in has none.
    """
    casters = conn.pool_casters
    return bool(casters) and [*map(id, casters.values())] != conn.pool_configured_ids


def restore_casters(conn: Connection) -> None:
    """Have a connection read values as it did after ``configure``."""
    if conn.pool_casters or conn.pool_configured_casters:
        conn.pool_casters.clear()
        conn.pool_casters.update(conn.pool_configured_casters)


def _restore_client_side(conn: Connection, *, encoding_too: bool = True) -> None:
    """Put back what psycopg2 itself keeps of a session.

    A round trip is needed for the encoding alone, which the server has to know too.
    """
    restore_casters(conn)
    found = _settings(conn)
    if found[:-1] != conn.pool_baseline[:-1]:
        _restore_settings(conn)
    if encoding_too:
        _restore_encoding(conn)


def _restore_encoding(conn: Connection) -> None:
    encoding = conn.pool_baseline[-1]
    if conn.encoding != encoding:
        ext.connection.set_client_encoding(conn, encoding)


def _restore_settings(conn: Connection) -> None:
    """Put back what the borrower changed on the client's side.

    The order matters.  psycopg2 sends a SET for a characteristic only while it
    is in autocommit and only when its own copy changes; so the copies are
    cleared first, or a copy that happens to be right would hide a session that
    is not.
    """
    autocommit, isolation, readonly, deferrable, cursor_factory, _ = conn.pool_baseline
    if not conn.autocommit:
        _set_session(conn, *_DEFAULTS)
    _set_autocommit(conn, autocommit)
    _set_characteristics(conn, isolation, readonly, deferrable)
    _set_cursor_factory(conn, cursor_factory)


def _match_encoding(conn: Connection) -> None:
    """Have psycopg2 use the encoding that the server uses again after a reset."""
    encoding = conn.get_parameter_status("client_encoding") or conn.encoding
    # psycopg2 keeps it in a form of its own.
    if re.sub("[^A-Z0-9]", "", encoding.upper()) != conn.encoding:
        ext.connection.set_client_encoding(conn, encoding)


def _forget_messages(conn: Connection) -> None:
    # New lists: the borrower may have kept the old ones to read them.
    _set_notices(conn, Messages(conn))
    _set_notifies(conn, Messages(conn))


def _end_work(conn: Connection) -> None:
    """Close the cursors that only a statement can, and roll back what is open."""
    if conn.pool_record.cursors:
        cursors.close_the_rest(conn.pool_record)
    if conn.get_transaction_status() != IDLE or conn.status != ext.STATUS_READY:
        _end_transaction(conn, "rollback")


def _end_transaction(conn: Connection, how: Literal["commit", "rollback"]) -> None:
    """End the transaction, one that psycopg2 does not know of too."""
    getattr(ext.connection, how)(conn)
    if conn.get_transaction_status() != IDLE:
        # Begun by an explicit BEGIN under autocommit, where psycopg2's commit
        # and rollback do nothing.
        _execute(conn, how.upper())


def _call_back(callback: Callable[[Connection], object], conn: Connection) -> None:
    """Call a function of the program's with a connection; the server may be lost in it."""
    lent, conn.pool_lent = conn.pool_lent, None  # its cursors are no borrower's
    try:
        call_back(callback, conn)
    except psycopg2.Error as error:
        if conn.closed:
            mark(error, FailureKind.CUT)
        raise
    finally:
        conn.pool_lent = lent


def _configure_failed(why: str) -> psycopg2.ProgrammingError:
    error = psycopg2.ProgrammingError(f"configure failed: {why}")
    mark(error, FailureKind.CALLBACK)
    return error


def _was_never_sent(error: psycopg2.Error, parameters: Mapping[str, str]) -> bool:
    """Tell whether libpq raised an error before it connected, in words that are not known."""
    if recognise(str(error)) is not None:
        return False
    host, address, port = (effective(parameters, name) for name in ("host", "hostaddr", "port"))
    is_list = any("," in (value or "") for value in (host, address, port))
    return not is_list and never_connected(error, host, address, int(port or DEFAULT_PORT))


def _readable_error(error: UnicodeDecodeError) -> psycopg2.OperationalError:
    """Return the error that psycopg2 could not tell, since its text is not UTF-8.

    Before the login a server speaks in an encoding of its own.
    """
    return psycopg2.OperationalError(bytes(error.object).decode(error.encoding, "replace"))


def _shortage(error: psycopg2.Error) -> psycopg2.Error | None:
    """Return an error that tells what the process lacks; None if it lacks no descriptor.

    libpq then says nothing at all, or what follows from that: that a name or a
    user is not known.
    """
    text = str(error)
    if none_left():
        reason = f"the process has no file descriptor left; raise its limit, ulimit -n{limit()}"
    elif not text:  # there are some again
        reason = (
            "libpq does not say why it could not begin to connect; the process may have had no file"
            f" descriptor left: raise its limit, ulimit -n{limit()}"
        )
    else:
        return None
    told = psycopg2.OperationalError(f"{reason}: {text}" if text else reason)
    mark(told, FailureKind.CUT)
    return told


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


def _deadline(connect_timeout: Any, seconds: float | None) -> float | None:
    """Return when the shorter of both is over, by the monotonic clock."""
    try:
        given = int(connect_timeout)
    except (TypeError, ValueError):  # unset or unreadable, which libpq tells better
        given = 0
    limits = [limit for limit in (given if given > 0 else None, seconds) if limit is not None]
    return monotonic() + min(limits) if limits else None
