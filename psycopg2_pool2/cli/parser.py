"""A parser of command lines that tells what is wrong in one line, and never a password."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from psycopg2_pool2.text import in_one_line

USAGE_STATUS = 2

# argparse quotes what it was given as Python does.
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")
_HARMLESS = re.compile(r"""['"][\w.+-]*['"]""")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line: a dsn in the wrong place is not in it."""

    def __init__(self, **kwargs: Any) -> None:
        # An option that was cut short would be quoted with its value.
        super().__init__(**kwargs, allow_abbrev=False)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments; end the program if there are unknown ones."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            # Without what follows the name, which may be a secret.
            options = [re.match("--[^=]*|-.", one) for one in unknown]
            named = [option[0] for option in options if option]
            self.error(f"unknown option {named[0]}" if named else "too many arguments")
        return known, []

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong, and end the program."""
        told = _QUOTED.sub(lambda m: m[0] if _HARMLESS.fullmatch(m[0]) else "'...'", message)
        told = in_one_line(told)
        self.exit(USAGE_STATUS, f"{self.prog}: {told} (see {self.prog} --help)\n")


def number(kind: type[float], least: float, most: float) -> Callable[[str], Any]:
    """Return an argument's type: an int or float in a range, both ends included."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least) - 1
        if not least <= value <= most:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what} from {least:,.10g} to {most:,.10g}")
        return value

    return read
