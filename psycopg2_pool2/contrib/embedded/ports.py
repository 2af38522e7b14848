"""Ports to listen on."""

from __future__ import annotations

import socket
from random import SystemRandom

from .errors import EmbeddedServerError

PORTS = range(20000, 32000)
"""Where ports are looked for: below those that the kernel gives to outgoing connections, of which
one could hold the port while a server is restarted."""


def free_port(*hosts: str) -> int:
    """Return a port that is free on all these addresses."""
    for _ in range(100):
        port = SystemRandom().choice(PORTS)
        if all(_is_free(host, port) for host in hosts or ("127.0.0.1",)):
            return port
    raise EmbeddedServerError(f"no free port found on {', '.join(hosts)}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # What an earlier server's connections left in TIME_WAIT does not hinder a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
