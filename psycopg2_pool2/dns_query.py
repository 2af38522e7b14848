"""Ask DNS for what a name stands for, as the C library does, but without waiting in vain.

All record types are asked for at the same time.  A name server that is silent is
listened to while the next one is asked, and so is a candidate of the search list;
it is the first candidate in order that counts, as long as the C library would
wait for it.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .dns_exchange import (
    Exchange,
    Records,
    TruncatedReplyError,
    UnusableReplyError,
    make_request,
    records_of,
)
from .dns_questions import Candidate, Question
from .interruptions import let_through
from .resolv_conf import Configuration, NameServer
from .timing import chance, monotonic

NEXT_SERVER = 1.0
"""Seconds that a name server may be silent, at most, before the next one is asked as well."""
MOST_COMPLAINTS = 4


class Reply(NamedTuple):
    """What DNS says about a name.

    ``records`` has those found, by type, and ``failed`` the types of which nothing
    is known, both of the first candidate that has any.  ``complaints`` are what
    went wrong on the way, and ``is_definite`` tells that nothing did.
    """

    records: Mapping[str, Records] = {}
    failed: frozenset[str] = frozenset()
    complaints: tuple[str, ...] = ()
    was_silent: bool = False  # somebody did not answer, so that asking again takes long

    @property
    def is_definite(self) -> bool:
        """Whether no record means that there is no such name."""
        return not self.failed


def ask(
    configuration: Configuration, names: Sequence[str], kinds: Sequence[str], seconds: float
) -> Reply:
    """Ask for records of the first of these names that has any.

    Blocks for at most ``seconds``.  Whatever happens to a socket is a complaint
    of the reply, never an error.
    """
    search = _Search(configuration, kinds, seconds)
    try:
        return search.run([name for name in names if _is_name(name)])
    finally:
        search.close()


def limited(complaints: Iterable[str]) -> tuple[str, ...]:
    """Return the first few of what went wrong, each once, and how many more there are."""
    each = list(dict.fromkeys(complaints))
    more = len(each) - MOST_COMPLAINTS
    return (*each[:MOST_COMPLAINTS], *([f"and {more} more"] if more > 0 else []))


def _is_name(text: str) -> bool:
    """Tell whether DNS could know a name; labels are limited, and so is the whole."""
    import dns.exception
    import dns.name

    try:
        dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError):
        return False
    return True


class _Search:
    """One lookup: a loop around all the questions that are under way."""

    def __init__(self, configuration: Configuration, kinds: Sequence[str], seconds: float) -> None:
        self._configuration = configuration
        self._kinds = kinds
        self._servers = _rotated(configuration)
        self._now = _stopwatch()
        self._ends = seconds
        number = len(self._servers)
        self._pause = min(NEXT_SERVER, configuration.timeout, seconds / (2.0 * number))
        self._selector = selectors.DefaultSelector()
        self._candidates: list[Candidate] = []
        self._complaints: list[str] = []
        self._was_silent = False

    def close(self) -> None:
        for candidate in self._candidates:
            for question in candidate.questions:
                self._close_exchanges(question)
        self._selector.close()

    # -- the loop ----------------------------------------------------------

    def run(self, names: Sequence[str]) -> Reply:
        # Each is begun early enough to be answered in half of the time.
        stagger = min(self._pause * len(self._servers), self._ends / (2.0 * max(1, len(names))))
        waiting = list(names)
        now = self._now(0.0)
        while now < self._ends:
            self._act(now)
            while waiting and self._may_begin(now, stagger):
                name = waiting.pop(0)
                self._candidates.append(Candidate(name, self._kinds, self._servers, now))
                self._act(now)
            if self._found(now) or not (waiting or self._is_pending(now)):
                break
            now = self._wait(now, stagger if waiting else None)
        return self._reply(now, set(self._kinds) if waiting else set())

    def _may_begin(self, now: float, stagger: float) -> bool:
        if not self._candidates:
            return True
        last = self._candidates[-1]
        return not last.has_records and (last.is_decided(now) or now >= last.began + stagger)

    def _is_pending(self, now: float) -> bool:
        return any(not candidate.is_decided(now) for candidate in self._candidates)

    def _found(self, now: float) -> bool:
        """Tell whether the first candidate that has records, and all before it, are decided."""
        for candidate in self._candidates:
            if not candidate.is_decided(now):
                return False
            if candidate.has_records:
                return True
        return False

    def _act(self, now: float) -> None:
        """Send what is due, and give up what has had the time that the C library gives it."""
        for question in self._pending():
            if now >= self._gives_up_at(question):
                self._give_up(question, now)
            while not question.is_settled and now >= question.send_at:
                self._send_next(question, now)

    def _wait(self, now: float, stagger: float | None) -> float:
        """Wait for answers until something is due, take them, and return the time."""
        seconds = max(0.0, min(self._moments(now, stagger)) - now)
        ready = self._selector.select(seconds)
        now = self._now(0.0 if ready else seconds)
        for key, _ in ready:
            question, exchange = key.data
            if not question.is_settled and question.exchanges.get(exchange.server) is exchange:
                self._take(question, exchange, now)
        return now

    def _moments(self, now: float, stagger: float | None) -> Iterator[float]:
        """Yield the times at which something is due."""
        yield self._ends
        for candidate in self._candidates:
            if not candidate.is_decided(now):
                yield candidate.patience_ends()
        for question in self._pending():
            yield question.send_at
            yield self._gives_up_at(question)
        if stagger is not None and not self._candidates[-1].has_records:
            yield self._candidates[-1].began + stagger

    def _pending(self) -> Iterator[Question]:
        for candidate in self._candidates:
            yield from candidate.pending()

    def _gives_up_at(self, question: Question) -> float:
        configuration = self._configuration
        longest = configuration.timeout * configuration.attempts * len(question.servers)
        return question.began + longest

    # -- a question --------------------------------------------------------

    def _send_next(self, question: Question, now: float) -> None:
        server = question.next_server()
        question.plan_next(now, self._pause)
        exchange = question.exchanges.get(server)
        if exchange is None:
            self._open(question, server, self._configuration.use_tcp, now)
        elif not exchange.is_tcp:
            self._attempt(question, exchange, exchange.send, now)

    def _open(
        self,
        question: Question,
        server: NameServer,
        is_tcp: bool,
        now: float,
        use_edns: bool | None = None,
    ) -> None:
        edns = self._configuration.use_edns if use_edns is None else use_edns
        request = make_request(question.name, question.kind, edns)
        try:
            exchange = Exchange(request, server, is_tcp)
        except OSError as error:  # out of descriptors, or no IPv6
            let_through(error)
            self._drop(question, server, _told(error), now)
            return
        question.exchanges[server] = exchange
        self._attempt(question, exchange, exchange.begin, now)
        if question.exchanges.get(server) is exchange:
            events = selectors.EVENT_WRITE if exchange.is_connecting else selectors.EVENT_READ
            self._selector.register(exchange.socket, events, (question, exchange))

    def _take(self, question: Question, exchange: Exchange, now: float) -> None:
        """Take what a socket is ready for."""
        if exchange.is_connecting:
            self._attempt(question, exchange, exchange.send, now)
            if question.exchanges.get(exchange.server) is exchange:
                data = (question, exchange)
                self._selector.modify(exchange.socket, selectors.EVENT_READ, data)
        else:
            self._attempt(question, exchange, lambda: self._receive(question, exchange, now), now)

    def _receive(self, question: Question, exchange: Exchange, now: float) -> None:
        message = exchange.receive()
        if message is None:
            return
        if exchange.request.edns >= 0 and _refuses_edns(message):
            self._ask_again(question, exchange, now, is_tcp=exchange.is_tcp, use_edns=False)
            return
        question.settle(records_of(message), now)
        self._close_exchanges(question)

    def _attempt(
        self, question: Question, exchange: Exchange, act: Callable[[], None], now: float
    ) -> None:
        """Do something with a socket; what goes wrong rules out this name server only."""
        try:
            act()
        except TruncatedReplyError:
            use_edns = exchange.request.edns >= 0
            self._ask_again(question, exchange, now, is_tcp=True, use_edns=use_edns)
        except UnusableReplyError as error:
            self._drop(question, exchange.server, str(error), now)
        except OSError as error:
            let_through(error)
            self._drop(question, exchange.server, _told(error), now)

    def _ask_again(
        self, question: Question, exchange: Exchange, now: float, *, is_tcp: bool, use_edns: bool
    ) -> None:
        self._close(question.exchanges.pop(exchange.server))
        self._open(question, exchange.server, is_tcp, now, use_edns)

    def _drop(self, question: Question, server: NameServer, what: str, now: float) -> None:
        """Ask this name server no more, and the next one at once."""
        self._complain(question, server, what)
        exchange = question.exchanges.pop(server, None)
        if exchange is not None:
            self._close(exchange)
        question.servers.remove(server)
        if not question.servers:
            question.settle(None, now, failed=True)
            return
        unasked = [n for n, each in enumerate(question.servers) if each not in question.exchanges]
        if unasked:
            question.sent = unasked[0]
            question.send_at = now

    def _give_up(self, question: Question, now: float) -> None:
        self._was_silent = True
        for server in question.exchanges:
            self._complain(question, server, "did not answer")
        question.settle(None, now, failed=True)
        self._close_exchanges(question)

    def _complain(self, question: Question, server: NameServer, what: str) -> None:
        name = question.name.rstrip(".")
        self._complaints.append(f"name server {server} {what} ({question.kind} of {name})")

    def _close_exchanges(self, question: Question) -> None:
        while question.exchanges:
            self._close(question.exchanges.popitem()[1])

    def _close(self, exchange: Exchange) -> None:
        try:
            self._selector.unregister(exchange.socket)
        except (KeyError, ValueError):  # it had not come to that
            pass
        exchange.close()

    # -- the outcome -------------------------------------------------------

    def _reply(self, now: float, unasked: set[str]) -> Reply:
        chosen = next((c for c in self._candidates if c.has_records), None)
        for question in list(self._pending()):
            self._give_up(question, now)
        complaints = limited(self._complaints)
        if chosen is None:
            asked = [q for c in self._candidates for q in c.questions]
            failed = {q.kind for q in asked if q.has_failed} | unasked
            return Reply({}, frozenset(failed), complaints, self._was_silent)
        records = {q.kind: q.records for q in chosen.questions if q.records is not None}
        failed = {q.kind for q in chosen.questions if q.has_failed}
        return Reply(records, frozenset(failed), complaints, self._was_silent)


def _refuses_edns(message: Any) -> bool:
    import dns.rcode

    return message.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.SERVFAIL)


def _told(error: OSError) -> str:
    return f"cannot be reached: {error.strerror or type(error).__name__}"


def _rotated(configuration: Configuration) -> list[NameServer]:
    servers = list(dict.fromkeys(configuration.servers))
    first = int(chance() * len(servers)) if configuration.rotate else 0
    return servers[first:] + servers[:first]


def _stopwatch() -> Callable[[float], float]:
    """Return a clock that goes on by what was waited for, even if the system's stands still."""
    began = monotonic()
    waited = 0.0

    def read(seconds: float) -> float:
        nonlocal waited
        waited += seconds
        return max(waited, monotonic() - began)

    return read
