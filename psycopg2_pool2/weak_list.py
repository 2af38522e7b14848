"""A list that keeps nothing alive."""

from __future__ import annotations

from typing import Any
from weakref import ref

_MANY = 64


class WeakList(list[Any]):
    """A list of weak references; those whose objects have gone are dropped now and then.

    Changed by calls only that are atomic, since two threads may use one connection.
    """

    __slots__ = ("_turn", "most")

    def __init__(self) -> None:
        super().__init__()
        self.most = _MANY
        self._turn = [None]  # one thread takes it

    def add(self, item: Any) -> None:
        """Add a reference to an object."""
        self.append(ref(item))
        if len(self) > self.most:
            self.drop_gone()

    def drop_gone(self) -> None:
        """Drop the references whose objects have gone; unless another thread does so."""
        try:
            self._turn.pop()
        except IndexError:
            return
        try:
            count = len(self)
            left = [reference for reference in self[:count] if reference() is not None]
            self[:count] = left  # what others append meanwhile stays
            self.most = max(_MANY, 2 * len(left))
        finally:
            self._turn.append(None)
