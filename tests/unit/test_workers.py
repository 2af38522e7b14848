"""The threads that may block: as many as are needed and no more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from psycopg2_pool2 import workers as workers_module
from psycopg2_pool2.workers import Workers
from tests.support.interleave import HAS_BYTECODES, Interleaver, Plan, code_of
from tests.support.shortage import REFUSAL, no_threads
from tests.support.waiting import wait_until


class Jobs:
    """Jobs that are held until they are let go."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.running = 0
        self.done = 0
        self._lock = threading.Lock()
        self._go = threading.Semaphore(0)

    def submit(self, number: int) -> None:
        for _ in range(number):
            self.workers.submit(self._job)

    def _job(self) -> None:
        with self._lock:
            self.running += 1
        assert self._go.acquire(timeout=30)
        with self._lock:
            self.running -= 1
            self.done += 1

    def let_go(self, number: int) -> None:
        self._go.release(number)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setattr(workers_module, "LINGER", 0.2)
    made = Workers()
    yield made
    made.stop()
    wait_until(lambda: not made._threads)


@pytest.fixture
def jobs(workers: Workers) -> Iterator[Jobs]:
    made = Jobs(workers)
    yield made
    made.let_go(1000)
    wait_until(lambda: not workers.busy)


def running(jobs: Jobs, number: int) -> None:
    wait_until(lambda: jobs.running == number)


def test_no_thread_is_started_before_there_is_a_job(workers: Workers) -> None:
    assert not workers._threads
    assert not workers.busy


def test_a_job_runs_in_a_daemon_thread_of_ours(workers: Workers) -> None:
    names: list[threading.Thread] = []
    workers.submit(lambda: names.append(threading.current_thread()))
    wait_until(lambda: names)
    assert names[0].daemon
    assert names[0].name == "psycopg2_pool2-worker"


def test_one_after_another_jobs_need_one_thread(workers: Workers) -> None:
    for _ in range(20):
        workers.submit(lambda: None)
        wait_until(lambda: not workers.busy)
    assert len(workers._threads) <= 2, "a thread may not be back yet when the next job comes"


def test_at_once_no_more_than_the_base_run(workers: Workers, jobs: Jobs) -> None:
    jobs.submit(10)
    running(jobs, workers.base)
    assert len(workers._threads) == workers.base
    assert workers.busy


def test_a_raised_base_is_used_at_once(workers: Workers, jobs: Jobs) -> None:
    workers.base = 7
    jobs.submit(10)
    running(jobs, 7)


def test_a_thread_is_added_when_nothing_was_finished_for_a_while(
    workers: Workers, jobs: Jobs
) -> None:
    jobs.submit(10)
    running(jobs, workers.base)
    assert workers.relieve()
    running(jobs, workers.base + 1)
    assert workers.relieve()
    running(jobs, workers.base + 2)


def test_none_is_added_while_jobs_are_finished(workers: Workers, jobs: Jobs) -> None:
    jobs.submit(10)
    running(jobs, workers.base)
    jobs.let_go(1)
    wait_until(lambda: workers._finished == 1)
    assert workers.relieve(), "jobs wait"
    running(jobs, workers.base)
    assert len(workers._threads) == workers.base


def test_none_is_added_when_nothing_waits(workers: Workers, jobs: Jobs) -> None:
    jobs.submit(workers.base)
    running(jobs, workers.base)
    assert not workers.relieve()
    assert len(workers._threads) == workers.base


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_job_that_fails_ends_no_other(
    workers: Workers, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error("a job's")

    done: list[int] = []
    with caplog.at_level(logging.ERROR):
        workers.submit(fail)
        wait_until(lambda: not workers.busy)
    workers.submit(lambda: done.append(1))
    wait_until(lambda: done)
    if issubclass(error, Exception):
        assert "a background job failed" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("moment", range(1, 5))
def test_a_thread_that_is_interrupted_while_it_rests_hinders_no_later_job(
    workers: Workers, moment: int
) -> None:
    """An asynchronous exception strikes after one of the calls that a resting thread makes."""
    left = moment

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if frame.f_code.co_name == "_run_next" and event == "c_return":
            left -= 1
            if not left:
                raise SystemExit

    done: list[int] = []
    threading.setprofile(interrupt)
    try:
        workers.submit(lambda: done.append(1))
        wait_until(lambda: left <= 0 and not workers._threads)
    finally:
        threading.setprofile(None)
    workers.submit(lambda: done.append(2))
    wait_until(lambda: 2 in done)


@pytest.mark.skipif(not HAS_BYTECODES, reason="this Python cannot trace bytecodes")
def test_an_interruption_of_who_submits_a_job_leaves_no_thread_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "LINGER", 0.001)

    def ends_as_it_began(moment: int) -> bool:
        workers = Workers()
        run = runner.run([lambda: workers.submit(int)], Plan(fault=(0, moment)))
        done: list[int] = []
        workers.submit(lambda: done.append(1))
        wait_until(lambda: done and not workers._threads and not workers.busy, timeout=5)
        return run.faulted

    with Interleaver(code_of(Workers.submit, Workers._add_thread), threads=1) as runner:
        runner.by_bytecode = True
        moment = 1
        while ends_as_it_began(moment):
            moment += 1
    assert moment > 10, "the program has had moments"


def test_idle_threads_end_after_a_while(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "LINGER", 0.01)
    done: list[int] = []
    workers.submit(lambda: done.append(1))
    wait_until(lambda: done and not workers._threads)
    workers.submit(lambda: done.append(2))
    wait_until(lambda: len(done) == 2)


def test_a_job_that_comes_while_the_last_thread_leaves_is_done(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With no patience at all every thread leaves as soon as it has begun.
    monkeypatch.setattr(workers_module, "LINGER", 0.0)
    done: list[int] = []
    for number in range(500):
        workers.submit(lambda: done.append(1))
        if number % 10 == 0:
            wait_until(_all_done(done, number + 1))
    wait_until(lambda: len(done) == 500)


def _all_done(done: list[int], number: int) -> Callable[[], bool]:
    return lambda: len(done) == number


def test_stopping_lets_what_is_queued_be_done_first(workers: Workers, jobs: Jobs) -> None:
    jobs.submit(6)
    running(jobs, workers.base)
    workers.stop()
    jobs.let_go(6)
    wait_until(lambda: jobs.done == 6)
    wait_until(lambda: not workers._threads)


@pytest.mark.parametrize("error", [RuntimeError(REFUSAL), MemoryError()])
def test_a_thread_that_cannot_start_is_not_counted_and_loses_no_job(
    workers: Workers, error: Exception
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise error

    done: list[int] = []
    with no_threads(start=refuse):
        assert not workers.submit(lambda: done.append(1))
    assert not workers._threads
    assert not done
    workers.relieve()
    wait_until(lambda: done)


class TestOffer:
    def test_is_taken_by_a_thread_that_can_be_started(self, workers: Workers) -> None:
        done: list[int] = []
        assert workers.offer(lambda: done.append(1))
        wait_until(lambda: done)

    def test_is_not_taken_while_no_thread_can_be_started(self, workers: Workers) -> None:
        done: list[int] = []
        with no_threads():
            workers.submit(lambda: done.append(1))
            assert not workers.offer(lambda: done.append(2))
            workers.submit(lambda: done.append(3))
        workers.submit(lambda: done.append(4))
        wait_until(lambda: sorted(done) == [1, 3, 4])
        assert not workers.busy

    def test_is_taken_by_a_free_thread_whatever_can_be_started(
        self, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(workers_module, "LINGER", 60.0)
        workers.submit(lambda: None)
        wait_until(lambda: not workers.busy)
        done: list[int] = []
        with no_threads():
            assert workers.offer(lambda: done.append(1))
        wait_until(lambda: done)
        workers.stop()

    def test_is_not_taken_by_threads_that_are_all_busy(self, workers: Workers, jobs: Jobs) -> None:
        jobs.submit(1)
        running(jobs, 1)
        done: list[int] = []
        with no_threads():
            assert not workers.offer(lambda: done.append(1))
        jobs.let_go(1)
        wait_until(lambda: not workers.busy)
        assert not done

    def test_is_taken_if_a_thread_takes_it_before_it_is_withdrawn(
        self, workers: Workers, jobs: Jobs
    ) -> None:
        """1. No thread can be started. 2. A busy one becomes free. 3. It is to be withdrawn."""
        jobs.submit(1)
        running(jobs, 1)
        done = threading.Event()

        def become_free(thread: threading.Thread) -> None:
            jobs.let_go(1)
            assert done.wait(10)
            raise RuntimeError(REFUSAL)

        with no_threads(start=become_free):
            assert workers.offer(done.set)

    def test_is_taken_where_as_many_threads_run_as_may(self, workers: Workers, jobs: Jobs) -> None:
        jobs.submit(workers.base)
        running(jobs, workers.base)
        done: list[int] = []
        with no_threads():
            assert workers.offer(lambda: done.append(1))
        jobs.let_go(workers.base)
        wait_until(lambda: done)


def test_a_shortage_of_threads_is_logged_seldom(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    with no_threads():
        for _ in range(100):
            workers.submit(lambda: None)
            workers.relieve()
            Workers().offer(lambda: None)
    assert len(caplog.records) == 1
    assert f"cannot start a thread: {REFUSAL}" in caplog.text


@pytest.mark.parametrize("error", [KeyError("request_id"), SystemExit(3)])
def test_a_log_filter_that_raises_ends_no_thread(workers: Workers, error: BaseException) -> None:
    class Filter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise error

    def fail() -> None:
        raise ValueError("a job's")

    threads: list[threading.Thread] = []
    log, added = logging.getLogger("psycopg2_pool2"), Filter()
    log.addFilter(added)
    try:
        workers.submit(fail)
        wait_until(lambda: workers._finished == 1)
        workers.submit(lambda: threads.append(threading.current_thread()))
        wait_until(lambda: threads)
    finally:
        log.removeFilter(added)


def test_a_thread_that_is_taken_but_still_counts_as_free_holds_up_no_other_job(
    workers: Workers, jobs: Jobs
) -> None:
    """1. The free thread takes a job. 2. Another job comes. 3. The thread is no longer free."""
    taken, seen = threading.Event(), threading.Event()

    class Free(set[threading.Thread]):
        def discard(self, thread: Any) -> None:
            if not taken.is_set():
                taken.set()
                assert seen.wait(30)
            super().discard(thread)

    workers._free = Free()
    jobs.submit(1)
    assert taken.wait(10)
    jobs.submit(1)
    assert len(workers._threads) == 1
    seen.set()
    running(jobs, 2)
