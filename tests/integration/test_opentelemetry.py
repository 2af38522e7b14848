"""The metrics for OpenTelemetry, read from its SDK."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)

from psycopg2_pool2 import AsyncConnectionPool, ConnectionPool, PoolExhausted
from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.metrics import BUCKETS
from psycopg2_pool2.contrib.opentelemetry import instrument, uninstrument
from tests.support.pools import MakePool, ask, fill, give_back, round_trip, start_waiter
from tests.support.processes import run_program
from tests.support.waiting import in_thread, wait_until

PREFIX = "db.client.connection."


class Backend:
    """A meter provider, and what has been reported to it."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics that have values, by their names without the prefix."""
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        assert all(metric.name.startswith(PREFIX) for metric in found)
        assert len({metric.name for metric in found}) == len(found)
        return {metric.name.removeprefix(PREFIX): metric for metric in found}

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """Return a metric's points, by the pool's name and, if there is one, the state."""
        metric = self.metrics().get(name)
        found: dict[tuple[Any, ...], Any] = {}
        for point in metric.data.data_points if metric else []:
            attributes = dict(point.attributes or {})
            key = attributes.pop(PREFIX + "pool.name"), *attributes.values()
            assert set(attributes) <= {PREFIX + "state"}
            found[key] = point.value if isinstance(point, NumberDataPoint) else point
        return found

    def histogram(self, name: str) -> HistogramDataPoint:
        """Return the one point of a histogram."""
        [point] = self.points(name).values()
        assert isinstance(point, HistogramDataPoint)
        return point


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.provider.shutdown()


@pytest.fixture
def orders(make_any_pool: MakePool, backend: Backend) -> ConnectionPool:
    """Return a pool that is instrumented."""
    pool = make_any_pool(0, 2, name="orders")
    instrument(pool, backend.provider)
    return pool


class TestMetrics:
    def test_count_connections_by_state(self, orders: ConnectionPool, backend: Backend) -> None:
        fill(orders, 2)
        conn = orders.getconn()
        assert backend.points("count") == {("orders", "idle"): 1, ("orders", "used"): 1}
        orders.putconn(conn)
        assert backend.points("count") == {("orders", "idle"): 2, ("orders", "used"): 0}

    def test_tell_the_limits(self, make_pool: MakePool, backend: Backend) -> None:
        instrument(make_pool(1, 5, name="orders"), backend.provider)
        assert backend.points("max") == {("orders",): 5}
        assert backend.points("idle.max") == {("orders",): 5}
        assert backend.points("idle.min") == {("orders",): 1}

    def test_tell_no_limit_that_is_none(
        self, make_pool: MakePool, backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        keep = [make_pool(1, float("inf"), name="endless")]
        instrument(keep[0], backend.provider)
        assert backend.points("max") == backend.points("idle.max") == {}
        assert backend.points("idle.min") == {("endless",): 1}
        assert not caplog.records, "the SDK warns of infinite values"

    def test_know_that_surplus_is_closed_at_once(
        self, make_pool: MakePool, backend: Backend
    ) -> None:
        keep = [make_pool(1, 5, idle_timeout=0, name="orders")]
        instrument(keep[0], backend.provider)
        assert backend.points("idle.max") == {("orders",): 1}

    def test_tell_who_waits(self, make_pool: MakePool, backend: Backend) -> None:
        pool = make_pool(0, 1, name="orders")
        instrument(pool, backend.provider)
        conn = pool.getconn()
        waiter = start_waiter(pool)
        assert backend.points("pending_requests") == {("orders",): 1}
        pool.putconn(conn)
        pool.putconn(waiter.result())
        assert backend.points("pending_requests") == {("orders",): 0}

    def test_count_timeouts(self, orders: ConnectionPool, backend: Backend) -> None:
        conns = [orders.getconn(), orders.getconn()]
        assert backend.points("timeouts") == {("orders",): 0}
        with pytest.raises(PoolExhausted):
            orders.getconn(timeout=0)
        assert backend.points("timeouts") == {("orders",): 1}
        give_back(orders, conns)

    def test_measure_connects_borrows_and_loans(
        self, orders: ConnectionPool, backend: Backend
    ) -> None:
        round_trip(orders)
        with orders.conn() as conn:
            ask(conn)
        conn = orders.getconn()
        assert backend.histogram("create_time").count == 1
        assert backend.histogram("wait_time").count == 3
        used = backend.histogram("use_time")
        assert used.count == 2
        assert used.sum > 0
        orders.putconn(conn)

    def test_have_buckets_for_seconds(self, orders: ConnectionPool, backend: Backend) -> None:
        round_trip(orders)
        for name in ("create_time", "wait_time", "use_time"):
            assert tuple(backend.histogram(name).explicit_bounds) == BUCKETS

    def test_are_those_of_the_conventions(self, orders: ConnectionPool, backend: Backend) -> None:
        conventions = pytest.importorskip("opentelemetry.semconv._incubating.metrics.db_metrics")
        round_trip(orders)
        ours = {m.name: (m.unit, _kind(m)) for m in backend.metrics().values()}
        assert ours == _Conventions(conventions).instruments

    def test_only_grow_where_they_count(self, orders: ConnectionPool, backend: Backend) -> None:
        stop = threading.Event()

        def use() -> None:
            for _ in range(50):
                orders.putconn(orders.getconn(timeout=30))

        def pop() -> None:
            while not stop.is_set():
                orders.pop_stats()

        others = [in_thread(use) for _ in range(4)]
        popping = in_thread(pop)
        round_trip(orders)
        before = 0
        while not all(other.done for other in others):
            now = backend.histogram("use_time").count
            assert now >= before
            before = now
        stop.set()
        popping.result()
        assert [other.result() for other in others] == [None] * 4
        assert backend.histogram("use_time").count == 201
        assert backend.histogram("wait_time").count == 201


def _kind(metric: Metric) -> str:
    data = metric.data
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "up_down_counter"
    return "histogram"


class _Conventions:
    """A meter that writes down what the conventions' own functions create."""

    def __init__(self, conventions: Any) -> None:
        self.instruments: dict[str, tuple[str, str]] = {}
        for name, create in inspect.getmembers(conventions, inspect.isfunction):
            if name.startswith("create_db_client_connection_"):
                create(self)

    def __getattr__(self, name: str) -> Any:
        def create(name: str, description: str, unit: str, kind: str = name) -> None:
            self.instruments[name] = unit, kind.removeprefix("create_")

        return create


class TestInstrument:
    def test_twice_changes_nothing_and_warns(
        self, orders: ConnectionPool, backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        instrument(orders, backend.provider)
        instrument(orders, Backend().provider)
        warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["pool 'orders' is instrumented already"] * 2
        round_trip(orders)
        assert backend.histogram("use_time").count == 1

    def test_serves_many_pools_with_one_set_of_instruments(
        self,
        make_pool: MakePool,
        orders: ConnectionPool,
        backend: Backend,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        carts = make_pool(0, 3, name="carts")
        instrument(carts, backend.provider)
        round_trip(carts)
        assert backend.points("max") == {("orders",): 2, ("carts",): 3}
        assert list(backend.points("use_time")) == [("carts",)]
        assert not caplog.records

    def test_refuses_a_second_pool_of_the_name(
        self, make_pool: MakePool, orders: ConnectionPool, backend: Backend
    ) -> None:
        with pytest.raises(ValueError, match="named 'orders' too"):
            instrument(make_pool(name="orders"), backend.provider)

    def test_reports_to_the_provider_that_is_given(
        self, make_pool: MakePool, orders: ConnectionPool, backend: Backend
    ) -> None:
        other = Backend()
        carts = make_pool(name="carts")
        instrument(carts, other.provider)
        assert set(backend.points("max")) == {("orders",)}
        assert set(other.points("max")) == {("carts",)}

    def test_reports_to_the_global_provider_though_it_is_set_later(self, server: Server) -> None:
        ended = run_program(
            """
import sys
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from psycopg2_pool2 import ConnectionPool
from psycopg2_pool2.contrib.opentelemetry import instrument

early, late, last = [ConnectionPool(0, 1, dsn=sys.argv[1], name=n) for n in ("a", "b", "c")]
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
instrument(early)
set_meter_provider(provider)
instrument(late)
instrument(last, provider)
for pool in (early, late, last):
    pool.putconn(pool.getconn())
[scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
for metric in scope.metrics:
    print(metric.name, *sorted({p.attributes["db.client.connection.pool.name"]
        for p in metric.data.data_points}))
provider.shutdown()
""",
            server.dsn,
        )
        assert ended.errors == ""
        lines = ended.output.splitlines()
        assert len(lines) == 9
        assert all(line.endswith(" a b c") for line in lines), ended.output

    @pytest.mark.parametrize("what", [None, "orders", object()])
    def test_refuses_what_is_no_pool(self, what: Any) -> None:
        with pytest.raises(TypeError, match="pool must be"):
            instrument(what)

    def test_measures_tasks_as_threads(self, server: Server, backend: Backend) -> None:
        async def use() -> None:
            async with AsyncConnectionPool(0, 1, dsn=server.dsn, name="tasks") as pool:
                instrument(pool, backend.provider)
                await pool.putconn(await pool.getconn())
                async with pool.conn():
                    pass

        asyncio.run(use())
        assert backend.histogram("wait_time").count == 2
        assert backend.histogram("use_time").count == 2


class TestTheEnd:
    def test_comes_by_uninstrument(self, orders: ConnectionPool, backend: Backend) -> None:
        round_trip(orders)
        uninstrument(orders)
        uninstrument(orders)
        round_trip(orders)
        assert backend.points("max") == {}
        assert backend.histogram("use_time").count == 1
        assert not orders._observers.all

    def test_may_be_a_beginning(self, orders: ConnectionPool, backend: Backend) -> None:
        uninstrument(orders)
        other = Backend()
        instrument(orders, other.provider)
        assert backend.points("max") == {}
        assert set(other.points("max")) == {("orders",)}

    def test_comes_with_the_pools(self, server: Server, backend: Backend) -> None:
        pool = ConnectionPool(0, 1, dsn=server.dsn)
        instrument(pool, backend.provider)
        assert backend.points("max")
        del pool
        gc.collect()
        assert wait_until(lambda: not backend.points("max"))

    def test_is_not_that_the_pool_is_closed(self, orders: ConnectionPool, backend: Backend) -> None:
        round_trip(orders)
        orders.close()
        assert backend.points("count") == {("orders", "idle"): 0, ("orders", "used"): 0}
