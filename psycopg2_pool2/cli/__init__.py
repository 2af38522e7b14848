"""The commands of `python -m psycopg2_pool2`.

A command is a module here: its docstring's first line is its help, `add_arguments(parser)`
declares what it takes, and `run(arguments)` does the work and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import psycopg2

from . import demo

_COMMANDS = {"demo": demo}
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return the exit status.

    What a user can mend is told in one line on stderr, and is status 1.
    """
    arguments = _parser().parse_args(argv)
    try:
        status = int(_COMMANDS[arguments.command].run(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has left; nor shall the interpreter flush to it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (psycopg2.Error, RuntimeError) as error:
        print(f"psycopg2_pool2 {arguments.command}: {_in_one_line(error)}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m psycopg2_pool2", description="A connection pool for psycopg2."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return parser


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
