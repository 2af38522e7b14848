"""Show who is connected to a server, again and again."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

from ..output import standard_output, write_json
from ..parser import number
from ..where import add_dsn, server_params
from .look import View, open_pool, views
from .render import as_blocks, as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the watch takes."""
    add_dsn(parser, "libpq's own default")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=number(float, 0.1, 3600),
        default=2.0,
        help="seconds from one look to the next (%(default)g)",
    )
    looks = parser.add_mutually_exclusive_group()
    looks.add_argument(
        "--count", metavar="N", type=number(int, 1, 1e6), help="how often to look (until Ctrl-C)"
    )
    looks.add_argument("--once", dest="count", action="store_const", const=1, help="look once")
    parser.add_argument("--json", action="store_true", help="write each look as a line of JSON")
    parser.epilog = (
        "Ctrl-C ends it. A server that goes away is waited for. Exit status: 0, or 1 if it could"
        " not be reached at the beginning or was away at the last look, 2 if the command line or"
        " the dsn cannot be read."
    )


def run(arguments: argparse.Namespace) -> int:
    """Look and show until it is enough; return 0 if the last look found the server."""
    view: View | None = None
    try:
        with open_pool(server_params(arguments.dsn)) as pool, _shown(arguments) as show:
            for view in views(pool, arguments.interval, arguments.count):
                show(view)
    except KeyboardInterrupt:
        return 0
    return int(view is None or view.error is not None)


@contextlib.contextmanager
def _shown(arguments: argparse.Namespace) -> Iterator[Callable[[View], None]]:
    """Give a function that shows what was seen, as the arguments want it."""
    if arguments.json:
        yield lambda view: write_json(as_json(view), indent=None)
    else:
        with standard_output().live() as show:
            yield lambda view: show(as_blocks(view))
