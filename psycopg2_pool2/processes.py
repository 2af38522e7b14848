"""In which process the library runs, also after forks that Python is not told of.

``os.fork`` runs hooks.  C code that forks does not: uWSGI, or an extension.  The
child is then noticed by what differs there:

* its process id, which costs a system call for each look;
* a page of memory that the kernel empties in every child (``MADV_WIPEONFORK``,
  Linux 4.14), which costs no more than reading a list.
"""

from __future__ import annotations

import os
import threading
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .interruptions import let_through


class Mark(Protocol):
    """A sequence whose first item tells whether this is certainly the process that made it."""

    def __getitem__(self, index: int, /) -> int:
        """Return 1, or 0 in another process; the index is 0."""


NO_MARK: Mark = b"\0"
"""Is empty in every process."""

_WIPE_ON_FORK = 18  # of Linux, on every architecture; mmap does not name it

# By process id: a lock that a thread of the parent has is held for ever in the child.
_locks: MutableMapping[int, AbstractContextManager[Any]] = {}
_last: tuple[int, Mark] = (0, NO_MARK)


class ThisProcess:
    """The process in which it is made, to be told from its forked children."""

    __slots__ = ("_pid", "mark")

    def __init__(self) -> None:
        self._pid = os.getpid()
        #: Spares those a call who read it first: 0 says that :meth:`is_current` is to be asked.
        self.mark = _mark(self._pid)

    def is_current(self) -> bool:
        """Tell whether the caller runs in this process."""
        return bool(self.mark[0]) or os.getpid() == self._pid


def process_lock() -> AbstractContextManager[Any]:
    """Return a lock of this process, which may be re-entered; never one of the parent's."""
    return _locks.setdefault(os.getpid(), threading.RLock())


def _mark(pid: int) -> Mark:
    """Return the mark of the process, one for all; a child makes a page of its own.

    So the parent's stays empty there for all who keep it.
    """
    global _last
    marked, mark = _last
    if marked != pid:
        mark = _make_mark()
        _last = pid, mark  # of two threads that make one each, both hold
    return mark


def _make_mark() -> Mark:
    try:
        import mmap  # for this alone

        # Private: what is shared with the child cannot be emptied there.
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
    except (AttributeError, ImportError, OSError, ValueError) as error:
        let_through(error)
        return NO_MARK  # it is not Linux, or no descriptor is left
    page[0] = 1
    return page
