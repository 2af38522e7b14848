"""A plugin for a pytest of its own: SQLAlchemy's compliance suite, on engines with pools of ours.

The suite comes with SQLAlchemy, in `sqlalchemy.testing.suite`, for those who write dialects. Here,
the dialect is SQLAlchemy's own for psycopg2, and the pools of its engines borrow from ours.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.engine import URL
from sqlalchemy.testing import exclusions
from sqlalchemy.testing.provision import post_configure_engine
from sqlalchemy.testing.requirements import SuiteRequirements

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.sqlalchemy import EnginePool

_pools: list[ConnectionPool] = []
_YES: Any = exclusions.open()  # type: ignore[no-untyped-call]


class Requirements(SuiteRequirements):
    """What of connections the suite tests only where it is told that they can."""

    autocommit = skip_autocommit_rollback = isolation_level = _YES
    savepoints = server_side_cursors = _YES

    def get_isolation_levels(self, config: Any) -> dict[str, Any]:
        levels = config.db.dialect.get_isolation_level_values(None)
        return {"default": "READ COMMITTED", "supported": levels}


class Dialect(PGDialect_psycopg2):
    """Psycopg2's, whose engines have pools of ours."""

    supports_statement_cache = True

    def get_dialect_pool_class(self, url: URL) -> type[EnginePool]:
        _, params = self.create_connect_args(url)  # type: ignore[no-untyped-call]

        class OwnPool(EnginePool):
            def __init__(self, creator: object, **options: Any) -> None:
                _pools.append(ConnectionPool(0, 5, timeout=30, **params))
                super().__init__(_pools[-1], **options)

        return OwnPool

    @classmethod
    def load_provisioning(cls) -> None:
        PGDialect_psycopg2.load_provisioning()  # type: ignore[no-untyped-call]
        # It would install extensions, which only other tests need.
        post_configure_engine.for_db("postgresql")(lambda *args: None)


registry.register("postgresql.psycopg2", __name__, "Dialect")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if a pool of ours has lost a slot, or was not used at all."""
    in_use = [pool for pool in _pools if pool.stats().in_use]
    borrows = sum(pool.get_stats()["requests_num"] for pool in _pools)
    if in_use or not borrows:
        print(f"in use: {in_use}; {borrows} borrows")
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
