"""A small text file that is parsed again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

from .interruptions import let_through

T = TypeVar("T")

Version = tuple[int, int, int]


def version(path: str) -> Version | None:
    """Return what changes whenever the file does, None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        let_through(error)
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class CachedFile(Generic[T]):
    """The parsed contents of a file; safe to use from any thread.

    A file that is missing or cannot be read is an empty one.  Bytes that are not
    UTF-8 are replaced, since they usually stand in a comment.
    """

    __slots__ = ("_parse", "_path", "_seen")

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[Version | None, T] | None = None

    def read(self) -> T:
        """Return what the file says now."""
        found = version(self._path)
        seen = self._seen
        if seen is None or seen[0] != found:
            self._seen = seen = found, self._parse(self._text())
        return seen[1]

    def _text(self) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except (OSError, ValueError) as error:
            let_through(error)
            return ""
