"""Who borrowed what and where: recorded only when somebody asked for it."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

_OWN_FOLDER = os.path.dirname(__file__)
_DEPTH = 8


def borrower() -> object:
    """Return what tells the present borrower from all others: its task, greenlet or thread."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if task is not None:
            return task
    greenlet = sys.modules.get("greenlet")
    if greenlet is not None:
        return greenlet.getcurrent()
    return threading.current_thread()  # its number is used again by another one


def call_site() -> str:
    """Return the innermost frames outside the pool, the last call last.

    Without the lines of source: they may hold a dsn with its password.
    """
    sites: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(sites) < _DEPTH:
        code = frame.f_code
        if os.path.dirname(code.co_filename) != _OWN_FOLDER:
            sites.append(f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}')
        frame = frame.f_back
    return "\n".join(reversed(sites))


class Loan:
    """One loan: when it began, who has it, and from where it was asked for."""

    __slots__ = ("returned", "since", "site", "thread", "warned", "who")

    def __init__(self, now: float) -> None:
        self.since = now
        self.thread = threading.current_thread().name
        self.who = borrower()
        self.site = call_site()
        self.warned = False
        self.returned: str | None = None
