"""Descriptors that are copied: each copy is closed once, by whoever has it."""

from __future__ import annotations

import os
import socket

import pytest

from psycopg2_pool2.sockets import twin_socket


class Interrupt(BaseException):
    """As KeyboardInterrupt is no Exception."""


def test_a_copy_is_closed_once_though_its_maker_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1. The object takes the copy over. 2. Its maker is interrupted. 3. It is collected."""
    copies: list[int] = []
    made = socket.socket
    closed: list[int] = []
    close = os.close

    class Interrupted(made):  # type: ignore[valid-type, misc]
        def __init__(self, fileno: int) -> None:
            super().__init__(fileno=fileno)
            copies.append(fileno)
            self.detach()  # what its collection would do
            close(fileno)
            raise Interrupt

    here, there = socket.socketpair()
    with here, there:
        monkeypatch.setattr(socket, "socket", Interrupted)
        monkeypatch.setattr(os, "close", closed.append)
        with pytest.raises(Interrupt):
            twin_socket(here.fileno())
        monkeypatch.undo()
    assert copies
    assert closed == []


def test_a_copy_of_what_is_no_socket_is_closed() -> None:
    reader, writer = os.pipe()
    try:
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="non-socket"):
            twin_socket(reader)
        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(reader)
        os.close(writer)
