"""A process that can have no more threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from psycopg2_pool2 import workers
from psycopg2_pool2.log import Seldom
from psycopg2_pool2.threads import OwnThread

REFUSAL = "can't start new thread"


def _refuse(thread: OwnThread) -> None:
    raise RuntimeError(REFUSAL)


@contextmanager
def no_threads(
    name: str = "", start: Callable[[OwnThread], None] = _refuse
) -> Iterator[pytest.MonkeyPatch]:
    """Have no thread of the library's started whose name ends so; those of the test are."""
    real = OwnThread.start

    def refuse(thread: OwnThread) -> None:
        (start if thread.name.endswith(name) else real)(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_shortage", Seldom(20.0))  # as if none had been told before
        patch.setattr(OwnThread, "start", refuse)
        yield patch
