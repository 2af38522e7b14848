"""A Celery application with a pool; its broker and results are folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, signals  # type: ignore[import-untyped]
from celery.exceptions import SoftTimeLimitExceeded  # type: ignore[import-untyped]

from tests.support.apps import own_pool
from tests.support.apps.celery_folders import settings

app = Celery("tests", **settings(Path(os.environ["APP_FOLDER"])))


def answer() -> dict[str, int]:
    """Tell who runs this task."""
    return own_pool.answer()


def wait_in_vain() -> dict[str, Any]:
    """Wait for a connection until the time limit interrupts; tell what the pool is like then."""
    conns = [own_pool.pool.getconn() for _ in range(own_pool.SESSIONS)]
    try:
        own_pool.pool.getconn(timeout=60)
        interrupted = False
    except SoftTimeLimitExceeded:
        interrupted = True
    finally:
        for conn in conns:
            own_pool.pool.putconn(conn)
    sessions = own_pool.backends()
    in_use = own_pool.pool.stats().in_use
    return {"interrupted": interrupted, "sessions": len(set(sessions)), "in_use": in_use}


app.task(answer, name="answer")
app.task(wait_in_vain, name="wait_in_vain", soft_time_limit=1)


def tell_of_the_masters_sessions(**_: Any) -> None:
    """Write which sessions of the master answer, when it is about to end."""
    told = Path(os.environ["APP_FOLDER"], "master")
    told.write_text(str(own_pool.backends()))


signals.worker_shutting_down.connect(tell_of_the_masters_sessions)
