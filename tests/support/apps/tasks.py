"""A Celery application with a pool; its broker and results are folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, signals  # type: ignore[import-untyped]

from tests.support.apps import own_pool
from tests.support.apps.celery_folders import settings

app = Celery("tests", **settings(Path(os.environ["APP_FOLDER"])))


def answer() -> dict[str, int]:
    """Tell who runs this task."""
    return own_pool.answer()


app.task(answer, name="answer")


def tell_of_the_masters_sessions(**_: Any) -> None:
    """Write which sessions of the master answer, when it is about to end."""
    told = Path(os.environ["APP_FOLDER"], "master")
    told.write_text(str(own_pool.backends()))


signals.worker_shutting_down.connect(tell_of_the_masters_sessions)
