"""ThreadedConnectionPool: programs written for psycopg2.pool, and where it differs on purpose."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg2
import psycopg2.extras
import psycopg2.pool
import pytest

import psycopg2_pool2
from psycopg2_pool2 import (
    ConnectionPool,
    PoolClosed,
    PoolExhausted,
    PoolTimeout,
    SimpleConnectionPool,
    ThreadedConnectionPool,
)
from psycopg2_pool2.contrib.embedded import Server, free_port
from tests.support.pools import ask, pid_of, wait_for_backends, wait_for_waiters
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, place_of, wait_until

MakePool = Callable[..., Any]


@pytest.fixture
def close_at_end() -> Iterator[Callable[[Any], Any]]:
    """Close pools, however they end."""
    with ExitStack() as stack:

        def close(pool: Any) -> None:
            if not pool.closed:
                pool.closeall()

        def register(pool: Any) -> Any:
            stack.callback(close, pool)
            return pool

        yield register


@pytest.fixture(params=[{}, {"num_workers": 0}], ids=["workers", "no-workers"])
def make(
    statement_log: StatementLog,
    close_at_end: Callable[[Any], Any],
    request: pytest.FixtureRequest,
) -> MakePool:
    """Make pools of ours."""

    def make_one(minconn: int, maxconn: int, **kwargs: Any) -> Any:
        options = {**request.param, **kwargs}
        return close_at_end(ThreadedConnectionPool(minconn, maxconn, statement_log.dsn, **options))

    return make_one


@pytest.fixture(
    params=[psycopg2.pool.ThreadedConnectionPool, ThreadedConnectionPool], ids=["psycopg2", "ours"]
)
def make_either(
    statement_log: StatementLog,
    close_at_end: Callable[[Any], Any],
    request: pytest.FixtureRequest,
) -> MakePool:
    """Make pools of psycopg2's, and of ours: what a test says here holds for both."""

    def make_one(*sizes: Any, base: Any = None, **kwargs: Any) -> Any:
        kind = base(request.param) if base else request.param
        return close_at_end(kind(*sizes, statement_log.dsn, **kwargs))

    return make_one


def hold(pool: Any, number: int) -> list[Any]:
    return [pool.getconn() for _ in range(number)]


class TestEither:
    """Programs as they are found, run with both."""

    def test_it_opens_minconn_before_the_constructor_returns(
        self, server: Server, app: str, make_either: MakePool
    ) -> None:
        make_either(3, 5)
        assert len(server.backends(app)) == 3

    def test_connections_are_lent_up_to_maxconn(self, make_either: MakePool) -> None:
        pool = make_either(1, 2)
        conns = hold(pool, 2)
        with pytest.raises(psycopg2.pool.PoolError) as caught:
            pool.getconn()
        assert str(caught.value) == "connection pool exhausted"
        pool.putconn(conns[0])
        assert pool.getconn() is conns[0]

    def test_a_failed_transaction_is_rolled_back(self, make_either: MakePool) -> None:
        pool = make_either(1, 1)
        conn = pool.getconn()
        with pytest.raises(psycopg2.ProgrammingError):
            ask(conn, "SELECT nonsense")
        pool.putconn(conn)
        assert pool.getconn() is conn
        assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE

    def test_a_closed_connection_may_be_put(self, make_either: MakePool) -> None:
        pool = make_either(1, 1)
        conn = pool.getconn()
        conn.close()
        pool.putconn(conn)
        assert ask(pool.getconn()) == 1

    def test_close_closes(self, server: Server, app: str, make_either: MakePool) -> None:
        pool = make_either(0, 2)
        conn = pool.getconn()
        pool.putconn(conn, close=True)
        assert conn.closed
        wait_for_backends(server, app, 0)

    def test_closeall_closes_those_in_use_too(
        self, server: Server, app: str, make_either: MakePool
    ) -> None:
        pool = make_either(2, 3)
        conns = hold(pool, 3)
        pool.putconn(conns[0])
        pool.closeall()
        assert pool.closed
        assert [bool(conn.closed) for conn in conns] == [True] * 3
        wait_for_backends(server, app, 0)
        with pytest.raises(psycopg2.pool.PoolError, match=r"^connection pool is closed$"):
            pool.putconn(conns[1])

    def test_closeall_waits_for_a_statement_that_runs(
        self, server: Server, make_either: MakePool
    ) -> None:
        pool = make_either(1, 1)
        conn = pool.getconn()
        conn.autocommit = True
        blocked = conn.cursor()
        with psycopg2.connect(server.dsn) as blocker, blocker.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(4711)")
            statement = in_thread(blocked.execute, "SELECT pg_advisory_lock(4711)")
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s"
            wait_until(lambda: server.execute(waits, [pid_of(conn)]))
            closing = in_thread(pool.closeall)
            wait_until(lambda: closing.done or "in closeall" in place_of(closing.thread))
            statement.thread.join(0.2)
            assert not statement.done, "it was not waited for"
            cursor.execute("SELECT pg_advisory_unlock(4711)")
            assert statement.error() is None
            closing.result()
        blocker.close()
        assert conn.closed

    def test_a_key_stands_for_its_connection(self, make_either: MakePool) -> None:
        pool = make_either(0, 2)
        conn = pool.getconn("k")
        assert pool.getconn("k") is conn
        assert pool.getconn(key=0) is not conn
        pool.putconn(conn, "k")
        assert pool.getconn("k") is not None

    def test_a_connection_known_by_its_key_alone_stays(self, make_either: MakePool) -> None:
        pool = make_either(0, 2)
        pool.getconn("k").cursor().execute("CREATE TEMP TABLE mine AS SELECT 42 AS n")
        gc.collect()
        assert ask(pool.getconn("k"), "SELECT n FROM mine") == 42
        pool.putconn(pool.getconn("k"), "k")

    def test_a_connection_may_be_put_without_its_key(self, make_either: MakePool) -> None:
        pool = make_either(1, 1)
        conn = pool.getconn("k")
        pool.putconn(conn)
        assert pool.getconn("other") is conn

    @pytest.mark.parametrize("borrowed_under", ["right", None])
    def test_a_wrong_key_is_a_key_error(
        self, make_either: MakePool, borrowed_under: str | None
    ) -> None:
        pool = make_either(1, 1)
        conn = pool.getconn(borrowed_under)
        with pytest.raises(KeyError) as caught:
            pool.putconn(conn, "wrong")
        assert caught.value.args == ("wrong",)

    def test_factories_may_be_positional(
        self, server: Server, close_at_end: Callable[[Any], Any], make_either: MakePool
    ) -> None:
        class Mine(psycopg2.extensions.connection):
            pass

        pool = type(make_either(0, 1))(1, 1, server.dsn, Mine, psycopg2.extras.DictCursor)
        conn = close_at_end(pool).getconn()
        assert isinstance(conn, Mine)
        assert conn.cursor_factory is psycopg2.extras.DictCursor

    def test_isinstance_of_psycopg2s_classes(self, make_either: MakePool) -> None:
        pool = make_either(0, 1)
        assert isinstance(pool, psycopg2.pool.ThreadedConnectionPool)
        assert isinstance(pool, psycopg2.pool.AbstractConnectionPool)

    def test_the_sizes_may_be_set(self, make_either: MakePool) -> None:
        pool = make_either(1, 1)
        pool.maxconn = 3
        pool.minconn = 3
        conns = hold(pool, 3)
        for conn in conns:
            pool.putconn(conn)
        assert not any(conn.closed for conn in conns)

    def test_a_subclass_may_block_with_a_semaphore(self, make_either: MakePool) -> None:
        def blocking(kind: Any) -> Any:
            class Blocking(kind):  # type: ignore[misc]
                def __init__(self, minconn: int, maxconn: int, *args: Any, **kwargs: Any) -> None:
                    self._semaphore = threading.Semaphore(maxconn)
                    super().__init__(minconn, maxconn, *args, **kwargs)

                def getconn(self, *args: Any, **kwargs: Any) -> Any:
                    self._semaphore.acquire()
                    return super().getconn(*args, **kwargs)

                def putconn(self, *args: Any, **kwargs: Any) -> None:
                    super().putconn(*args, **kwargs)
                    self._semaphore.release()

            return Blocking

        pool = make_either(1, 2, base=blocking)

        def work() -> Any:
            conn = pool.getconn()
            try:
                return ask(conn)
            finally:
                pool.putconn(conn)

        with ThreadPoolExecutor(8) as threads:
            assert [f.result(30) for f in [threads.submit(work) for _ in range(40)]] == [1] * 40

    def test_a_key_for_each_thread(self, make_either: MakePool) -> None:
        pool = make_either(1, 8)

        def work() -> bool:
            key = f"thread {threading.get_ident()}"
            conn = pool.getconn(key)
            try:
                return pool.getconn(key) is conn and ask(conn) == 1
            finally:
                pool.putconn(conn, key)

        with ThreadPoolExecutor(8) as threads:
            assert all(f.result(30) for f in [threads.submit(work) for _ in range(80)])

    def test_it_cannot_be_pickled(self, make_either: MakePool) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(make_either(0, 1))


class TestConstructor:
    def test_of_its_own_keywords_none_reaches_the_server(self, make: MakePool) -> None:
        pool = make(0, 3, timeout=5, idle_timeout=7, name="mine", max_uses=9)
        assert (pool.idle_timeout, pool.name) == (7, "mine")
        assert ask(pool.getconn()) == 1

    def test_everything_may_be_a_keyword(
        self, statement_log: StatementLog, close_at_end: Callable[[Any], Any]
    ) -> None:
        pool = ThreadedConnectionPool(minconn=1, maxconn=2, **statement_log.params)
        assert ask(close_at_end(pool).getconn()) == 1

    def test_the_environment_may_say_where(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, close_at_end: Callable[[Any], Any]
    ) -> None:
        url = f"postgresql://postgres@{server.host}:{server.port}/postgres"
        monkeypatch.setenv("DATABASE_URL", url)
        pool = close_at_end(ThreadedConnectionPool.from_env(minconn=1, maxconn=2))
        assert type(pool) is ThreadedConnectionPool
        assert ask(pool.getconn()) == 1

    def test_minconn_may_be_left_to_the_background(self, make: MakePool) -> None:
        pool = make(2, 2, background_prewarm=True)
        pool.wait()
        assert pool.stats().idle == 2

    def test_a_dsn_given_twice_is_refused(self, dsn: str) -> None:
        with pytest.raises(TypeError, match="multiple values for argument 'dsn'"):
            ThreadedConnectionPool(1, 2, dsn, dsn=dsn)

    @pytest.mark.parametrize("sizes", [(3, 2), (-1, 2), (0, 0)])
    def test_sizes_that_do_not_fit_are_refused(self, dsn: str, sizes: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="conn must"):
            ThreadedConnectionPool(*sizes, dsn)

    def test_a_dsn_in_the_wrong_place_is_not_told(self) -> None:
        misplaced: Any = "password=secret"
        for sizes in ((misplaced, 2), (1, misplaced)):
            with pytest.raises(ValueError, match="whole number") as caught:
                ThreadedConnectionPool(*sizes)
            assert "secret" not in str(caught.value)
            assert caught.value.__suppress_context__

    @pytest.mark.parametrize("workers", [3, 0])
    def test_one_that_fails_leaves_nothing_behind(
        self, server: Server, statement_log: StatementLog, app: str, workers: int
    ) -> None:
        made: list[Any] = []

        class Third(psycopg2.extensions.connection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                if len(made) == 2:
                    raise psycopg2.OperationalError("no third")
                super().__init__(*args, **kwargs)
                made.append(self)

        with pytest.raises(psycopg2.OperationalError, match="no third"):
            ThreadedConnectionPool(3, 5, statement_log.dsn, Third, num_workers=workers)
        assert [bool(conn.closed) for conn in made] == [True, True]
        wait_for_backends(server, app, 0)

    def test_with_minconn_zero_a_server_that_is_down_is_told_when_borrowing(
        self, close_at_end: Callable[[Any], Any]
    ) -> None:
        where = f"host=127.0.0.1 port={free_port()}"
        for kind in (psycopg2.pool.ThreadedConnectionPool, ThreadedConnectionPool):
            pool = close_at_end(kind(0, 1, where))
            with pytest.raises(psycopg2.OperationalError, match="Connection refused"):
                pool.getconn()


class TestErrors:
    def test_the_cause_tells_more(self, make: MakePool) -> None:
        pool = make(1, 1, name="orders")
        conn = pool.getconn()
        with pytest.raises(PoolExhausted) as exhausted:
            pool.getconn()
        assert "'orders' (in use 1" in str(exhausted.value.__cause__)
        pool.putconn(conn)
        with pytest.raises(psycopg2_pool2.PoolError) as unkeyed:
            pool.putconn(conn)
        assert "returned before: pool 'orders'" in str(unkeyed.value.__cause__)
        pool.closeall()
        for call in (pool.getconn, lambda: pool.putconn(conn)):
            with pytest.raises(PoolClosed) as closed:
                call()
            assert "'orders'" in str(closed.value.__cause__)

    def test_with_a_timeout_a_borrower_waits(self, make: MakePool) -> None:
        pool = make(1, 1, timeout=30)
        conn = pool.getconn()
        waiter = in_thread(pool.getconn)
        wait_for_waiters(pool, 1)
        pool.putconn(conn)
        assert waiter.result() is conn
        with pytest.raises(PoolTimeout, match="no connection within"):
            pool.getconn(timeout=0.01)


class TestKeys:
    def test_no_automatic_key_is_that_of_a_program(self, make: MakePool) -> None:
        pool = make(0, 6)
        automatic = hold(pool, 3)
        chosen = [pool.getconn(number) for number in (1, 2, 3)]
        assert len({id(conn) for conn in automatic + chosen}) == 6
        for number, conn in zip((1, 2, 3), chosen, strict=True):
            pool.putconn(conn, number)
        assert len({id(conn) for conn in automatic + hold(pool, 3)}) == 6

    def test_psycopg2s_automatic_keys_are_numbers(
        self, dsn: str, close_at_end: Callable[[Any], Any]
    ) -> None:
        pool = close_at_end(psycopg2.pool.ThreadedConnectionPool(0, 2, dsn))
        assert pool.getconn() is pool.getconn(1)  # which is why ours are none

    @pytest.mark.parametrize("borrowed_under", ["right", None])
    def test_a_wrong_key_changes_nothing(self, make: MakePool, borrowed_under: str | None) -> None:
        pool = make(1, 2)
        conn, other = pool.getconn(borrowed_under), pool.getconn("other")
        for wrong in ("wrong", "other"):
            with pytest.raises(KeyError):
                pool.putconn(conn, wrong)
        assert pool.getconn("other") is other
        assert ask(conn) == 1
        pool.putconn(conn, borrowed_under)
        pool.putconn(other, "other")
        assert pool.stats().in_use == 0

    def test_what_is_not_in_use_is_refused_whatever_the_key(self, dsn: str, make: MakePool) -> None:
        pool = make(1, 2)
        conn, other = pool.getconn("k"), pool.getconn("other")
        pool.putconn(conn, "k")
        stranger = psycopg2.connect(dsn)
        for foreign in (conn, stranger, None):
            for key in ("k", "other", "unknown"):
                with pytest.raises(psycopg2.pool.PoolError, match="unkeyed connection"):
                    pool.putconn(foreign, key)
        assert not stranger.closed
        stranger.close()
        assert (pool.stats().in_use, pool.stats().idle) == (1, 1)
        assert pool.getconn("other") is other

    def test_a_key_is_free_after_close_and_detach(self, make: MakePool) -> None:
        pool = make(0, 2)
        first = pool.getconn("k")
        pool.putconn(first, "k", True)
        second = pool.getconn("k")
        assert second is not first
        pool.detach(second)
        assert pool.getconn("k") is not second
        second.close()

    def test_a_key_lasts_when_the_pool_is_exhausted(self, make: MakePool) -> None:
        pool = make(1, 1)
        conn = pool.getconn("k")
        with pytest.raises(PoolExhausted):
            pool.getconn("other")
        assert pool.getconn("k") is conn


class TestClosed:
    def test_closeall_twice_is_an_error_and_shutdown_is_not(self, make: MakePool) -> None:
        pool = make(1, 1)
        pool.closeall()
        with pytest.raises(PoolClosed, match=r"^connection pool is closed$"):
            pool.closeall()
        pool.shutdown()
        pool.close()

    def test_after_shutdown_those_in_use_may_be_put(self, make: MakePool) -> None:
        pool = make(1, 2)
        conn, keyed = pool.getconn(), pool.getconn("k")
        pool.shutdown()
        assert ask(conn) == 1
        with pytest.raises(PoolClosed):
            pool.getconn("k")
        pool.putconn(conn)
        pool.putconn(keyed, "k")
        assert conn.closed
        assert keyed.closed

    def test_leaving_the_block_closes(self, dsn: str) -> None:
        with ThreadedConnectionPool(1, 1, dsn) as pool, pool.conn() as conn:
            assert ask(conn) == 1
        assert pool.closed
        assert conn.closed

    def test_closeall_may_wait_for_those_in_use(self, make: MakePool) -> None:
        pool = make(0, 2)
        kept, conn = pool.getconn(), pool.getconn()
        closing = in_thread(pool.closeall, timeout=30)
        wait_until(lambda: pool.closed)
        assert ask(conn) == 1
        pool.putconn(conn)
        pool.putconn(kept)
        closing.result()

    def test_waiters_are_told(self, make: MakePool) -> None:
        pool = make(1, 1, timeout=30)
        conn = pool.getconn()
        waiter = in_thread(pool.getconn)
        wait_for_waiters(pool, 1)
        pool.closeall()
        assert isinstance(waiter.error(), PoolClosed)
        assert str(waiter.error()) == "connection pool is closed"
        assert conn.closed

    def test_its_slots_are_free(self, make: MakePool) -> None:
        pool = make(1, 3)
        conns = [*hold(pool, 2), pool.getconn("k")]
        pool.closeall()
        assert all(conn.closed for conn in conns)
        wait_until(lambda: pool.get_stats()["pool_size"] == 0)

    def test_one_that_comes_back_meanwhile_is_no_matter(self, make: MakePool) -> None:
        class Returning(psycopg2.extensions.connection):
            def close(self) -> None:
                super().close()
                for other in conns:
                    if not other.closed:
                        pool.putconn(other)

        pool = make(0, 2, connection_factory=Returning)
        conns = hold(pool, 2)
        pool.closeall()
        assert all(conn.closed for conn in conns)
        assert pool.get_stats()["pool_size"] == 0

    def test_threads_that_are_at_work_get_errors_and_leave_nothing_open(
        self, server: Server, app: str, make: MakePool
    ) -> None:
        pool = make(1, 4, timeout=30)
        rounds: list[int] = []

        def work() -> None:
            while True:
                conn = pool.getconn()
                try:
                    rounds.append(ask(conn))
                finally:
                    pool.putconn(conn)

        workers = [in_thread(work) for _ in range(6)]
        wait_until(lambda: len(rounds) > 50)
        pool.closeall()
        # Of a connection closed under it a thread hears first when it puts it back.
        assert {type(worker.error()) for worker in workers} == {PoolClosed}
        wait_until(lambda: pool.get_stats()["pool_size"] == 0)
        wait_for_backends(server, app, 0)

    def test_a_child_that_inherited_it_is_not_disturbed(self, make: MakePool) -> None:
        # The whole story is in tests/concurrency/test_fork.py.
        pool = make(0, 1)
        conn = pool.getconn("k")
        pool._after_fork_in_child()
        assert pool.stats().in_use == 0
        assert pool.getconn("k") is not conn


class TestDifferences:
    def test_never_are_more_than_maxconn_open(
        self, server: Server, app: str, make: MakePool
    ) -> None:
        pool = make(1, 3)
        conns = hold(pool, 3)
        pool.maxconn = 1
        with pytest.raises(PoolExhausted):
            pool.getconn()
        for conn in conns:
            pool.putconn(conn)
        wait_for_backends(server, app, 1)

    def test_what_comes_back_stays_open_up_to_maxconn(
        self, server: Server, app: str, make: MakePool
    ) -> None:
        pool = make(0, 4)
        conns = hold(pool, 4)
        pids = sorted(server.backends(app))
        for conn in conns:
            pool.putconn(conn)
        assert sorted(server.backends(app)) == pids
        assert {pid_of(conn) for conn in hold(pool, 4)} == set(pids)

    def test_idle_timeout_zero_closes_above_minconn_as_psycopg2_does(
        self, server: Server, app: str, make: MakePool
    ) -> None:
        pool = make(1, 3, idle_timeout=0)
        for conn in hold(pool, 3):
            pool.putconn(conn)
        wait_for_backends(server, app, 1)

    def test_the_one_that_has_been_idle_longest_is_lent_first(self, make: MakePool) -> None:
        pool = make(3, 3)
        conns = hold(pool, 3)
        for conn in conns:
            pool.putconn(conn)
        assert hold(pool, 3) == conns

    def test_settings_do_not_reach_the_next_borrower(self, make: MakePool) -> None:
        pool = make(1, 1)
        conn = pool.getconn()
        conn.autocommit = True
        conn.cursor_factory = psycopg2.extras.DictCursor
        pool.putconn(conn)
        assert pool.getconn() is conn
        assert not conn.autocommit
        assert conn.cursor_factory is None

    def test_a_commit_as_a_statement_leaves_nothing_behind(self, make: MakePool) -> None:
        pool = make(1, 1)
        conn = pool.getconn()
        ask(conn, "COMMIT")
        assert conn.status == psycopg2.extensions.STATUS_BEGIN  # psycopg2 has not noticed
        pool.putconn(conn)
        assert pool.getconn() is conn
        ask(conn)
        assert conn.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS

    def test_a_dead_connection_is_not_lent(self, server: Server, make: MakePool) -> None:
        pool = make(1, 1)
        conn = pool.getconn()
        pid = pid_of(conn)
        pool.putconn(conn)
        server.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
        assert ask(pool.getconn()) == 1

    def test_a_connection_that_its_borrower_dropped_is_no_loss(self, make: MakePool) -> None:
        pool = make(1, 1)
        for _ in range(3):
            ask(pool.getconn())
            gc.collect()
        assert pool.getconn() is not None

    def test_a_connection_lost_in_a_transaction_is_no_loss(
        self, server: Server, make: MakePool
    ) -> None:
        pool = make(1, 1)
        for _ in range(2):
            conn = pool.getconn()
            ask(conn)
            server.execute("SELECT pg_terminate_backend(%s, 10000)", [pid_of(conn)])
            pool.putconn(conn)
        assert ask(pool.getconn()) == 1


class TestNames:
    def test_its_names(self) -> None:
        assert SimpleConnectionPool is ThreadedConnectionPool
        assert issubclass(ThreadedConnectionPool, ConnectionPool)
        assert psycopg2_pool2.ThreadedConnectionPool is ThreadedConnectionPool

    def test_no_public_name_is_left_to_psycopg2s_class(self) -> None:
        for name, value in vars(psycopg2.pool.AbstractConnectionPool).items():
            if not name.startswith("_"):
                assert getattr(ThreadedConnectionPool, name) is not value
        for name in ("getconn", "putconn", "closeall"):
            module = getattr(ThreadedConnectionPool, name).__module__
            assert module.startswith("psycopg2_pool2")

    def test_importing_the_package_does_not_import_it(self) -> None:
        program = "import sys, psycopg2_pool2; print('psycopg2_pool2.threaded' in sys.modules)"
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
        )
        assert found.stdout.strip() == "False"
