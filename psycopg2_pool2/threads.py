"""The library's own threads, how to tell them from the program's, and when they end.

At the end of the interpreter three things happen, one after the other:

1. The main thread waits for the other threads that are no daemons, then exit
   handlers run.  Daemons go on meanwhile; but Python 3.12 starts no thread any more.
2. All threads but one are stopped wherever they are, some with a lock in hand.
3. That one takes the modules apart, and runs finalizers.  Nothing can be imported
   there, which psycopg2 needs for whatever it does.

So exit handlers may borrow as ever, without a thread of ours if need be.  After the
second step nothing can be borrowed, and nothing that may run then waits for a lock.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

has_stopped_others = sys.is_finalizing
"""Tell whether this is the only thread that will ever run again."""
_AT_THE_END = "interpreter shutdown"


class OwnThread(threading.Thread):
    """A daemon thread in which only the library runs, and the callbacks that it is given."""

    def __init__(self, act: Callable[[], object], name: str) -> None:
        super().__init__(target=act, name=f"psycopg2_pool2-{name}", daemon=True)

    def start(self) -> None:
        """Start; raises RuntimeError if that cannot be, as of the second step on."""
        if has_stopped_others():  # up to Python 3.11 this would be waited for, for ever
            raise RuntimeError(f"no thread can be started at {_AT_THE_END}")
        super().start()


def is_at_the_end(error: BaseException) -> bool:
    """Tell whether a thread could not be started because the interpreter ends."""
    return _AT_THE_END in str(error)


def is_own_thread() -> bool:
    """Tell whether the current thread is one of the library's.

    In a child that was forked by such a thread it is the main thread, which the program goes on in.
    """
    me = threading.current_thread()
    return isinstance(me, OwnThread) and me is not threading.main_thread()
