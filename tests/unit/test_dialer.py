"""Which endpoints are tried, in what order, and what an attempt's error means for each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import CircuitBreaker, dialer
from psycopg2_pool2.dialer import Dialer, NotNowError
from psycopg2_pool2.endpoints import Endpoint, Endpoints
from psycopg2_pool2.failure_kinds import FailureKind
from psycopg2_pool2.failures import classify, mark
from psycopg2_pool2.resolver import Resolver
from psycopg2_pool2.silence import CAN_LOOK
from tests.support.fakes import FakeClock

LOGGER = "psycopg2_pool2"
OK = None
CUT = 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
SILENT = 'connection to server at "127.0.0.1", port 1 failed: timeout expired'
LOGIN = 'FATAL:  password authentication failed for user "u"'
NOT_NOW = "FATAL:  the database system is starting up"
FULL = "FATAL:  sorry, too many clients already"
ROLE = "session is read-only"
MISTAKE = 'invalid sslmode value: "maybe"'


RUNNING = SimpleNamespace(is_running=True)
"""A monitor, as far as an attempt asks for it."""


class Interrupt(BaseException):
    """As KeyboardInterrupt is no Exception."""


class FakeConnector:
    """Connects to a port as `outcomes` say: None succeeds, a text is libpq's."""

    tell = staticmethod(str)
    parameters: dict[str, str] = {}  # noqa: RUF012
    user_timeout = 0  # so that no socket is looked for

    def __init__(self, clock: FakeClock) -> None:
        self.outcomes: dict[int, str | BaseException | None] = {}
        self.tried: list[int] = []
        self.seconds: list[float | None] = []
        self.closed: list[object] = []
        self.takes = 0.0
        self._clock = clock

    def open(self, keywords: Mapping[str, Any], seconds: float | None = None) -> object:
        port = int(keywords.get("port", 1))  # none for the only place of a dsn
        self.tried.append(port)
        self.seconds.append(seconds)
        self._clock.advance(self.takes)
        outcome = self.outcomes.get(port)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            raise psycopg2.OperationalError(outcome)
        return object()

    def close(self, conn: object) -> None:
        self.closed.append(conn)


class FakeCare:
    """Prepares new connections as it is told."""

    def __init__(self) -> None:
        self.prepare: Callable[[object], object] = lambda conn: None


class World:
    """A dialer with three endpoints, tried in the order of their ports."""

    def __init__(self, ports: int = 3, monitor: object | None = None) -> None:
        self.clock = FakeClock()
        self.connector = FakeConnector(self.clock)
        self.care = FakeCare()
        self.load: Counter[Endpoint] = Counter()
        self.failed = 0
        numbers = [str(number) for number in range(1, ports + 1)]
        self.endpoints = Endpoints(
            {"host": ",".join(["127.0.0.1"] * ports), "port": ",".join(numbers)},
            Resolver(None),
            60.0,
            CircuitBreaker(),
            3,
            True,
            self.clock,
        )
        for endpoint in self.endpoints.current():
            endpoint.lot = 1.0 - endpoint.port / 10
        self.dialer = Dialer(
            "shop",
            self.connector,  # type: ignore[arg-type]
            self.care,  # type: ignore[arg-type]
            self.endpoints,
            lambda: self.load,
            self._count_failure,
            monitor,  # type: ignore[arg-type]
            self.clock,
        )

    def _count_failure(self) -> None:
        self.failed += 1

    @property
    def tried(self) -> list[int]:
        return self.connector.tried

    def at(self, port: int) -> Endpoint:
        [found] = [e for e in self.endpoints.current() if e.port == port]
        return found

    def fail(self, *outcomes: str | BaseException | None) -> None:
        """Let the endpoints fail so, in order."""
        self.connector.outcomes = dict(enumerate(outcomes, 1))

    def dial(self, seconds: float | None = None) -> int:
        """Connect; return the port."""
        _, endpoint = self.dialer.dial(seconds)
        return endpoint.port

    def error(self, seconds: float | None = None) -> BaseException:
        """Connect in vain; return the error."""
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            self.dialer.dial(seconds)
        return caught.value


@pytest.fixture(autouse=True)
def all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "answers", lambda *place: True)


@pytest.fixture(autouse=True)
def in_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a worker: what one would do is done by the test's thread."""
    monkeypatch.setattr(dialer, "is_own_thread", lambda: True)


@pytest.fixture(params=[RUNNING, None], ids=["workers", "no-workers"])
def world(request: pytest.FixtureRequest) -> World:
    return World(monitor=request.param)


def callback_error() -> RuntimeError:
    """Return an error that a callback of the program raised."""
    error = RuntimeError("configure")
    mark(error, FailureKind.CALLBACK)
    return error


class TestSearch:
    @pytest.mark.parametrize(
        "failure", [CUT, SILENT, LOGIN, NOT_NOW, FULL, ROLE, callback_error()], ids=str
    )
    def test_goes_on_to_the_next_after(self, world: World, failure: str | BaseException) -> None:
        world.fail(failure, OK)
        assert world.dial() == 2
        assert world.tried == [1, 2]
        assert world.failed == 1

    def test_ends_with_a_mistake_since_it_is_one_anywhere(self, world: World) -> None:
        world.fail(MISTAKE, OK)
        assert str(world.error()) == MISTAKE
        assert world.tried == [1]

    def test_asks_each_once(self, world: World) -> None:
        world.fail(CUT, LOGIN, NOT_NOW)
        world.error()
        assert world.tried == [1, 2, 3]
        assert world.failed == 3

    def test_leaves_out_one_whose_login_was_refused_a_moment_ago(self, world: World) -> None:
        world.fail(LOGIN, OK)
        assert [world.dial() for _ in range(10)] == [2] * 10
        assert world.tried.count(1) == 1

    def test_of_nothing_that_may_be_tried_is_no_failure(self, world: World) -> None:
        world.fail(LOGIN, LOGIN, LOGIN)
        world.error()
        assert isinstance(world.error(), NotNowError)
        assert world.failed == 3

    def test_ends_with_the_time(self, world: World) -> None:
        world.connector.takes = 2.0
        world.fail(SILENT, SILENT, OK)
        assert classify(world.error(3.0)) is FailureKind.SILENT
        assert world.tried == [1, 2]
        assert world.connector.seconds == [3.0, 1.0]

    def test_at_one_endpoint_tries_no_other(self, world: World) -> None:
        world.fail(OK, CUT)
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            world.dialer.dial_at(world.at(2))
        assert world.tried == [2]
        assert world.failed == 1

    def test_goes_on_after_a_callback_of_the_program_and_closes_what_it_refused(
        self, world: World
    ) -> None:
        refused: list[object] = []

        def configure(conn: object) -> None:
            if not refused:
                refused.append(conn)
                raise callback_error()

        world.care.prepare = configure
        assert world.dial() == 2
        assert world.connector.closed == refused


class TestSilence:
    """Where nobody can look at an attempt's socket, a place is asked before it is tried."""

    @pytest.fixture(autouse=True)
    def one_is_silent(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
        asked: list[tuple[int, float]] = []

        def answers(host: str, address: str, port: int, seconds: float) -> bool:
            asked.append((port, seconds))
            return port != 1

        monkeypatch.setattr(dialer, "answers", answers)
        return asked

    def test_costs_no_more_than_the_first_answer_may_take(
        self, world: World, one_is_silent: list[tuple[int, float]]
    ) -> None:
        assert world.dial() == 2
        assert one_is_silent == [(1, dialer.FIRST_TRY), (2, dialer.FIRST_TRY)]
        assert world.tried == [2]
        error = world.at(1).last_error
        assert error is not None
        assert classify(error) is FailureKind.SILENT
        assert 'at "127.0.0.1", port 1 failed: timeout expired, no answer within 2 s' in str(error)

    def test_costs_less_where_it_was_silent_before(
        self, world: World, one_is_silent: list[tuple[int, float]]
    ) -> None:
        world.dial()
        world.load = Counter({world.at(2): 5, world.at(3): 5})
        world.at(1).returns = True
        world.dial()
        assert one_is_silent[2] == (1, dialer.NEXT_TRY)

    def test_leaves_time_for_the_others(
        self, world: World, one_is_silent: list[tuple[int, float]]
    ) -> None:
        world.dial(3.0)
        assert one_is_silent[0] == (1, 1.0)

    def test_is_waited_for_where_there_is_nobody_else(
        self, one_is_silent: list[tuple[int, float]]
    ) -> None:
        world = World(ports=1)
        assert world.dial() == 1
        assert one_is_silent == []


class TestJoinedError:
    @pytest.mark.parametrize(
        ("failures", "kind"),
        [
            ((LOGIN, LOGIN, LOGIN), FailureKind.LOGIN),
            ((CUT, CUT, CUT), FailureKind.CUT),
            ((SILENT, SILENT, SILENT), FailureKind.SILENT),
            ((LOGIN, CUT, LOGIN), FailureKind.CUT),
            ((NOT_NOW, LOGIN, LOGIN), FailureKind.NOT_NOW),
            ((LOGIN, LOGIN, SILENT), FailureKind.SILENT),
        ],
    )
    def test_is_a_refused_login_only_if_all_are(
        self, world: World, failures: tuple[str, ...], kind: FailureKind
    ) -> None:
        world.fail(*failures)
        error = world.error()
        assert type(error) is psycopg2.OperationalError
        assert classify(error) is kind

    def test_tells_each_place_in_a_line(self, world: World) -> None:
        world.fail(LOGIN, CUT, NOT_NOW)
        assert str(world.error()).splitlines() == [LOGIN, CUT, NOT_NOW]

    def test_is_a_callback_s_as_it_is_if_one_raised(self, world: World) -> None:
        world.fail(CUT, callback_error(), LOGIN)
        error = world.error()
        assert type(error) is RuntimeError
        assert error.args == ("configure",)
        assert classify(error) is FailureKind.CALLBACK

    def test_of_one_is_that_one(self) -> None:
        world = World(ports=1)
        world.fail(LOGIN)
        error = world.error()
        assert str(error) == LOGIN
        assert classify(error) is FailureKind.LOGIN


class TestBlame:
    @pytest.mark.parametrize("failure", [CUT, SILENT, NOT_NOW, callback_error()], ids=str)
    def test_is_the_endpoint_s_for_what_may_pass(
        self, world: World, failure: str | BaseException
    ) -> None:
        world.fail(failure, OK)
        world.dial()
        first, second = world.at(1), world.at(2)
        assert first.failures == 1
        assert first.state == "closed"
        assert first.last_error is not None
        assert (second.failures, second.last_error) == (0, None)

    def test_is_the_endpoint_s_for_a_refused_login_which_opens_it_at_once(
        self, world: World
    ) -> None:
        world.fail(LOGIN, OK)
        world.dial()
        assert world.at(1).state == "open"
        assert world.at(1).failures == 1
        assert not world.at(1).breaker.failing
        assert str(world.at(1).last_error) == LOGIN

    def test_is_nobody_s_for_a_mistake_or_a_role(self, world: World) -> None:
        world.fail(ROLE, MISTAKE)
        world.error()
        assert [world.at(port).failures for port in (1, 2, 3)] == [0, 0, 0]
        assert world.at(1).wrong_role

    def test_of_a_full_server_is_none_while_something_of_the_pool_can_come_back(
        self, world: World
    ) -> None:
        world.load[world.at(2)] = 1
        world.fail(FULL, OK)
        world.dial()
        assert world.at(1).failures == 0
        assert world.at(1).pause(world.clock())

    def test_of_a_full_server_is_its_own_where_the_pool_has_nothing(self, world: World) -> None:
        world.fail(FULL, FULL, FULL)
        assert classify(world.error()) is FailureKind.NOT_NOW
        assert world.at(1).failures == 1

    def test_of_an_interrupted_borrower_is_nobody_s(self) -> None:
        world = World()
        world.fail(Interrupt(), OK)
        assert isinstance(world.error(), Interrupt)
        assert world.at(1).failures == 0
        assert world.at(1).breaker.in_flight == 0
        assert world.failed == 0

    def test_of_an_interrupted_worker_is_the_endpoint_s(self) -> None:
        """Nobody interrupts a worker: it was a callback."""
        world = World(monitor=RUNNING)
        world.fail(SystemExit(3), OK)
        assert isinstance(world.error(), SystemExit)
        assert world.at(1).failures == 1
        assert world.failed == 1

    def test_is_taken_back_by_a_success(self, world: World) -> None:
        world.fail(CUT, CUT, CUT)
        world.error()
        world.fail(OK, OK, OK)
        world.load.clear()
        assert world.dial() == 1
        assert (world.at(1).failures, world.at(1).last_error) == (0, None)

    def test_of_a_first_test_stays_until_a_connection_is_of_use(self, world: World) -> None:
        world.dial()
        error = psycopg2.OperationalError(CUT)
        world.dialer.first_test_failed(world.at(1), error)
        world.dialer.dial_at(world.at(1))
        assert world.at(1).failures == 1
        world.dialer.mark_proven(world.at(1))
        assert world.at(1).failures == 0

    def test_is_noted_on_the_error(self, world: World) -> None:
        error = psycopg2.OperationalError(CUT)
        mark(error, FailureKind.MISTAKE)  # as the connector does
        world.fail(error)
        assert classify(world.error()) is FailureKind.MISTAKE


class TestLog:
    def test_of_one_that_refuses_while_others_serve_is_one_warning(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger=LOGGER)
        world.fail(LOGIN, OK, OK)
        for _ in range(20):
            world.dial()
            world.clock.advance(5)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert LOGIN in caplog.text
        assert "port 1" in caplog.text
        assert "others serve" in caplog.text
        world.fail(OK, OK, OK)
        world.clock.advance(100)
        world.at(1).returns = True
        assert world.dial() == 1
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        assert "connected again" in caplog.text


class TestWithoutThreads:
    """A pool with workers, while none can be started: borrowers connect by themselves."""

    def test_nobody_looks_at_an_attempt(self) -> None:
        assert World(monitor=RUNNING).dialer.looks == CAN_LOOK
        assert not World(monitor=SimpleNamespace(is_running=False)).dialer.looks

    def test_an_interrupted_borrower_is_no_endpoint_s_fault(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dialer, "is_own_thread", lambda: False)
        world = World(monitor=RUNNING)
        world.fail(Interrupt())
        assert isinstance(world.error(), Interrupt)
        assert world.tried == [1]
        assert world.failed == 0
        assert not world.at(1).breaker.failures
