"""The library's own threads, and how to tell them from the program's."""

from __future__ import annotations

import threading
from collections.abc import Callable


class OwnThread(threading.Thread):
    """A daemon thread in which only the library runs, and the callbacks that it is given."""

    def __init__(self, act: Callable[[], object], name: str) -> None:
        super().__init__(target=act, name=f"psycopg2_pool2-{name}", daemon=True)


def is_own_thread() -> bool:
    """Tell whether the current thread is one of the library's.

    In a child that was forked by such a thread it is the main thread, which the program goes on in.
    """
    me = threading.current_thread()
    return isinstance(me, OwnThread) and me is not threading.main_thread()
