"""The commands of `python -m psycopg2_pool2`, which is also installed as `psycopg2_pool2`.

A command is a module here: its docstring's first line is its help, `add_arguments(parser)`
declares what it takes, and `run(arguments)` does the work and returns the exit status.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import psycopg2

from . import bench, demo, doctor, watch
from .errors import UsageError, told
from .parser import USAGE_STATUS, Parser

_COMMANDS = {"bench": bench, "demo": demo, "doctor": doctor, "watch": watch}
_INTERRUPTED = 130
# Without a handler Python would write warnings between the lines of a command.
_SILENCE = logging.NullHandler()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return the exit status.

    What a user can mend is told in one line on stderr: status 2 if it is in the
    command line or the dsn, else 1.
    """
    try:
        try:
            return _run(_parser().parse_args(argv))
        finally:
            sys.stdout.flush()  # here, where it may fail: after --help too
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader has left
        _discard_output()
        return 1
    except OSError as error:  # a full disk
        _discard_output()
        print(f"psycopg2_pool2: {told(error)}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    logging.getLogger().addHandler(_SILENCE)
    try:
        return int(_COMMANDS[arguments.command].run(arguments))
    except (UsageError, psycopg2.Error, RuntimeError) as error:
        print(f"psycopg2_pool2 {arguments.command}: {told(error)}", file=sys.stderr)
        return USAGE_STATUS if isinstance(error, UsageError) else 1


def _parser() -> Parser:
    parser = Parser(prog="psycopg2_pool2", description="A connection pool for psycopg2.")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser


def _discard_output() -> None:
    """Have the interpreter flush nowhere when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
