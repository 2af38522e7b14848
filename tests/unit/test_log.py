"""The log, and programs whose filters and handlers raise."""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from psycopg2_pool2.interruptions import raised_by_handler
from psycopg2_pool2.log import Logger, Seldom, logger
from psycopg2_pool2.threads import OwnThread, is_own_thread
from tests.support.fakes import FakeClock
from tests.support.processes import in_child
from tests.support.waiting import wait_until

NAME = "psycopg2_pool2"


class Filter(logging.Filter):
    """Does in each call what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], object] = lambda: None

    def filter(self, record: logging.LogRecord) -> bool:
        self.act()
        return True


@pytest.fixture
def program() -> Iterator[Filter]:
    """Return the filter of a program that listens at every level."""
    log, added = logging.getLogger(NAME), Filter()
    log.addFilter(added)
    log.setLevel(logging.DEBUG)
    yield added
    log.removeFilter(added)
    log.setLevel(logging.NOTSET)


def fail(error: BaseException) -> None:
    raise error


def calls(log: Logger) -> list[Callable[[], None]]:
    return [
        lambda: log.debug("told %s", 1),
        lambda: log.info("told %s", 1),
        lambda: log.warning("told %s", 1),
        lambda: log.exception("told %s", 1),
        lambda: log.log(logging.CRITICAL, "told %s", 1),
    ]


def test_records_name_the_module_that_logs(program: Filter, caplog: Any) -> None:
    for call in calls(logger):
        call()
    assert {record.name for record in caplog.records} == {NAME}
    assert {Path(record.pathname).name for record in caplog.records} == {"test_log.py"}
    assert [record.getMessage() for record in caplog.records] == ["told 1"] * 5
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL]
    assert [record.levelno for record in caplog.records] == levels


def test_exception_that_is_being_handled_is_told(program: Filter, caplog: Any) -> None:
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: the reason" in caplog.text


@pytest.mark.parametrize("number", range(5))
def test_error_of_a_filter_is_reported_and_not_raised(
    program: Filter, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    program.act = lambda: fail(KeyError("request_id"))
    calls(logger)[number]()
    told = capsys.readouterr().err
    assert "KeyError: 'request_id'" in told
    assert "told %s" in told


def test_error_of_a_filter_is_not_reported_where_logging_reports_none(
    program: Filter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    program.act = lambda: fail(KeyError("request_id"))
    logger.warning("told")
    assert capsys.readouterr().err == ""


def test_report_that_fails_raises_nothing(program: Filter, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise ValueError("I/O operation on closed file")

    program.act = lambda: fail(KeyError("request_id"))
    monkeypatch.setattr("sys.stderr", Closed())
    logger.warning("told")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_interruption_reaches_the_thread_of_the_program(
    program: Filter, error: BaseException
) -> None:
    program.act = lambda: fail(error)
    with pytest.raises(type(error)) as caught:
        logger.warning("told")
    assert caught.value is error


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_is_raised_in_the_librarys_own_threads(
    program: Filter, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    program.act = lambda: fail(error)
    gone_on: list[bool] = []

    def act() -> None:
        logger.warning("told")
        gone_on.append(is_own_thread())

    thread = OwnThread(act, "test")
    thread.start()
    thread.join(10)
    assert gone_on == [True]
    assert type(error).__name__ in capsys.readouterr().err


# -- signals -------------------------------------------------------------------


class TimeLimitError(Exception):
    """What a handler raises to end what takes too long."""


class Limiter:
    """Has its handlers as methods."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimitError

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeLimitError


def on_signal(number: int, frame: FrameType | None) -> None:
    fail(TimeLimitError())


@pytest.mark.parametrize(
    "handler", [on_signal, Limiter().on_signal, Limiter(), functools.partial(on_signal)]
)
def test_error_of_a_signal_handler_reaches_the_program(program: Filter, handler: Any) -> None:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        program.act = lambda: signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(TimeLimitError):
            logger.warning("told")
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_error_that_is_no_signal_handlers_is_not_taken_for_one() -> None:
    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        with pytest.raises(TimeLimitError) as caught:
            fail(TimeLimitError())
        assert not raised_by_handler(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- own threads -----------------------------------------------------------------


def test_thread_of_the_program_is_none_of_the_librarys() -> None:
    assert not is_own_thread()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(is_own_thread()))
    thread.start()
    thread.join(10)
    assert found == [False]


def test_own_threads_are_daemons_that_can_be_told_by_their_names() -> None:
    thread = OwnThread(lambda: None, "worker")
    assert thread.daemon
    assert thread.name == "psycopg2_pool2-worker"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_program_that_goes_on_in_a_child_forked_by_an_own_thread_is_not_the_librarys() -> None:
    """A callback may fork: its thread is the main thread of the child."""
    found: list[str] = []
    thread = OwnThread(lambda: found.append(in_child(is_own_thread)), "worker")
    thread.start()
    wait_until(lambda: found)
    assert found == ["False"]


# -- how often -------------------------------------------------------------------


def test_what_is_told_seldom_is_told_once_in_an_interval() -> None:
    clock = FakeClock()
    seldom = Seldom(20, clock)
    assert [seldom.is_due() for _ in range(3)] == [True, False, False]
    clock.advance(19)
    assert not seldom.is_due()
    clock.advance(1)
    assert [seldom.is_due() for _ in range(2)] == [True, False]
