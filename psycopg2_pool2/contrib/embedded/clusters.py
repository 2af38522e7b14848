"""Empty clusters: made by initdb, or copied from one that it made."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .binaries import binary
from .credentials import verifier, write_secret
from .folders import new_process_folder
from .programs import User, listed_owner, owner, run

# Every client needs the password: on any loopback address, on the socket, and as a standby.
RULES = (
    "local all all scram-sha-256",
    "local replication all scram-sha-256",
    "host all all 127.0.0.0/8 scram-sha-256",
    "host all all ::1/128 scram-sha-256",
    "host replication all 127.0.0.0/8 scram-sha-256",
    "host replication all ::1/128 scram-sha-256",
)
"""What pg_hba.conf ends with."""

_template_lock = threading.Lock()


def template() -> Path:
    """Return a cluster to copy: `initdb` takes ten times as long as copying its result."""
    with _template_lock:
        return _made_template(os.getpid())


@cache
def _made_template(creator: int) -> Path:
    data = new_process_folder() / "data"
    make_cluster(binary("initdb"), data=data)
    return data


def make_cluster(
    *initdb: str, data: Path, locale: Sequence[str] = ("--encoding=UTF8", "--locale=C")
) -> None:
    """Make an empty cluster with the superuser `postgres` in a folder made by `new_folder`.

    `initdb` is the program's path, perhaps after a program that starts it.

    While initdb runs, its files belong to a user that other programs may run as. These cannot enter
    the folder, which is open to the servers' user and to a group without other members.
    """
    folder, user = data.parent, listed_owner()
    pwfile = folder / "pwfile"
    write_secret(pwfile, f"{verifier()}\n", user)
    if user is not None:
        folder.chmod(0o770)
    try:
        run(
            *(*initdb, "--pgdata", str(data), "--username=postgres", "--pwfile", str(pwfile)),
            *("--auth=scram-sha-256", *locale, "--wal-segsize=4"),
            *("--no-sync", "--no-instructions"),
            user=user,
        )
        _hand_over(data, owner())
    finally:
        pwfile.unlink()
        folder.chmod(0o700)


def _hand_over(data: Path, user: User | None) -> None:
    """Give a folder and all that is in it to a user."""
    if user is None:
        return
    for path in [data, *data.rglob("*")]:
        os.chown(path, *user, follow_symlinks=False)
