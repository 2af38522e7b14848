"""Find the statements that begin and end transactions in what a program sends."""

from __future__ import annotations

import re
from typing import Literal

Control = Literal["begin", "commit", "rollback", "forbidden"]

# What may hold such words without meaning them: comments, strings, quoted names.
_NOISE = re.compile(
    r"""--[^\n]*
    | /\*.*?\*/
    | \be'[^'\\]*(?:(?:''|\\.)[^'\\]*)*'
    | '[^']*'
    | "[^"]*"
    | (?<!\w)\$((?:[a-z_]\w*)?)\$.*?\$\1\$""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_SUSPECT = re.compile(r"\b(?:begin|start|commit|end|rollback|abort|prepare)\b", re.IGNORECASE)
_SQL_BODY = re.compile(r"\bbegin\s+atomic\b", re.IGNORECASE)
_CONTROL = re.compile(
    r"""(?P<begin>begin|start\s+transaction)\b
    | (?P<prepare>prepare\s+transaction)\b
    | (?P<commit>commit|end)\b
    | (?P<rollback>rollback|abort)\b""",
    re.VERBOSE | re.IGNORECASE,
)
# These stay inside the transaction, or are refused by the server inside one.
_HARMLESS = re.compile(r"\s*(?:work\s+|transaction\s+)?to\b|\s*prepared\b", re.IGNORECASE)
_CHAIN = re.compile(r"\band\s+chain\b", re.IGNORECASE)


def control(text: str) -> Control | None:
    """Tell what a text does to the transaction that it is sent in, None if nothing.

    ``forbidden`` is what cannot be done with savepoints: transaction control
    among other statements, AND CHAIN, PREPARE TRANSACTION.
    """
    if not _SUSPECT.search(text):
        return None
    text = _NOISE.sub(" ? ", text) if _has_noise(text) else text
    if _SQL_BODY.search(text):
        return None
    parts = [part for part in (part.strip(" \t\r\n?") for part in text.split(";")) if part]
    found = [_control(part) for part in parts]
    if len(found) == 1:
        return found[0]
    return "forbidden" if any(found) else None


def _has_noise(text: str) -> bool:
    return any(mark in text for mark in ("'", '"', "$", "--", "/*"))


def _control(statement: str) -> Control | None:
    match = _CONTROL.match(statement)
    if match is None:
        return None
    rest = statement[match.end() :]
    if match["prepare"] or _CHAIN.search(rest):
        return "forbidden"
    if match["begin"]:
        return "begin"
    if _HARMLESS.match(rest):
        return None
    return "commit" if match["commit"] else "rollback"
