"""gevent and eventlet under common names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


class Gevent:
    """Patches the process when it is made; has psycopg2 wait as psycogreen does."""

    def __init__(self) -> None:
        from gevent import monkey

        monkey.patch_all()

        import gevent
        from psycopg2 import extensions

        self.Timeout = gevent.Timeout
        self.GreenletExit = gevent.GreenletExit
        self.spawn = gevent.spawn
        extensions.set_wait_callback(_wait_for_gevent)

    def interrupt(self, greenlet: Any, error: BaseException) -> None:
        """Raise an error in a greenlet, wherever it is, and wait until it has ended."""
        greenlet.kill(error, timeout=10)
        assert greenlet.dead

    def result(self, greenlet: Any) -> Any:
        """Wait for the end of a greenlet; return what it returned or raise what it raised."""
        return greenlet.get(timeout=30)


def _wait_for_gevent(conn: Any) -> None:
    from gevent.socket import wait_read, wait_write
    from psycopg2 import extensions

    while (state := conn.poll()) != extensions.POLL_OK:
        (wait_read if state == extensions.POLL_READ else wait_write)(conn.fileno())


class Eventlet:
    """Patches the process when it is made, psycopg2 too."""

    def __init__(self) -> None:
        import eventlet

        eventlet.monkey_patch()

        import greenlet

        self.Timeout = eventlet.Timeout
        self.GreenletExit = greenlet.GreenletExit
        self.spawn = eventlet.spawn

    def interrupt(self, greenlet: Any, error: BaseException) -> None:
        """Raise an error in a greenlet, wherever it is, and wait until it has ended."""
        greenlet.kill(error)
        with self.Timeout(10), contextlib.suppress(type(error)):
            greenlet.wait()
        assert greenlet.dead

    def result(self, greenlet: Any) -> Any:
        """Wait for the end of a greenlet; return what it returned or raise what it raised."""
        with self.Timeout(30):
            return greenlet.wait()


LIBRARIES: dict[str, Callable[[], Any]] = {"gevent": Gevent, "eventlet": Eventlet}
