"""Row-level security that reads the session: what holds with a pool, and behind PgBouncer.

What docs/tenants.rst tells is proved here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pgbouncer import MakePgBouncer
from tests.support.pools import MakePool, ask, borrow

NOTES = "SELECT string_agg(owner, ',' ORDER BY owner) FROM note"
# For the session, and for the transaction.
SETTING = "SELECT set_config('app.tenant', %s, false)"
LOCAL_SETTING = "SELECT set_config('app.tenant', %s, true)"


@pytest.fixture(scope="module")
def tenants(server: Server) -> Iterator[dict[str, Any]]:
    """Make notes of two tenants; return where to connect as a role that is subject to the policy.

    A tenant is known by a setting or by its role.
    """
    server.execute("CREATE TABLE note (owner text)")
    server.execute("INSERT INTO note VALUES ('ann'), ('bob')")
    server.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY")
    server.execute(
        "CREATE POLICY mine ON note"
        " USING (owner IN (nullif(current_setting('app.tenant', true), ''), current_user))"
    )
    server.execute(f"CREATE ROLE web LOGIN NOINHERIT PASSWORD '{server.verifier}'")
    for tenant in ("ann", "bob"):
        server.execute(f"CREATE ROLE {tenant} NOLOGIN")
        server.execute(f"GRANT {tenant} TO web")
    server.execute("GRANT SELECT ON note TO web, ann, bob")
    yield {"user": "web", "host": server.host, "port": server.port, "dbname": "postgres"}
    server.execute("DROP TABLE note")
    server.execute("DROP ROLE web, ann, bob")


def be(conn: Any, tenant: str) -> None:
    """Be a tenant for the session, and commit that."""
    ask(conn, SETTING, tenant)
    conn.commit()


class TestDefault:
    def test_setting_of_the_session_reaches_the_next_borrower(
        self, make_any_pool: MakePool, tenants: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        with pool.conn() as conn:
            be(conn, "ann")
        with pool.conn() as conn:
            assert ask(conn, NOTES) == "ann"

    def test_role_of_the_session_reaches_the_next_borrower(
        self, make_any_pool: MakePool, tenants: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        with pool.transaction() as conn:
            ask(conn, "SET ROLE bob")
        with pool.conn() as conn:
            assert ask(conn, NOTES) == "bob"

    def test_setting_that_is_rolled_back_does_not(
        self, make_any_pool: MakePool, tenants: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        with pool.conn() as conn:
            ask(conn, SETTING, "ann")
        with pool.conn() as conn:
            assert ask(conn, NOTES) is None


class TestTransactions:
    @pytest.mark.parametrize(
        "become", ["SELECT set_config('app.tenant', 'ann', true)", "SET LOCAL ROLE ann"]
    )
    def test_end_what_was_set_for_them(
        self, make_any_pool: MakePool, tenants: dict[str, Any], become: str
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        for _ in range(2):
            with pool.transaction() as conn:
                ask(conn, become)
                assert ask(conn, NOTES) == "ann"
            with pool.conn() as conn:
                assert ask(conn, NOTES) is None

    def test_under_autocommit_are_one_statement_long(
        self, make_any_pool: MakePool, tenants: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        with pool.conn() as conn:
            conn.autocommit = True
            ask(conn, LOCAL_SETTING, "ann")
            assert ask(conn, NOTES) is None
            with conn:  # which begins a transaction all the same
                ask(conn, LOCAL_SETTING, "ann")
                assert ask(conn, NOTES) == "ann"

    def test_leave_an_empty_string_where_there_was_no_setting(
        self, make_any_pool: MakePool, tenants: dict[str, Any]
    ) -> None:
        pool = make_any_pool(maxconn=1, **tenants)
        look = "SELECT current_setting('app.tenant', true)"
        with pool.conn() as conn:
            assert ask(conn, look) is None
        with pool.transaction() as conn:
            ask(conn, LOCAL_SETTING, "ann")
        with pool.conn() as conn:
            assert ask(conn, look) == ""


def reset_tenant(conn: Any) -> None:
    """Do what the page shows, for settings and roles."""
    with conn.cursor() as cursor:
        cursor.execute("RESET ALL; RESET ROLE")


class TestReset:
    @pytest.mark.parametrize("reset", ["session", reset_tenant], ids=["session", "callable"])
    @pytest.mark.parametrize("become", ["SET app.tenant TO 'ann'", "SET ROLE ann"])
    def test_ends_what_was_set_for_the_session(
        self, make_any_pool: MakePool, tenants: dict[str, Any], reset: Any, become: str
    ) -> None:
        pool = make_any_pool(maxconn=1, reset=reset, **tenants)
        for _ in range(2):
            with pool.transaction() as conn:
                ask(conn, become)
                assert ask(conn, NOTES) == "ann"
            with pool.conn() as conn:
                assert ask(conn, NOTES) is None
        assert pool.get_stats()["returns_bad"] == 0


class TestPgBouncer:
    def pool(
        self, bouncer: Any, tenants: dict[str, Any], maxconn: int = 2, **options: Any
    ) -> ConnectionPool:
        place = {**bouncer.params, "user": tenants["user"]}
        return ConnectionPool(0, maxconn, timeout=20, **place, **options)

    @pytest.mark.parametrize("mode", ["transaction", "session"])
    def test_what_is_set_for_a_transaction_holds_in_every_mode(
        self, tenants: dict[str, Any], web_bouncer: Any, mode: str
    ) -> None:
        with self.pool(web_bouncer(mode), tenants) as pool:
            first, second = borrow(pool, 2)
            for _ in range(3):
                for conn, tenant in ((first, "ann"), (second, "bob")):
                    ask(conn, LOCAL_SETTING, tenant)
                    assert ask(conn, NOTES) == tenant
                    conn.commit()
                    assert ask(conn, NOTES) is None
                    conn.commit()

    @pytest.mark.parametrize("reset", [None, "session", reset_tenant])
    def test_what_is_set_for_the_session_is_another_clients_in_transaction_mode(
        self, tenants: dict[str, Any], web_bouncer: Any, reset: Any
    ) -> None:
        """No reset helps: it is sent when the harm is done, and wherever the server has room."""
        with self.pool(web_bouncer("transaction"), tenants, reset=reset) as pool:
            first, second = borrow(pool, 2)
            be(first, "ann")
            assert ask(second, NOTES) == "ann"  # by the one connection of the server

    @pytest.mark.parametrize(("reset", "next_sees"), [(None, "ann"), ("session", None)])
    def test_what_is_set_for_the_session_is_cleared_by_a_reset_in_session_mode(
        self, tenants: dict[str, Any], web_bouncer: Any, reset: Any, next_sees: str | None
    ) -> None:
        with self.pool(web_bouncer("session"), tenants, reset=reset, maxconn=1) as pool:
            with pool.conn() as conn:
                be(conn, "ann")
                assert ask(conn, NOTES) == "ann"
            with pool.conn() as conn:
                assert ask(conn, NOTES) == next_sees


@pytest.fixture
def web_bouncer(server: Server, pgbouncer: MakePgBouncer) -> Any:
    """Make PgBouncers that let the role in, before one connection of the server, or two."""

    def make(mode: str) -> Any:
        size = 1 if mode == "transaction" else 2
        return pgbouncer(pool_mode=mode, default_pool_size=size, other_users=["web"])

    return make
