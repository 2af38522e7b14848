"""A DNS server on a loopback address that a test changes while it runs.

    with DnsServer() as dns:
        dns.zone["db.test"] = [a("127.0.0.1"), a("127.0.0.2")]
        Resolver(dns.resolver()).lookup("db.test", 5)

It is the authority for every name: one that is not in the zone does not exist. A change counts
from the next question on; the zone is never changed in place by the server.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import itertools
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal, NamedTuple

import dns.name
import dns.resolver
import dnslib
from dnslib import QTYPE, RCODE

Transport = Literal["udp", "tcp"]


class Record(NamedTuple):
    """A resource record of a name; `data` is dnslib's."""

    kind: str
    data: Any
    ttl: int


def a(address: str, ttl: int = 5) -> Record:
    """Make an IPv4 address."""
    return Record("A", dnslib.A(address), ttl)


def aaaa(address: str, ttl: int = 5) -> Record:
    """Make an IPv6 address."""
    return Record("AAAA", dnslib.AAAA(address), ttl)


def cname(name: str, ttl: int = 5) -> Record:
    """Make an alias."""
    return Record("CNAME", dnslib.CNAME(name), ttl)


def srv(target: str, port: int, priority: int = 0, weight: int = 0, ttl: int = 5) -> Record:
    """Make the place of a service; the target "." says that there is none."""
    return Record("SRV", dnslib.SRV(priority, weight, port, target), ttl)


class Mode(enum.Enum):
    """What a question gets."""

    ANSWER = "what the zone says"
    NXDOMAIN = "there is no such name"
    SERVFAIL = "the server has failed"
    REFUSED = "the server does not want to"
    NOTIMP = "the server does not know how to"
    FORMERR = "the server does not understand"
    SILENCE = "nothing"
    SILENT_UDP = "nothing over UDP, and what the zone says over TCP"
    TRUNCATE = "over UDP nothing but the wish to be asked over TCP"
    LAME = "no records, by a server that is no authority and asks no other"
    MALFORMED = "the head of an answer and then noise"
    NOISE = "bytes that are no answer, and then what the zone says"


_RCODES = (Mode.NXDOMAIN, Mode.SERVFAIL, Mode.REFUSED, Mode.NOTIMP, Mode.FORMERR)


class Query(NamedTuple):
    """A question that came in."""

    name: str
    kind: str
    transport: Transport


class DnsServer:
    """Answers over UDP and TCP, on one port that the kernel chooses if it is 0; see the module.

    One thread does everything. `delay` is how much later than it could it answers, in seconds;
    `additional` whether it sends the addresses of SRV targets along; `refuses_edns` whether a
    question with EDNS gets FORMERR, as from a server that has never heard of it.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.zone: dict[str, list[Record]] = {}
        self.delay = 0.0
        self.additional = True
        self.refuses_edns = False
        self._queries: list[Query] = []
        self._modes: dict[tuple[str | None, str | None], Mode] = {}
        self._turns: dict[str, int | None] = {}
        self._offsets: Counter[str] = Counter()
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._udp, self._tcp, self.port = _sockets(host, port)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._clients: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._closing = False
        self._watch(self._udp, self._read_udp)
        self._watch(self._tcp, self._accept)
        self._watch(self._wake_receiver, lambda: self._wake_receiver.recv(1))
        self._thread = threading.Thread(target=self._run, name=f"dns-{self.port}", daemon=True)
        self._thread.start()

    # What it can do

    def behave(self, mode: Mode, name: str | None = None, kind: str | None = None) -> None:
        """Treat questions so from now on: all, those for a name, for a type, or for both.

        What was said about a name counts before what was said about all.
        """
        with self._lock:
            self._modes[name and _key(name), kind] = mode

    def one_at_a_time(self, name: str, every: int | None = 1) -> None:
        """Name a single address, as Amazon Aurora's reader endpoint does.

        The next one is named after `every` questions of a type, or when `turn` is called.
        """
        with self._lock:
            self._turns[_key(name)] = every

    def turn(self, name: str) -> None:
        """Go on to the next address of a name that has one at a time."""
        with self._lock:
            self._offsets[_key(name)] += 1

    def clear(self) -> None:
        """Forget what was asked until now."""
        with self._lock:
            self._queries.clear()

    # What it saw

    @property
    def queries(self) -> list[Query]:
        """The questions since the last `clear`, in order."""
        with self._lock:
            return list(self._queries)

    def asked(self, name: str) -> list[str]:
        """Return the types that were asked of a name, in order."""
        return [query.kind for query in self.queries if query.name == _key(name)]

    def resolver(self, *search: str, ndots: int | None = None) -> dns.resolver.Resolver:
        """Make a dnspython Resolver that asks nobody but this server."""
        made = dns.resolver.Resolver(configure=False)
        made.nameservers = [self.host]
        made.port = self.port
        made.domain = dns.name.root
        made.search = [dns.name.from_text(suffix) for suffix in search]
        made.ndots = ndots
        return made

    def close(self) -> None:
        """Stop answering; harmless when repeated."""
        if self._closing:
            return
        self._closing = True
        self._wake_sender.send(b"x")
        self._thread.join(10)
        assert not self._thread.is_alive()
        for end in (*self._clients, self._udp, self._tcp, self._wake_sender, self._wake_receiver):
            end.close()
        self._selector.close()

    def __enter__(self) -> DnsServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The thread

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._pause()):
                key.data()
            while self._later and self._later[0][0] <= time.monotonic():
                heapq.heappop(self._later)[2]()

    def _pause(self) -> float | None:
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def _watch(self, end: socket.socket, action: Callable[[], object]) -> None:
        end.setblocking(False)
        self._selector.register(end, selectors.EVENT_READ, action)

    def _read_udp(self) -> None:
        wire, client = self._udp.recvfrom(65536)
        self._handle(wire, "udp", lambda answer: self._udp.sendto(answer, client))

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._tcp.accept()
            self._clients.add(client)
            self._watch(client, partial(self._read_tcp, client, bytearray()))

    def _read_tcp(self, client: socket.socket, pending: bytearray) -> None:
        chunk = _received(client)
        if not chunk:
            self._selector.unregister(client)
            self._clients.discard(client)
            client.close()
            return
        pending += chunk
        while len(pending) >= 2 and len(pending) >= 2 + (size := _size(pending)):
            wire = bytes(pending[2 : 2 + size])
            del pending[: 2 + size]
            self._handle(
                wire, "tcp", lambda answer: client.sendall(struct.pack("!H", len(answer)) + answer)
            )

    def _handle(self, wire: bytes, transport: Transport, send: Callable[[bytes], object]) -> None:
        request = dnslib.DNSRecord.parse(wire)
        with self._lock:
            reply = self._reply(request, transport)
        for wire in reply:
            answer: Callable[[], object] = partial(_send, send, wire)
            when = time.monotonic() + self.delay
            heapq.heappush(self._later, (when, next(self._numbers), answer))

    # What it answers, under the lock

    def _reply(self, request: Any, transport: Transport) -> list[bytes]:
        """Return the messages to send."""
        name, kind = _key(str(request.q.qname)), str(QTYPE[request.q.qtype])
        self._queries.append(Query(name, kind, transport))
        mode = self._mode(name, kind)
        if self.refuses_edns and any(QTYPE[extra.rtype] == "OPT" for extra in request.ar):
            mode = Mode.FORMERR
        if mode is Mode.SILENCE or (mode is Mode.SILENT_UDP and transport == "udp"):
            return []
        reply = request.reply()
        if mode in _RCODES:
            reply.header.rcode = getattr(RCODE, mode.name)
        elif mode is Mode.LAME:
            reply.header.aa = reply.header.ra = 0
        elif mode is Mode.TRUNCATE and transport == "udp":
            reply.header.tc = 1
        else:
            self._fill(reply, name, kind)
        wire = bytes(reply.pack())
        if mode is Mode.MALFORMED:
            return [wire[:12] + b"\xff" * 30]
        return [b"noise", b"\0" * 40, wire] if mode is Mode.NOISE else [wire]

    def _mode(self, name: str, kind: str) -> Mode:
        for key in ((name, kind), (name, None), (None, kind), (None, None)):
            if key in self._modes:
                return self._modes[key]
        return Mode.ANSWER

    def _fill(self, reply: Any, name: str, kind: str) -> None:
        records = self._find(name)
        if records is None:
            reply.header.rcode = RCODE.NXDOMAIN
        for record in self._chosen(name, kind, records or []):
            reply.add_answer(_resource(name, record))
            if record.kind == "CNAME" and kind != "CNAME":
                self._fill(reply, _key(str(record.data.label)), kind)
            elif record.kind == "SRV" and self.additional:
                self._add_addresses(reply, _key(str(record.data.target)))

    def _add_addresses(self, reply: Any, target: str) -> None:
        for record in self._find(target) or []:
            if record.kind in ("A", "AAAA"):
                reply.add_ar(_resource(target, record))

    def _find(self, name: str) -> list[Record] | None:
        return {_key(known): records for known, records in self.zone.items()}.get(name)

    def _chosen(self, name: str, kind: str, records: list[Record]) -> list[Record]:
        """Return the records to name now, in an order that rotates from question to question."""
        wanted = [record for record in records if record.kind in (kind, "CNAME")]
        if not wanted:
            return []
        asked = self._asked[name, kind]
        self._asked[name, kind] += 1
        if name in self._turns:
            every = self._turns[name]
            turn = self._offsets[name] + (asked // every if every else 0)
            return [wanted[turn % len(wanted)]]
        first = asked % len(wanted)
        return wanted[first:] + wanted[:first]


def _key(name: str) -> str:
    return name.rstrip(".").lower()


def _resource(name: str, record: Record) -> Any:
    kind = getattr(QTYPE, record.kind)
    return dnslib.RR(name, kind, ttl=record.ttl, rdata=record.data)


def _size(pending: bytearray) -> int:
    return int.from_bytes(pending[:2], "big")


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except OSError:
        return b""


def _send(send: Callable[[bytes], object], answer: bytes) -> None:
    with contextlib.suppress(OSError):  # the one who asked has gone
        send(answer)


def _sockets(host: str, port: int) -> tuple[socket.socket, socket.socket, int]:
    """Bind a UDP and a TCP socket to one port, a free one if it is 0."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1 if port else 100):
        tcp = socket.create_server((host, port), family=family)
        bound = tcp.getsockname()[1]
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.bind((host, bound))
        except OSError:  # somebody else's in UDP
            tcp.close()
            udp.close()
        else:
            return udp, tcp, bound
    raise OSError(f"no free port on {host}")
