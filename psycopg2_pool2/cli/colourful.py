"""Blocks on a terminal, by rich: in colours, wrapped where they are too long.

The only importer of rich; imported only where :mod:`.output` has decided so.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich import box, console, live, padding, table, text

from .blocks import Block, Blocks, Cell, Style, Table, as_text

_STYLES: dict[Style, str] = {
    "plain": "",
    "title": "bold",
    "faint": "dim",
    "good": "green",
    "advice": "yellow",
    "bad": "bold red",
}


class ColourfulOutput:
    """Shows blocks on a terminal; a live view replaces itself where it stands."""

    def __init__(self, stream: TextIO) -> None:
        # Colours or not is rich's to decide: it knows terminals, and NO_COLOR.
        self._console = console.Console(file=stream, highlight=False, emoji=False, markup=False)

    def show(self, blocks: Blocks) -> None:
        """Write blocks that stay."""
        self._console.print(_rendered(blocks))

    @contextlib.contextmanager
    def live(self) -> Iterator[Callable[[Blocks], None]]:
        """Show blocks that replace each other; the last ones stay."""
        with _ended_gently(), live.Live(console=self._console, auto_refresh=False) as view:
            yield lambda blocks: view.update(_rendered(blocks), refresh=True)


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """Have SIGTERM end the program as an exception does, so that the cursor comes back."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rendered(blocks: Blocks) -> console.Group:
    return console.Group(*map(_block, blocks))


def _block(block: Block) -> console.RenderableType:
    if not isinstance(block, Table):
        return _text(block)
    shown = table.Table(
        box=box.SIMPLE_HEAD if block.headings else None,
        show_header=bool(block.headings),
        show_edge=False,
        pad_edge=False,
    )
    for number in range(max(map(len, (block.headings, *block.rows)))):
        heading = block.headings[number] if block.headings else ""
        justify: console.JustifyMethod = "right" if number in block.right else "left"
        shown.add_column(heading, justify=justify, overflow="fold")
    for row in block.rows:
        shown.add_row(*map(_text, row))
    return padding.Padding(shown, (0, 0, 0, 2))


def _text(cell: Cell) -> text.Text:
    known = as_text(cell)
    return text.Text(known.printable(), style=_STYLES[known.style])
