"""Which addresses a name stands for: the answers of the last while, taken together.

Pure: no I/O, no clock, no lock; its user passes the time in and guards it with a lock.
"""

from __future__ import annotations

from typing import NamedTuple

LONGEST_REFRESH = 60.0
"""Seconds after which a name is asked for again, however long its TTL."""
SHORTEST_REFRESH = 1.0
"""Seconds between two questions for a name, however short its TTL."""
LONGEST_MEMORY = 600.0
"""Seconds for which a long TTL keeps an address that no answer names any more."""
LONGEST_BACKOFF = 15.0
"""Seconds between two questions while nobody answers; the first pause is the shortest."""


class Place(NamedTuple):
    """Somewhere to connect to.

    ``port`` is None unless the answer says one (an SRV record does); ``priority``
    and ``weight`` are RFC 2782's, and ``host`` is the name that the SRV record
    gives for it, which is the one that TLS and Kerberos have to check.
    """

    address: str
    port: int | None = None
    priority: int = 0
    weight: int = 0
    host: str | None = None


class Answer(NamedTuple):
    """What a name was found to stand for.

    Valid for ``ttl`` seconds.  ``complete`` is False when only a part could be
    found out, so that what is missing says nothing.
    """

    places: tuple[Place, ...]
    ttl: float
    complete: bool = True


NOBODY = Answer((), 5.0)
"""The answer that there is no such name."""


_Key = tuple[str, int | None]


class AddressBook:
    """Keep the places that the answers for one name have named lately.

    An answer may hold only some of them, even a single one in turn.  So a place
    leaves when no answer has named it for ``address_timeout`` seconds, or twice
    the TTL it came with (at most :data:`LONGEST_MEMORY`) if that is longer.  Time
    in which nobody answered does not count, however long it was: nothing leaves
    then, and nothing leaves just because the first answer afterwards does not name it.

    After :meth:`start_anew` one complete answer decides alone.  It has to be that of
    a lookup that began later, so a lookup takes the :attr:`generation` before it
    begins and hands it over with its outcome.
    """

    __slots__ = (
        "_address_timeout",
        "_answered",
        "_failures",
        "_places",
        "_was_silent",
        "awaits_replacement",
        "awaits_reply",
        "generation",
        "refresh_at",
    )

    def __init__(self, address_timeout: float) -> None:
        self._address_timeout = address_timeout
        # Each with the moment at which it leaves, unless it is named before.
        self._places: dict[_Key, tuple[Place, float]] = {}
        self._answered = 0.0
        self._was_silent = False
        self._failures = 0  # in a row, for the pause after each
        self.refresh_at = float("-inf")
        self.generation = 0
        """How often the book was started anew."""
        self.awaits_replacement = False
        """Whether the answer is still to come that replaces what is known."""
        self.awaits_reply = False
        """Whether no lookup has ended since the book was started anew, however it ended."""

    def start_anew(self) -> None:
        """Let only what the next complete answer names count, and ask for it at once.

        What is known stays until then, and leaves before only as it always does.
        """
        self.generation += 1
        self.awaits_replacement = self.awaits_reply = True
        self._failures = 0
        self.refresh_at = float("-inf")

    def learn(self, answer: Answer, now: float, generation: int | None = None) -> None:
        """Note an answer; one that names nobody lets what is known expire.

        ``generation`` is that of the book when the lookup began, None for the present
        one.  An older one's places are known too, but it replaces nothing.
        """
        is_present = generation in (None, self.generation)
        if is_present and self.awaits_replacement and answer.places and answer.complete:
            self._places.clear()
            self.awaits_replacement = False
        if self._was_silent or not answer.complete:
            self._prolong(now - self._answered)
        self._was_silent = False
        self._failures = 0
        self._answered = now
        until = now + max(self._address_timeout, min(2.0 * answer.ttl, LONGEST_MEMORY))
        for place in answer.places:
            self._places[place.address, place.port] = place, until
        self._expire(now)
        if is_present:
            self.awaits_reply = False
            self.refresh_at = now + min(max(answer.ttl, SHORTEST_REFRESH), LONGEST_REFRESH)

    def failed(self, now: float, generation: int | None = None) -> None:
        """Note that nobody answered; ``generation`` is as for :meth:`learn`."""
        self._was_silent = True
        if generation not in (None, self.generation):
            return
        self.awaits_reply = False
        pause = SHORTEST_REFRESH * 2.0 ** min(self._failures, 10)
        self._failures += 1
        self.refresh_at = now + min(pause, LONGEST_BACKOFF)

    def known(self) -> tuple[Place, ...]:
        """Return the places, each address and port once, those known longest first."""
        return tuple(place for place, _ in self._places.values())

    def refresh_due(self, now: float) -> bool:
        """Tell whether the name has to be asked for again; :attr:`refresh_at` says when."""
        return now >= self.refresh_at

    def _prolong(self, seconds: float) -> None:
        for key, (place, until) in self._places.items():
            self._places[key] = place, until + seconds

    def _expire(self, now: float) -> None:
        for key in [key for key, (_, until) in self._places.items() if until < now]:
            del self._places[key]
