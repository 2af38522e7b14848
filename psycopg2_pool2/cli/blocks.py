"""What a command shows, without how: lines and tables of text that has a meaning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from psycopg2_pool2.text import printable

Style = Literal["plain", "title", "faint", "good", "advice", "bad"]


@dataclass(frozen=True)
class Text:
    """Some text, and what it is; a line, or a cell of a table."""

    text: str
    style: Style = "plain"

    def printable(self) -> str:
        """Return the text as it may be shown anywhere: names, errors and settings are others'."""
        return printable(self.text)


Cell = Text | str


@dataclass(frozen=True)
class Table:
    """Rows of cells below each other; `right` are the columns of numbers."""

    rows: Sequence[Sequence[Cell]]
    headings: Sequence[str] = ()
    right: Sequence[int] = ()


Block = Text | Table
Blocks = Iterable[Block]
GAP = Text("")


def as_text(cell: Cell) -> Text:
    """Return a cell as text with a meaning."""
    return Text(cell) if isinstance(cell, str) else cell
