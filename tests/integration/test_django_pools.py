"""contrib.django: each alias has a pool, whatever threads, tasks, forks and settings there are."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.db.utils import DataError

from psycopg2_pool2 import ConnectionPool, PoolExhausted, PoolTimeout
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.pgbouncer import MakePgBouncer
from tests.support.pools import assert_whole, wait_for_backends
from tests.support.processes import in_child
from tests.support.servers import StatementLog
from tests.support.site import Site, ask, ask_once, backend
from tests.support.tls import TlsServer
from tests.support.waiting import in_thread, wait_until


class TestErrors:
    def test_all_in_use(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 1})
        with pool.conn(), pytest.raises(OperationalError) as caught:
            ask()
        assert type(caught.value.__cause__) is PoolExhausted
        assert ask() == 1

    def test_waited_in_vain(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 1, "timeout": 0.05})
        with pool.conn(timeout=20), pytest.raises(OperationalError, match="in use 1") as caught:
            ask()
        assert type(caught.value.__cause__) is PoolTimeout

    @pytest.mark.parametrize("pool", [{}, {"timeout": 0.2}, {"background_prewarm": False}], ids=str)
    def test_no_server(self, site: Site, pool: dict[str, Any]) -> None:
        site.set_up()
        connection.settings_dict["OPTIONS"]["pool"] = pool
        connection.settings_dict["PORT"] = str(free_port())
        with pytest.raises(OperationalError) as caught:
            ask()
        assert caught.value.__cause__ is not None

    def test_no_such_role(self, site: Site) -> None:
        site.set_up(pool={"timeout": 5}, options={"assume_role": "nobody"})
        with pytest.raises(DataError, match="nobody"):
            ask()


class TestSettings:
    def test_the_pools_default_is_ten_connections(self, site: Site) -> None:
        assert site.set_up().maxconn == 10

    def test_its_arguments_are_the_pools(self, site: Site) -> None:
        pool = site.set_up(pool={"minconn": 0, "maxconn": 3, "name": "orders"})
        assert (pool.minconn, pool.maxconn, pool.name) == (0, 3, "orders")

    def test_it_is_called_as_its_alias(self, site: Site) -> None:
        assert site.set_up("other").name == "other"

    def test_without_them_there_is_a_pool_too(self, site: Site) -> None:
        assert site.set_up(pool={}) is connection.pool
        connection.settings_dict["OPTIONS"].pop("pool")
        assert connection.pool.name == "default"

    def test_false_is_django_without_a_pool(
        self, site: Site, server: Server, statement_log: StatementLog
    ) -> None:
        assert (
            site.set_up(pool=False, CONN_MAX_AGE=60, options={"assume_role": "pg_monitor"}) is None
        )
        before = backend()
        assert site.get("/nothing").status == 200
        assert backend() == before
        assert ask("SELECT current_user") == "pg_monitor"
        connection.close()
        wait_for_backends(server, statement_log.application_name, 0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"CONN_MAX_AGE": 60}, "CONN_MAX_AGE must be 0"),
            ({"CONN_MAX_AGE": None}, "CONN_MAX_AGE must be 0"),
            ({"pool": "yes"}, r'OPTIONS\["pool"\] must be'),
            ({"pool": {"maxconn": 0}}, "maxconn"),
            ({"pool": {"timeout": "soon"}}, "timeout"),
            ({"pool": {"maxcon": 4}}, "maxcon"),
            ({"pool": {"configure": "no"}}, "configure"),
            ({"options": {"isolation_level": 17}}, "17 is not a valid IsolationLevel"),
        ],
        ids=str,
    )
    def test_what_cannot_be_is_told_with_its_alias(
        self, site: Site, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ImproperlyConfigured, match=f"DATABASES\\['default'\\]: .*{message}"):
            site.set_up(PASSWORD="secret", **settings)
        with pytest.raises(ImproperlyConfigured) as caught:
            ask()
        assert "secret" not in str(caught.value)

    def test_where_the_settings_lead_elsewhere_another_pool_takes_its_place(
        self, site: Site
    ) -> None:
        pools = [site.set_up()]
        ask_once()
        connection.settings_dict["NAME"] = Site.NAMES[1]
        assert ask_once("SELECT current_database()") == Site.NAMES[1]
        pools.append(connection.pool)
        connection.settings_dict["OPTIONS"]["assume_role"] = "pg_monitor"
        assert ask_once("SELECT current_user") == "pg_monitor"
        pools.append(connection.pool)
        assert [pool.closed for pool in pools] == [True, True, False]

    def test_closing_the_pool_closes_what_is_idle_and_later_what_is_in_use(
        self, site: Site, server: Server, statement_log: StatementLog
    ) -> None:
        pool = site.set_up(pool={"minconn": 2})
        ask()
        pool.wait()
        connection.close_pool()
        wait_for_backends(server, statement_log.application_name, 1)
        assert ask() == 1
        connection.close()
        wait_for_backends(server, statement_log.application_name, 0)
        assert connection.pool is not pool

    def test_one_that_the_program_closed_is_made_anew(self, site: Site) -> None:
        site.set_up().shutdown()
        assert ask() == 1

    def test_a_connection_may_be_dropped_as_recipes_for_forks_do(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 1})
        ask()
        connection.connection = None
        connection.settings_dict["OPTIONS"]["pool"] = False
        assert ask() == 1
        assert connection.pool is None
        assert_whole(pool)

    def test_who_renames_or_drops_the_database_finds_no_session_of_the_pool(
        self, site: Site, server: Server, statement_log: StatementLog
    ) -> None:
        site.set_up("other", pool={"minconn": 2}).wait()
        ask_once(using="other")
        with connections["other"]._nodb_cursor() as cursor:
            cursor.execute("ALTER DATABASE site_other RENAME TO site_renamed")
            cursor.execute("ALTER DATABASE site_renamed RENAME TO site_other")
        wait_for_backends(server, statement_log.application_name, 0)
        assert ask_once(using="other") == 1

    def test_another_backend_may_be_built_on_it(self, site: Site) -> None:
        ours = type(connections["default"])
        theirs = type("Theirs", ours.__bases__, {"display_name": "PostGIS"})
        pool = site.set_up()
        both: Any = type("Both", (ours, theirs), {})(connection.settings_dict)
        both.connect()
        assert pool.stats().in_use == 1
        both.close()
        assert pool.stats().in_use == 0
        assert both.display_name == "PostGIS"


class TestOtherServers:
    def test_through_pgbouncer_in_transaction_mode(
        self, site: Site, pgbouncer: MakePgBouncer
    ) -> None:
        bouncer = pgbouncer()
        site.set_up(HOST=bouncer.host, PORT=str(bouncer.port), DISABLE_SERVER_SIDE_CURSORS=True)
        for owner in "ab":
            assert site.get(f"/save?owner={owner}").status == 200
        assert site.get("/stream").text == "a1 b1 "
        assert ask("SHOW TimeZone") == "UTC"

    def test_hstore_is_known_at_each_loan(self, site: Site, tls_server: TlsServer) -> None:
        """The embedded server has no extensions; this one has, and TLS."""
        from django.contrib.postgres import signals  # not before Django has chosen psycopg2

        tls_server.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        params = tls_server.params
        place = {"HOST": params["host"], "PORT": str(params["port"]), "NAME": params["dbname"]}
        options = {name: params[name] for name in ("sslmode", "sslrootcert")}
        connection_created.connect(signals.register_type_handlers)
        try:
            pool = site.set_up(options=options, **place)
            for _ in range(2):
                assert ask_once("SELECT 'a=>1'::hstore") == {"a": "1"}
            pool.drain()
            assert ask_once("SELECT 'a=>1'::hstore") == {"a": "1"}
        finally:
            connection_created.disconnect(signals.register_type_handlers)
            signals.get_hstore_oids.cache_clear()


class TestSeveral:
    def test_each_alias_has_its_own(self, site: Site) -> None:
        pools = [site.set_up(), site.set_up("other")]
        assert ask("SELECT current_database()") == "site"
        assert ask("SELECT current_database()", using="other") == "site_other"
        assert [pool.stats().in_use for pool in pools] == [1, 1]
        connections.close_all()
        assert [pool.stats().in_use for pool in pools] == [0, 0]

    def test_threads_share_it_in_turn(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 3, "timeout": 20})

        def serve() -> set[int]:
            return {site.get("/one").told["backend"] for _ in range(5)}

        backends = set.union(*(thread.result() for thread in [in_thread(serve) for _ in range(12)]))
        assert 1 <= len(backends) <= 3
        assert_whole(pool)

    def test_threads_that_come_first_at_once_make_one(self, site: Site) -> None:
        site.set_up(pool={"timeout": 20}).shutdown()
        together = threading.Barrier(8)

        def find() -> ConnectionPool:
            together.wait()
            pool: ConnectionPool = connection.pool
            return pool

        assert len({id(thread.result()) for thread in [in_thread(find) for _ in range(8)]}) == 1

    def test_a_thread_that_ended_without_returning_is_noticed(
        self, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = site.set_up(pool={"maxconn": 1})

        def is_back() -> bool:
            gc.collect()
            return pool.stats().in_use == 0

        with caplog.at_level(logging.WARNING, "psycopg2_pool2"):
            in_thread(ask).result()
            wait_until(is_back)
            assert in_thread(ask_once).result() == 1
        assert "dropped without being returned" in caplog.text


class TestForks:
    def test_a_child_borrows_its_own(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1, "timeout": 10})
        before = backend()
        assert int(in_child(backend)) != before
        assert backend() == before

    def test_inside_atomic_a_child_gets_an_error(self, site: Site) -> None:
        site.set_up(pool={"maxconn": 1, "timeout": 10})

        def use() -> str:
            with pytest.raises(OperationalError):
                ask()
            return "refused"

        with transaction.atomic():
            before = backend()
            assert in_child(use) == "refused"
            assert backend() == before


@pytest.mark.parametrize(("workers", "closed"), [("prefork", True), ("thread", False)])
def test_celery_returns_after_each_task_and_closes_the_pools_of_prefork_workers(
    site: Site, workers: str, closed: bool
) -> None:
    celery = pytest.importorskip("celery")
    django = pytest.importorskip("celery.fixups.django")
    fixup = django.DjangoWorkerFixup(celery.Celery(set_as_current=False))
    fixup.worker = SimpleNamespace(pool_cls=f"celery.concurrency.{workers}:TaskPool")
    pool = site.set_up()
    ask()
    fixup.close_database()
    assert pool.stats().in_use == 0
    assert pool.closed == closed
    assert ask() == 1


class TestAsgi:
    @pytest.mark.parametrize("path", ["/one", "/one_async", "/orm_async"])
    def test_each_request_borrows_and_returns(self, site: Site, path: str) -> None:
        pool = site.set_up(pool={"maxconn": 3, "timeout": 20})

        async def serve() -> list[int]:
            answers = await asyncio.gather(*(site.get_async(path) for _ in range(12)))
            return [answer.status for answer in answers]

        assert asyncio.run(serve()) == [200] * 12
        assert pool.get_stats()["requests_num"] == 12
        assert_whole(pool)

    def test_a_client_that_goes_away_takes_none_with_it(self, site: Site) -> None:
        pool = site.set_up(pool={"maxconn": 1})

        async def come_and_go() -> None:
            request = await site.asgi_request("/hang")
            await asyncio.to_thread(wait_until, lambda: pool.stats().in_use)
            await request.send_input({"type": "http.disconnect"})
            await request.wait()

        asyncio.run(come_and_go())
        assert_whole(pool)
