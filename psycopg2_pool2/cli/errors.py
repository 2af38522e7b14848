"""What is wrong, in one line."""

from __future__ import annotations

import re

from psycopg2_pool2.text import in_one_line

# What libpq says before the reason.
_PREFIX = re.compile(
    r'connection to server (?:at|on socket) "[^"]*"(?: \([^)]*\))?(?:, port \d+)? failed: '
)


class UsageError(Exception):
    """The command line, or the dsn, cannot be read."""


def told(error: BaseException) -> str:
    """Return an error's text in one line, as it may be shown anywhere."""
    return in_one_line(str(error)) or type(error).__name__


def reason(error: BaseException) -> str:
    """Return why there is no connection, without where it would have led, and without hints.

    It is the server's text as it is: what shows it has to make it printable.

    Where libpq has tried twice, with TLS and without, it is why the second failed.  A pool's
    error that has a cause is told by its cause.
    """
    text = str(error.__cause__ or error).strip()
    last = _PREFIX.split(text)[-1].splitlines()
    return re.sub(r"^(FATAL|ERROR): +", "", last[0]) if last else type(error).__name__
