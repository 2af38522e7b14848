"""A fork copies no lock that one of the pool's connects is just holding.

libpq asks GSSAPI and OpenSSL whenever it connects, and those take locks of the
process.  A child that is forked in that very moment inherits the lock, but not
the thread that would release it: its first connect never ends.  (Seen in ten of
3,000 children of a busy process, in ``gss_indicate_mechs``.)  So a fork lets
connects end first.

**The protocol between a fork and connects**:

1. The fork closes the gate, *then* it looks who is connecting, and waits until
   they have ended.  One that takes longer than :data:`LONGEST` waits for the
   network and holds no lock.
2. Who is about to connect enters, *then* he looks at the gate.  If it is closed
   he leaves again, and waits for its opening.  So one of the two sees the other.
3. When the fork is over the parent opens the gate; the child begins anew.

Both waits are bounded by :data:`LONGEST`, so that nobody waits for a thread that
was interrupted.
"""

from __future__ import annotations

import os
import threading
import weakref

from .bell import Bell
from .timing import monotonic

LONGEST = 0.1
"""Seconds for which a connect may hold up a fork, and a fork a connect."""


class Connecting:
    """A connect that is under way; held by its thread's frame."""

    __slots__ = ("__weakref__", "began", "ref", "thread")

    def __init__(self) -> None:
        self.began = monotonic()
        self.thread = threading.get_ident()
        self.ref = weakref.ref(self)


class Gate:
    """Keeps connects and forks apart."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was; in a child none of it goes on."""
        self._closed = False
        # Weakly: a thread that was interrupted may not have left.
        self._connecting: set[weakref.ref[Connecting]] = set()
        self._left = Bell()
        self._opened = Bell()

    # -- connects ----------------------------------------------------------

    def enter(self) -> Connecting:
        """Begin to connect; wait while somebody forks.  To be left in any case."""
        connecting = self._enter()
        if self._closed:
            self.leave(connecting)
            self._opened.wait(LONGEST, self._is_open)
            connecting = self._enter()
        return connecting

    def _enter(self) -> Connecting:
        connecting = Connecting()
        self._connecting.add(connecting.ref)
        return connecting

    def leave(self, connecting: Connecting) -> None:
        """End a connect."""
        self._connecting.discard(connecting.ref)
        self._left.ring()

    # -- forks -------------------------------------------------------------

    def close(self) -> None:
        """Let connects end, and none begin, until the fork is over."""
        self._closed = True
        until = monotonic() + LONGEST
        while not self._is_quiet() and (left := until - monotonic()) > 0:
            self._left.wait(left, self._is_quiet)

    def open(self) -> None:
        """Let connects begin."""
        self._closed = False
        self._opened.ring()

    def _is_open(self) -> bool:
        return not self._closed

    def _is_quiet(self) -> bool:
        """Tell whether no other thread has just begun to connect."""
        since, me = monotonic() - LONGEST, threading.get_ident()
        for ref in list(self._connecting):
            connecting = ref()
            if connecting is None:
                self._connecting.discard(ref)
            elif connecting.thread != me and connecting.began > since:
                return False
        return True


gate = Gate()

os.register_at_fork(before=gate.close, after_in_parent=gate.open, after_in_child=gate.begin_anew)
