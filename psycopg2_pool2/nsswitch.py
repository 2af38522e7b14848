"""Which names the system looks for elsewhere before it asks DNS: nsswitch.conf.

Only ``getaddrinfo`` can ask these other sources, so such a name is left to it.
"""

from __future__ import annotations

import re
import socket

from .cached_file import CachedFile

NSSWITCH_FILE = "/etc/nsswitch.conf"
DEFAULT_SOURCES = ("files", "dns")

_DNS = ("dns", "resolve")  # nss-resolve asks the same name servers by way of systemd-resolved
_LOCAL_NAMES = ("_gateway", "_outbound")


class NameServices:
    """The sources of host names, in the order in which the system asks them."""

    def __init__(self, path: str = NSSWITCH_FILE) -> None:
        self._file = CachedFile(path, parse)

    def come_first(self, name: str) -> bool:
        """Tell whether a source other than the hosts file may know a name before DNS does."""
        sources = self._file.read()
        before = next((n for n, source in enumerate(sources) if source in _DNS), None)
        if before is None:
            return True
        # Where it stands makes no difference: DNS does not know these names.
        asked = {source for n, source in enumerate(sources) if n < before or source == "myhostname"}
        return any(_may_know(source, name.lower()) for source in asked)


def parse(text: str) -> tuple[str, ...]:
    """Return the sources of the ``hosts`` line, without what to do after each."""
    for line in text.split("\n"):
        found = re.match(r"\s*hosts\s*:([^#]*)", line)
        if found is not None:
            return tuple(re.sub(r"\[[^]]*\]?", " ", found[1]).split())
    return DEFAULT_SOURCES


def _may_know(source: str, name: str) -> bool:
    if source == "files":
        return False
    if source == "myhostname":
        return name in (*_LOCAL_NAMES, socket.gethostname().lower())
    if source.startswith("mdns"):
        return name.endswith(".local") and name.count(".") == 1
    if source == "mymachines":
        return "." not in name
    return True
