"""Show the pool at work on a real server, through a burst, killed backends and a restart.

Threads move money between accounts all the time. What befalls them is counted, and at the end
the accounts are checked.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from psycopg2_pool2 import ConnectionPool

from .admin import Admin
from .bank import open_bank
from .scenes import MAXCONN, PATIENCE, SECONDS, Demo
from .screen import Screen, log_shown
from .where import place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the demo takes."""
    parser.add_argument(
        "dsn",
        nargs="?",
        help="a server to use: its sessions are ended only if they are the demo's own, and it is"
        " not restarted. Without it, that of DATABASE_URL or of libpq's PG* variables is used,"
        " and without these a new one, made for the demo and removed after it",
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=SECONDS,
        help="how long the workers work, all in all (%(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play all scenes; return 0 if no borrow failed and the accounts are right."""
    screen = Screen(sys.stdout)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_shown(screen))
        params, server = place(arguments.dsn, screen, stack)
        name = f"psycopg2_pool2_demo_{token_hex(4)}"
        pool = stack.enter_context(_open_pool({**params, "application_name": name}))
        admin = Admin(params, name)
        bank = stack.enter_context(open_bank(pool, admin, name, keep=server is not None))
        demo = Demo(screen, pool, bank, admin, server, arguments.seconds / SECONDS)
        demo.play()
        right = demo.check()
        demo.show_figures()
    screen.say(f"The demo took {time.monotonic() - started:.1f} s.", gap=True)
    return 0 if right else 1


def _positive(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 3600:
        raise argparse.ArgumentTypeError("must be between 0 and 3600")
    return seconds


def _open_pool(params: Mapping[str, Any]) -> ConnectionPool:
    """Open two connections now, so that a wrong address or password is told at once."""
    return ConnectionPool(
        2, MAXCONN, timeout=PATIENCE, background_prewarm=False, name="demo", **params
    )
