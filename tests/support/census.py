"""How many connections a pool has at once: counted here, and seen at the server."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import psutil
import psycopg2
from psycopg2.extensions import connection

from psycopg2_pool2.contrib.embedded import Server
from tests.support.middlebox import Middlebox
from tests.support.waiting import in_thread


class Tally:
    """Counts connections from the beginning of their opening to the end of their closing."""

    def __init__(self) -> None:
        self.most = 0
        self._open: set[int] = set()

    def factory(self) -> type[connection]:
        """Return the class of the connections."""
        tally = self

        class Counted(connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                tally.enter(self)
                try:
                    super().__init__(*args, **kwargs)
                except BaseException:
                    tally.leave(self)
                    raise

            def close(self) -> None:
                super().close()
                tally.leave(self)

            def __del__(self) -> None:
                tally.leave(self)

        return Counted

    def enter(self, conn: connection) -> None:
        """Count it."""
        self._open.add(id(conn))
        self.most = max(self.most, len(self._open))

    def leave(self, conn: connection) -> None:
        """Count it no more; harmless when repeated."""
        self._open.discard(id(conn))


class SessionSampler:
    """Looks again and again how many sessions the pool has at the server.

    A session may outlive its socket, so when there are too many, counted are those whose sockets
    are still open here afterwards.
    """

    def __init__(self, server: Server, middlebox: Middlebox, app: str, limit: int) -> None:
        self.most = self.samples = 0
        self._server = server
        self._middlebox = middlebox
        self._app = app
        self._limit = limit
        self._over = threading.Event()
        self._running = in_thread(self._run)

    def finish(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        self._running.result(timeout=30)

    def _run(self) -> None:
        while not self._over.wait(0.005):
            with contextlib.suppress(psycopg2.Error):  # the server is down
                self._sample_one_session()

    def _sample_one_session(self) -> None:
        """Sample until the sampler's own session is lost."""
        conn = psycopg2.connect(**self._server.params, application_name="sampler")
        with contextlib.closing(conn):
            conn.autocommit = True
            while not self._over.wait(0.005):
                self.most = max(self.most, self._sessions(conn))
                self.samples += 1

    def _sockets(self) -> set[int]:
        """Return the ports of the pool's sockets."""
        port = self._middlebox.port
        found = psutil.Process().net_connections("tcp")
        return {each.laddr.port for each in found if each.raddr and each.raddr.port == port}

    def _sessions(self, conn: connection) -> int:
        with conn.cursor() as cursor:
            cursor.execute(
                "SELECT client_port FROM pg_stat_activity WHERE application_name = %s", [self._app]
            )
            ports = {port for (port,) in cursor}
        if len(ports) > self._limit:
            ports &= self._middlebox.server_ports(self._sockets())
        return len(ports)
