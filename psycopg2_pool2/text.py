"""Text from servers, their users and name servers, made safe to show."""

from __future__ import annotations

import re

# Controls (C0, DEL, C1), line and paragraph separators, marks and overrides of text direction,
# invisible operators and tags, and lone surrogates, which cannot be encoded. The joiners U+200C and
# U+200D stay: words of some languages and many emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    r"""Return the text with escapes such as ``\x1b`` for what a terminal or an editor would obey.

    The result has no line end, no control character and nothing that changes the direction of text.
    All other characters stay as they are, a backslash too.  Pure.
    """
    if text.isascii() and text.isprintable():  # nearly always
        return text
    return _UNSAFE.sub(_escaped, text)


def in_one_line(text: str) -> str:
    """Return a text of several lines as one, with `` | `` between them, and :func:`printable`."""
    return printable(" | ".join(filter(None, map(str.strip, text.splitlines()))))


def printable_lines(text: str) -> str:
    """Return a text :func:`printable` line by line; all lines but the first are indented.

    For exceptions: where one is logged or printed, no line of it looks like one of the log's.
    libpq's own hints begin with a tab, and stay as they are.
    """
    first, *others = text.strip().split("\n")
    return "\n".join([printable(first.strip()), *map(_indented, others)])


def _indented(line: str) -> str:
    indent = "\t" if line.startswith("\t") else "    "
    return indent + printable(line.strip())


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
