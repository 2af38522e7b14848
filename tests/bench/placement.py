"""Where the processes of a measurement run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg2_pool2.contrib.embedded import Server


@contextmanager
def on_one_processor(server: Server) -> Iterator[None]:
    """Have this thread, and the sessions opened in the block, share one processor.

    To wake a process on another processor takes up to three times a short statement. Whether a
    session is woken there is a matter of luck, which stays the same as long as it is open, and so
    it would decide which pool looks fast. Does nothing where the system does not allow it.
    """
    if not hasattr(os, "sched_setaffinity") or server.pid is None:
        yield
        return
    before = os.sched_getaffinity(0)
    with suppress(PermissionError):
        os.sched_setaffinity(server.pid, {max(before)})
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        with suppress(PermissionError):
            os.sched_setaffinity(server.pid, before)
