"""The one password of all servers of this process, and the file from which clients read it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
from functools import cache
from pathlib import Path

from .folders import new_process_folder
from .programs import User, owner

# 128 random bits, in characters that need no quotes anywhere. A forked child has the same.
_PASSWORD = secrets.token_urlsafe(16)
_SALT = secrets.token_bytes(16)
# Iterations slow down guessing, which is hopeless anyway, and every login pays for them.
_ITERATIONS = 1
_lock = threading.Lock()


def password() -> str:
    """Return the password itself, for code that does not pass it on; else use `passfile`."""
    return _PASSWORD


def verifier() -> str:
    """Return what a server stores of the password: the SCRAM-SHA-256 verifier of RFC 5803.

    CREATE ROLE takes it in place of the password, which then is in no statement and no log.
    """
    salted = hashlib.pbkdf2_hmac("sha256", _PASSWORD.encode(), _SALT, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    told = [base64.b64encode(part).decode() for part in (_SALT, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{told[0]}${told[1]}:{told[2]}"


def passfile() -> Path:
    """Return libpq's password file for these servers; it is removed when this process ends.

    Connection strings name this file instead of holding the password, so they may be shown, logged
    and given to programs as arguments.
    """
    with _lock:
        return _made_passfile()


@cache
def _made_passfile() -> Path:
    path = new_process_folder() / "passfile"
    write_secret(path, f"*:*:*:*:{_PASSWORD}\n", owner())
    return path


def write_secret(path: Path, text: str, user: User | None) -> None:
    """Write a new file that only this user and root may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        if user is not None:
            os.fchown(descriptor, *user)
        file.write(text)
