"""Look names up under many configurations, by the system and by the pool, and print both as JSON.

Each case has a process with a network and with files of /etc of its own; some run at a time. What
is printed is a dictionary from a case's name to an :class:`Outcome`, or to the traceback of what
went wrong.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from psycopg2_pool2.resolver import Resolver
from tests.support.dns import DnsServer
from tests.support.name_cases import CASES, Case
from tests.support.namespaces import replace_files, unshare

AT_A_TIME = 16
# They are not part of what a lookup takes.
IMPORTED_BEFOREHAND = ("dns.rdtypes.IN.A", "dns.rdtypes.IN.AAAA", "psycopg2_pool2.dns_query")


class Lookup(NamedTuple):
    """What was found, how long it took, and the error if nothing was."""

    addresses: list[str]
    seconds: float
    error: str


class Outcome(NamedTuple):
    """The same name, looked up by both."""

    system: Lookup
    workers: Lookup  # as by a pool with workers
    no_workers: Lookup


def _timed(find: Callable[[], set[str]]) -> Lookup:
    began = time.monotonic()
    found: set[str] = set()
    error = ""
    try:
        found = find()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return Lookup(sorted(found), time.monotonic() - began, error)


def _by_system(name: str | bytes) -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}


def _by_pool(case: Case, may_wait: bool) -> set[str]:
    found = Resolver(may_wait=may_wait).lookup(case.name, case.seconds)
    return {place.address for place in found.places}


def _run(case: Case) -> Outcome:
    unshare()
    os.environ.update(case.environment)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = {
            "/etc/resolv.conf": case.resolv_conf,
            "/etc/hosts": case.hosts,
            "/etc/nsswitch.conf": case.switch,
        }
        replace_files(files, Path(folder))
        if case.aliases:
            os.environ["HOSTALIASES"] = str(Path(folder, "aliases"))
            Path(folder, "aliases").write_text(case.aliases)
        case.serve(lambda address: stack.enter_context(DnsServer(address, 53)))
        asked = case.name if case.system_name is None else case.system_name
        return Outcome(
            _timed(lambda: _by_system(asked)),
            _timed(lambda: _by_pool(case, may_wait=True)),
            _timed(lambda: _by_pool(case, may_wait=False)),
        )


def _child(case: Case, writer: int) -> None:
    """Run a case, write what came of it, and end the process."""
    try:
        told: Any = _run(case)
    except BaseException:
        told = traceback.format_exc()
    with os.fdopen(writer, "w") as pipe:
        json.dump(told, pipe)
    os._exit(0)


def _start(name: str) -> int:
    """Start a case in a process; return the descriptor that its outcome comes from."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _child(CASES[name], writer)
    os.close(writer)
    return reader


def _finish(reader: int) -> Any:
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    os.wait()  # whichever ends first: it is some case's, and has said all
    return json.loads(told) if told else "it ended without a word"


def main(names: list[str]) -> None:
    """Run these cases, or all."""
    for module in IMPORTED_BEFOREHAND:
        importlib.import_module(module)
    waiting = names or list(CASES)
    running: dict[int, str] = {}
    outcomes: dict[str, Any] = {}
    while waiting or running:
        while waiting and len(running) < AT_A_TIME:
            name = waiting.pop(0)
            running[_start(name)] = name
        for reader in select.select(list(running), [], [])[0]:
            outcomes[running.pop(reader)] = _finish(reader)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
