"""Passwords are told nowhere: by no error, no record, no repr, no figure.

Out of scope is what the program says itself, the exceptions of its callbacks among it, and the
attribute `connect_kwargs`.
"""

from __future__ import annotations

import gc
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
from psycopg2.extensions import connection, make_dsn

from psycopg2_pool2 import (
    AdaptiveConnectionPool,
    ConnectionPool,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    ThreadedConnectionPool,
    get_pool,
)
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.pools import ask, round_trip, start_waiter
from tests.support.servers import new_server
from tests.support.waiting import in_thread, wait_until

MARK = "s3cr3t-MARK"
PASSWORD = f"{MARK}/ %40"
"""Has the mark in front of what a URL and a shell would change."""


@pytest.fixture(scope="module")
def strict_server() -> Iterator[Server]:
    """Make a server where "careful" has the password and "other" has another.

    No password is asked for in front of the database "nix", which does not exist.
    """
    with new_server(hba=["host nix all 127.0.0.0/8 trust"]) as server:
        server.execute(f"CREATE ROLE careful LOGIN PASSWORD '{PASSWORD}'")
        server.execute("CREATE ROLE other LOGIN PASSWORD 'another'")
        server.execute(f"CREATE ROLE marked LOGIN PASSWORD '{MARK}'")
        yield server


class Heard:
    """Everything that was said."""

    def __init__(self, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
        self._caplog = caplog
        self._capfd = capfd
        self._said: list[str] = []

    def things(self, *things: object) -> None:
        """Add what has a text and a repr."""
        for thing in things:
            self._said += [str(thing), repr(thing)]

    def error(self, error: BaseException | None) -> None:
        """Add an exception, and all that it was caused by or raised while handling."""
        while error is not None:
            self.things(error, error.args)
            if error.__context__ not in (None, error.__cause__):
                self.error(error.__context__)
            error = error.__cause__

    def of(self, call: Callable[[], object]) -> BaseException:
        """Make a call that fails, add its exception, and return it."""
        with pytest.raises((psycopg2.Error, ValueError, TypeError)) as caught:
            call()
        self.error(caught.value)
        return caught.value

    def pool(self, pool: ConnectionPool) -> None:
        """Add all that a pool tells, and the reprs of its parts."""
        self.things(pool, pool.stats(), pool.get_stats(), pool.pop_stats(), pool.endpoints())
        self.things(pool.hostname, pool.name)
        self.things(*(part for name, part in vars(pool).items() if name != "connect_kwargs"))

    def everything(self) -> str:
        """Return all of it, the log at every level included."""
        records = [
            f"{record.getMessage()} {record.args!r} {record.exc_info!r} {record.__dict__!r}"
            for record in self._caplog.records
        ]
        return "\n".join([*self._said, *records, self._caplog.text, *self._capfd.readouterr()])

    def log(self) -> str:
        """Return the messages of the log."""
        return "\n".join(record.getMessage() for record in self._caplog.records)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Heard:
    caplog.set_level(logging.DEBUG)
    return Heard(caplog, capfd)


Place = Callable[[pytest.MonkeyPatch, Path, dict[str, Any]], dict[str, Any]]


def _url(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    login = f"{where['user']}:{quote(PASSWORD, safe='')}"
    return {"dsn": f"postgresql://{login}@{where['host']}:{where['port']}/{where['dbname']}"}


def _url_query(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in where.items())
    return {"dsn": f"postgresql://?password={quote(PASSWORD, safe='')}&{query}"}


def _dsn(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    words = " ".join(f"{name}={value}" for name, value in where.items())
    return {"dsn": f"{words} password='{PASSWORD}'"}


def _keyword(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    return {**where, "password": PASSWORD}


def _environment(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    patch.setenv("PGPASSWORD", PASSWORD)
    return where


def _service(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    file = folder / "pg_service.conf"
    file.write_text(f"[marked]\npassword={PASSWORD}\n")
    patch.setenv("PGSERVICEFILE", str(file))
    return {**where, "service": "marked"}


def _password_file(
    patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]
) -> dict[str, Any]:
    file = folder / "pgpass"
    file.write_text(f"*:*:*:*:{PASSWORD}\n")
    file.chmod(0o600)
    return {**where, "passfile": str(file)}


def _connect_params(
    patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]
) -> dict[str, Any]:
    return {**where, "connect_params": lambda: {"password": PASSWORD}}


def _for_the_key(patch: pytest.MonkeyPatch, folder: Path, where: dict[str, Any]) -> dict[str, Any]:
    return {**where, "password": PASSWORD, "sslpassword": PASSWORD}


PLACES: dict[str, Place] = {
    "URL": _url,
    "query of a URL": _url_query,
    "dsn": _dsn,
    "keyword": _keyword,
    "PGPASSWORD": _environment,
    "service file": _service,
    "password file": _password_file,
    "connect_params": _connect_params,
    "sslpassword": _for_the_key,
}


@pytest.fixture(params=PLACES)
def placed(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    strict_server: Server,
) -> Callable[..., dict[str, Any]]:
    """Return a function that puts the password in its place, beside where to connect to."""

    def place(**where: Any) -> dict[str, Any]:
        params = {**strict_server.params, "user": "careful", **where}
        return PLACES[request.param](monkeypatch, tmp_path, params)

    return place


def new_pool(maxconn: int = 1, **kwargs: Any) -> ConnectionPool:
    """Make a pool that tells as much as it ever does."""
    return ConnectionPool(0, maxconn, debug=True, leak_timeout=0.01, name="chatty", **kwargs)


class TestConnecting:
    @pytest.mark.parametrize("num_workers", [3, 0])
    @pytest.mark.parametrize(
        ("where", "told"),
        [
            ({"user": "other"}, "password authentication failed"),
            ({"dbname": "atlantis"}, "atlantis"),
            ({"host": "nobody.invalid"}, "could not be resolved"),
            ({"port": None}, "refused"),
        ],
        ids=["password", "database", "host", "port"],
    )
    def test_that_fails_tells_why_and_not_with_which_password(
        self,
        heard: Heard,
        placed: Callable[..., dict[str, Any]],
        where: dict[str, Any],
        told: str,
        num_workers: int,
    ) -> None:
        params = placed(**{name: value or free_port() for name, value in where.items()})
        with new_pool(num_workers=num_workers, resolver=lambda name: [], **params) as pool:
            for timeout in (0, 0.01, 0, 0, 0):
                error = heard.of(lambda timeout=timeout: pool.getconn(timeout=timeout))  # type: ignore[misc]
                assert told in str(error)
            heard.pool(pool)
        said = heard.everything()
        assert told in said
        assert MARK not in said

    def test_that_is_given_up_tells_it_neither(
        self, heard: Heard, placed: Callable[..., dict[str, Any]]
    ) -> None:
        params = placed(port=free_port())
        with new_pool(**params) as pool:
            wait_until(lambda: isinstance(heard.of(pool.getconn), PoolUnavailable))
            heard.of(lambda: pool.wait(0.01)) if pool.minconn else None
        heard.of(lambda: ConnectionPool(1, 1, background_prewarm=False, **params))
        assert MARK not in heard.everything()


class TestUse:
    def test_and_misuse_tell_it_in_no_error_and_no_record(
        self, heard: Heard, strict_server: Server, placed: Callable[..., dict[str, Any]]
    ) -> None:
        with new_pool(max_waiting=1, **placed()) as pool:
            conn: Any = pool.getconn()
            heard.of(pool.getconn)  # exhausted
            heard.of(lambda: pool.getconn(timeout=5))  # deadlock
            heard.error(in_thread(pool.getconn, timeout=0.01).error())  # timeout
            waiter = start_waiter(pool)
            heard.error(in_thread(pool.getconn, timeout=5).error())  # too many requests
            heard.pool(pool)
            heard.things(conn.pool_record, conn.pool_record.loan, conn.pool_record.loan.site)
            wait_until(lambda: "has been in use" in heard.log())
            pool.putconn(conn)
            pool.putconn(waiter.result())
            heard.of(lambda: pool.putconn(conn))  # returned before
            with new_pool(**placed()) as other:
                heard.of(lambda: other.putconn(conn))
            heard.of(lambda: pool.getconn(timeout=-1))
            heard.of(lambda: pool.resize(5, 1))
            heard.of(lambda: _lose_a_connection(strict_server, pool))
            _drop_a_connection(pool)
            wait_until(lambda: "was dropped" in heard.log() or pool.stats().in_use == 0)
            pool.check()
            pool.drain()
        heard.of(pool.getconn)  # closed
        heard.pool(pool)
        said = heard.everything()
        assert "came back after" in said
        assert "was dropped" in said
        assert MARK not in said

    def test_by_callbacks_that_quote_their_connection_tells_it_in_no_record(
        self, heard: Heard, placed: Callable[..., dict[str, Any]]
    ) -> None:
        """psycopg2 masks `password` in a connection's dsn, and not `sslpassword`."""

        def fail(conn: Any) -> None:
            raise RuntimeError(f"{conn} {conn.dsn} {conn.get_dsn_parameters()}")

        for callback in ("reset", "configure", "test_on_borrow"):
            arguments: dict[str, Any] = {callback: fail, **placed()}
            with new_pool(**arguments) as pool:
                _try_to_use(pool)
                heard.pool(pool)
        said = heard.everything()
        assert said.count("chatty") > 3
        assert MARK not in said


def _lose_a_connection(server: Server, pool: ConnectionPool) -> None:
    with pool.transaction(timeout=10) as conn:
        server.terminate_backend(conn.info.backend_pid)
        ask(conn)


def _drop_a_connection(pool: ConnectionPool) -> None:
    holder: list[Any] = [pool.getconn(timeout=10)]
    holder.append(holder)
    del holder
    gc.collect()


def _try_to_use(pool: ConnectionPool) -> None:
    try:
        round_trip(pool, timeout=0)
    except RuntimeError:
        pass  # the program's own


class TestCallbacks:
    """Libraries put what they were given into their messages; the pool hands on, and tells none."""

    @pytest.mark.parametrize("callback", ["reset", "configure", "test_on_borrow"])
    def test_that_tell_it_are_not_repeated(
        self, heard: Heard, strict_server: Server, callback: str
    ) -> None:
        def fail(conn: Any) -> None:
            raise psycopg2.OperationalError(f"cannot set up {strict_server.dsn} with {PASSWORD}")

        params: dict[str, Any] = {**strict_server.params, "user": "careful", "password": PASSWORD}
        with new_pool(**{**params, callback: fail}) as pool:
            for timeout in (0, 0.01):
                _try_to_use_patiently(pool, timeout, heard)
            heard.things(pool.endpoints())
        assert "cannot set up" in heard.everything()
        assert MARK not in heard.everything()

    def test_of_connect_params_are_not_repeated(self, heard: Heard, strict_server: Server) -> None:
        def connect_params() -> dict[str, Any]:
            raise ConnectionError(f"cannot renew {PASSWORD}")

        params = {**strict_server.params, "user": "careful", "password": PASSWORD}
        with new_pool(connect_params=connect_params, **params) as pool:
            _try_to_use_patiently(pool, 0.01, heard)
            heard.things(pool.endpoints())
        assert "cannot renew" in heard.everything()
        assert MARK not in heard.everything()


def _try_to_use_patiently(pool: ConnectionPool, timeout: float, heard: Heard) -> None:
    """Borrow and return; what the pool raises by itself is heard, its causes are not its own."""
    try:
        pool.putconn(pool.getconn(timeout=timeout))
    except PoolError as error:
        heard.things(error)
    except (psycopg2.Error, OSError):
        pass


ARGUMENTS = [
    name
    for name, parameter in inspect.signature(ConnectionPool).parameters.items()
    # A name is there to be told.
    if parameter.kind is not parameter.VAR_KEYWORD and name != "name"
]
KEYWORDS = [
    *("host", "hostaddr", "port", "dbname", "database", "user", "service", "connect_timeout"),
    *("sslmode", "target_session_attrs", "keepalives", "gssencmode", "application_name"),
    *("cursor_factory", "connection_factory", "async_", "passwd"),
]


class TestMisplaced:
    """What was meant for one argument came to another."""

    @pytest.mark.parametrize("name", ARGUMENTS + KEYWORDS)
    def test_dsn_is_not_told(self, heard: Heard, strict_server: Server, name: str) -> None:
        where = strict_server.params
        dsn = f"postgresql://careful:{MARK}@127.0.0.1:{where['port']}/postgres"
        heard.of(lambda: _make_and_use({**where, name: dsn}))
        assert MARK not in heard.everything()

    def test_dsn_by_place_is_not_told(self, heard: Heard) -> None:
        dsn = f"host=127.0.0.1 password={MARK}"
        for arguments in ((dsn,), (1, dsn), (1, 2, dsn), (1, 2, 3, dsn), (1, 2, 3, 4, dsn)):
            heard.of(lambda arguments=arguments: ConnectionPool(*arguments))  # type: ignore[misc]
        assert MARK not in heard.everything()

    @pytest.mark.parametrize(
        "password",
        [f"pa@{MARK}", f"pa/{MARK}", f"pa?{MARK}", f"pa#{MARK}", f"pa:{MARK}", f"pa%{MARK}"],
    )
    def test_part_of_a_password_that_was_not_encoded_is_not_told(
        self, heard: Heard, strict_server: Server, password: str
    ) -> None:
        """At an @ libpq ends the password, and takes the rest for the host."""
        dsn = f"postgresql://other:{password}@127.0.0.1:{strict_server.port}/postgres"
        heard.of(lambda: _make_and_use({"dsn": dsn}))
        assert MARK not in heard.everything()


def _make_and_use(arguments: dict[str, Any]) -> None:
    with ConnectionPool(
        **{"minconn": 0, "maxconn": 1, "resolver": lambda name: [], **arguments}
    ) as p:
        try:
            p.putconn(p.getconn(timeout=10))
        except psycopg2.Error as error:
            raise type(error)(f"{error} {p!r} {p.endpoints()} {p.hostname}") from error
        raise ValueError("what was misplaced did no harm")


class TestUnreadable:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"dsn": f"host=127.0.0.1 password={MARK}\udce4"},
            {"dsn": f"postgresql://careful:{MARK}\udce4@127.0.0.1/postgres"},
            {"dsn": f"host=127.0.0.1 password={MARK}".encode() + b"\xe4"},
            {"dsn": f"host=127.0.0.1 password={MARK}\0"},
            {"host": "127.0.0.1", "password": f"{MARK}\udce4"},
            {"host": "127.0.0.1", "password": f"{MARK}\0"},
        ],
        ids=["surrogate", "surrogate in a URL", "bytes", "zero", "password", "zero in password"],
    )
    def test_text_is_refused_at_once_and_not_told(
        self, heard: Heard, arguments: dict[str, Any]
    ) -> None:
        """As the environment gives what is no UTF-8."""
        heard.of(lambda: ConnectionPool(0, 1, **arguments).shutdown())
        assert MARK not in heard.everything()

    def test_service_file_is_not_quoted(
        self, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "pg_service.conf"
        file.write_text(f"[marked]\nhost=127.0.0.1\npassword {MARK}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        for service in ("marked", "missing"):
            heard.of(lambda service=service: ConnectionPool(0, 1, service=service))  # type: ignore[misc]
        assert MARK not in heard.everything()


COMMON = ["password", "database", "server", "user", "connection", "postgres", "a", "t", "127.0.0.1"]


class TestCommonWords:
    """Passwords that occur in every message: what is told, and what it means, stays the same."""

    @pytest.mark.parametrize("password", COMMON)
    def test_do_not_change_what_is_told_of_a_wrong_database(
        self, strict_server: Server, password: str
    ) -> None:
        params = {**strict_server.params, "dbname": "nix", "password": password}
        with ConnectionPool(0, 1, **params) as pool:
            with pytest.raises(psycopg2.OperationalError, match='database "nix" does not exist'):
                pool.getconn(timeout=10)
            assert [endpoint.state for endpoint in pool.endpoints()] == ["open"]

    @pytest.mark.parametrize("password", COMMON)
    def test_do_not_change_what_is_told_of_a_wrong_password(
        self, strict_server: Server, password: str
    ) -> None:
        params = {**strict_server.params, "user": "other", "password": password}
        told = "password authentication failed"
        with (
            ConnectionPool(0, 1, **params) as pool,
            pytest.raises(psycopg2.OperationalError, match=told),
        ):
            pool.getconn(timeout=10)

    @pytest.mark.parametrize("password", COMMON)
    def test_do_not_change_what_is_told_of_a_refusal(self, password: str) -> None:
        port = free_port()
        with ConnectionPool(0, 1, host="127.0.0.1", port=port, password=password) as pool:
            with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
                pool.getconn()
            with pytest.raises(PoolTimeout, match="Connection refused"):
                pool.getconn(timeout=0.05)


def _script(dsn: str, heard: Heard) -> None:
    with new_pool(dsn=dsn) as pool:
        conn = pool.getconn()
        wait_until(lambda: "has been in use" in heard.log())
        heard.of(pool.getconn)
        pool.putconn(conn)
        heard.of(lambda: pool.putconn(conn))


class TestSites:
    def test_that_are_told_have_places_and_not_what_the_program_says_there(
        self, heard: Heard, strict_server: Server
    ) -> None:
        """A short program, whose source has its dsn in it."""
        _script(f"{strict_server.dsn} user=marked password=s3cr3t-MARK", heard)
        said = heard.everything()
        assert "_script" in said
        assert MARK not in said


def shown_in_frames(error: BaseException | None, secret: str) -> list[str]:
    """Return where an error tracker would find a secret: in variables of frames of ours."""
    found: list[str] = []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            name = str(frame.f_globals.get("__name__"))
            if name.startswith("psycopg2_pool2"):
                shown = [k for k, v in frame.f_locals.items() if secret in repr(v)]
                found += [f"{name}.{frame.f_code.co_name}: {variable}" for variable in shown]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


class TestTracebacks:
    """Error trackers record the variables of every frame."""

    SECRET = "hush-4711-hush"

    @pytest.fixture(params=["keywords", "dsn"])
    def arguments(self, strict_server: Server, request: pytest.FixtureRequest) -> dict[str, Any]:
        params = {**strict_server.params, "user": "other", "password": self.SECRET}
        return params if request.param == "keywords" else {"dsn": make_dsn(**params)}

    @pytest.mark.parametrize(
        "kind", [ConnectionPool, ThreadedConnectionPool, AdaptiveConnectionPool]
    )
    @pytest.mark.parametrize("num_workers", [0, 3])
    @pytest.mark.parametrize("more", [{}, {"sslmode": "maybe"}, {"bogus": 1}, {"timeout": -1}])
    def test_show_no_password_of_a_pool(
        self,
        arguments: dict[str, Any],
        kind: type[ConnectionPool],
        num_workers: int,
        more: dict[str, Any],
    ) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever
            kind(1, 2, num_workers=num_workers, background_prewarm=False, **more, **arguments)
        assert not shown_in_frames(caught.value, self.SECRET)

    @pytest.mark.parametrize("more", [{}, {"sslmode": "maybe"}, {"bogus": 1}])
    def test_show_no_password_of_a_manager(
        self, arguments: dict[str, Any], more: dict[str, Any]
    ) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever
            get_pool({"minconn": 1, "background_prewarm": False, **more, **arguments})
        assert not shown_in_frames(caught.value, self.SECRET)

    def test_show_no_token_that_connect_params_returned(self, strict_server: Server) -> None:
        params = {**strict_server.params, "user": "other"}
        pool = ConnectionPool(
            0, 1, connect_params=lambda: {"password": self.SECRET, "sslmode": "maybe"}, **params
        )
        with pool, pytest.raises(psycopg2.Error) as caught:
            pool.getconn(timeout=10)
        assert not shown_in_frames(caught.value, self.SECRET)

    def test_show_no_password_when_a_connect_is_interrupted(self, server: Server) -> None:
        class Struck(connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                raise KeyboardInterrupt

        params = {**server.params, "application_name": self.SECRET}
        with (
            ConnectionPool(0, 1, num_workers=0, connection_factory=Struck, **params) as pool,
            pytest.raises(KeyboardInterrupt) as caught,
        ):
            pool.getconn()
        assert not shown_in_frames(caught.value, self.SECRET)
