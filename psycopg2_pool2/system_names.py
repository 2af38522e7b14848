"""How this system finds names: its hosts file, the order of its sources, and its name servers."""

from __future__ import annotations

from typing import NamedTuple

from .hosts_file import HOSTS_FILE, HostsFile
from .nsswitch import NSSWITCH_FILE, NameServices
from .resolv_conf import RESOLV_CONF, SystemConfiguration


class SystemNames(NamedTuple):
    """The files that say it; each is read when it is needed, and again when it has changed."""

    hosts_file: HostsFile
    services: NameServices
    configuration: SystemConfiguration


def system_names(hosts: str | None, nsswitch: str | None, resolv_conf: str | None) -> SystemNames:
    """Return the system's files, those with a path instead of the usual one included."""
    return SystemNames(
        HostsFile(hosts or HOSTS_FILE),
        NameServices(nsswitch or NSSWITCH_FILE),
        SystemConfiguration(resolv_conf or RESOLV_CONF),
    )
