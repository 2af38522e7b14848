"""The collector for prometheus_client, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import psycopg2
import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from psycopg2_pool2 import (
    AdaptiveConnectionPool,
    AsyncConnectionPool,
    AsyncPooledDatabase,
    CircuitBreaker,
    ConnectionPool,
    PooledDatabase,
    PoolExhausted,
    ThreadedConnectionPool,
)
from psycopg2_pool2.contrib.embedded import Server, free_port
from psycopg2_pool2.contrib.prometheus import Durations, PoolCollector
from tests.support.doc_blocks import ROOT, read_blocks
from tests.support.pools import MakePool, ask, fill, give_back, round_trip, start_waiter
from tests.support.processes import in_child
from tests.support.waiting import Running, in_thread, wait_until

PREFIX = "psycopg2_pool2_"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(families: Iterable[Metric]) -> Samples:
    """Return the samples by name and labels; fail for two that are the same."""
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())
            assert key not in found, key
            found[key] = sample.value
    return found


class Page:
    """What the collectors of a registry show, over HTTP."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def text(self, accept: str = "text/plain") -> str:
        request = urllib.request.Request(self._url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
        return content.decode()

    def answers(self) -> bool:
        try:
            return bool(self.text())
        except OSError:
            return False

    def read(self) -> Samples:
        return samples_of(read_text(self.text()))

    def get(self, name: str, **labels: str) -> float:
        """Return the value of the one sample that has this name and these labels."""
        wanted = labels.items()
        [value] = [v for (n, found), v in self.read().items() if n == name and wanted <= found]
        return value


@pytest.fixture(scope="module")
def exporter() -> Iterator[tuple[CollectorRegistry, int]]:
    """Serve a registry; its end takes half a second."""
    registry = CollectorRegistry()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield registry, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


MakePage = Callable[[PoolCollector], Page]


@pytest.fixture
def page_of(exporter: tuple[CollectorRegistry, int]) -> Iterator[MakePage]:
    """Serve a collector."""
    registry, port = exporter
    with ExitStack() as stack:

        def serve(collector: PoolCollector) -> Page:
            registry.register(collector)
            stack.callback(registry.unregister, collector)
            return Page(port)

        yield serve


def shown(collector: PoolCollector) -> Samples:
    """Return the samples without a server."""
    return samples_of(collector.collect())


def pools_shown(collector: PoolCollector) -> set[str]:
    """Return the names of the pools."""
    return {dict(labels)["pool"] for _, labels in shown(collector)}


class TestPage:
    def test_shows_what_the_pool_does(self, make_any_pool: MakePool, page_of: MakePage) -> None:
        pool = make_any_pool(maxconn=2, name="orders", timeout=0)
        page = page_of(PoolCollector(pool))
        fill(pool, 2)
        round_trip(pool)
        conns = [pool.getconn()]
        assert page.get("connections", state="in_use") == 1
        assert page.get("connections", state="idle") == 1
        conns.append(pool.getconn())
        with pytest.raises(PoolExhausted):
            pool.getconn()
        give_back(pool, conns)
        now = {name: value for (name, labels), value in page.read().items() if len(labels) == 1}
        assert now["max_connections"] == 2
        assert now["borrows_total"] == now["wait_seconds_count"] == 5
        assert now["use_seconds_count"] == 5
        assert now["use_seconds_sum"] > 0
        assert now["borrow_errors_total"] == now["borrow_timeouts_total"] == 1
        assert now["connect_attempts_total"] == now["connect_seconds_count"] == 2
        assert now["waiters"] == 0

    def test_shows_who_waits_and_for_how_long(self, make_pool: MakePool, page_of: MakePage) -> None:
        pool = make_pool(maxconn=1)
        conn = pool.getconn()
        page = page_of(PoolCollector(pool))
        waiter = start_waiter(pool)
        assert page.get("waiters") == 1
        pool.putconn(conn)
        pool.putconn(waiter.result())
        assert page.get("waiters") == 0
        assert page.get("wait_seconds_count") == 1
        assert page.get("use_seconds_count") == 1, "the other one was lent before"
        assert page.get("queued_seconds_total") == pool.get_stats()["requests_wait_ms"] / 1000

    def test_shows_loans_that_nothing_has_to_be_done_for(
        self, make_any_pool: MakePool, page_of: MakePage
    ) -> None:
        pool = make_any_pool(maxconn=1, test_on_borrow=False)
        fill(pool, 1)
        page = page_of(PoolCollector(pool))
        pool.putconn(pool.getconn())
        assert page.get("wait_seconds_count") == page.get("use_seconds_count") == 1

    @pytest.mark.parametrize("minconn", [0, 2])
    def test_is_what_both_formats_allow(
        self, make_pool: MakePool, page_of: MakePage, minconn: int
    ) -> None:
        pool = make_pool(minconn)
        page = page_of(PoolCollector(pool))
        round_trip(pool)
        pool.wait()
        old = samples_of(read_text(page.text()))
        new = samples_of(read_openmetrics(page.text(OPENMETRICS)))  # type: ignore[no-untyped-call]
        assert set(old) == set(new)

    def test_has_no_limit_for_a_pool_without_one(self, make_pool: MakePool) -> None:
        pool = make_pool(maxconn=float("inf"), name="endless")
        key = "max_connections", frozenset({("pool", "endless")})
        assert shown(PoolCollector(pool))[key] == float("inf")

    def test_does_not_show_a_password(
        self, make_pool: MakePool, page_of: MakePage, server: Server
    ) -> None:
        pool = make_pool(
            dsn=f"host=127.0.0.1 port={free_port()} user=postgres password=hush-hush",
            connect_params=lambda: {"password": "hush-hush"},
        )
        page = page_of(PoolCollector(pool))
        with pytest.raises(psycopg2.OperationalError):
            pool.getconn()
        assert page.get("connect_errors_total") >= 1
        assert page.get("endpoint_failures") >= 1
        assert "hush" not in page.text()


class TestNames:
    """What `promtool check metrics` asks for."""

    ABBREVIATIONS: ClassVar = {"s", "ms", "us", "ns", "sec", "m", "h", "d", "b", "kb", "mb", "gb"}
    NOT_BASE: ClassVar = {"milliseconds", "microseconds", "minutes", "hours", "days"}
    TYPES: ClassVar = {"gauge", "counter", "histogram", "summary"}
    RESERVED = re.compile("_(total|count|sum|bucket|info|created)$")

    @pytest.fixture
    @staticmethod
    def families() -> list[Metric]:
        return list(PoolCollector().describe())

    def test_have_the_prefix_and_no_capitals(self, families: list[Metric]) -> None:
        assert all(re.fullmatch(PREFIX + "[a-z_]+", family.name) for family in families)

    def test_leave_endings_to_the_types(self, families: list[Metric]) -> None:
        assert not [family.name for family in families if self.RESERVED.search(family.name)]

    def test_have_base_units_in_full(self, families: list[Metric]) -> None:
        for family in families:
            assert not (self.ABBREVIATIONS | self.NOT_BASE) & set(family.name.split("_"))
            assert (family.unit == "seconds") == family.name.endswith("_seconds")

    def test_do_not_tell_the_type(self, families: list[Metric]) -> None:
        assert not [f.name for f in families if self.TYPES & set(f.name.split("_"))]

    def test_are_explained_in_a_sentence(self, families: list[Metric]) -> None:
        assert all(re.fullmatch(r"[A-Z1].+[^.]\.", family.documentation) for family in families)
        assert len({family.documentation for family in families}) == len(families)

    def test_clash_with_those_of_a_second_collector(self) -> None:
        registry = registered(PoolCollector())
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(PoolCollector())

    def test_cover_whatever_the_pool_counts(self, server: Server, make_pool: MakePool) -> None:
        from psycopg2_pool2.contrib import prometheus

        with AdaptiveConnectionPool(0, 2, dsn=server.dsn) as pool:
            figures = set(pool.get_stats())
        as_states = {"pool_size", "pool_available", "pool_in_use", "pool_opening"}
        as_seconds = {"requests_wait_ms"}
        in_histograms = {"usage_ms", "connections_ms"}
        texts = {"pool_target_reason"}
        elsewhere = as_states | as_seconds | in_histograms | texts
        assert set(prometheus._FIGURES) == figures - elsewhere


def registered(collector: PoolCollector) -> CollectorRegistry:
    """Return a registry that has this collector."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry


class TestPools:
    def test_are_told_apart_by_their_names(self, make_pool: MakePool) -> None:
        pools = [make_pool(name="orders"), make_pool(name="carts"), make_pool()]
        collector = PoolCollector(*pools[:2])
        collector.add(pools[2])
        collector.add(pools[2])
        assert pools_shown(collector) == {"orders", "carts", pools[2].name}

    def test_of_one_name_are_refused(self, make_pool: MakePool) -> None:
        collector = PoolCollector(make_pool(name="orders"))
        keep = [make_pool(name="carts")]
        collector.add(keep[0])
        with pytest.raises(ValueError, match="pool: another one is named 'carts'"):
            collector.add(make_pool(name="carts"))

    def test_may_take_the_name_of_one_that_is_closed(self, make_pool: MakePool) -> None:
        old = make_pool(name="orders")
        fill(old, 1)
        collector = PoolCollector(old)
        old.close()
        new = make_pool(name="orders")
        collector.add(new)
        assert shown(collector)["borrows_total", frozenset({("pool", "orders")})] == 0

    def test_that_are_closed_are_shown(self, make_pool: MakePool) -> None:
        pool = make_pool(name="orders")
        collector = PoolCollector(pool)
        round_trip(pool)
        pool.close()
        assert shown(collector)["borrows_total", frozenset({("pool", "orders")})] == 1

    def test_that_are_collected_are_shown_no_longer(self, server: Server) -> None:
        pool = ConnectionPool(0, 1, dsn=server.dsn)
        collector = PoolCollector(pool)
        round_trip(pool)
        assert shown(collector)
        del pool
        gc.collect()
        assert wait_until(lambda: not shown(collector))

    def test_that_are_removed_are_measured_no_longer(self, make_pool: MakePool) -> None:
        pool = make_pool()
        collector = PoolCollector(pool)
        collector.remove(pool)
        collector.remove(pool)
        assert not shown(collector)
        assert not pool._observers.all

    def test_may_be_of_any_class(self, server: Server) -> None:
        with (
            ThreadedConnectionPool(0, 2, server.dsn, name="threaded") as threaded,
            AdaptiveConnectionPool(0, 2, dsn=server.dsn, name="adaptive") as adaptive,
            ConnectionPool(0, 2, dsn=server.dsn, name="inner") as inner,
        ):
            collector = PoolCollector(threaded, adaptive, PooledDatabase(inner))
            assert pools_shown(collector) == {"threaded", "adaptive", "inner"}
            targets = [key for key in shown(collector) if key[0] == "target_connections"]
            assert targets == [("target_connections", frozenset({("pool", "adaptive")}))]

    @pytest.mark.parametrize("what", [None, "orders", object(), psycopg2])
    def test_are_no_other_things(self, what: object) -> None:
        with pytest.raises(TypeError, match=f"pool must be .* {type(what).__name__}$"):
            PoolCollector(what)


def test_tasks_are_measured_as_threads_are(server: Server) -> None:
    async def use() -> Samples:
        async with AsyncConnectionPool(0, 2, dsn=server.dsn, name="tasks") as pool:
            collector = PoolCollector(AsyncPooledDatabase(pool))
            conns = [await pool.getconn(), await pool.getconn()]
            waiter = asyncio.ensure_future(pool.getconn())
            for conn in conns:
                await pool.putconn(conn)
            await pool.putconn(await waiter)
            async with pool.conn() as conn:
                await pool.run_on(conn, ask)
            return shown(collector)

    found = asyncio.run(use())
    pool = frozenset({("pool", "tasks")})
    assert found["borrows_total", pool] == 4
    assert found["wait_seconds_count", pool] == found["use_seconds_count", pool] == 4


class TestEndpoints:
    def test_are_shown_with_their_states(self, server: Server, make_pool: MakePool) -> None:
        refusing = free_port()
        pool = make_pool(
            2,
            dsn=server.dsn,
            host="127.0.0.1,127.0.0.1",
            port=f"{server.port},{refusing}",
            breaker=CircuitBreaker(threshold=1),
            name="two",
        )
        collector = PoolCollector(pool)

        def places(name: str) -> dict[str, float]:
            found = shown(collector).items()
            return {dict(labels)["port"]: v for (n, labels), v in found if n == name}

        wait_until(lambda: places("endpoint_failures")[str(refusing)] > 0)
        wait_until(lambda: places("endpoint_connections")[str(server.port)] == 2)
        assert set(places("endpoint_connect_seconds")) == {str(server.port)}
        states = {
            (dict(labels)["port"], dict(labels)["state"]): value
            for (name, labels), value in shown(collector).items()
            if name == "endpoint_state"
        }
        assert states[str(server.port), "closed"] == 1
        assert states[str(refusing), "closed"] == 0
        assert states[str(refusing), "open"] + states[str(refusing), "half-open"] == 1

    def test_of_a_socket_have_empty_labels(self, make_pool: MakePool) -> None:
        pool = make_pool(dsn="host=/nowhere user=postgres", name="local")
        [labels] = [x for name, x in shown(PoolCollector(pool)) if name == "endpoint_failures"]
        assert dict(labels) == {"pool": "local", "host": "/nowhere", "address": "", "port": "5432"}


class TestCounters:
    def test_never_go_backwards(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool(maxconn=3, max_uses=20, timeout=30)
        collector = PoolCollector(pool)
        stop = threading.Event()

        def use() -> int:
            for number in range(40):
                if number % 4:
                    pool.putconn(pool.getconn())
                else:
                    with pool.conn() as conn:
                        ask(conn)
            return number + 1

        def pop() -> None:
            while not stop.is_set():
                pool.pop_stats()

        others = [in_thread(use) for _ in range(6)]
        popping = in_thread(pop)
        before = growing(collector)
        while not all(other.done for other in others):
            now = growing(collector)
            assert {key for key, value in before.items() if now[key] < value} == set()
            before = now
        stop.set()
        popping.result()
        last = {name: value for (name, labels), value in growing(collector).items() if not labels}
        assert sum(other.result() for other in others) == last["borrows_total"]
        assert last["wait_seconds_count"] == last["use_seconds_count"] == last["borrows_total"]

    def test_lose_nothing_to_another_thread(self) -> None:
        durations = Durations()
        others: list[Running[None]] = []

        class Slow(float):
            def __radd__(self, total: float) -> float:  # between reading and writing the sum
                others.append(in_thread(durations.add, 1.0))
                others[0].thread.join(0.1)
                return total + float(self)

        durations.add(Slow(1.0))
        others[0].result()
        buckets, total = durations.read()
        assert (buckets[-1], total) == (("+Inf", 2), 2.0)

    @pytest.mark.parametrize(
        ("seconds", "bucket"), [(0, "0.001"), (0.001, "0.001"), (0.0011, "0.0025"), (31, "+Inf")]
    )
    def test_have_buckets_with_inclusive_upper_bounds(self, seconds: float, bucket: str) -> None:
        durations = Durations()
        durations.add(seconds)
        buckets, total = durations.read()
        assert next(bound for bound, count in buckets if count) == bucket
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert total == seconds

    def test_may_be_entered_again_by_the_garbage_collector(self) -> None:
        durations = Durations()

        class Intruder(float):
            def __gt__(self, other: object) -> bool:  # asked for under the lock
                durations.add(1.0)
                return False

        running = in_thread(partial(durations.add, Intruder(0.0005)))
        running.result()
        buckets, _ = durations.read()
        assert buckets[-1][1] > 1

    def test_start_anew_with_the_pool(self, make_any_pool: MakePool) -> None:
        pool = make_any_pool()
        collector = PoolCollector(pool)
        fill(pool, 2)
        assert growing(collector)

        def child() -> object:
            assert set(growing(collector).values()) == {0}
            round_trip(pool)
            found = {name: value for (name, _), value in growing(collector).items()}
            return found["borrows_total"], found["wait_seconds_count"], found["use_seconds_count"]

        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        assert in_child(child) == "(1, 1, 1)"

    def test_hold_nobody_up_whose_parent_was_forked_meanwhile(self, make_pool: MakePool) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        pool = make_pool()
        collector = PoolCollector(pool)
        observer = collector._pools.observer(pool)
        assert observer is not None
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with observer.waits._lock, observer.uses._lock, observer.connects._lock:
                held.set()
                release.wait(30)

        holder = in_thread(hold)
        assert held.wait(10)
        try:
            assert in_child(lambda: round_trip(pool) > 0) == "True"
        finally:
            release.set()
            holder.result()


SHOP = """
import os
from psycopg2_pool2 import ConnectionPool

pool = ConnectionPool(0, 2, timeout=30, name="shop", dsn=os.environ["DATABASE_URL"])
pool.putconn(pool.getconn())  # before the fork


def app(environ, start_response):
    with pool.conn() as conn, conn.cursor() as cursor:
        cursor.execute("SELECT 1")
    start_response("200 OK", [])
    return [b"fine"]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_each_worker_of_gunicorn_answers_for_itself_as_documented(
    server: Server, tmp_path: Path
) -> None:
    [config] = [b for b in read_blocks(ROOT / "docs/metrics.rst") if b.file == "gunicorn.conf.py"]
    app_port, first_port = free_port(), free_row(3)
    code = config.code
    for old, new in [("workers = 4", "workers = 2"), ("9101", str(first_port))]:
        assert old in code
        code = code.replace(old, new)
    (tmp_path / "gunicorn.conf.py").write_text(code)
    (tmp_path / "shop.py").write_text(SHOP)
    command = ["-m", "gunicorn", "--preload", "--bind", f"127.0.0.1:{app_port}", "shop:app"]
    with program(command, tmp_path, {"DATABASE_URL": server.dsn}):
        pages = [Page(first_port), Page(first_port + 1)]
        wait_until(lambda: all(page.answers() for page in pages), timeout=30)
        assert [page.get("borrows_total", pool="shop") for page in pages] == [0, 0]
        for _ in range(5):
            with urllib.request.urlopen(f"http://127.0.0.1:{app_port}/", timeout=30) as answer:
                assert answer.read() == b"fine"
        assert sum(page.get("borrows_total", pool="shop") for page in pages) == 5
        assert sum(page.get("use_seconds_count", pool="shop") for page in pages) == 5


def free_row(number: int) -> int:
    """Return the first of so many free ports in a row."""

    def found() -> int | None:
        first = free_port()
        with ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                return None
        return first

    port = wait_until(found)
    assert port is not None
    return port


@contextmanager
def program(arguments: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a Python program, and end it and its children; tell what it wrote if the block fails."""
    output = folder / "output"
    with output.open("wb") as file:
        running = subprocess.Popen(
            [sys.executable, "-W", "ignore:This process:DeprecationWarning", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    except BaseException as error:
        error.args = (*error.args, output.read_text())
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def growing(collector: PoolCollector) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return what may only grow, without the pool's label."""
    suffixes = ("_total", "_bucket", "_count", "_sum")
    return {
        (name, frozenset(label for label in labels if label[0] != "pool")): value
        for (name, labels), value in shown(collector).items()
        if name.endswith(suffixes)
    }
