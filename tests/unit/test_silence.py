"""Whether anybody answers an attempt that takes long: real sockets on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from psycopg2_pool2 import silence, sockets
from psycopg2_pool2.silence import SilenceWatch
from tests.support.rude_server import Accept, Hang, RudeServer, Send, Wait
from tests.support.waiting import Running, in_thread, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets are looked at on Linux")

USER_TIMEOUT = 31_000


class Listener:
    """Listens on loopback; accepts only what it is told to."""

    def __init__(self, backlog: int = 16) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port: int = self.socket.getsockname()[1]

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with contextlib.closing(Listener()) as made:
        yield made


@pytest.fixture
def silent(listener: Listener) -> list[SilenceWatch]:
    """Collect the watches that find silence."""
    return []


def make_watch(port: int, found: list[SilenceWatch]) -> SilenceWatch:
    return SilenceWatch((None, "127.0.0.1", port), USER_TIMEOUT, found.append)


def marked(watch: SilenceWatch) -> socket.socket:
    """Return a socket with a watch's mark, as libpq makes one."""
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, watch.mark)
    return made


@contextlib.contextmanager
def connected(
    watch: SilenceWatch, listener: Listener
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a marked connection to a listener, which accepts it."""
    with marked(watch) as client:
        client.connect(("127.0.0.1", listener.port))
        peer, _ = listener.socket.accept()
        with peer:
            yield client, peer


@contextlib.contextmanager
def full_backlog(listener: Listener) -> Iterator[None]:
    """Fill a listener's backlog, so that no SYN is answered any more."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            try:
                filler.connect(("127.0.0.1", listener.port))
            except TimeoutError:
                break
        else:
            pytest.skip("this kernel does not drop SYNs when a backlog is full")
        yield


@pytest.fixture(autouse=True)
def short_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "_SIDE_QUESTION_TIMEOUT", 0.2)


def is_shut(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False


class TestLook:
    def test_finds_silence_where_somebody_accepts_and_says_nothing(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        with connected(watch, listener):
            watch.look()
        assert silent == [watch]

    def test_finds_none_after_a_single_byte(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        with connected(watch, listener) as (client, peer):
            peer.sendall(b"S")
            wait_until(lambda: sockets.bytes_received(client))
            watch.look()
            client.recv(1)
            watch.look()
        assert silent == []

    def test_finds_silence_where_nobody_answers_a_syn(self, silent: list[SilenceWatch]) -> None:
        with contextlib.closing(Listener(backlog=0)) as listener, full_backlog(listener):
            watch = make_watch(listener.port, silent)
            with marked(watch) as client:
                client.setblocking(False)
                assert client.connect_ex(("127.0.0.1", listener.port)) != 0
                watch.look()
        assert silent == [watch]

    def test_asks_aside_where_a_server_reads_the_login_before_it_speaks(
        self, silent: list[SilenceWatch]
    ) -> None:
        """Without TLS a server with a slow login has not said anything yet."""
        with RudeServer(lambda login: Hang()) as rude:
            watch = make_watch(rude.port, silent)
            with marked(watch) as client:
                client.connect((rude.host, rude.port))
                watch.look()
            assert rude.ssl_requests == 1
        assert silent == []

    def test_finds_none_when_the_attempt_is_over(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        with connected(watch, listener):
            watch.is_over = True
            watch.look()
        assert silent == []

    def test_finds_silence_where_there_is_no_socket_yet(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        """A callback of the program, which says where to connect, may hang."""
        watch = make_watch(listener.port, silent)
        watch.look()
        assert silent == [watch]
        watch.end_attempt()
        assert not watch.ended


class TestMark:
    def test_is_that_of_no_other_attempt(self, silent: list[SilenceWatch]) -> None:
        marks = {make_watch(1, silent).mark for _ in range(silence._MARKS)}
        assert len(marks) == silence._MARKS
        assert min(marks) >= USER_TIMEOUT, "no attempt gets less than is wanted"
        assert max(marks) < USER_TIMEOUT + silence._MARKS

    def test_leads_to_the_right_socket_among_several(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watches = [make_watch(listener.port, silent) for _ in range(5)]
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(connected(watch, listener)) for watch in watches]
            for watch, (client, _) in zip(watches, pairs, strict=True):
                found = silence._find(watch.mark)
                assert found is not None
                with found:
                    assert found.getsockname() == client.getsockname()

    def test_is_read_again_where_a_descriptor_is_reused(
        self, listener: Listener, silent: list[SilenceWatch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """1. It is found. 2. Another file gets its number. 3. That is copied."""
        watch, other = make_watch(listener.port, silent), make_watch(listener.port, silent)
        twin = sockets.twin_socket
        with connected(other, listener) as (stranger, _), marked(watch) as client:
            client.connect(("127.0.0.1", listener.port))

            def reuse(fd: int) -> socket.socket:
                if fd == client.fileno():
                    os.dup2(stranger.fileno(), fd)
                return twin(fd)

            before = set(os.listdir("/proc/self/fd"))
            monkeypatch.setattr(silence, "twin_socket", reuse)
            assert silence._find(watch.mark) is None
            watch.end_attempt()
            assert set(os.listdir("/proc/self/fd")) == before
            assert not watch.ended
            assert not is_shut(stranger)

    def test_is_looked_for_without_harm_to_descriptors_of_other_kinds(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        reader, writer = os.pipe()
        here, there = socket.socketpair()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with (
            here,
            there,
            datagrams,
            open(os.devnull) as file,
            connected(watch, listener) as (_, peer),
        ):
            try:
                descriptors = (reader, writer, here.fileno(), datagrams.fileno(), file.fileno())
                before = [os.fstat(fd) for fd in descriptors]
                everything = set(os.listdir("/proc/self/fd"))
                watch.look()
                watch.end_attempt()
                assert [os.fstat(fd) for fd in descriptors] == before
                assert set(os.listdir("/proc/self/fd")) == everything
                os.write(writer, b"x")
                assert os.read(reader, 1) == b"x"
                here.sendall(b"y")
                assert there.recv(1) == b"y"
                assert is_shut(peer)
            finally:
                os.close(reader)
                os.close(writer)
        assert silent == [watch]


class TestEndAttempt:
    def test_shuts_the_socket_of_the_attempt_and_no_other(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        first, second = make_watch(listener.port, silent), make_watch(listener.port, silent)
        with connected(first, listener) as (mine, _), connected(second, listener) as (other, _):
            first.end_attempt()
            assert first.ended
            assert is_shut(mine)
            assert not is_shut(other)
        assert not second.ended

    def test_leaves_one_that_was_answered_at_the_last_moment(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        with connected(watch, listener) as (client, peer):
            peer.sendall(b"S")
            wait_until(lambda: sockets.bytes_received(client))
            watch.end_attempt()
            assert not watch.ended
            assert client.recv(1) == b"S"

    def test_does_nothing_when_the_socket_is_gone(
        self, listener: Listener, silent: list[SilenceWatch]
    ) -> None:
        watch = make_watch(listener.port, silent)
        watch.end_attempt()
        assert not watch.ended


class TestWithLibpq:
    def attempt(self, watch: SilenceWatch, port: int, **options: str) -> Running[object]:
        params: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": port,
            "user": "nobody",
            "dbname": "postgres",
            "connect_timeout": 30,
            "tcp_user_timeout": watch.mark,
            **options,
        }
        return in_thread(lambda: psycopg2.connect(**params))

    def wait_until_found(self, watch: SilenceWatch) -> None:
        def is_found() -> bool:
            found = silence._find(watch.mark)
            if found is None:
                return False
            with found:
                return silence._is_established(found)

        wait_until(is_found)

    @pytest.mark.parametrize("sslmode", ["prefer", "disable"])
    def test_an_attempt_that_nobody_answers_ends_at_once(
        self, listener: Listener, silent: list[SilenceWatch], sslmode: str
    ) -> None:
        watch = make_watch(listener.port, silent)
        attempt = self.attempt(watch, listener.port, sslmode=sslmode)
        self.wait_until_found(watch)
        watch.look()
        assert silent == [watch]
        watch.end_attempt()
        assert isinstance(attempt.error(), psycopg2.OperationalError)
        assert watch.ended

    @pytest.mark.parametrize("sslmode", ["prefer", "disable"])
    def test_a_slow_login_is_no_silence(self, silent: list[SilenceWatch], sslmode: str) -> None:
        with RudeServer(lambda login: Hang()) as rude:
            watch = make_watch(rude.port, silent)
            attempt = self.attempt(watch, rude.port, sslmode=sslmode)
            wait_until(lambda: rude.logins)
            watch.look()
            rude.cut()
            assert isinstance(attempt.error(), psycopg2.OperationalError)
        assert silent == []

    def test_the_mark_outlives_the_login_and_does_no_harm(self, silent: list[SilenceWatch]) -> None:
        slow = Send(b"", Wait(0.05, Accept()))
        with RudeServer(lambda login: slow) as rude:
            watch = make_watch(rude.port, silent)
            attempt = self.attempt(watch, rude.port)
            conn = attempt.result()
            assert isinstance(conn, psycopg2.extensions.connection)
            with contextlib.closing(conn), conn.cursor() as cursor:
                watch.look()
                watch.end_attempt()
                cursor.execute("SELECT 1")
        assert silent == []
        assert not watch.ended
