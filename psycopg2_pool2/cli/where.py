"""Which server a command is about."""

from __future__ import annotations

import argparse
import os
from typing import Any, NamedTuple

import psycopg2

from psycopg2_pool2.arguments import ConnectArguments
from psycopg2_pool2.targets import read_targets

from .errors import UsageError

# libpq's variables that say which server is meant; the others only say how to talk to it.
_SERVER_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE")


class Named(NamedTuple):
    """How to reach a server that the user has named, and by what it was named."""

    params: dict[str, Any]
    by: str


def named_server(dsn: str | None) -> Named | None:
    """Return the server that was given, else that of the environment; None if there is none."""
    if dsn is not None:
        return Named({"dsn": dsn}, "the one given")
    if os.environ.get("DATABASE_URL"):
        return Named({"dsn": os.environ["DATABASE_URL"]}, "the one of DATABASE_URL")
    if named := [name for name in _SERVER_VARIABLES if os.environ.get(name)]:
        return Named({}, f"the one of {', '.join(named)}")
    return None


def add_dsn(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Declare the argument that names a server, and what is used without it."""
    parser.add_argument(
        "dsn",
        nargs="?",
        help="the server, as a URL or as keywords and values. Without it, that of DATABASE_URL or"
        f" of libpq's PG* variables is used, and without these {otherwise}",
    )


def server_params(dsn: str | None) -> dict[str, Any]:
    """Return how to reach the server that was named, libpq's own default if none was.

    Raises :class:`UsageError` for a dsn that cannot be read.
    """
    named = named_server(dsn)
    params = {} if named is None else named.params
    try:
        read_targets(ConnectArguments(params, None).parameters)
    except (psycopg2.ProgrammingError, ValueError) as error:
        raise UsageError(str(error)) from None
    return params
