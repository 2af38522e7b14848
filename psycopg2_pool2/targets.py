"""Where libpq would connect: hosts, addresses and ports from what it was given.

Pure, but for the reading of the service file.  The rules are libpq's own (the
tests hold them against it): what a dsn or a keyword says comes first, then the
service file, then the environment.  A value that is given and empty counts as
given; in a list it means the default.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple

import psycopg2
from psycopg2 import extensions as ext

from .interruptions import let_through

Kind = Literal["socket", "address", "hostaddr", "srv", "name"]

DEFAULT_PORT = 5432
SYSTEM_FOLDER = "/etc/postgresql-common"
"""Where psycopg2-binary's libpq looks for pg_service.conf if PGSYSCONFDIR is not set."""

SESSION_VARIABLES = ("PGDATESTYLE", "PGGEQO", "PGTZ")
"""What libpq sends to the server at every connect, and no parameter replaces."""

# PostgreSQL 18's; an older libpq reads fewer.
_VARIABLES = {
    "application_name": "PGAPPNAME",
    "channel_binding": "PGCHANNELBINDING",
    "client_encoding": "PGCLIENTENCODING",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "dbname": "PGDATABASE",
    "gssdelegation": "PGGSSDELEGATION",
    "gssencmode": "PGGSSENCMODE",
    "gsslib": "PGGSSLIB",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "krbsrvname": "PGKRBSRVNAME",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "password": "PGPASSWORD",
    "port": "PGPORT",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "service": "PGSERVICE",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "sslcert": "PGSSLCERT",
    "sslcertmode": "PGSSLCERTMODE",
    "sslcompression": "PGSSLCOMPRESSION",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslrootcert": "PGSSLROOTCERT",
    "sslsni": "PGSSLSNI",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "user": "PGUSER",
}
# strtol takes blanks before the number, libpq those after it.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]{1,10})[ \t\n\v\f\r]*", re.ASCII)
_SRV = re.compile(r"_[^.]+\._[^.]+\.[^.].*")


class Target(NamedTuple):
    """One place of libpq's list.

    ``host`` is as it was given, None for libpq's own default (a Unix socket
    where there are any, else ``localhost``); ``hostaddr`` is None unless given.
    """

    host: str | None
    hostaddr: str | None
    port: int

    @property
    def kind(self) -> Kind:
        """What has to be done to connect there.

        "hostaddr": ``address`` was given beside the name; "address": ``host`` is
        one; "socket": a Unix socket, or libpq's default; "srv": ``host`` is asked
        for SRV records; "name": for addresses.
        """
        if self.hostaddr is not None:
            return "hostaddr"
        if self.host is None or is_socket(self.host):
            return "socket"
        if numeric(self.host) is not None:
            return "address"
        return "srv" if is_srv(self.host) else "name"

    @property
    def address(self) -> str | None:
        """The IP address, where no name has to be resolved; else None."""
        if self.hostaddr is not None:
            return self.hostaddr
        return None if self.kind != "address" else numeric(self.host or "")


def is_socket(host: str) -> bool:
    """Tell whether a host is a Unix socket's folder, or an abstract socket."""
    return os.path.isabs(host) or host.startswith("@")


def is_srv(host: str) -> bool:
    """Tell whether a host is of the form ``_service._proto.name``."""
    return _SRV.fullmatch(host) is not None


def numeric(host: str) -> str | None:
    """Return an IP address in its usual form, None if the host is a name.

    Short forms such as ``127.1`` are addresses too, as they are for libpq.
    """
    try:
        if ":" in host:
            address, percent, scope = host.partition("%")
            packed = socket.inet_pton(socket.AF_INET6, address)
            return socket.inet_ntop(socket.AF_INET6, packed) + percent + scope
        if host[:1].isdigit() and not re.search(r"\s", host):
            return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError) as error:
        let_through(error)
    return None


def effective(
    parameters: Mapping[str, str], name: str, environ: Mapping[str, str] = os.environ
) -> str | None:
    """Return the value that libpq would use for a parameter, None for its default.

    ``parameters`` is what the dsn and the keywords said, as
    ``psycopg2.extensions.parse_dsn`` gives it.  Raises
    :class:`psycopg2.ProgrammingError` if the service cannot be read.
    """
    return _effective(parameters, _service(parameters, environ), environ, name)


def all_effective(
    parameters: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return all that libpq would be told, as :func:`effective` returns one of it."""
    told = {name: _variable(environ, name) for name in _VARIABLES if _is_known(name)}
    given = {name: value for name, value in told.items() if value is not None}
    return {**given, **_service(parameters, environ), **parameters}


def read_targets(
    parameters: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> tuple[Target, ...]:
    """Return the places that libpq would try, in its order.

    Raises :class:`psycopg2.ProgrammingError`, as for a dsn that cannot be read,
    where libpq would refuse: trying again cannot mend it.  A port out of range is
    refused even if it is one of several, where libpq would pass over that one.
    """
    service = _service(parameters, environ)
    hosts, hostaddrs, ports = (
        _list(_effective(parameters, service, environ, name))
        for name in ("host", "hostaddr", "port")
    )
    if any(hostaddr and numeric(hostaddr) is None for hostaddr in hostaddrs):
        raise psycopg2.ProgrammingError("hostaddr must be an IP address")
    number = len(hostaddrs or hosts) or 1
    if hosts and len(hosts) != number:
        raise psycopg2.ProgrammingError(
            f"host and hostaddr: could not match {len(hosts)} host names to {number} addresses"
        )
    if len(ports) not in (0, 1, number):
        raise psycopg2.ProgrammingError(
            f"port: could not match {len(ports)} port numbers to {number} hosts"
        )
    if len(ports) < 2:
        ports = (ports or [""]) * number
    nothing = [""] * number
    return tuple(
        Target(host or None, hostaddr or None, _port(port))
        for host, hostaddr, port in zip(hosts or nothing, hostaddrs or nothing, ports, strict=True)
    )


def _list(value: str | None) -> list[str]:
    return value.split(",") if value else []


def _port(text: str) -> int:
    if not text:
        return DEFAULT_PORT
    number = _INTEGER.fullmatch(text)
    if number is None or not 1 <= int(number[1]) <= 65535:
        raise psycopg2.ProgrammingError("port must be a number from 1 to 65535")
    return int(number[1])


def _effective(
    parameters: Mapping[str, str],
    service: Mapping[str, str],
    environ: Mapping[str, str],
    name: str,
) -> str | None:
    for source in (parameters, service):
        if source.get(name) is not None:
            return str(source[name])
    return _variable(environ, name)


def _variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return what the environment says for a parameter."""
    value = environ.get(_VARIABLES.get(name, ""))
    # Deprecated, and still read.
    if value is None and name == "sslmode" and environ.get("PGREQUIRESSL", "").startswith("1"):
        return "require"
    return value


@cache
def _is_known(name: str) -> bool:
    """Tell whether the libpq at hand has a parameter; else it ignores the variable too."""
    try:
        ext.parse_dsn(f"{name}=''")
    except psycopg2.ProgrammingError:
        return False
    return True


# -- the service file ------------------------------------------------------


def _service(parameters: Mapping[str, str], environ: Mapping[str, str]) -> Mapping[str, str]:
    name = _effective(parameters, {}, environ, "service")
    if name is None:
        return {}
    for path in _service_files(environ):
        found = _section(path, name)
        if found is not None:
            return found
    raise psycopg2.ProgrammingError(f'service: definition of service "{name}" not found')


def _service_files(environ: Mapping[str, str]) -> Iterator[str]:
    named = environ.get("PGSERVICEFILE")
    if named is not None:
        if not os.path.exists(named):
            raise psycopg2.ProgrammingError(f'service: service file "{named}" not found')
        yield named
    else:
        yield from _existing(os.path.join(_home(environ), ".pg_service.conf"))
    folder = environ.get("PGSYSCONFDIR", SYSTEM_FOLDER)
    yield from _existing(os.path.join(folder, "pg_service.conf"))


def _home(environ: Mapping[str, str]) -> str:
    if sys.platform == "win32":
        return os.path.join(environ.get("APPDATA", ""), "postgresql")
    return environ.get("HOME") or os.path.expanduser("~")


def _existing(path: str) -> Iterator[str]:
    if os.path.exists(path):
        yield path


def _section(path: str, name: str) -> dict[str, str] | None:
    """Return what one section of a service file says, None if there is no such section."""
    found: dict[str, str] | None = None
    for number, line in _lines(path):
        if line.startswith("["):
            if found is not None:
                break
            # What follows the bracket is ignored, as libpq does.
            if line.startswith(f"[{name}]"):
                found = {}
        elif found is not None:
            key, value = _setting(line, f'"{path}", line {number}')
            found.setdefault(key, value)
    return found


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                line = line.strip(" \t\n\v\f\r")
                if line and not line.startswith("#"):
                    yield number, line
    except OSError as error:
        let_through(error)
        raise psycopg2.ProgrammingError(
            f'service: service file "{path}" cannot be read: {error.strerror}'
        ) from None


def _setting(line: str, place: str) -> tuple[str, str]:
    # Never quotes the line: it may hold a password.
    key, equals, value = line.partition("=")
    if line.startswith("ldap"):
        raise psycopg2.ProgrammingError(
            f"service: a pool cannot look a service up in LDAP: service file {place}"
        )
    if not equals or not key or key != key.strip():
        raise psycopg2.ProgrammingError(f"service: syntax error in service file {place}")
    if key == "service":
        raise psycopg2.ProgrammingError(f"service: a service cannot name another: {place}")
    return key, value
