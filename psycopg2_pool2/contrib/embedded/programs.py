"""Programs run as the server's user, which is not root."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from functools import cache
from typing import Any

from .errors import EmbeddedServerError


@cache
def owner() -> pwd.struct_passwd | None:
    """Return whom to run as: PostgreSQL refuses root, and nobody else can choose."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedServerError("PostgreSQL does not run as root, and there is no user for it")


def _identity() -> dict[str, Any]:
    user = owner()
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def spawn(*command: str, **options: Any) -> subprocess.Popen[bytes]:
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


def run(*command: str) -> None:
    """Run a program as the server's user to its end; raise what it wrote if it fails."""
    process = spawn(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    if process.returncode:
        raise EmbeddedServerError(f"{command[0]} failed:\n{output.decode(errors='replace')}")


def _environment() -> dict[str, str]:
    """Return ours without what would lead PostgreSQL's programs elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}
