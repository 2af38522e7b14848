"""contrib.django: connections are borrowed and returned, all else is as it always is in Django."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.db import (
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.test import override_settings
from psycopg2.extensions import ISOLATION_LEVEL_SERIALIZABLE, TRANSACTION_STATUS_IDLE

from psycopg2_pool2 import CommitUncertain
from psycopg2_pool2.contrib.embedded import Server
from tests.support.pools import assert_whole, end_sessions
from tests.support.servers import StatementLog
from tests.support.site import Site, ask, ask_once, backend

SESSION_SETTINGS = {"assume_role": "pg_monitor", "isolation_level": ISOLATION_LEVEL_SERIALIZABLE}


def accounts() -> Any:
    """Return the site's accounts."""
    from tests.support.apps.django_site.models import Account

    return Account.objects


class TestRequests:
    def test_one_borrows_at_its_first_query_and_returns_at_its_end(self, site: Site) -> None:
        pool = site.set_up()
        told = site.get("/one").told
        assert (told["before"], told["after"]) == (0, 1)
        assert pool.stats().in_use == 0
        assert site.get("/one").told["backend"] == told["backend"]

    def test_one_without_a_query_borrows_nothing(self, site: Site) -> None:
        pool = site.set_up()
        assert site.get("/nothing").status == 200
        assert pool.get_stats()["requests_num"] == 0

    def test_one_that_fails_returns_it_too(self, site: Site) -> None:
        pool = site.set_up()
        assert site.get("/save?owner=a&fail").status == 500
        assert pool.stats().in_use == 0
        assert accounts().count() == 1

    def test_with_atomic_requests_one_that_fails_leaves_nothing(self, site: Site) -> None:
        pool = site.set_up(ATOMIC_REQUESTS=True)
        assert site.get("/save?owner=a&fail").status == 500
        assert site.get("/save?owner=b").status == 200
        assert pool.stats().in_use == 0
        assert list(accounts().values_list("owner", flat=True)) == ["b"]

    @pytest.mark.parametrize("server_side", [True, False])
    def test_a_stream_keeps_it_to_its_end(
        self, site: Site, statement_log: StatementLog, server_side: bool
    ) -> None:
        pool = site.set_up(DISABLE_SERVER_SIDE_CURSORS=not server_side)
        for owner in "abc":
            accounts().create(owner=owner)
        connection.close()
        answers = []
        statements = statement_log.during(lambda: answers.append(site.get("/stream").text))
        assert answers == ["a1 b1 c1 "]  # one is in use at each line
        assert any("DECLARE" in sql for sql in statements) == server_side
        assert pool.stats().in_use == 0

    def test_one_that_was_not_committed_is_rolled_back(self, site: Site) -> None:
        site.set_up()
        transaction.set_autocommit(False)
        accounts().create(owner="a")
        close_old_connections()
        assert accounts().count() == 0
        assert transaction.get_autocommit()

    def test_a_lost_session_costs_one_request(
        self, site: Site, server: Server, statement_log: StatementLog
    ) -> None:
        site.set_up()
        told = site.get("/one").told
        ask()
        end_sessions(server, statement_log.application_name)
        with pytest.raises(OperationalError):
            ask()
        close_old_connections()  # as the next request does
        assert site.get("/one").told["backend"] != told["backend"]


class TestWhatALoanCosts:
    @pytest.mark.parametrize("options", [{}, SESSION_SETTINGS], ids=["plain", "session"])
    def test_nothing_on_the_network_beside_the_query(
        self, site: Site, statement_log: StatementLog, options: dict[str, Any]
    ) -> None:
        site.set_up(pool={"test_on_borrow": False}, options=options)
        ask_once()
        assert statement_log.during(ask_once) == ["SELECT 1"]

    def test_one_round_trip_for_the_test(self, site: Site, statement_log: StatementLog) -> None:
        site.set_up()
        ask_once()
        assert statement_log.during(partial(ask_once, "SELECT 2")) == ["SELECT 1", "SELECT 2"]


class TestSessions:
    def test_each_has_the_role_and_the_isolation_level(self, site: Site) -> None:
        site.set_up(options=SESSION_SETTINGS)
        for _ in range(2):
            assert ask("SELECT current_user") == "pg_monitor"
            with transaction.atomic():
                assert ask("SHOW transaction_isolation") == "serializable"
            connection.close()

    def test_a_reset_one_has_them_again(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1, "reset": "session"}, options=SESSION_SETTINGS)
        before = backend()
        ask("RESET ROLE")
        ask("SET TIME ZONE 'Asia/Tokyo'")
        connection.close()
        assert backend() == before
        assert ask("SELECT current_user") == "pg_monitor"
        assert ask("SHOW TimeZone") == "UTC"

    def test_each_has_djangos_time_zone_whatever_the_last_borrower_did(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1})
        ask_once("SET TIME ZONE 'Asia/Tokyo'")
        account = accounts().create(owner="a")
        assert ask("SHOW TimeZone") == "UTC"
        assert accounts().get().opened == account.opened

    def test_a_change_of_the_time_zone_reaches_those_that_are_open(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1})
        before = backend()
        with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
            assert ask("SHOW TimeZone") == "Asia/Tokyo"
        assert ask("SHOW TimeZone") == "UTC"
        assert backend() == before

    def test_without_autocommit_the_time_zone_outlives_a_rollback(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1}, AUTOCOMMIT=False)
        connection.ensure_connection()
        connection.rollback()
        assert ask("SHOW TimeZone") == "UTC"

    def test_json_is_decoded_once(self, site: Site) -> None:
        site.set_up()
        accounts().create(owner="a", notes={"tags": ["x", "y"]})
        assert accounts().get(notes__tags__1="y").notes == {"tags": ["x", "y"]}
        assert ask("SELECT notes FROM django_site_account") == '{"tags": ["x", "y"]}'

    def test_the_users_configure_is_called_once_for_each(self, site: Site) -> None:
        calls: list[Any] = []
        site.set_up(pool={"maxconn": 1, "configure": calls.append})
        ask_once()
        ask_once()
        assert len(calls) == 1

    def test_connection_created_is_sent_at_each_loan(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1})
        calls: list[Any] = []

        def note(connection: Any, **_: Any) -> None:
            calls.append(connection)

        connection_created.connect(note)
        try:
            ask_once()
            ask_once()
        finally:
            connection_created.disconnect(note)
        assert calls == [connections["default"]] * 2


class Undone(Exception):
    """Raised in a block that is to be rolled back."""


def save_and_fail(owner: str) -> None:
    """Open an account, and not."""
    with transaction.atomic():
        accounts().create(owner=owner)
        raise Undone


class TestAtomic:
    def test_an_inner_block_is_a_savepoint(self, site: Site) -> None:
        site.set_up()
        with transaction.atomic():
            accounts().create(owner="kept")
            with pytest.raises(Undone):
                save_and_fail("undone")
        assert [account.owner for account in accounts().all()] == ["kept"]

    def test_a_durable_one_must_be_outermost(self, site: Site) -> None:
        site.set_up()
        with transaction.atomic(), pytest.raises(RuntimeError), transaction.atomic(durable=True):
            pass

    def test_on_commit_comes_after_the_outermost_and_not_after_a_rollback(self, site: Site) -> None:
        site.set_up()
        saved: list[str] = []

        def save(owner: str) -> None:
            transaction.on_commit(lambda: saved.append(owner))
            with transaction.atomic():
                accounts().create(owner=owner)
            assert owner not in saved
            if owner == "b":
                raise Undone

        transaction.atomic(save)("a")
        with pytest.raises(Undone):
            transaction.atomic(save)("b")
        connection.close()
        transaction.atomic(save)("c")
        assert saved == ["a", "c"]

    def test_what_is_closed_inside_may_be_another_borrowers(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 1})
        with transaction.atomic():
            accounts().create(owner="undone")
            connection.close()
            with pool.conn() as conn:
                assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
                assert not connection.is_usable()
                with pytest.raises(ProgrammingError):
                    ask()
                with pytest.raises(ProgrammingError):
                    connection.connect()
                assert conn.info.transaction_status == TRANSACTION_STATUS_IDLE
        assert accounts().count() == 0
        connection.close()
        assert_whole(pool)

    def test_what_is_closed_is_forgotten_before_another_can_borrow_it(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else the thread that closed it would use it beside its next borrower."""
        pool = site.set_up(pool={"maxconn": 1})
        ask()
        seen: list[object] = []
        putconn = type(pool).putconn

        def return_and_look(pool: Any, conn: Any, *args: Any, **kwargs: Any) -> None:
            putconn(pool, conn, *args, **kwargs)
            seen.append(connection.connection)

        monkeypatch.setattr(type(pool), "putconn", return_and_look)
        connection.close()
        assert seen == [None]

    def test_a_session_lost_inside_costs_that_block(
        self, site: Site, server: Server, statement_log: StatementLog
    ) -> None:
        pool = site.set_up(pool={"minconn": 0})

        def save() -> None:
            accounts().create(owner="lost")
            end_sessions(server, statement_log.application_name)
            ask()

        with pytest.raises(OperationalError):
            transaction.atomic(save)()
        assert accounts().count() == 0
        connection.close()
        assert_whole(pool)

    def test_whose_commit_is_uncertain_says_so_in_the_cause(self, site: Site) -> None:
        site.set_up(pool={"minconn": 0})
        ends_at_commit = """
            CREATE FUNCTION pg_temp.die() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
            CREATE TEMP TABLE deadly (id int);
            CREATE CONSTRAINT TRIGGER die AFTER INSERT ON deadly DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION pg_temp.die();
            INSERT INTO deadly VALUES (1)
        """
        with pytest.raises(OperationalError) as raised, transaction.atomic():
            ask(ends_at_commit)
        assert isinstance(raised.value.__cause__, CommitUncertain)
        connection.close()
