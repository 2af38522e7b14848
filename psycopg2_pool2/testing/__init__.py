"""Tests of programs that use a pool: whatever they do to the database is rolled back.

:func:`rolled_back` does it for a block, :func:`pool_fixture` makes a pytest
fixture of it.  The pool stays the pool that it is: only the connections that it
lends send what they are told to one session that all of them share, in which a
transaction is a savepoint.
"""

from .fixtures import pool_fixture
from .pool import rolled_back
from .session import NeedsRealTransactions

__all__ = ["NeedsRealTransactions", "pool_fixture", "rolled_back"]
