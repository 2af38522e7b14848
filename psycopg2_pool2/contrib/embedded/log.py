"""What a server writes into its log."""

from __future__ import annotations

import re
from pathlib import Path

# A statement and the lines that continue it, which the server indents by a tab.
_STATEMENT = re.compile(
    r"^\S+ \S+ \S+ \[\d+\] app=(?P<app>.*?) LOG:  statement: (?P<sql>.*(?:\n\t.*)*)", re.MULTILINE
)
PREFIX = "%m [%p] app=%a "
"""The setting `log_line_prefix` that the statements are recognized by."""


class Log:
    """The log of one server; a mark is a place in it, in bytes from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> int:
        """Return the place where the log ends now."""
        return self.path.stat().st_size

    def text(self, since: int = 0) -> str:
        """Return the log, from a mark on."""
        with self.path.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def tail(self) -> str:
        """Return the last lines, for a complaint."""
        return "\n".join(self.text().splitlines()[-20:])

    def statements(self, since: int = 0, application_name: str | None = None) -> list[str]:
        """Return the statements that were logged, from a mark on, in order."""
        return [
            found["sql"].replace("\n\t", "\n")
            for found in _STATEMENT.finditer(self.text(since))
            if application_name in (None, found["app"])
        ]
