"""What is wrong, in one line."""

from __future__ import annotations

import re

# What libpq says before the reason.
_PREFIX = re.compile(
    r'connection to server (?:at|on socket) "[^"]*"(?: \([^)]*\))?(?:, port \d+)? failed: '
)


class UsageError(Exception):
    """The command line, or the dsn, cannot be read."""


def in_one_line(error: BaseException) -> str:
    """Return an error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """Return why there is no connection, without where it would have led, and without hints.

    Where libpq has tried twice, with TLS and without, it is why the second failed.  A pool's
    error that has a cause is told by its cause.
    """
    text = str(error.__cause__ or error).strip()
    last = _PREFIX.split(text)[-1].splitlines()
    return re.sub(r"^(FATAL|ERROR): +", "", last[0]) if last else type(error).__name__
