"""The exceptions of the pool.

All of them are :class:`PoolError`, which is psycopg2's own, so that code
written for ``psycopg2.pool`` catches them with the clauses it has.
"""

from __future__ import annotations

import psycopg2
import psycopg2.pool


class PoolError(psycopg2.pool.PoolError):
    """Base of every error that a pool raises by itself."""


class PoolExhausted(PoolError):
    """All of ``maxconn`` are in use and the borrower did not want to wait."""


class PoolTimeout(PoolError):
    """No connection became free in time.

    ``__cause__`` is the last error met while connecting, if there was one.  If
    that is the server's, this is a :class:`psycopg2.OperationalError` too.
    """


class _ServerTimeout(PoolTimeout, psycopg2.OperationalError):
    """A :class:`PoolTimeout` whose cause is the server's: it could not be connected to."""


_ServerTimeout.__name__ = _ServerTimeout.__qualname__ = "PoolTimeout"


class TooManyRequests(PoolError):
    """More borrowers wait already than ``max_waiting`` allows."""


class PoolClosed(PoolError):
    """The pool is closed."""


class ConnectionReturned(PoolError, psycopg2.InterfaceError):
    """A borrower used a connection, or returned it again, after it had returned it.

    Of a connection that is not lent to anybody this is what ``cursor()`` raises;
    with ``debug=True`` whatever acts on one that a borrower has returned does,
    and its text names the places.
    """


class PoolDeadlock(PoolError):
    """Every connection is held by somebody who waits for another one.

    Raised only by pools made with ``debug=True``.
    """


class PoolUnavailable(PoolError, psycopg2.OperationalError):
    """The server cannot be reached at present and is being left alone."""


class HostResolutionError(PoolError, psycopg2.OperationalError):
    """A host name could not be resolved."""

    is_definite = False  # the answer was that there is no such name


class CommitUncertain(PoolError, psycopg2.OperationalError):
    """The connection was lost during COMMIT, and nobody can say whether it was done.

    Raised by every ``transaction()`` block, by :meth:`PooledDatabase.run
    <psycopg2_pool2.PooledDatabase.run>` and its like, and by ``commit()`` and ``with
    conn:`` of a pool's connection.  Never retried here; do not answer it with "try
    again" either, unless doing it twice is harmless.  An error with which the server
    *refuses* COMMIT, such as a violated constraint, is raised as it is: then nothing was
    done.  ``__cause__`` is psycopg2's error.

    A task that is cancelled during COMMIT gets its ``CancelledError``, whose
    ``__cause__`` is this.
    """
