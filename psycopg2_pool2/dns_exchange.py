"""One question to one name server over a socket that never blocks, and what the answer says."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from .interruptions import let_through
from .resolv_conf import NameServer

UDP_PAYLOAD = 1232
"""Bytes of an answer that a name server may send in one datagram, where EDNS is asked for."""
_SIZE_OF_LENGTH = 2  # over TCP the length of a message precedes it


class UnusableReplyError(Exception):
    """A name server's answer cannot be used; the text says what it was."""


class TruncatedReplyError(Exception):
    """The answer has to be asked for over TCP."""


class Records(NamedTuple):
    """The records of one type that a name has, valid for ``ttl`` seconds."""

    records: tuple[Any, ...]  # dnspython's
    ttl: float
    additional: Mapping[Any, list[tuple[str, float]]]  # addresses and their TTLs, by name


def make_request(name: str, kind: str, use_edns: bool) -> Any:
    """Return dnspython's message for a question."""
    import dns.message

    if use_edns:
        return dns.message.make_query(name, kind, use_edns=0, payload=UDP_PAYLOAD)
    return dns.message.make_query(name, kind)


class Exchange:
    """A question under way to one name server.

    ``request`` may be sent again over the same socket.  All methods raise OSError
    as the socket does.
    """

    def __init__(self, request: Any, server: NameServer, is_tcp: bool) -> None:
        self.request = request
        self.server = server
        self.is_tcp = is_tcp
        self.is_connecting = False
        self._received = b""
        self._wire: bytes = request.to_wire()
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
        self.socket = socket.socket(family, kind)

    def begin(self) -> None:
        """Send the question, or begin to connect for it."""
        self.socket.setblocking(False)
        try:
            # A connected UDP socket takes nobody else's answers, and hears of a closed port.
            self.socket.connect(_sockaddr(self.server))
        except BlockingIOError:
            self.is_connecting = True
        else:
            self.send()

    def send(self) -> None:
        """Send the question, over TCP once it is connected."""
        self.is_connecting = False
        if not self.is_tcp:
            self.socket.send(self._wire)
            return
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        self.socket.sendall(len(self._wire).to_bytes(_SIZE_OF_LENGTH, "big") + self._wire)

    def receive(self) -> Any:
        """Return the answer as dnspython's message, None while it has not all come.

        Raises :class:`UnusableReplyError` or :class:`TruncatedReplyError`.
        """
        try:
            part = self.socket.recv(65535)
        except BlockingIOError:
            return None
        if not self.is_tcp:
            return self._parsed(part)
        if not part:
            raise UnusableReplyError("closed the connection")
        self._received += part
        end = _SIZE_OF_LENGTH + int.from_bytes(self._received[:_SIZE_OF_LENGTH], "big")
        if not _SIZE_OF_LENGTH < end <= len(self._received):
            return None
        return self._parsed(self._received[_SIZE_OF_LENGTH:end])

    def _parsed(self, wire: bytes) -> Any:
        import dns.message

        if wire[:2] != self.request.id.to_bytes(2, "big"):  # somebody else's, or noise
            return None
        try:
            message = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=True)
        except dns.message.Truncated as error:
            if self.is_tcp:
                raise UnusableReplyError("sent a truncated answer over TCP") from error
            raise TruncatedReplyError from error
        except Exception as error:
            let_through(error)
            raise UnusableReplyError("sent a malformed answer") from error
        return message if self.request.is_response(message) else None

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def records_of(message: Any) -> Records | None:
    """Return the records that a message answers with, None if the name has none of the type.

    Raises :class:`UnusableReplyError` for an answer after which another name
    server has to be asked.
    """
    import dns.rcode

    code = message.rcode()
    if code == dns.rcode.NXDOMAIN:
        return None
    if code != dns.rcode.NOERROR:
        raise UnusableReplyError(f"answered {dns.rcode.to_text(code)}")
    try:
        chain = message.resolve_chaining()
    except Exception as error:
        let_through(error)
        raise UnusableReplyError("sent a malformed answer") from error
    if chain.answer is None:
        if _is_lame(message):
            raise UnusableReplyError("does not know the name, nor asks others")
        return None
    return Records(tuple(chain.answer), float(chain.minimum_ttl), additional_of(message))


def additional_of(message: Any) -> dict[Any, list[tuple[str, float]]]:
    """Return the addresses that a name server sent along, by name."""
    found: dict[Any, list[tuple[str, float]]] = {}
    for rrset in message.additional:
        addresses = [(r.address, float(rrset.ttl)) for r in rrset if hasattr(r, "address")]
        if addresses:
            found.setdefault(rrset.name, []).extend(addresses)
    return found


def _is_lame(message: Any) -> bool:
    """Tell whether an empty answer is a name server's that neither knows nor asks others."""
    import dns.flags

    has_authority = message.flags & (dns.flags.AA | dns.flags.RA)
    return not (has_authority or message.answer or message.additional)


def _sockaddr(server: NameServer) -> tuple[Any, ...]:
    address, _, scope = server.address.partition("%")
    if ":" not in address:
        return address, server.port
    if not scope:
        return address, server.port, 0, 0
    return address, server.port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
