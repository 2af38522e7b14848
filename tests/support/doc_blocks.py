"""The code blocks of the documentation, and what is to be done with each.

The blocks of a page are what its reader does, one after the other, in a folder of his own and with
a database of the page's own, to which DATABASE_URL and libpq's variables lead:

- `python` and `sql` are run; a name that one block defines is there in the next, and `await` may
  be used anywhere.
- `sh` is run as a script; of `console`, the lines that begin with `$`.
- One with a caption is a file of that name.
- `text` is what the block before it printed, as are the other lines of `console`; there, `...`
  stands for anything.

A comment before a block changes that: "new program" begins anew, in another process and database;
"not run: (why)" leaves the block out. A comment "database:" has statements that are run before.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.rst"))]

_RST_BLOCK = re.compile(
    r"^(?P<indent> *)"
    r"(?:\.\. (?P<remark>(?:new program|not run).*\n(?:(?P=indent) +\S.*\n)*)\n(?P=indent))?"
    r"\.\. code-block:: *(?P<language>\S*)\n"
    r"(?P<options>(?:(?P=indent) +:\w+:.*\n)*)\n"
    r"(?P<code>(?:(?P=indent) +.*\n|\n)+)",
    re.MULTILINE,
)
_MARKDOWN_BLOCK = re.compile(
    r"^(?:<!-- (?P<remark>(?:new program|not run)[^>]*) -->\n+)?"
    r"```(?P<language>\S*)\n(?P<options>)(?P<code>(?:.*\n)*?)```$",
    re.MULTILINE,
)
_DATABASE = re.compile(r"^\.\. database:\n\n?((?: +.*\n|\n)+)", re.MULTILINE)
_COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n?", re.MULTILINE)

KINDS = ("python", "sql", "sh", "console", "text")


@dataclass(frozen=True)
class Block:
    """A block of a page; `line` is the number of lines before its code."""

    page: Path
    line: int
    language: str
    code: str
    file: str | None = None  # whose content it is
    is_new_program: bool = False
    not_run: str | None = None  # why

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line + 1}"


@dataclass(frozen=True)
class Program:
    """Blocks that are run one after the other, in one process."""

    setup: str  # of the database
    blocks: list[Block]

    def __str__(self) -> str:
        return str(self.blocks[0])


def read_blocks(page: Path) -> list[Block]:
    """Return all code blocks of a page."""
    text = page.read_text()
    pattern = _MARKDOWN_BLOCK if page.suffix == ".md" else _RST_BLOCK
    return [_block(page, text, found) for found in pattern.finditer(text)]


def _block(page: Path, text: str, found: re.Match[str]) -> Block:
    remark = " ".join((found["remark"] or "").split())
    caption = re.search(r":caption: (.+)", found["options"])
    return Block(
        page,
        text[: found.start("code")].count("\n"),
        found["language"],
        textwrap.dedent(found["code"]).rstrip() + "\n",
        caption and caption[1],
        remark == "new program",
        remark.partition(":")[2].strip() if remark.startswith("not run") else None,
    )


def read_programs(page: Path) -> list[Program]:
    """Return what is to be run of a page."""
    setup = "".join(map(textwrap.dedent, _DATABASE.findall(page.read_text())))
    programs: list[Program] = []
    for block in read_blocks(page):
        if block.not_run is not None:
            continue
        if block.is_new_program or not programs:
            programs.append(Program(setup, []))
        programs[-1].blocks.extend(_steps(block))
    return programs


def _steps(block: Block) -> Iterator[Block]:
    """Yield a block, or the commands of a session at a terminal and what each of them prints."""
    if block.language != "console":
        yield block
        return
    _, *parts = _COMMAND.split(block.code)
    for command, output in zip(parts[::2], parts[1::2], strict=True):
        yield replace(block, language="sh", code=command + "\n")
        if output.strip():
            yield replace(block, language="text", code=output)
