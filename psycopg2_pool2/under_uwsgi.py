"""What uWSGI lets threads do.

uWSGI runs Python in its own program and forks its workers in C, as a rule after
the application is imported, and without the interpreter's lock.  If a thread of
the process has that lock, or waits for it, in the moment of the fork, the worker
never runs Python again.  So nothing of ours may run in the process that forks.

Before 2.0.27 or so, and without ``--enable-threads``, uWSGI keeps the lock while
it waits for requests: then threads run in its workers only while a request does.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .log import logger

_has_warned = False  # children inherit it: once for all workers


def may_run_threads() -> bool:
    """Tell whether threads may be started in this process: False in uWSGI's master."""
    uwsgi = _uwsgi()
    return uwsgi is None or not (_will_fork(uwsgi) or _lacks_threads(uwsgi))


def warn_of_missing_threads() -> None:
    """Log, once for the master and its workers, if uWSGI runs no threads."""
    global _has_warned
    uwsgi = _uwsgi()
    if uwsgi is None or _has_warned or not _lacks_threads(uwsgi):
        return
    _has_warned = True
    logger.warning(
        "uWSGI runs no threads here, so the pools work as with num_workers=0: borrowers open"
        " their connections themselves; start uWSGI with --enable-threads"
    )


def _uwsgi() -> Any:
    """Return the module that uWSGI makes, None in other processes."""
    module = sys.modules.get("uwsgi")
    return module if callable(getattr(module, "worker_id", None)) else None


def _will_fork(uwsgi: Any) -> bool:
    """Tell whether workers are forked from this process."""
    master = uwsgi.masterpid()
    if master:
        return bool(master == os.getpid())  # also when its hooks run in the child: not worker_id
    # Without a master the first worker loads the application and forks the others.
    forks = uwsgi.numproc > 1 or any(name.startswith("spooler") for name in uwsgi.opt)
    return forks and not uwsgi.worker_id()


def _lacks_threads(uwsgi: Any) -> bool:
    return not (getattr(uwsgi, "has_threads", True) or _are_greenlets())


def _are_greenlets() -> bool:
    """Tell whether gevent has replaced threads: greenlets run without threads too."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))
