"""The end of the interpreter, in which exit handlers and finalizers may still borrow.

Three things happen, one after the other:

1. The main thread waits for the other threads that are no daemons, then exit
   handlers run.  Daemons go on meanwhile; but Python 3.12 starts no thread any more.
2. All threads but one are stopped wherever they are, some with a lock in hand.
3. That one takes the modules apart, and runs finalizers.  Nothing can be imported
   there, which psycopg2 needs for whatever it does.

So what a thread of ours would do is done by who wants it as soon as no thread can
be started; and after the second step nothing can be borrowed, and nothing that
may run then waits for a lock.
"""

from __future__ import annotations

import sys
import threading

_no_more = False  # a thread could not be started because of the end


has_stopped_others = sys.is_finalizing
"""Tell whether this is the only thread that will ever run again."""


def starts_no_threads() -> bool:
    """Tell whether it is known that no thread can be started any more."""
    return _no_more or has_stopped_others()


def start(thread: threading.Thread) -> bool:
    """Start a thread; False if none can be because the interpreter ends.

    Raises RuntimeError if the system has none to give.
    """
    global _no_more
    if has_stopped_others():
        return False  # up to Python 3.11 it would be waited for, for ever
    try:
        thread.start()
    except RuntimeError as error:
        if "interpreter shutdown" not in str(error):
            raise
        _no_more = True
        return False
    return True
