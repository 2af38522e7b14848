"""A proxy that forgets flows, and that knows which session at the server is whose."""

from __future__ import annotations

from collections.abc import Collection

from tests.support.proxy import Proxy


class Middlebox(Proxy):
    """What stands between clients and a server and loses its memory: a firewall, a balancer."""

    def forget_flows(self) -> int:
        """Let nothing more through on the connections there are; new ones work. Tell how many.

        `forward` remembers them again.
        """
        return self._do(self._forget_flows)

    def server_ports(self, client_ports: Collection[int]) -> set[int]:
        """Return the ports under which the server knows the clients that have these ports."""
        return self._do(
            lambda: {
                link.server.getsockname()[1]
                for link in self._links
                if link.client_address[1] in client_ports
            }
        )

    def _forget_flows(self) -> int:
        for link in self._links:
            link.frozen = True
        return len(self._links)
