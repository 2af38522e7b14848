"""Where a pool connects to: the endpoints behind its dsn, how each fares, and which is next.

An endpoint is one address and port.  A name may stand for several, and for
others from time to time; what its answers of the last while have named is kept
in an :class:`~psycopg2_pool2.addresses.AddressBook`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from .addresses import AddressBook, Answer, Place
from .breaker import Attempt, CircuitBreaker, State, prompt_pause
from .errors import HostResolutionError
from .failure_kinds import FailureKind
from .failures import copy_error
from .log import logger
from .login_backoff import LoginBackoff
from .resolver import NoSuchHost, Resolver
from .targets import Target, effective, read_targets
from .text import in_one_line
from .timing import Clock, chance, jitter

FULL_PAUSE = 1.0
"""Seconds without a new connection after the server said that it has no more room."""
LOOKUP_PAUSE = 1.0
"""Seconds, at most, between two questions for a name of which nothing is known."""
SHORTEST_LAG = 1.0
"""Seconds until one that fails is tried again while others serve; doubled each time."""
LONGEST_LAG = 5.0
LONGEST_LAG_OF_THE_UNKNOWN = 30.0
"""For one that has never been connected to: an address that leads nowhere from here."""
# Where several servers may be in the right role, so that one more is worth looking for.
_MANY = ("prefer-standby", "read-only", "standby")


class Endpoint:
    """One place to connect to, and how it has fared.

    ``keywords`` are what libpq has to be told to connect there and nowhere else;
    empty for the only place of a dsn that needs no help.
    """

    __slots__ = (
        "address",
        "at_once",
        "breaker",
        "connect_seconds",
        "full_until",
        "has_served",
        "host",
        "keywords",
        "lag",
        "last_error",
        "login",
        "lot",
        "port",
        "priority",
        "reported",
        "returns",
        "revisit_at",
        "unclear_words",
        "unproven",
        "weight",
        "wrong_role",
        "wrong_role_since",
        "wrong_role_until",
    )

    def __init__(
        self,
        host: str | None,
        address: str | None,
        port: int,
        breaker: CircuitBreaker,
        at_once: int,
        keywords: Mapping[str, Any],
    ) -> None:
        self.host = host
        self.address = address
        self.port = port
        self.keywords = keywords
        self.priority = 0  # RFC 2782's: the lowest is asked first
        self.weight = 0
        self.breaker = breaker
        self.login = LoginBackoff()
        self.unclear_words: str | None = None  # what its last answer said, if that is not known
        self.at_once = at_once  # how many attempts may run at a time
        self.unproven = False  # connections open there, and fail at once
        self.full_until = -math.inf
        self.wrong_role = False
        self.wrong_role_since = -math.inf
        self.wrong_role_until = -math.inf
        self.connect_seconds: float | None = None
        self.last_error: BaseException | None = None
        self.has_served = False
        self.lag = 0.0
        self.revisit_at = -math.inf
        self.reported = False  # that it fails while others serve
        self.returns = False  # it fails, but answers again: to be tried once in its turn
        self.lot = chance()  # who has one more than others: not the same in each process

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt failed, or its login was refused."""
        return self.breaker.failing or self.login.is_refused

    @property
    def failures(self) -> int:
        """How many attempts have failed in a row."""
        return self.breaker.failures + self.login.refusals

    @property
    def state(self) -> State:
        """What :meth:`.CircuitBreaker.state` says; one that refuses logins is left alone too."""
        if not self.login.is_refused:
            return self.breaker.state()
        return "half-open" if self.breaker.in_flight else "open"

    def pause(self, now: float) -> float:
        """Return the seconds until it may be tried, 0.0 if it may now."""
        until = max(self.full_until, self.wrong_role_until, self.login.retry_at) - now
        return max(0.0, until, self.breaker.wait(now))

    def capacity(self, now: float) -> int:
        """Return how many attempts may run at a time now."""
        if self.pause(now):
            return 0
        return 1 if self.is_failing else self.at_once

    def __repr__(self) -> str:
        name = self.host if self.address is None else f"{self.host or ''} ({self.address})"
        return f"{name}, port {self.port}"


Choice = tuple[Endpoint, "str | None"]
"""An endpoint, and the role that it was asked for."""


class Outlook(NamedTuple):
    """What may be expected of opening a connection now."""

    limit: int  # how many attempts may run at a time
    pause: float  # seconds until more may, at another endpoint
    is_hopeless: bool  # each one is left alone, or has its one attempt already
    is_full: bool  # one has no room
    is_failing: bool  # none has room, or a closed breaker


class Endpoints:
    """The endpoints of one pool; safe to use from any thread.

    ``revisits`` is whether somebody tries those that fail again (:meth:`lagging`)
    while others serve; else they take their turn when their time has come.
    Raises :class:`psycopg2.ProgrammingError` for what libpq would refuse.
    """

    def __init__(
        self,
        parameters: Mapping[str, str],
        resolver: Resolver,
        address_timeout: float,
        breaker: CircuitBreaker,
        at_once: int,
        revisits: bool,
        clock: Clock,
    ) -> None:
        self._targets = read_targets(parameters)
        self.session_attrs = effective(parameters, "target_session_attrs") or "any"
        self._resolver = resolver
        self._breaker = breaker
        self._at_once = at_once
        self._revisits = revisits
        self._clock = clock
        self._lock = threading.RLock()  # guards what follows; a leaf
        self._books = {
            str(target.host): AddressBook(address_timeout)
            for target in self._targets
            if target.kind in ("name", "srv")
        }
        self._being_asked: set[str] = set()
        self._asked_at = -math.inf
        self._endpoints: dict[tuple[str | None, str | None, int], Endpoint] = {}
        with self._lock:
            self._list_locked()

    # -- names -------------------------------------------------------------

    @property
    def are_fixed(self) -> bool:
        """Whether there is one, and will never be another."""
        return not self._books and len(self._targets) == 1

    def role_to_ask(self, endpoint: Endpoint) -> str | None:
        """Return the role to ask a server for, None for the one that the dsn says.

        "prefer-standby" is two passes: a server that is no standby will do when
        there is none.
        """
        if self.session_attrs != "prefer-standby":
            return None
        return "any" if endpoint.wrong_role else "standby"

    def refresh_in(self) -> float:
        """Return the seconds until a name has to be looked up again; infinite if there is none."""
        with self._lock:
            due = min((book.refresh_at for book in self._books.values()), default=math.inf)
            return max(0.0, due - self._clock())

    def refresh(self, seconds: float, *, unknown: bool = False) -> None:
        """Look the names up that are due; blocks for at most ``seconds`` in all.

        With ``unknown`` those of which nothing is known, until there is an
        endpoint.  One that another thread is looking up is left to that, if
        anything is known of it and its reply need not be waited for.  Raises
        :class:`HostResolutionError` if there is no endpoint in the end, the last
        one's.
        """
        names = self._due(unknown)
        error: HostResolutionError | None = None
        try:
            for name in names:
                error = self._look_up(name, seconds / len(names)) or error
                if unknown and self.current():
                    return
            if error is not None and not self.current():
                raise error
        finally:
            del error  # its traceback refers to this frame

    def _due(self, unknown: bool) -> list[str]:
        with self._lock:
            now = self._clock()
            return [
                name
                for name, book in self._books.items()
                if (unknown and not book.known())
                or (book.refresh_due(now) and self._may_ask_locked(name, book))
            ]

    def _may_ask_locked(self, name: str, book: AddressBook) -> bool:
        """Tell whether to ask for a name now, and not leave it to another thread that asks."""
        # After `drain` nobody connects before the reply; that one may have begun before.
        return book.awaits_reply or name not in self._being_asked

    def unanswered(self) -> HostResolutionError | None:
        """Return the error to tell while there is no endpoint yet, and names are looked up."""
        with self._lock:
            if self._endpoints or not self._being_asked:
                return None
            names = ", ".join(sorted(self._being_asked))
        return HostResolutionError(f"no name server has answered yet for {names}")

    def _look_up(self, name: str, seconds: float) -> HostResolutionError | None:
        book = self._books[name]
        with self._lock:
            self._being_asked.add(name)
            generation = book.generation
        try:
            answer = self._resolver.lookup(name, seconds)
        except NoSuchHost as error:
            self._learn(book, error.answer, generation)
            return error
        except BaseException as error:
            with self._lock:
                book.failed(self._clock(), generation)
            if not isinstance(error, HostResolutionError):
                raise
            logger.debug("cannot look up %s: %s", name, in_one_line(str(error)))
            return error
        finally:
            with self._lock:
                self._being_asked.discard(name)
                self._asked_at = self._clock()
        self._learn(book, answer, generation)
        return None

    def _learn(self, book: AddressBook, answer: Answer, generation: int) -> None:
        with self._lock:
            book.learn(answer, self._clock(), generation)
            self._list_locked()

    def _list_locked(self) -> None:
        """Bring the list up to date; what stays keeps its history."""
        listed: dict[tuple[str | None, str | None, int], Endpoint] = {}
        for target in self._targets:
            for place in self._places_locked(target):
                host = place.host or target.host
                port = place.port or target.port
                key = (host, place.address or None, port)
                endpoint = self._endpoints.get(key) or self._new_endpoint(*key)
                endpoint.priority, endpoint.weight = place.priority, place.weight
                listed.setdefault(key, endpoint)
        # An answer that names nobody is a poor reason to leave those who serve.
        self._endpoints = listed or self._endpoints

    def _places_locked(self, target: Target) -> tuple[Place, ...]:
        if target.kind in ("name", "srv"):
            return self._books[str(target.host)].known()
        return (Place(target.address or ""),)

    def _new_endpoint(self, host: str | None, address: str | None, port: int) -> Endpoint:
        keywords: dict[str, Any] = {}
        if not self.are_fixed:
            # Empty means unset, whatever the dsn says.
            keywords = {"host": host or "", "hostaddr": address or "", "port": port}
        return Endpoint(host, address, port, self._breaker.copy(), self._at_once, keywords)

    # -- which are there ---------------------------------------------------

    def current(self) -> list[Endpoint]:
        """Return the endpoints that the dsn stands for now."""
        with self._lock:
            return list(self._endpoints.values())

    def expect(self, endpoint: Endpoint) -> None:
        """Let the next attempt go to one that fails, since it answers again."""
        with self._lock:
            endpoint.returns = True

    def any_lags(self) -> bool:
        """Tell whether one fails, or is not in the role that is preferred, now."""
        with self._lock:
            return any(self._lags_locked(e) for e in self._endpoints.values())

    def _lags_locked(self, e: Endpoint) -> bool:
        return e.is_failing or (e.wrong_role and self.session_attrs in _MANY)

    def postpone(self, endpoint: Endpoint) -> None:
        """Leave one that fails alone for longer: it did not even answer."""
        with self._lock:
            self._postpone_locked(endpoint)

    def _postpone_locked(self, endpoint: Endpoint) -> None:
        longest = LONGEST_LAG if endpoint.has_served else LONGEST_LAG_OF_THE_UNKNOWN
        endpoint.lag = min(2.0 * endpoint.lag or SHORTEST_LAG, longest)
        endpoint.revisit_at = self._clock() + jitter(endpoint.lag, 0.2)

    def wanted(self) -> list[Endpoint]:
        """Return those that should have connections: not failing, in the best role and priority."""
        with self._lock:
            healthy = [e for e in self._endpoints.values() if not e.is_failing]
            best = [e for e in healthy if not e.wrong_role]
            if not best and self.session_attrs == "prefer-standby":
                best = healthy
            first = min((e.priority for e in best), default=0)
            return [e for e in best if e.priority == first]

    def lagging(self) -> list[Endpoint]:
        """Return those that fail and may be tried again now, although others serve."""
        with self._lock:
            now = self._clock()
            return [
                e
                for e in self._endpoints.values()
                if self._lags_locked(e)
                and not e.breaker.in_flight
                and e.revisit_at <= now
                and not e.pause(now)
            ]

    # -- attempts ----------------------------------------------------------

    def outlook(self) -> Outlook:
        """Tell how many attempts may run at a time now, and if none, when."""
        with self._lock:
            now = self._clock()
            endpoints = list(self._endpoints.values())
            if not endpoints:
                pause = max(0.0, self._asked_at + LOOKUP_PAUSE - now)
                limit = 0 if pause else self._at_once
                return Outlook(limit, pause or math.inf, pause > 0, False, False)
            limit = sum(e.capacity(now) for e in endpoints)
            return Outlook(
                limit,
                min((e.pause(now) for e in endpoints if e.pause(now)), default=math.inf),
                all(e.pause(now) or e.state == "half-open" for e in endpoints),
                any(e.full_until > now for e in endpoints),
                all(e.state != "closed" for e in endpoints),
            )

    def begin(self, tried: Collection[Choice], load: Mapping[Endpoint, int]) -> Attempt | None:
        """Begin an attempt at the endpoint that is next; None if there is none.

        ``load`` is how many connections each has.  Healthy ones come first, those
        in the right role, then those with fewest connections; of these those that
        have drawn the higher lot, which is another in each process.
        """
        with self._lock:
            now = self._clock()
            best: tuple[Any, ...] | None = None
            chosen = None
            for endpoint in self._endpoints.values():
                if (endpoint, self.role_to_ask(endpoint)) in tried or not endpoint.capacity(now):
                    continue
                if endpoint.is_failing and endpoint.breaker.in_flight:
                    continue
                rank = self._rank_locked(endpoint, load)
                if best is None or rank < best:
                    best, chosen = rank, endpoint
            return None if chosen is None else self._begin_locked(chosen)

    def begin_at(self, endpoint: Endpoint) -> Attempt:
        """Begin an attempt at this endpoint, whatever role it was in before."""
        with self._lock:
            endpoint.wrong_role = False
            return self._begin_locked(endpoint)

    def count_others(self, tried: Collection[Choice]) -> int:
        """Return how many there are to try beside these."""
        with self._lock:
            now = self._clock()
            # A pause for the role's sake is shorter than any attempt.
            return sum(
                (e, self.role_to_ask(e)) not in tried
                and not e.breaker.wait(now)
                and e.login.retry_at <= now
                for e in self._endpoints.values()
            )

    def _begin_locked(self, endpoint: Endpoint) -> Attempt:
        endpoint.returns = False
        attempt = endpoint.breaker.begin()
        attempt.endpoint = endpoint
        return attempt

    def _rank_locked(self, endpoint: Endpoint, load: Mapping[Endpoint, int]) -> tuple[Any, ...]:
        connections = load.get(endpoint, 0) + endpoint.breaker.in_flight
        due = endpoint.returns or (not self._revisits and endpoint.revisit_at <= self._clock())
        return (
            endpoint.is_failing and not due,
            endpoint.wrong_role,
            endpoint.priority,
            # RFC 2782: one of weight 0 has a very small chance beside others.
            (connections + 1.0 - endpoint.lot) / (endpoint.weight or 0.01),
        )

    def end(self, attempt: Attempt) -> None:
        """See to it that an attempt is over; harmless when its outcome was noted."""
        attempt.endpoint.breaker.abandon(attempt)

    # -- outcomes ----------------------------------------------------------

    def succeeded(self, attempt: Attempt, seconds: float) -> bool:
        """Note that an attempt succeeded; return whether its endpoint was reported as failing."""
        with self._lock:
            endpoint: Endpoint = attempt.endpoint
            endpoint.connect_seconds = seconds
            if endpoint.unproven:
                endpoint.breaker.abandon(attempt)
                return False
            endpoint.breaker.succeed(attempt)
            return self._recovered_locked(endpoint)

    def mark_proven(self, endpoint: Endpoint) -> bool:
        """Note that one of its connections is of use; return as :meth:`succeeded` does."""
        with self._lock:
            endpoint.unproven = False
            endpoint.breaker.succeed(endpoint.breaker.begin())
            return self._recovered_locked(endpoint)

    def _recovered_locked(self, endpoint: Endpoint) -> bool:
        endpoint.login.clear()
        endpoint.at_once = min(self._at_once, endpoint.at_once * 2)
        endpoint.last_error = None
        endpoint.full_until = -math.inf
        endpoint.lag = 0.0
        endpoint.has_served = True
        reported, endpoint.reported = endpoint.reported, False
        return reported

    def first_test_failed(
        self, endpoint: Endpoint, error: BaseException, kind: FailureKind
    ) -> None:
        """Note that a connection failed as soon as it was open.

        From now on it takes a connection that is of use to prove the contrary.
        """
        with self._lock:
            self.failed(self._begin_locked(endpoint), error, kind)
            endpoint.unproven = endpoint.is_failing

    def in_role(self, endpoint: Endpoint, is_right: bool) -> None:
        """Note whether a server is in the role that is wanted."""
        with self._lock:
            now = self._clock()
            if not endpoint.wrong_role:
                endpoint.wrong_role_since = now
            endpoint.wrong_role = not is_right
            endpoint.wrong_role_until = -math.inf
            if not is_right and self.session_attrs != "prefer-standby":
                pause = prompt_pause(now - endpoint.wrong_role_since)
                endpoint.wrong_role_until = now + jitter(pause, 0.2)

    def failed(self, attempt: Attempt, error: BaseException, kind: FailureKind) -> None:
        """Note that an attempt failed."""
        with self._lock:
            now = self._clock()
            endpoint: Endpoint = attempt.endpoint
            endpoint.at_once = 1
            if kind is not FailureKind.ROLE:
                endpoint.last_error = copy_error(error)
            self._postpone_locked(endpoint)
            if kind is FailureKind.LOGIN:
                endpoint.breaker.succeed(attempt)  # it answers
                endpoint.login.refuse(now)
                return
            endpoint.login.clear()
            if kind is FailureKind.ROLE:
                endpoint.breaker.succeed(attempt)
                self.in_role(endpoint, False)
            elif kind is FailureKind.FULL:
                endpoint.breaker.abandon(attempt)
                endpoint.full_until = now + jitter(FULL_PAUSE, 0.2)
            elif kind is FailureKind.MISTAKE:
                endpoint.breaker.abandon(attempt)
            else:
                endpoint.breaker.fail(attempt, now, prompt=kind is not FailureKind.SILENT)

    def interrupted(self, attempt: Attempt) -> None:
        """Note that an attempt was interrupted, which says nothing of its endpoint."""
        with self._lock:
            attempt.endpoint.breaker.abandon(attempt)

    def refuse_all_logins(self) -> bool:
        """Tell whether every endpoint has refused the login, and none may be tried now."""
        with self._lock:
            now = self._clock()
            return bool(self._endpoints) and all(
                e.login.is_refused and (e.pause(now) or e.breaker.in_flight)
                for e in self._endpoints.values()
            )

    def longest_connect(self) -> float | None:
        """Return how many seconds the last connect took where it took longest, if any is known."""
        with self._lock:
            known = [e.connect_seconds for e in self._endpoints.values()]
        return max((s for s in known if s is not None), default=None)

    def awaits_reply(self) -> bool:
        """Tell whether a name is to be looked up before the next connection is opened."""
        with self._lock:
            return any(book.awaits_reply for book in self._books.values())

    def start_anew(self) -> None:
        """Note that something has changed: look names up, and try refused logins, at once."""
        with self._lock:
            for book in self._books.values():
                book.start_anew()
            for endpoint in self._endpoints.values():
                endpoint.login.retry_now()

    def failures_to_report(self, tried: Collection[Endpoint]) -> list[Endpoint]:
        """Return those that fail although they have served, or refuse logins; each once."""
        with self._lock:
            found = [
                e
                for e in tried
                if e.is_failing and (e.has_served or e.login.is_refused) and not e.reported
            ]
            for endpoint in found:
                endpoint.reported = True
        return found
