"""What a failed attempt to connect means, where the error itself does not tell.

libpq passes on what a server says, in the server's language and without its
SQLSTATE.  So after an answer in words that are not known the server is asked
itself, on a connection of its own, and its answer is read by code:

* It says an SQLSTATE: that tells.  If it says it in the words of the error, the
  words are remembered.
* It asks for authentication: it is up, so it was the login that was refused; or
  it has come up this very moment.  The login is tried once more, and if it
  fails again in the same words these mean a refused login from now on.
* It does not answer any more: then it was about to go.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import psycopg2

from .failure_kinds import FailureKind
from .failures import classify
from .interruptions import let_through
from .timing import Clock

if TYPE_CHECKING:
    from .endpoints import Endpoint

ASK_TIMEOUT = 2.0
"""Seconds that a server has for the answer."""
MOMENT = 0.7
"""Seconds for which a file that TLS needs may be missing in a pool that has never connected."""
_MOST_REMEMBERED = 64


class Inquiry:
    """Tells what failures mean, for one pool; safe to use from any thread.

    ``parameters`` are libpq's, as the pool's dsn and keywords give them.
    """

    def __init__(self, parameters: Mapping[str, str], clock: Clock) -> None:
        self._parameters = parameters
        self._clock = clock
        self._lock = threading.RLock()  # guards what follows
        self._known: OrderedDict[str, FailureKind] = OrderedDict()
        self._has_connected = False
        self._missing_since: float | None = None

    def succeeded(self, endpoint: Endpoint) -> None:
        """Note that the pool has connected."""
        self._has_connected = True
        self._missing_since = endpoint.unclear_words = None

    def kind_of(
        self, error: BaseException, endpoint: Endpoint, seconds: float | None
    ) -> FailureKind:
        """Return what an attempt's error means; may ask the server, for at most ``seconds``."""
        kind = classify(error)
        if kind is None:
            most = ASK_TIMEOUT if seconds is None else min(ASK_TIMEOUT, seconds)
            kind = self._of_unknown_words(error, endpoint, most)
        if kind is FailureKind.MISSING_FILE:
            kind = self._of_missing_file()
        return kind

    def _of_missing_file(self) -> FailureKind:
        """Wait for a file that was there before, or that is being replaced this very moment."""
        with self._lock:
            now = self._clock()
            if self._missing_since is None:
                self._missing_since = now
            waits = self._has_connected or now - self._missing_since < MOMENT
        return FailureKind.NOT_NOW if waits else FailureKind.LOGIN

    # -- unknown words -----------------------------------------------------

    def _of_unknown_words(
        self, error: BaseException, endpoint: Endpoint, seconds: float
    ) -> FailureKind:
        words = _words(error)
        with self._lock:
            known = self._known.get(words)
        if known is not None:
            return known
        return self._ask(str(error), words, endpoint, seconds)

    def _ask(self, text: str, words: str, endpoint: Endpoint, seconds: float) -> FailureKind:
        from .handshake import ask  # rarely needed

        try:
            answer = ask(self._parameters, endpoint.host, endpoint.address, endpoint.port, seconds)
        except TimeoutError as error:
            let_through(error)
            return FailureKind.SILENT
        except (OSError, psycopg2.Error) as error:
            let_through(error)
            return FailureKind.CUT
        if answer.takes_logins:
            return self._of_up(words, endpoint)
        kind = answer.kind or FailureKind.LOGIN
        if answer.text and answer.text in text:
            self._remember(words, kind)
        elif kind is FailureKind.LOGIN:
            return self._of_up(words, endpoint)  # other words: they are not about that login
        return kind

    def _of_up(self, words: str, endpoint: Endpoint) -> FailureKind:
        """Tell a refused login from a server that has come up since: by the second refusal."""
        before, endpoint.unclear_words = endpoint.unclear_words, words
        if before != words:
            return FailureKind.NOT_NOW
        self._remember(words, FailureKind.LOGIN)
        return FailureKind.LOGIN

    def _remember(self, words: str, kind: FailureKind) -> None:
        with self._lock:
            self._known[words] = kind
            if len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)


def _words(error: BaseException) -> str:
    """Return an error's text without what differs from one attempt to the next."""
    return re.sub(r"\d+", "0", str(error))
