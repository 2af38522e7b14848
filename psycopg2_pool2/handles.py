"""What a pool with ``debug=True`` lends: an object for each loan, in the connection's place.

Threads and tasks may hand a loan on to each other.  So what tells a former
borrower from the present one is not who it is, but what it holds: nothing that
both hold could.

A handle refers to the connection and the pool refers to no handle; a handle that
its borrower drops takes the connection along, as the connection itself would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import ConnectionReturned

_ACTS = (
    "cancel",
    "commit",
    "cursor",
    "lobject",
    "reset",
    "rollback",
    "set_client_encoding",
    "set_isolation_level",
    "set_session",
    "tpc_begin",
    "tpc_commit",
    "tpc_prepare",
    "tpc_recover",
    "tpc_rollback",
)
_TELLS = frozenset(
    {
        "fileno",
        "get_backend_pid",
        "get_dsn_parameters",
        "get_native_connection",
        "get_parameter_status",
        "get_transaction_status",
        "is_inherited",
        "isexecuting",
    }
)


class LoanHandle:
    """Stands for a connection as long as one loan of it lasts.

    To Python it is the connection: it has its attributes and methods, passes for
    an instance of its class, and equals it.  Functions of psycopg2 that are
    written in C ask for the type itself: they take ``__wrapped__``, which is what
    would be lent without ``debug``.

    When the loan has ended, whatever acts raises :class:`ConnectionReturned`; what
    only tells something does not.  A connection that is closed answers by itself.
    """

    __slots__ = ("__weakref__", "__wrapped__", "_pool_loan", "_pool_record")

    __wrapped__: Any
    _pool_loan: Any
    _pool_record: Any

    def __init__(self, lent: Any, record: Any) -> None:
        _set(self, "__wrapped__", lent)
        _set(self, "_pool_loan", record.loan)
        _set(self, "_pool_record", record)

    @property
    def pool_record(self) -> Any:
        """The pool's record while the loan lasts; afterwards there is none."""
        if _has_ended(self):
            raise AttributeError("pool_record")
        return self._pool_record

    @property  # type: ignore[misc]  # read-only
    def __class__(self) -> Any:
        return self.__wrapped__.__class__

    def __getattr__(self, name: str) -> Any:
        if name == "pool_record":
            raise AttributeError(name)
        value = getattr(self.__wrapped__, name)
        if name not in _TELLS and callable(value) and not isinstance(value, type):
            _check(self, name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        _check(self, name)
        setattr(self.__wrapped__, name, value)

    def __delattr__(self, name: str) -> None:
        _check(self, name)
        delattr(self.__wrapped__, name)

    def __dir__(self) -> list[str]:
        return dir(self.__wrapped__)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __eq__(self, other: object) -> bool:
        return bool(self.__wrapped__ == unwrapped(other))

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __enter__(self) -> Any:
        _check(self, "with")
        self.__wrapped__.__enter__()
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> Any:
        if exc is not None and _is_refused(self):
            return None  # the block's own exception says more
        _check(self, "the end of a with block")
        return self.__wrapped__.__exit__(exc_type, exc, traceback)

    def close(self) -> None:
        """Close the connection, or give it back with ``close_returns``, which is done once."""
        if _is_refused(self) and self._pool_record.item().pool_home is not None:
            return  # closing twice is harmless
        _check(self, "close")
        self.__wrapped__.close()


def _guarded(name: str) -> Callable[..., Any]:
    """Return a method that looks at each call whether the loan lasts, for those who keep it."""

    def act(self: LoanHandle, *args: Any, **kwargs: Any) -> Any:
        _check(self, name)
        return getattr(self.__wrapped__, name)(*args, **kwargs)

    act.__name__ = act.__qualname__ = name
    return act


_set = object.__setattr__
for _name in _ACTS:
    setattr(LoanHandle, _name, _guarded(_name))


def unwrapped(lent: Any) -> Any:
    """Return what a handle stands for; anything else as it is."""
    return lent.__wrapped__ if type(lent) is LoanHandle else lent


def told_of(lent: Any, record: Any) -> str:
    """Return where a connection was borrowed and returned, and where it was borrowed since.

    ``lent`` is what a former borrower has kept; if that is no handle, the loan
    before the present one is told of.  Empty if nothing is known.
    """
    is_handle = type(lent) is LoanHandle
    loan = lent._pool_loan if is_handle else record.last_loan
    if loan is None:
        return ""
    returned = f"\nand returned at:\n{loan.returned}" if loan.returned else ""
    now = record.loan
    since = ""
    if now is not None and now is not loan:
        since = f"\nand borrowed since by thread {now.thread!r} at:\n{now.site}"
    elif is_handle:
        since = "\nand is not lent to anybody now"
    return f"; borrowed at:\n{loan.site}{returned}{since}"


def record_of(handle: Any) -> Any:
    """Return the record of the connection that a handle stood for; None for anything else."""
    return handle._pool_record if type(handle) is LoanHandle else None


def _has_ended(handle: LoanHandle) -> bool:
    return handle._pool_record.loan is not handle._pool_loan


def _is_refused(handle: LoanHandle) -> bool:
    # Of the connection itself: a proxy need not tell whether it is closed.
    return _has_ended(handle) and not handle._pool_record.item().closed


def _check(handle: LoanHandle, name: str) -> None:
    if _is_refused(handle):
        told = told_of(handle, handle._pool_record)
        raise ConnectionReturned(f"{name}: the connection was returned to its pool before{told}")
