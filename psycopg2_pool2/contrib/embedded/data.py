"""The data directory of one server: its beginning, its configuration, what it says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import log
from .binaries import binary
from .clusters import RULES, template
from .errors import EmbeddedServerError
from .programs import run

Setting = str | int | float | bool

_DEFAULT_SETTINGS: dict[str, Setting] = {
    "autovacuum": False,
    # In the data directory, so that nothing stays behind when a killed server is removed.
    "dynamic_shared_memory_type": "mmap",
    "fsync": False,
    "full_page_writes": False,
    "log_line_prefix": log.PREFIX,
    "max_connections": 100,
    "max_wal_size": "256MB",
    "shared_buffers": "16MB",
    "synchronous_commit": False,
    "unix_socket_permissions": "0700",
}


class DataDirectory:
    """Where a server keeps what it has; nothing is there until it is filled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, settings: Mapping[str, Setting], hba: Sequence[str]) -> None:
        """Put an empty cluster there, quick and unsafe unless the settings say otherwise."""
        run("cp", "-R", str(template()), str(self.path))
        (self.path / "pg_hba.conf").write_text("\n".join([*hba, *RULES, ""]))
        self.configure({**_DEFAULT_SETTINGS, **settings})

    def fill_from(self, primary: str, name: str) -> None:
        """Put a copy of the server with this connection string there, and make it its standby."""
        run(
            *(binary("pg_basebackup"), "--pgdata", str(self.path), "--no-sync"),
            *("--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"),
            *("--dbname", f"{primary} application_name={name}"),
        )

    def configure(self, settings: Mapping[str, Setting]) -> None:
        """Add settings, which go over those that are there."""
        lines = [f"{key} = {_quoted(value)}" for key, value in settings.items()]
        with (self.path / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    def tells_ready(self, pid: int | None) -> bool:
        """Ask its file, as to ask it by connecting would show in its log."""
        try:
            lines = self._pid_file()
        except OSError:
            return False
        # After a crash the file is still the one of the process before.
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def remove_shared_memory(self) -> None:
        """Remove the segment that a killed server has left; its next start would have done so."""
        with contextlib.suppress(OSError, EmbeddedServerError):
            _, segment = self._pid_file()[6].split()
            run("ipcrm", "-m", segment)

    def _pid_file(self) -> list[str]:
        """Read what the server says about itself while it runs, and after it was killed."""
        return (self.path / "postmaster.pid").read_text().split("\n")


def _quoted(value: Setting) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
