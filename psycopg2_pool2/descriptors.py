"""Whether a descriptor's number still stands for the file that it was got for.

A program may close descriptors that it did not open: one that becomes a daemon
closes all there are.  The numbers go to the files that are opened next, and
whatever is done by an old number is done to one of those.  So what belongs to
this library is known by its identity too, which is compared before the number
is used.

Between the comparison and the use another thread could still close and open
files.  Nothing prevents that; whoever closes what is not its own while others
work has to expect it.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from .interruptions import let_through

Identity = tuple[int, int]

#: What the system reports where a process, or the machine, has no descriptor left.
SHORTAGE = (errno.EMFILE, errno.ENFILE)

_HAS_IDENTITIES = os.name == "posix"
_leaked: list[Any] = []


def identity(fd: int) -> Identity | None:
    """Return what tells an open file from all others of the process; None if it is not open.

    Sockets and pipes have an inode each.  What the kernel calls anonymous, such
    as an epoll, shares one with all of its kind.  Always None on Windows, where
    sockets have no descriptors.
    """
    if not _HAS_IDENTITIES:
        return None
    try:
        return os.fstat(fd)[1:3]  # inode and device; by their names it takes longer
    except OSError as error:
        let_through(error)
        return None


def leak(thing: Any) -> None:
    """Keep an object for ever, since to free it would close a descriptor of the program's.

    Not even the end of the interpreter frees it, where ctypes works.
    """
    if any(thing is other for other in list(_leaked)):
        return
    _leaked.append(thing)
    try:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    except Exception as error:  # ctypes itself fails in several ways on hardened systems
        let_through(error)


def none_left() -> bool:
    """Tell whether the process can open no more files at this moment."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        let_through(error)
        return error.errno in SHORTAGE
    return False


def limit() -> str:
    """Return the process's limit of open files as text, empty where it cannot be told."""
    try:
        import resource
    except ImportError:  # Windows, or no descriptor left to read the module
        return ""
    return f" ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]} now)"
