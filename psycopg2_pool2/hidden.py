"""Connection arguments that do not show themselves in tracebacks.

Error trackers (Sentry, Django's debug page, cgitb) record the ``repr`` of every
local variable of every frame that an exception leaves.  So what may hold a
password is kept in these types inside the pool; they are equal to the plain
ones, and psycopg2 takes them.  Frames of psycopg2 itself hold plain strings:
:func:`clear_driver_frames` empties them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECRET = ("dsn", "password", "sslpassword")


class HiddenText(str):
    """A string whose ``repr`` does not tell it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class HiddenDict(dict[str, Any]):
    """A dictionary whose ``repr`` tells its keys only."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{key!r}: ***' for key in self)}}}"


def hidden(arguments: Mapping[str, Any]) -> HiddenDict:
    """Return a copy of arguments that does not show itself, nor the secrets taken out of it."""
    return HiddenDict(
        (name, hidden_text(value) if name in _SECRET else value)
        for name, value in arguments.items()
    )


def hidden_text(value: Any) -> Any:
    """Return a string that does not show itself; anything else as it is."""
    return HiddenText(value) if type(value) is str else value


def hidden_config(config: Any) -> Any:
    """Return a pool's configuration, a dsn or a mapping, so that it does not show itself."""
    return hidden(config) if isinstance(config, Mapping) else hidden_text(config)


def clear_driver_frames(error: BaseException) -> None:
    """Empty the frames of psycopg2, and of what called it for us, that an exception has left."""
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        if name.startswith("psycopg2"):
            try:
                traceback.tb_frame.clear()
            except RuntimeError:
                pass  # it has not ended
        traceback = traceback.tb_next
