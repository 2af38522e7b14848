"""Which names are in the hosts file, and so are never asked of DNS."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from .cached_file import Version, version
from .interruptions import let_through

if sys.platform == "win32":
    HOSTS_FILE = os.path.expandvars(r"%SystemRoot%\System32\drivers\etc\hosts")
else:
    HOSTS_FILE = "/etc/hosts"


class HostsFile:
    """Tell whether a name is in the hosts file, which is read again when it has changed."""

    def __init__(self, path: str = HOSTS_FILE) -> None:
        self._path = path
        # Only the names that were asked for: some files list a hundred thousand others.
        self._seen: tuple[Version | None, dict[str, bool]] = (None, {})

    def has(self, name: str) -> bool:
        """Tell whether the file has a name, in upper or lower case."""
        found = version(self._path)
        if found != self._seen[0]:
            self._seen = found, {}
        names = self._seen[1]
        key = name.lower()
        if key not in names:
            names[key] = found is not None and self._contains(key)
        return names[key]

    def _contains(self, name: str) -> bool:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return name in _names(file)
        except OSError as error:
            let_through(error)
            return False


def _names(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from line.partition("#")[0].lower().split()[1:]
