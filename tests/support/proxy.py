"""A TCP proxy between a client and a server that fails in every way a network can.

    with Proxy((server.host, server.port)) as proxy:
        connection = psycopg2.connect(host=proxy.host, port=proxy.port, ...)
        proxy.freeze()

One thread does everything: what a method asks for is done by that thread, and has been done when
the method returns. So there is no lock, and no test has to wait for a switch to take effect.
"""

from __future__ import annotations

import contextlib
import enum
import os
import queue
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial, reduce
from operator import or_
from typing import Protocol, TypeVar

from psycopg2_pool2.contrib.embedded import free_port
from psycopg2_pool2.contrib.embedded.endpoint import Endpoint

T = TypeVar("T")
Address = tuple[str, int]
# What to do for which event, by descriptor.
Actions = dict[int, dict[int, Callable[[], None]]]

_CHUNK = 65536
_MAX_PENDING = 4 * _CHUNK
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class HasFileno(Protocol):
    """A client's connection: psycopg2's or a socket."""

    def fileno(self) -> int: ...


class Mode(enum.Enum):
    """What happens to new connections, and to the bytes of all."""

    FORWARD = "forward"
    FREEZE = "freeze"
    REFUSE = "refuse"
    ACCEPT_AND_CLOSE = "accept and close"


class Pipe:
    """One direction of a connection: bytes on their way, with the time when they may arrive."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.forwarded = 0
        self.budget: int | None = None
        self._pending: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._ended = False

    @property
    def wants_bytes(self) -> bool:
        return not self._ended and self._size < _MAX_PENDING

    @property
    def due(self) -> float | None:
        """When the next bytes may be forwarded; None if there are none."""
        return self._pending[0][0] if self._pending else None

    @property
    def next_bytes(self) -> bytes:
        """What waits to be forwarded next."""
        return self._pending[0][1] if self._pending else b""

    @property
    def finished(self) -> bool:
        return self._ended and not self._pending

    @property
    def over_budget(self) -> bool:
        """Whether all that may pass has passed, and more is waiting."""
        return self.budget == 0 and bool(self._pending)

    def read(self, delay: float) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = self.source.recv(_CHUNK)
            if chunk:
                self._pending.append((time.monotonic() + delay, chunk))
                self._size += len(chunk)
            else:
                self._ended = True
                self._pass_on_end()

    def write(self) -> None:
        due, chunk = self._pending.popleft()
        sent = 0
        with contextlib.suppress(BlockingIOError):
            sent = self.sink.send(chunk[: self.budget])
        self._account(sent)
        if sent < len(chunk):
            self._pending.appendleft((due, chunk[sent:]))
        self._pass_on_end()

    def _account(self, sent: int) -> None:
        self._size -= sent
        self.forwarded += sent
        if self.budget is not None:
            self.budget -= sent

    def _pass_on_end(self) -> None:
        if self.finished:
            with contextlib.suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)


class Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, target: Address, frozen: bool) -> None:
        self.client = client
        self.client_address = client.getpeername()
        self.frozen = frozen
        self.server = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        for end in (self.client, self.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.to_server = Pipe(self.client, self.server)
        self.to_client = Pipe(self.server, self.client)
        self._target = target
        self._connecting = False

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        return self.to_server, self.to_client

    @property
    def finished(self) -> bool:
        return all(pipe.finished for pipe in self.pipes)

    def connect(self) -> None:
        """Begin to connect to the server; it shows in `poll` how that ends."""
        if not self._connecting:
            self._connecting = True
            with contextlib.suppress(OSError):
                self.server.connect(self._target)

    def cut(self, reset: bool) -> None:
        if reset:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        else:
            _end_politely(self.client)
        self.client.close()
        self.server.close()


class Proxy(Endpoint):
    """Listens on an address and forwards to another, until told to do worse.

    `connects` counts the connections that were accepted.
    """

    def __init__(self, target: Address, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.target = target
        self.host = host
        self.port = port or free_port(host)
        self.connects = 0
        self._mode = Mode.FORWARD
        self._delay = 0.0
        self._links: list[Link] = []
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._listener: socket.socket | None = None
        self._reset_when_spent = True
        self._closing = False
        self._listen()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    # What it sees

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy."""
        return self._do(lambda: len(self._links))

    # What it can do; each has been done when the method returns

    def forward(self) -> None:
        """Be a good network again: listen, forward, and deliver what was held back."""
        self._do(self._forward)

    def refuse(self) -> None:
        """Refuse new connections; those there are go on."""
        self._do(lambda: self._set_mode(Mode.REFUSE))

    def accept_and_close(self) -> None:
        """Accept new connections and close them at once; those there are go on."""
        self._do(lambda: self._set_mode(Mode.ACCEPT_AND_CLOSE))

    def freeze(self, only: HasFileno | None = None) -> None:
        """Let nothing through in either direction, and tell nobody.

        New connections are accepted and never answered. With `only`, just that client's
        connection is frozen. `forward` delivers what was sent meanwhile.
        """
        self._do(lambda: self._freeze(only))

    def delay(self, seconds: float) -> None:
        """Deliver what arrives from now on so much later, in each direction."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def cut(self, only: HasFileno | None = None, *, reset: bool = True) -> int:
        """Cut all connections, or just one client's, by RST or FIN; return how many."""
        return self._do(lambda: self._cut(self._chosen(only), reset))

    def cut_after(
        self,
        *,
        to_server: int | None = None,
        to_client: int | None = None,
        only: HasFileno | None = None,
        reset: bool = True,
    ) -> None:
        """Cut a present connection when more than so many bytes, from now on, want to pass.

        The bytes before are delivered. `to_client=0` lets the server do what it is asked, and
        the client never hear of it.
        """
        self._do(lambda: self._set_budgets(self._chosen(only), to_server, to_client, reset))

    def close(self) -> None:
        """Cut everything and end the thread. Harmless when repeated."""
        if self._thread.is_alive():
            self._do(lambda: setattr(self, "_closing", True))
            self._thread.join()

    # Below, all in the thread

    def _do(self, call: Callable[[], T]) -> T:
        """Have the thread make a call, and wait for its result."""
        future: Future[T] = Future()
        self._calls.put(lambda: _fulfil(future, call))
        self._wake_sender.send(b"!")
        return future.result(timeout=10)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._step()
        finally:
            self._cut(list(self._links), reset=True)
            self._stop_listening()
            self._wake_receiver.close()
            self._wake_sender.close()

    def _step(self) -> None:
        actions = self._actions()
        poll = select.poll()
        for descriptor, by_event in actions.items():
            poll.register(descriptor, reduce(or_, by_event))
        for descriptor, event in poll.poll(self._poll_timeout()):
            for wanted, action in actions[descriptor].items():
                # Errors and hang-ups show in the reading or writing itself.
                if event & (wanted | select.POLLERR | select.POLLHUP):
                    action()

    def _actions(self) -> Actions:
        """Return what to do for which event on which descriptor, as things are now."""
        actions: Actions = {self._wake_receiver.fileno(): {select.POLLIN: self._serve_calls}}
        if self._listener is not None:
            actions[self._listener.fileno()] = {select.POLLIN: self._accept}
        now = time.monotonic()
        for link in self._links:
            if not link.frozen:
                self._add_link_actions(actions, link, now)
        return actions

    def _add_link_actions(self, actions: Actions, link: Link, now: float) -> None:
        for pipe in link.pipes:
            if pipe.wants_bytes:
                on_source = actions.setdefault(pipe.source.fileno(), {})
                on_source[select.POLLIN] = partial(
                    self._advance, link, partial(pipe.read, self._delay)
                )
            if pipe.due is not None and pipe.due <= now:
                on_sink = actions.setdefault(pipe.sink.fileno(), {})
                on_sink[select.POLLOUT] = partial(self._advance, link, pipe.write)

    def _poll_timeout(self) -> float | None:
        """Return the milliseconds until delayed bytes are due."""
        dues = [pipe.due for link in self._links if not link.frozen for pipe in link.pipes]
        first = min((due for due in dues if due is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic()) * 1000 + 1

    def _serve_calls(self) -> None:
        self._wake_receiver.recv(_CHUNK)
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()

    def _accept(self) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            client, _ = self._listener.accept()
            self.connects += 1
            if self._mode is Mode.ACCEPT_AND_CLOSE:
                client.close()
            else:
                self._add_link(client)

    def _add_link(self, client: socket.socket) -> None:
        try:
            link = Link(client, self.target, frozen=self._mode is Mode.FREEZE)
        except OSError:  # the client has gone already
            client.close()
            return
        self._links.append(link)
        if not link.frozen:
            link.connect()

    def _advance(self, link: Link, action: Callable[[], None]) -> None:
        if link not in self._links:  # cut a moment ago, in this very step
            return
        try:
            action()
        except OSError:
            self._cut([link], reset=True)
            return
        if any(pipe.over_budget for pipe in link.pipes):
            self._cut([link], reset=self._reset_when_spent)
        elif link.finished:
            self._cut([link], reset=False)

    def _chosen(self, only: HasFileno | None) -> list[Link]:
        if only is None:
            return list(self._links)
        with socket.socket(fileno=os.dup(only.fileno())) as duplicate:
            address = duplicate.getsockname()
        return [link for link in self._links if link.client_address == address]

    def _cut(self, links: list[Link], reset: bool) -> int:
        for link in links:
            self._links.remove(link)
            link.cut(reset)
        return len(links)

    def _set_budgets(
        self, links: list[Link], to_server: int | None, to_client: int | None, reset: bool
    ) -> None:
        self._reset_when_spent = reset
        for link in links:
            link.to_server.budget = to_server
            link.to_client.budget = to_client

    def _freeze(self, only: HasFileno | None) -> None:
        if only is None:
            self._set_mode(Mode.FREEZE)
        for link in self._chosen(only):
            link.frozen = True

    def _forward(self) -> None:
        self._set_mode(Mode.FORWARD)
        self._delay = 0.0
        self._set_budgets(self._links, None, None, reset=True)
        for link in self._links:
            link.frozen = False
            link.connect()

    def _set_mode(self, mode: Mode) -> None:
        if mode is Mode.REFUSE:
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        self._mode = mode

    def _listen(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=1024)
        self._listener.setblocking(False)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _fulfil(future: Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)


def _end_politely(end: socket.socket) -> None:
    """Send a FIN; bytes left unread would make the kernel send a RST after it."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_WR)
        while end.recv(_CHUNK):
            pass
