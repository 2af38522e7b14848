"""Transfers through everything that can happen, while a tracer is at work.

``python -m tests.support.apps.traced_chaos TRACER SEED SECONDS``
"""

from __future__ import annotations

import os
import sys
import traceback

from tests.support.apps.tracers import TRACERS
from tests.support.chaos import SERVER_SETTINGS, new_world
from tests.support.servers import new_server


def main(name: str, seed: str, seconds: str) -> None:
    """Run a world of its own, on a server of its own."""
    TRACERS[name]()  # from now on it is at work
    with new_server(settings=SERVER_SETTINGS) as server, new_world(server, int(seed)) as world:
        world.run(float(seconds))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # not the agents' farewells to servers that do not exist
