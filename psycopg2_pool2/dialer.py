"""Connect to one of the endpoints of a pool, and find out what a failure means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import psycopg2

from .breaker import Attempt
from .care import Care
from .connector import Connection, Connector
from .endpoints import Choice, Endpoint, Endpoints
from .failure_kinds import FailureKind
from .failures import classify, copy_error, is_interruption, mark
from .inquiry import Inquiry
from .log import logger
from .monitor import Monitor, Timer
from .silence import CAN_LOOK, SilenceWatch
from .sockets import answers
from .threads import is_own_thread
from .timing import Clock

LOOKUP_TIMEOUT = 5.0
"""Seconds that looking a name up may take, and half of what a borrower has left."""
SHORT_LOOKUP = 1.0
"""Seconds that it may take if there are endpoints to try already."""
FIRST_TRY = 2.0
"""Seconds within which somebody must answer, while there are other endpoints to try."""
NEXT_TRY = 1.0
"""The same for an endpoint whose last attempt failed."""

OnStall = Callable[[], object]
"""Called from another thread when an attempt makes no progress."""


class NotNowError(psycopg2.OperationalError):
    """Between the permit and the attempt the last breaker opened: nothing was tried."""


def _ignore() -> None:
    pass


class Dialer:
    """Makes the attempts of one pool; safe to use from any thread.

    ``load`` tells how many connections each endpoint has; ``on_failed`` is
    called after each attempt that fails.  An error is raised with its kind noted
    on it.
    """

    def __init__(
        self,
        name: str,
        connector: Connector,
        care: Care,
        endpoints: Endpoints,
        load: Callable[[], Counter[Endpoint]],
        on_failed: Callable[[], object],
        monitor: Monitor | None,
        clock: Clock,
    ) -> None:
        self._name = name
        self._connector = connector
        self._care = care
        self._endpoints = endpoints
        self._load = load
        self._on_failed = on_failed
        self._monitor = monitor
        self._clock = clock
        self._inquiry = Inquiry(connector.parameters, clock)

    @property
    def looks(self) -> bool:
        """Whether it is found out that an attempt makes no progress: where sockets can be told."""
        return CAN_LOOK and self._monitor is not None and self._monitor.is_running

    def dial(
        self, seconds: float | None = None, on_stall: OnStall = _ignore
    ) -> tuple[Connection, Endpoint]:
        """Try one endpoint after the other, as libpq tries its addresses.

        Takes at most about ``seconds``, if given.
        """
        until = None if seconds is None else self._clock() + seconds
        self._look_names_up(seconds)
        tried: dict[Choice, BaseException] = {}
        while (attempt := self._endpoints.begin(tried, self._load())) is not None:
            role = self._endpoints.role_to_ask(attempt.endpoint)
            choice = attempt.endpoint, role
            left = None if until is None else max(0.0, until - self._clock())
            others = self._endpoints.count_others([*tried, choice])
            try:
                found = self._attempt(attempt, role, _Time(left, others), on_stall)
            except Exception as error:
                if classify(error) is FailureKind.MISTAKE or self._is_borrowers(error):
                    raise  # it would be the same anywhere
                # Without its traceback, whose frames refer to this dictionary.
                tried[choice] = copy_error(error)
                if until is not None and self._clock() >= until:
                    break
            else:
                self._report(tried)
                return found
        if not tried:
            raise NotNowError
        try:
            raise _joined(list(tried.values()))
        finally:
            tried.clear()  # the traceback of the error refers to this frame

    def dial_at(
        self, endpoint: Endpoint, seconds: float | None = None, on_stall: OnStall = _ignore
    ) -> tuple[Connection, Endpoint]:
        """Try this endpoint and no other, while others serve."""
        attempt = self._endpoints.begin_at(endpoint)
        role = self._endpoints.role_to_ask(endpoint)
        try:
            return self._attempt(attempt, role, _Time(seconds, 0), on_stall)
        except Exception as error:
            self._report({(endpoint, role): error})
            raise

    def first_test_failed(self, endpoint: Endpoint, error: BaseException) -> None:
        """Note that a new connection failed its first test: as if it had not been opened."""
        self._endpoints.first_test_failed(endpoint, error, self._kind_of(error, endpoint, None))

    def mark_proven(self, endpoint: Endpoint) -> None:
        """Note that a connection to an endpoint where they failed their first test is of use."""
        self._log_recovery(endpoint, self._endpoints.mark_proven(endpoint))

    def _look_names_up(self, seconds: float | None) -> None:
        """Look up what there is no way without; the rest is done in the background, if any."""
        most = LOOKUP_TIMEOUT if seconds is None else min(LOOKUP_TIMEOUT, seconds / 2)
        if not self._endpoints.current():
            self._endpoints.refresh(most, unknown=True)
        elif self._monitor is None or self._endpoints.awaits_reply():
            self._endpoints.refresh(min(most, SHORT_LOOKUP))

    def _report(self, tried: dict[Choice, BaseException]) -> None:
        failed = {endpoint: error for (endpoint, _), error in tried.items()}
        for endpoint in self._endpoints.failures_to_report(failed):
            kind = classify(failed[endpoint])
            logger.warning(
                "pool %r: cannot connect to %s (%s), others serve: %s",
                self._name,
                endpoint,
                "unknown" if kind is None else kind.label,
                self._connector.tell(failed[endpoint]),
            )

    def _log_recovery(self, endpoint: Endpoint, reported: bool) -> None:
        if reported:
            logger.info("pool %r: connected again to %s", self._name, endpoint)

    # -- one attempt -------------------------------------------------------

    def _attempt(
        self, attempt: Attempt, role: str | None, time: _Time, on_stall: OnStall
    ) -> tuple[Connection, Endpoint]:
        """Make an attempt that has begun."""
        try:
            return self._connect(attempt, role, time, on_stall)
        finally:
            # If its outcome could not be noted: somebody may keep the exception,
            # and with it the frames that hold the attempt.
            self._endpoints.end(attempt)

    def _connect(
        self, attempt: Attempt, role: str | None, time: _Time, on_stall: OnStall
    ) -> tuple[Connection, Endpoint]:
        started = self._clock()
        endpoint: Endpoint = attempt.endpoint
        keywords = endpoint.keywords
        if role is not None and keywords:
            keywords = {**keywords, "target_session_attrs": role}
        try:
            conn = self._connect_watched(endpoint, keywords, time, on_stall)
        except BaseException as error:
            self._note_failure(attempt, error, time)
            raise
        if role != "any":
            self._endpoints.in_role(endpoint, True)
        self._inquiry.succeeded(endpoint)
        reported = self._endpoints.succeeded(attempt, self._clock() - started)
        self._log_recovery(endpoint, reported)
        return conn, endpoint

    def _note_failure(self, attempt: Attempt, error: BaseException, time: _Time) -> None:
        if self._is_borrowers(error):
            self._endpoints.interrupted(attempt)  # the server is not to blame
            return
        kind = self._kind_of(error, attempt.endpoint, time.seconds)
        self._endpoints.failed(attempt, error, kind)
        self._on_failed()

    def _is_borrowers(self, error: BaseException) -> bool:
        """Tell whether an error interrupted the borrower in whose thread the attempt is made."""
        by_worker = self._monitor is not None and is_own_thread()
        return not by_worker and is_interruption(error)

    def _kind_of(
        self, error: BaseException, endpoint: Endpoint, seconds: float | None
    ) -> FailureKind:
        kind = self._inquiry.kind_of(error, endpoint, seconds)
        if kind is FailureKind.FULL and not self._load():
            kind = FailureKind.NOT_NOW  # nothing of ours can come back
        mark(error, kind)
        return kind

    def _connect_watched(
        self, endpoint: Endpoint, keywords: Mapping[str, Any], time: _Time, on_stall: OnStall
    ) -> Connection:
        """Connect, but give up where nobody answers while there are others to try."""
        patience = time.patience(endpoint)
        watch = self._make_watch(endpoint, patience is not None, on_stall)
        if watch is None:
            if patience is not None and not self._answers(endpoint, patience):
                raise _no_answer(endpoint, patience)
            return self._open(keywords, time.seconds)
        timer = self._call_later(patience or FIRST_TRY, watch)
        try:
            return self._open({**keywords, "tcp_user_timeout": watch.mark}, time.seconds)
        except psycopg2.Error:
            if not watch.ended:
                raise
        finally:
            watch.is_over = True
            timer.cancel()
        raise _no_answer(endpoint, patience or FIRST_TRY)

    def _call_later(self, seconds: float, watch: SilenceWatch) -> Timer:
        assert self._monitor is not None
        return self._monitor.call_later(seconds, watch.look)

    def _make_watch(self, endpoint: Endpoint, ends: bool, on_stall: OnStall) -> SilenceWatch | None:
        """Return a watch over an attempt, None where there is nobody to look at it."""
        user_timeout = self._connector.user_timeout
        if not self.looks or not user_timeout or endpoint.address is None:
            return None

        def on_silence(watch: SilenceWatch) -> None:
            if ends:
                watch.end_attempt()
            on_stall()

        place = endpoint.host, endpoint.address, endpoint.port
        return SilenceWatch(place, user_timeout, on_silence)

    def _answers(self, endpoint: Endpoint, seconds: float) -> bool:
        return answers(endpoint.host, endpoint.address, endpoint.port, seconds)

    def _open(self, keywords: Mapping[str, Any], seconds: float | None) -> Connection:
        conn = self._connector.open(keywords, seconds)
        try:
            self._care.prepare(conn)
        except BaseException:
            self._connector.close(conn)
            raise
        return conn


class _Time:
    """How long an attempt may take, and how many other endpoints there are to try."""

    __slots__ = ("_others", "seconds")

    def __init__(self, seconds: float | None, others: int) -> None:
        self.seconds = seconds
        self._others = others

    def patience(self, endpoint: Endpoint) -> float | None:
        """Return how long to wait for any answer, None if there is nobody else to try."""
        if not self._others:
            return None
        most = NEXT_TRY if endpoint.is_failing else FIRST_TRY
        return most if self.seconds is None else min(most, self.seconds / (self._others + 1))


def _no_answer(endpoint: Endpoint, seconds: float) -> psycopg2.Error:
    """Return the error for a place where nobody answers, in libpq's words."""
    is_name = endpoint.host and endpoint.address not in (None, endpoint.host)
    address = f" ({endpoint.address})" if is_name else ""
    place = f'"{endpoint.host or endpoint.address}"{address}, port {endpoint.port}'
    error = psycopg2.OperationalError(
        f"connection to server at {place} failed: timeout expired, no answer within {seconds:.3g} s"
    )
    mark(error, FailureKind.SILENT)
    return error


def _joined(errors: list[BaseException]) -> BaseException:
    """Return one error that tells all of them, one place a line.

    Its kind is theirs if it is the same; else whatever may pass by itself.  A
    callback's error stands for all, since it is told as it is.
    """
    if len(errors) == 1:
        return errors[0]
    kinds = [classify(error) for error in errors]
    if FailureKind.CALLBACK in kinds:
        return errors[kinds.index(FailureKind.CALLBACK)]
    joined = psycopg2.OperationalError("\n".join(str(error) for error in errors))
    others = [kind for kind in kinds if kind is not FailureKind.LOGIN]
    mark(joined, next((k for k in others if k is not None), FailureKind.LOGIN))
    return joined
