"""Measure this pool beside others that are installed, on one server in one run."""

from __future__ import annotations

import argparse
import contextlib
import platform
from typing import Any

import psycopg2

from ..blocks import GAP, Text
from ..embedded import new_server, params_of
from ..errors import told
from ..output import standard_output, write_json
from ..parser import number
from ..where import add_dsn, named_server, server_params
from .figures import Figures, figures
from .measure import CONNECTIONS, ROUNDS, THREADS, measure
from .peers import open_peers, server_version
from .render import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the benchmark takes."""
    add_dsn(parser, "a new one, made for this and removed after it")
    parser.add_argument(
        "--seconds",
        metavar="SECONDS",
        type=number(float, 1, 3600),
        default=10.0,
        help="how long to measure, all in all (%(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON document")
    parser.epilog = (
        "Exit status: 0, or 1 if something went wrong, 2 if the command line or the dsn cannot be"
        " read."
    )


def run(arguments: argparse.Namespace) -> int:
    """Open all pools, measure them in turn and show the figures."""
    with contextlib.ExitStack() as stack:
        params = _place(arguments.dsn, stack)
        try:
            _run(params, arguments, stack)
        except (psycopg2.Error, RuntimeError, OSError):
            raise
        except Exception as error:  # another pool's own
            raise RuntimeError(told(error)) from error
    return 0


def _place(dsn: str | None, stack: contextlib.ExitStack) -> dict[str, Any]:
    if named_server(dsn) is not None:
        return server_params(dsn)
    return params_of(stack.enter_context(new_server()))


def _run(
    params: dict[str, Any], arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> None:
    peers = open_peers(params, CONNECTIONS, stack)
    server = server_version(peers[0])
    if not arguments.json:
        python = platform.python_version()
        title = f"PostgreSQL {server}, Python {python}: measuring for {arguments.seconds:g} s"
        standard_output().show([Text(title), GAP])
    found = figures(measure(peers, arguments.seconds))
    if arguments.json:
        write_json(_as_json(arguments.seconds, server, found))
    else:
        standard_output().show(report(found))


def _as_json(seconds: float, server: str, found: list[Figures]) -> dict[str, Any]:
    return {
        "command": "bench",
        "server_version": server,
        "python_version": platform.python_version(),
        "seconds": seconds,
        "rounds": ROUNDS,
        "threads": THREADS,
        "connections": CONNECTIONS,
        "pools": found,
    }
