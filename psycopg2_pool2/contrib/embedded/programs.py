"""Programs run as the servers' user: our own, or one without any rights if we are root."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import subprocess
import threading
from functools import cache
from typing import Any, NamedTuple

from .errors import EmbeddedServerError

# systemd's range for users that exist for a while only and have no entry in the user database.
_TRANSIENT = range(61184, 65520)
_lock = threading.Lock()


class User(NamedTuple):
    """The ids of a user and of its only group."""

    uid: int
    gid: int


def owner() -> User | None:
    """Return the user that servers run as, None for our own.

    PostgreSQL refuses root. Servers of root run as a user and a group of their own, the same for
    all of this process: the system's `postgres` and `nobody` have no power over them.
    """
    with _lock:
        return _chosen_owner()


@cache
def _chosen_owner() -> User | None:
    if os.geteuid() != 0:
        return None
    import psutil

    taken = {user.pw_uid for user in pwd.getpwall()} | {group.gr_gid for group in grp.getgrall()}
    for process in psutil.process_iter(["uids"]):
        taken.update(process.info["uids"] or ())
    free = [number for number in _TRANSIENT if number not in taken]
    if not free:
        raise EmbeddedServerError("PostgreSQL does not run as root, and there is no user for it")
    number = secrets.choice(free)
    return User(number, number)


def listed_owner() -> User | None:
    """Return a user that is in the user database, where initdb looks its own up.

    It is `nobody`, with the group of the servers: other programs of `nobody` have another group,
    so they can neither trace such a program nor enter a folder that is open to its group only.
    """
    user = owner()
    if user is None:
        return None
    try:
        return User(pwd.getpwnam("nobody").pw_uid, user.gid)
    except KeyError:
        raise EmbeddedServerError("initdb cannot run as root, and no user is `nobody`") from None


def spawn(*command: str, user: User | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program as the server's user or another, away from our terminal's Ctrl-C."""
    user = user or owner()
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": []}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        umask=0o077,
        start_new_session=True,
        **identity,
        **options,
    )


def run(*command: str, user: User | None = None) -> None:
    """Run a program as the server's user or another; raise what it wrote if it fails."""
    process = spawn(*command, user=user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = process.communicate()
    if process.returncode:
        raise EmbeddedServerError(f"{command[0]} failed:\n{output.decode(errors='replace')}")


def _environment() -> dict[str, str]:
    """Return ours without what would lead PostgreSQL's programs elsewhere."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PG")}
