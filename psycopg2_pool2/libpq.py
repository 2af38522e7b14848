"""Functions of libpq that psycopg2 does not offer, called through ctypes.

ctypes releases the interpreter's lock for the duration of each call.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import psycopg2

from .interruptions import let_through
from .log import logger

READING = 1
WRITING = 2
OK = 3
"""What ``poll`` returns: libpq's PostgresPollingStatusType. Anything else is a failure."""

_ADDRESS_SIZE = 136
"""Bytes of the address at the head of a PGcancel; the pid and the key follow, an int each."""
_LAST_SHORT_KEY = 17
"""Since version 18 a key may be longer than an int, and a PGcancel is laid out differently."""


class CancelFunctions:
    """libpq's functions that send a CancelRequest without blocking; since version 17.

    ``create(pgconn)`` returns a handle, which frees itself when it is dropped.
    The others take one.  ``fileno`` returns -1 if there is no socket; ``reset``
    closes the socket, after which the handle can be used again.
    """

    __slots__ = ("create", "fileno", "poll", "reset", "start")

    def __init__(self, lib: Any) -> None:
        import ctypes

        finish = _function(lib.PQcancelFinish, None)

        class Handle(ctypes.c_void_p):
            # As the type of a result it is made by ctypes itself, so that no
            # exception can come between the result and its owner.
            def __del__(self) -> None:
                finish(self)

        self.create = _function(lib.PQcancelCreate, Handle)
        self.start = _function(lib.PQcancelStart, ctypes.c_int)
        self.poll = _function(lib.PQcancelPoll, ctypes.c_int)
        self.fileno = _function(lib.PQcancelSocket, ctypes.c_int)
        self.reset = _function(lib.PQcancelReset, None)


@functools.cache
def cancel_functions() -> CancelFunctions | None:
    """Return the functions of the libpq that psycopg2 uses, None if it lacks them."""
    lib = _library()
    if lib is None or not hasattr(lib, "PQcancelCreate"):
        return None
    return CancelFunctions(lib)


class KeyFunctions:
    """How to get the key that a CancelRequest consists of from a libpq that cannot send it so."""

    __slots__ = ("_get",)

    def __init__(self, lib: Any) -> None:
        import ctypes

        free = _function(lib.PQfreeCancel, None)

        class Cancel(ctypes.c_void_p):
            def __del__(self) -> None:
                free(self)

        self._get = _function(lib.PQgetCancel, Cancel)

    def key(self, pgconn: int, backend_pid: int) -> int | None:
        """Return the key that belongs to this pid; None if it cannot be had.

        libpq hands it out in a structure only, whose head has been the same in
        all versions up to 17.  The pid in it has to be the right one.
        """
        import ctypes

        cancel = self._get(pgconn)
        if not cancel:
            return None
        head = ctypes.string_at(cancel, _ADDRESS_SIZE + 8)
        pid, key = struct.unpack_from("ii", head, _ADDRESS_SIZE)
        return int(key) if pid == backend_pid != 0 else None


@functools.cache
def key_functions() -> KeyFunctions | None:
    """Return the functions of the libpq that psycopg2 uses, None if they cannot be called."""
    lib = _library()
    if lib is None or lib.PQlibVersion() // 10_000 > _LAST_SHORT_KEY:
        return None
    return KeyFunctions(lib)


@functools.cache
def _library() -> Any:
    """Return the libpq that psycopg2 uses, None if its functions cannot be called.

    Symbols are looked up in psycopg2's own extension module, which is loaded
    already, and in the libraries that it is linked with.  A libpq that is linked
    statically may have its symbols hidden.
    """
    try:
        import ctypes

        lib = ctypes.CDLL(psycopg2._psycopg.__file__)
        lib.PQlibVersion  # noqa: B018  # is it there?
    except Exception as error:  # ctypes itself fails in several ways on hardened systems
        let_through(error)
        logger.warning("cannot call libpq, so no statement is cancelled on the server: %s", error)
        return None
    return lib


def _function(function: Any, result: Any) -> Any:
    """Declare a function that takes one pointer."""
    import ctypes

    function.argtypes = [ctypes.c_void_p]
    function.restype = result
    return function
