"""Whatever a pool is given: a clear error that names it, or a pool that works and ends."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psycopg2_pool2 import CircuitBreaker, ConnectionPool
from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.upkeep import Upkeep
from tests.support.pools import MakePool, round_trip, wait_for_backends
from tests.support.waiting import in_thread, threads_named, wait_until

OURS = "psycopg2_pool2"
WITHIN = 20.0
"""Seconds that anything here may take at most; almost all of it takes milliseconds."""


class Hostile:
    """An object that is no argument at all, and cannot be looked at without an accident."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compared")

    def __bool__(self) -> bool:
        raise RuntimeError("asked whether it is true")

    def __repr__(self) -> str:
        return "Hostile()"


class Empty:
    """A callable that is false, as one with a length of zero is."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1

    def __len__(self) -> int:
        return 0


NUMBERS: list[Any] = [
    *(0, 1, 2, -1, 0.5, -0.5, 1e-9, 1e10, 1e308, 10**12, 10**400, -(10**400)),
    *(math.nan, math.inf, -math.inf, True, False, 1 + 2j),
]
ODDITIES: list[Any] = [
    *(None, "", "5", "session", "SELECT 1", b"5", [], {}, (), {"a": 1}, object()),
    *(Hostile(), lambda *args: None, Empty(), NotImplemented, ...),
]
PARAMETERS = inspect.signature(ConnectionPool).parameters
ARGUMENTS = [name for name in PARAMETERS if name != "connect_kwargs"]
FLAGS: dict[str, list[Any]] = {
    "debug": [True, False],
    "close_returns": [True, False],
    "num_workers": [0, 1, 3],
}


@contextmanager
def nothing_left_behind(server: Server, app: str) -> Iterator[None]:
    """See that a block leaves neither threads of ours nor sessions."""
    before = set(threads_named(OURS))
    yield
    wait_until(lambda: set(threads_named(OURS)) <= before, message="our threads have ended")
    wait_for_backends(server, app, 0)


def make_and_use(arguments: Mapping[str, Any], names: Iterable[str]) -> None:
    """Make a pool and use it, unless it refuses its arguments clearly: one of `names`."""
    try:
        with ConnectionPool(**arguments) as pool:
            _use(pool)
    except (ValueError, TypeError) as error:
        refusal = error
    except psycopg2.ProgrammingError:
        return  # for libpq's own
    else:
        return
    if not any(name in str(refusal) for name in names):
        raise AssertionError(f"an error that does not name {sorted(names)}") from refusal


def _use(pool: ConnectionPool) -> None:
    """Use a pool in all ways; what it cannot do it has to say as an error of the database."""
    with suppress(psycopg2.Error):
        round_trip(pool, timeout=0.5)
        conn = pool.getconn()
        pool.putconn(conn)
        pool.check()
        pool.reap_idle_connections()
        pool.wait(0.01)
    pool.stats()
    pool.get_stats()
    repr((pool, pool.endpoints()))


class TestArguments:
    """Each of the constructor's, with values of every kind."""

    @pytest.mark.parametrize("name", ARGUMENTS)
    def test_of_any_kind_are_refused_by_name_or_work(
        self, server: Server, app: str, name: str
    ) -> None:
        where = {**server.params, "application_name": app}
        accidents = []
        with nothing_left_behind(server, app):
            for value in [*NUMBERS, *ODDITIES]:
                arguments = {"minconn": 0, "maxconn": 2, **where, name: value}
                error = in_thread(make_and_use, arguments, [name]).error(WITHIN)
                if error is not None:
                    accidents.append(f"{str(value)[:30]!r}: {error!r} {error.__cause__!r}"[:200])
        assert not accidents, "\n".join(accidents)

    @settings(
        max_examples=40,
        deadline=WITHIN * 1000,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(data=st.data())
    def test_of_any_kind_together(self, server: Server, app: str, data: st.DataObject) -> None:
        where = {**server.params, "application_name": app}
        names = data.draw(st.sets(st.sampled_from(ARGUMENTS), min_size=2, max_size=4))
        chosen = {name: data.draw(_value_of(name), label=name) for name in sorted(names)}
        arguments = {"minconn": 0, "maxconn": 2, **where, **chosen}
        in_thread(make_and_use, arguments, chosen).result(WITHIN)
        wait_for_backends(server, app, 0)

    @pytest.mark.parametrize("num_workers", [3, 0])
    @pytest.mark.parametrize(
        "name",
        [
            name
            for name in ARGUMENTS
            if name.endswith(("_timeout", "_interval", "_after")) or name == "timeout"
        ],
    )
    @pytest.mark.parametrize("value", [30 * 86400.0, 1e9, 1e308])
    def test_that_mean_never_work(
        self, make_pool: MakePool, name: str, value: float, num_workers: int
    ) -> None:
        """A month, as one writes who wants no limit."""
        arguments: dict[str, Any] = {"maxconn": 2, "num_workers": num_workers, name: value}
        pool = make_pool(**arguments)
        assert in_thread(round_trip, pool).result(WITHIN)
        assert in_thread(pool.check).result(WITHIN) == 0
        with pool.conn() as conn:
            conn.cursor().execute("SELECT 1")
        pool.reap_idle_connections()
        assert round_trip(pool)

    @pytest.mark.parametrize(
        "name", ["idle_timeout", "reap_idle_interval", "health_check_interval", "leak_timeout"]
    )
    def test_that_are_tiny_do_not_keep_the_monitor_busy(
        self, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """It is there for all pools of the process."""
        runs: list[float] = []
        run = Upkeep.run

        def counted(upkeep: Upkeep) -> None:
            runs.append(time.monotonic())
            run(upkeep)

        monkeypatch.setattr(Upkeep, "run", counted)
        arguments: dict[str, Any] = {"minconn": 1, name: 1e-7}
        pool = make_pool(**arguments)
        started = time.monotonic()
        while (passed := time.monotonic() - started) < 0.2:
            round_trip(pool)
        assert len(runs) <= 10 + passed / 0.004

    def test_that_are_callable_and_false_are_called(self, make_any_pool: MakePool) -> None:
        for name in ("test_on_borrow", "configure", "reset"):
            callback = Empty()
            arguments: dict[str, Any] = {name: callback}
            assert round_trip(make_any_pool(**arguments))
            assert callback.calls == 1, name

    @pytest.mark.parametrize("value", [0, False, [], {}, (), Hostile(), 5, object()])
    def test_dsn_is_a_string(self, server: Server, value: Any) -> None:
        with pytest.raises(TypeError, match="dsn"):
            ConnectionPool(0, 1, **{**server.params, "dsn": value}).shutdown()

    @pytest.mark.parametrize("name", ["dsn", "host", "dbname", "user", "password"])
    def test_with_a_zero_byte_are_refused(self, server: Server, name: str) -> None:
        """At which libpq stops reading: the rest would count for nothing."""
        value = {**server.params, "password": "x", "dsn": "port=1"}[name]
        with pytest.raises((ValueError, psycopg2.ProgrammingError)):
            ConnectionPool(0, 1, **{**server.params, name: f"{value}\0more"}).shutdown()


def _value_of(name: str) -> st.SearchStrategy[Any]:
    default: Any = PARAMETERS[name].default
    return st.one_of(
        st.just(default),
        st.sampled_from(FLAGS.get(name, [default])),
        st.sampled_from([*NUMBERS, *ODDITIES]),
        st.floats(),
        st.integers(-5, 5),
        st.text(max_size=5),
    )


class TestCallables:
    """What callbacks return is input too."""

    @pytest.mark.parametrize(
        "given_back",
        [None, 5, "host=127.0.0.1", ["host"], [("a", "b", "c")], {5: "x"}, Hostile()],
        ids=repr,
    )
    def test_connect_params_that_return_nonsense_are_named(
        self, make_any_pool: MakePool, given_back: Any
    ) -> None:
        pool = make_any_pool(maxconn=1, connect_params=lambda: given_back)
        error = in_thread(pool.getconn, timeout=10).error(WITHIN)
        assert isinstance(error, (TypeError, ValueError)), repr(error)
        assert "connect_params" in str(error)

    @pytest.mark.parametrize("name", ["connection_factory", "async", "async_"])
    def test_connect_params_that_return_what_is_not_theirs_are_named(
        self, make_any_pool: MakePool, name: str
    ) -> None:
        pool = make_any_pool(
            maxconn=1, connect_params=lambda: {name: psycopg2.extensions.connection}
        )
        error = in_thread(pool.getconn, timeout=10).error(WITHIN)
        assert isinstance(error, (TypeError, ValueError)), repr(error)
        assert "connect_params" in str(error)

    @pytest.mark.parametrize("given_back", [None, 5, "127.0.0.1", [5], ["nonsense"], Hostile()])
    def test_resolvers_that_return_nonsense_are_named(
        self, make_any_pool: MakePool, given_back: Any
    ) -> None:
        pool = make_any_pool(maxconn=1, host="db.test", resolver=lambda name: given_back)
        error = in_thread(pool.getconn, timeout=10).error(WITHIN)
        assert isinstance(error, (TypeError, psycopg2.OperationalError)), repr(error)
        assert "resolver" in str(error)

    @pytest.mark.parametrize("made", [None, 5, object()])
    def test_connection_factories_that_make_none_are_named(
        self, make_any_pool: MakePool, made: Any
    ) -> None:
        pool = make_any_pool(maxconn=1, connection_factory=lambda *args, **kwargs: made)
        error = in_thread(pool.getconn, timeout=10).error(WITHIN)
        assert isinstance(error, TypeError), repr(error)
        assert "connection_factory" in str(error)


BREAKERS = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from([*NUMBERS, *ODDITIES])
        for name in ("threshold", "backoff", "max_backoff")
    },
)


@settings(max_examples=60, deadline=WITHIN * 1000)
@given(arguments=BREAKERS)
def test_a_breaker_refuses_what_it_cannot_use_by_name(arguments: dict[str, Any]) -> None:
    try:
        breaker = CircuitBreaker(**arguments)
    except (ValueError, TypeError) as error:
        text = str(error)
    else:
        _fail_with(breaker)
        return
    assert any(name in text for name in arguments), text


def _fail_with(breaker: CircuitBreaker) -> None:
    """Try a server that is not there again and again."""
    with ConnectionPool(
        0, 1, host="127.0.0.1", port=free_port(), breaker=breaker, connect_timeout=1
    ) as pool:
        for _ in range(5):
            with pytest.raises(psycopg2.OperationalError):
                in_thread(pool.getconn).result(WITHIN)
        repr(pool.endpoints())


WORDS = st.one_of(
    st.sampled_from(["", "a", "127.0.0.1", "::1", "/tmp", "@x", "_a._tcp.b", "db.test,db2.test"]),
    st.sampled_from(
        ["5432", "-1", "0", "65536", "1,2", "on", "require", "any", "read-write", "5 s"]
    ),
    st.text(max_size=8),
)
NAMES = st.sampled_from(
    [
        *("host", "hostaddr", "port", "dbname", "database", "user", "password", "sslmode"),
        *("connect_timeout", "options", "application_name", "target_session_attrs", "keepalives"),
        *("sslrootcert", "channel_binding", "tcp_user_timeout", "client_encoding", "nonsense"),
        *("load_balance_hosts", "require_auth", "sslnegotiation", "replication"),
    ]
)
QUOTES = st.sampled_from(["{}={}", "{}='{}'", "{} = {}", "{}", "{}='{}", "{}=\\{}"])
DSNS = st.one_of(
    st.text(max_size=30),
    st.lists(st.tuples(QUOTES, NAMES, WORDS), max_size=5).map(
        lambda parts: " ".join(quote.format(name, word) for quote, name, word in parts)
    ),
    st.builds(
        "{}://{}{}{}/{}?{}".format,
        st.sampled_from(["postgresql", "postgres", "http", ""]),
        st.sampled_from(["", "u@", "u:p@", ":@", "u:p@x@", "%zz@"]),
        WORDS,
        st.sampled_from(["", ":5432", ":", ":x", ",b:1"]),
        WORDS,
        st.sampled_from(["", "sslmode=disable", "a=b", "=", "host=a&port=1", "%00"]),
    ),
    st.binary(max_size=20),
)


@pytest.fixture
def only_here(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """Return arguments with which a pool connects to a closed port here, whatever its dsn says.

    That is forced last of all, where the driver is called; names are resolved to here.
    """
    here = {"host": "127.0.0.1", "hostaddr": "127.0.0.1", "port": free_port()}
    connect: Callable[..., Any] = psycopg2.connect
    monkeypatch.setattr(psycopg2, "connect", lambda **given: connect(**{**given, **here}))
    return {"resolver": lambda name: ["127.0.0.1"], "maxconn": 2}


class TestConnectionStrings:
    @settings(
        max_examples=120,
        deadline=WITHIN * 1000,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        dsn=DSNS,
        keywords=st.dictionaries(NAMES, st.one_of(WORDS, st.sampled_from(NUMBERS)), max_size=2),
        num_workers=st.sampled_from([0, 3]),
    )
    def test_of_any_form_are_refused_at_once_or_tried(
        self,
        only_here: Mapping[str, Any],
        dsn: str | bytes,
        keywords: dict[str, Any],
        num_workers: int,
    ) -> None:
        arguments = {**only_here, "minconn": 0, "num_workers": num_workers, "dsn": dsn, **keywords}
        in_thread(_make_and_try, arguments).result(WITHIN)


def _make_and_try(arguments: Mapping[str, Any]) -> None:
    try:
        pool = ConnectionPool(**arguments)
    except (psycopg2.ProgrammingError, ValueError, TypeError):
        return
    with pool:
        for timeout in (0, 0.01):
            # Nobody listens there: an error of the database, and no other.
            with pytest.raises(psycopg2.Error):
                pool.getconn(timeout=timeout)
        repr((pool, pool.endpoints(), pool.hostname, pool.get_stats()))
