"""Where a command writes: the one place that decides between rich and plain text."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TextIO

from .blocks import Blocks
from .plain import plain_text

_CLEAR = "\x1b[H\x1b[2J"


class Output(Protocol):
    """Where blocks are shown."""

    def show(self, blocks: Blocks) -> None:
        """Write blocks that stay."""

    def live(self) -> AbstractContextManager[Callable[[Blocks], None]]:
        """Return a block that gives a function to show what replaces what was shown before."""


def standard_output() -> Output:
    """Return where to write: by rich on a terminal if it is installed, else plain text.

    So what goes into a pipe or a file is the same with rich and without it.
    """
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # names in letters that it cannot write
    is_screen = stream.isatty() and os.environ.get("TERM") != "dumb"
    if is_screen:
        try:
            from .colourful import ColourfulOutput
        except ImportError:
            pass
        else:
            return ColourfulOutput(stream)
    return PlainOutput(stream, is_screen)


class PlainOutput:
    """Writes plain text; a live view clears the screen, or goes on below where there is none."""

    def __init__(self, stream: TextIO, is_screen: bool) -> None:
        self._stream = stream
        self._before = _CLEAR if is_screen else ""
        self._after = "" if is_screen else "\n"

    def show(self, blocks: Blocks) -> None:
        """Write blocks that stay."""
        self._write(plain_text(blocks))

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[Blocks], None]]:
        """Show blocks one after the other."""
        yield lambda blocks: self._write(f"{self._before}{plain_text(blocks)}{self._after}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def write_json(value: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write one JSON document to stdout; without `indent` in one line."""
    print(json.dumps(value, indent=indent, default=dataclasses.asdict), flush=True)
