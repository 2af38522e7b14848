"""Blocks as plain text: in pipes and files always, on terminals where rich is missing."""

from __future__ import annotations

from collections.abc import Iterator

from .blocks import Block, Blocks, Cell, Table, as_text

_INDENT = "  "


def plain_text(blocks: Blocks) -> str:
    """Return the blocks as lines of text."""
    return "".join(f"{line.rstrip()}\n" for block in blocks for line in _lines(block))


def _lines(block: Block) -> Iterator[str]:
    if not isinstance(block, Table):
        yield block.printable()
        return
    rows = [list(map(_printable, row)) for row in (block.headings, *block.rows) if row]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if number in block.right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield _INDENT + "  ".join(cells)


def _printable(cell: Cell) -> str:
    return as_text(cell).printable()
