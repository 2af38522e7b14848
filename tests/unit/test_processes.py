"""How a process is told from its children, whatever forked them."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable

import pytest

from psycopg2_pool2 import processes
from psycopg2_pool2.processes import NO_MARK, ThisProcess, process_lock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_marks = pytest.mark.skipif(sys.platform != "linux", reason="this system has no marks")


def in_raw_child(call: Callable[[], bool]) -> bool:
    """Return what a call returns in a child that was forked without Python's hooks."""
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        status = 2
        try:
            status = 0 if call() else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return code == 0


def test_a_process_is_its_own() -> None:
    assert ThisProcess().is_current()


@needs_marks
def test_all_in_a_process_have_the_same_mark() -> None:
    one, other = ThisProcess(), ThisProcess()
    assert one.mark is other.mark
    assert one.mark[0] == 1


@needs_marks
@needs_fork
def test_the_mark_of_the_parent_stays_empty_when_the_child_has_its_own() -> None:
    parent = ThisProcess()

    def differs() -> bool:
        child = ThisProcess()
        return (child.mark[0], parent.mark[0]) == (1, 0) and child.is_current()

    assert in_raw_child(differs)
    assert parent.is_current()


@needs_fork
@pytest.mark.parametrize("has_mark", [True, False])
def test_a_child_is_not_its_parent(monkeypatch: pytest.MonkeyPatch, has_mark: bool) -> None:
    if not has_mark:
        monkeypatch.setattr(processes, "_make_mark", lambda: NO_MARK)
        monkeypatch.setattr(processes, "_last", (0, NO_MARK))
    parent = ThisProcess()
    assert not in_raw_child(parent.is_current)
    assert parent.is_current()


@needs_fork
def test_a_child_has_a_lock_of_its_own_though_its_parent_holds_one() -> None:
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with process_lock():
            held.set()
            end.wait(30)

    def is_free() -> bool:
        with process_lock(), process_lock():
            return True

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        assert in_raw_child(is_free)
    finally:
        end.set()
        thread.join()


def test_a_system_that_cannot_empty_memory_has_no_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_WIPE_ON_FORK", -1)
    assert processes._make_mark() is NO_MARK
