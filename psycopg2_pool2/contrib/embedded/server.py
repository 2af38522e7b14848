"""A server's life: made, started, stopped, killed, promoted, removed."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from psycopg2.extensions import make_dsn

from .credentials import verifier
from .data import DataDirectory, Setting
from .errors import EmbeddedServerError
from .folders import new_folder
from .log import Log
from .ports import free_port
from .processes import Processes, is_gone
from .sessions import Administered

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_POLL_INTERVAL = 0.005


class Server(Administered):
    """One PostgreSQL server on a loopback address, with a superuser `postgres`.

    `create()` makes and starts one; as a context manager it is closed at the end. It may be
    stopped, killed and started again under the same address. Whatever happens to this process,
    its servers end with it. A forked child may use a server, and never stops it.

    Other users of the machine cannot connect. The password is random and the same for all servers
    of this process; `params` and `dsn` name the file of mode 0600 from which libpq reads it.
    """

    def __init__(self, folder: Path, host: str, port: int, primary: Server | None = None) -> None:
        self.host = host
        self.port = port
        self.primary = primary
        self.socket_dir = str(folder)
        self._folder = folder
        self._data = DataDirectory(folder / "data")
        self._log = Log(folder / "log")
        self._processes = Processes()
        self._creator = os.getpid()

    @classmethod
    def create(
        cls,
        host: str = "127.0.0.1",
        port: int | None = None,
        settings: Mapping[str, Setting] | None = None,
        hba: Sequence[str] = (),
    ) -> Server:
        """Make a new, empty server and start it.

        Without `port` it takes a free one. `settings` go over the quick and unsafe ones that are
        the default; lines in `hba` come before those of pg_hba.conf that ask for the password.
        """
        server = cls(new_folder(), host, port or free_port(host))
        with server._removed_on_error():
            server._data.fill({**(settings or {}), **server._address()}, hba)
            server.start()
        return server

    def replica(self, host: str) -> Server:
        """Make and start a streaming standby on another address, with the same port."""
        standby = Server(new_folder(), host, self.port, primary=self)
        with standby._removed_on_error():
            standby._data.fill_from(self.dsn, host)
            standby._data.configure(standby._address())
            standby.start()
        return standby

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<Server {self.host}:{self.port} {state}>"

    # Where it is

    @property
    def unix_dsn(self) -> str:
        """A connection string that goes through the Unix socket."""
        return str(make_dsn(**{**self.params, "host": self.socket_dir}))

    @property
    def verifier(self) -> str:
        """What CREATE ROLE takes in place of the password, to give it to another role."""
        return verifier()

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while it is stopped."""
        return self._processes.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._processes.running

    # Its life

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        if self.running:
            return
        self._wait_ended(timeout=0)  # it may have ended by itself
        self._processes.start(self._data.path, self._log.path, self._folder)
        _running[self] = None
        self.wait_ready()

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until the server accepts connections."""
        self._wait_for(
            lambda: self._data.tells_ready(self.pid) or not self.running, "is not ready", timeout
        )
        if not self.running:
            raise EmbeddedServerError(f"{self} ended while starting:\n{self._log.tail()}")

    def stop(self, mode: StopMode = "fast", timeout: float = 30) -> None:
        """Shut the server down and wait for its end.

        "smart" waits until clients leave, "fast" ends their sessions with a farewell, "immediate"
        ends them like a crash does.
        """
        if not self.running:
            return
        self.thaw()
        self._processes.send(_STOP_SIGNALS[mode])
        self._wait_ended(timeout)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again under the same address."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server and all its backends at once, without a word to anybody."""
        processes = self._processes.kill()
        self._wait_ended(timeout=10)
        # The server does not start again while a backend holds its shared memory.
        self._wait_for(lambda: all(map(is_gone, processes)), "has processes left")

    def close(self) -> None:
        """Stop the server whatever its state, and remove its folder; harmless when repeated."""
        if os.getpid() != self._creator:
            return
        with contextlib.suppress(EmbeddedServerError):
            self.stop("immediate", timeout=10)
        self.kill()
        self._data.remove_shared_memory()
        shutil.rmtree(self._folder, ignore_errors=True)

    def promote(self) -> None:
        """Make this standby a primary and wait until it is."""
        self.execute("SELECT pg_promote(wait => true)")
        self.primary = None

    def wait_caught_up(self, timeout: float = 30) -> None:
        """Wait until this standby has replayed all that its primary did until now."""
        if self.primary is None:
            raise EmbeddedServerError(f"{self} is no standby")
        # Asynchronous commits are not in the WAL yet; this writes them out, and is their end.
        [(end,)] = self.primary.execute("SELECT pg_logical_emit_message(false, '', '', true)")
        replayed = partial(
            self.primary.execute,
            "SELECT 1 FROM pg_stat_replication WHERE application_name = %s"
            " AND state = 'streaming' AND replay_lsn >= %s::pg_lsn",
            [self.host, end],
        )
        self._wait_for(replayed, "does not catch up", timeout)

    # Its processes

    def freeze_backend(self, pid: int) -> None:
        """Stop a backend's process: its connection stays open and answers nothing."""
        self._processes.freeze(pid)

    def thaw_backend(self, pid: int) -> None:
        """Let a frozen backend go on."""
        self._processes.thaw(pid)

    def freeze(self) -> None:
        """Stop all processes: connections are still accepted, by the kernel, and never answered."""
        for process in self._processes.tree():
            self._processes.freeze(process.pid)

    def thaw(self) -> None:
        """Let everything that is frozen go on."""
        self._processes.thaw_all()

    # Its log

    def mark(self) -> int:
        """Return the place where the log ends now, for `log_text` and `statements`."""
        return self._log.mark()

    def log_text(self, since: int = 0) -> str:
        """Return the log, from a mark on."""
        return self._log.text(since)

    def statements(self, since: int = 0, application_name: str | None = None) -> list[str]:
        """Return the statements that clients sent, from a mark on, in order.

        The server must have been made with `settings={"log_statement": "all"}`. It logs before it
        answers, so whatever was answered is here.
        """
        return self._log.statements(since, application_name)

    # Below

    def _address(self) -> dict[str, Setting]:
        return {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.socket_dir,
        }

    def _wait_for(self, state: Callable[[], object], complaint: str, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not state():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{self} {complaint}:\n{self._log.tail()}")
            time.sleep(_POLL_INTERVAL)

    def _wait_ended(self, timeout: float) -> None:
        if not self._processes.ended(timeout):
            raise EmbeddedServerError(f"{self} does not stop:\n{self._log.tail()}")
        _running.pop(self, None)

    @contextlib.contextmanager
    def _removed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


# Servers of this process that run, oldest first.
_running: dict[Server, None] = {}


@atexit.register
def _close_all() -> None:
    for server in list(reversed(_running)):
        server.close()
