"""A process whose threads are greenlets, and what these do to a pool.

Prints one JSON object at its end.  What it wants done before that it asks for:
a line with the name of a command, which is answered by a line when it is done.

Usage: ``python -m tests.support.apps.green LIBRARY SCENARIO DSN``
"""

from __future__ import annotations

import json
import sys

from tests.support.apps.greenlets import LIBRARIES


def main(library: str, scenario: str, dsn: str) -> None:
    green = LIBRARIES[library]()  # first of all: what is imported next is patched
    from tests.support.apps import green_scenarios

    told = getattr(green_scenarios, scenario)(green, dsn)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
