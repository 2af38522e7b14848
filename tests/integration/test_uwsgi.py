"""uWSGI forks its workers in C, after the application was imported; its real master does here."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps.sessions import Witness
from tests.support.pools import wait_for_backends
from tests.support.programs import START_SECONDS, Program, started
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

UWSGI = shutil.which("uwsgi", path=os.path.dirname(sys.executable))
pytestmark = pytest.mark.skipif(UWSGI is None, reason="uwsgi is not installed")

WORKERS = 4
CLIENTS = 8
STARTS = 6

COLD = {"minconn": 0}
BACKGROUND = {"minconn": 2}
UNTESTED = {"minconn": 2, "test_on_borrow": False, "background_prewarm": False}
UNTESTED_COLD = {"minconn": 0, "test_on_borrow": False}
# How many are borrowed at import, and the pool.
POOLS: dict[str, tuple[int, dict[str, Any]]] = {
    "cold": (0, COLD),
    "kept warm": (0, BACKGROUND),
    "prewarmed, untested": (3, UNTESTED),
    "borrowed from, untested": (3, UNTESTED_COLD),
    "borrowed from, tested": (3, COLD),
}
OPTIONS = {
    "plain": [],
    "enable-threads": ["--enable-threads"],
    "threads": ["--threads=2"],
    "lazy-apps": ["--lazy-apps"],
    "fork-hooks": ["--py-call-uwsgi-fork-hooks"],
    "osafterfork": ["--py-call-osafterfork"],
}
_tokens = count()


class Site:
    """One start of uWSGI, the answers of its workers, and what they say of each other."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.answers: list[dict[str, Any]] = []
        self.note_start(1)

    def note_start(self, number: int) -> None:
        """Read what the program tells of its first start, or of a later one."""
        before = f"(?s:(?:.*imported: ){{{number - 1}}})"
        self.imported = json.loads(self.program.wait_for(rf"{before}(?s:.*)imported: (.*)")[1])
        self.port = int(self.program.wait_for(rf"{before}(?s:.*)127\.0\.0\.1:(\d+)")[1])

    def ask(self) -> None:
        """Send a request, which nobody else sends; see that it is this one that is answered."""
        token = f"{next(_tokens)}"
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            conn.request("GET", f"/?{token}")
            response = conn.getresponse()
            body = response.read()
        finally:
            conn.close()
        assert response.status == 200, self.program.output
        answer = json.loads(body)
        assert answer["echo"] == token
        self.answers.append(answer)

    def ask_at_once(self) -> None:
        """Send some requests at a time."""
        for request in [in_thread(self.ask) for _ in range(CLIENTS)]:
            request.result(START_SECONDS)

    def ask_until_each_answers(self) -> None:
        """Send requests until each of the present workers has answered."""
        wait_until(lambda: len(self.program.workers()) == WORKERS, START_SECONDS)
        workers = self.program.workers()

        def all_have_answered() -> bool:
            self.ask_at_once()
            return self.sessions().keys() >= workers

        wait_until(all_have_answered, START_SECONDS)

    def sessions(self) -> dict[int, set[int]]:
        """Return the sessions that each worker used."""
        found = defaultdict(set)
        for answer in self.answers:
            found[answer["worker"]].add(answer["backend"])
        return found

    def assert_no_session_is_shared(self) -> None:
        """Fail if two workers used a session, or one used the master's."""
        used = [session for sessions in self.sessions().values() for session in sessions]
        assert len(used) == len(set(used))
        if self.imported["pid"] == self.program.process.pid:
            assert not set(used) & set(self.imported["sessions"])


@contextmanager
def uwsgi(log: StatementLog, folder: Path, pool: str, *options: str) -> Iterator[Site]:
    """Run the application under uWSGI, on a port that this chooses."""
    warm, arguments = POOLS[pool]
    environment = {
        "APP_DSN": log.dsn,
        "APP_POOL": json.dumps({"health_check_interval": 0, **arguments}),
        "APP_WARM": str(warm),
    }
    command = ["--master", f"--processes={WORKERS}", "--http-socket=127.0.0.1:0", "--need-app"]
    command += ["-H", sys.prefix, "--pythonpath", os.getcwd()]
    command += ["--module=tests.support.apps.uwsgi_app", "--die-on-term", "--disable-logging"]
    with started([*command, *options], environment, folder / "log", binary=UWSGI) as program:
        yield Site(program)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("mode", OPTIONS)
def test_workers_answer_each_in_sessions_of_its_own(
    server: Server, statement_log: StatementLog, tmp_path: Path, mode: str, pool: str
) -> None:
    with uwsgi(statement_log, tmp_path, pool, *OPTIONS[mode]) as site:
        in_master = site.imported["pid"] == site.program.process.pid
        assert in_master == (mode != "lazy-apps")
        if in_master:
            assert site.imported["threads"] == []
        masters = site.imported["sessions"] if in_master else []
        witness = Witness(server.dsn)
        try:
            before = witness.look(masters)
            site.ask_until_each_answers()
            assert witness.changes(before) == []
        finally:
            witness.close()
        site.assert_no_session_is_shared()
        site.program.ask_to_end()
        site.program.exit_status()
        wait_for_backends(server, statement_log.application_name, 0)
    assert "Traceback" not in site.program.output


@pytest.mark.parametrize("pool", ["kept warm", "borrowed from, untested"])
@pytest.mark.parametrize("mode", ["plain", "threads"])
def test_each_worker_answers_however_often_it_is_started(
    statement_log: StatementLog, tmp_path: Path, mode: str, pool: str
) -> None:
    with ExitStack() as stack:
        sites = []
        for number in range(STARTS):
            folder = tmp_path / str(number)
            folder.mkdir()
            sites.append(stack.enter_context(uwsgi(statement_log, folder, pool, *OPTIONS[mode])))
        for site in sites:
            site.ask_until_each_answers()
            site.assert_no_session_is_shared()


def test_workers_keep_minconn_warm_though_their_master_has_none(
    statement_log: StatementLog, tmp_path: Path
) -> None:
    with uwsgi(statement_log, tmp_path, "kept warm", "--enable-threads") as site:
        site.ask_until_each_answers()
        assert all(answer["threads"] for answer in site.answers)

        def all_are_warm() -> bool:
            site.answers.clear()
            site.ask_until_each_answers()
            return not any(answer["missing"] for answer in site.answers)

        wait_until(all_are_warm)


@pytest.mark.parametrize("pool", ["kept warm", "prewarmed, untested"])
def test_workers_answer_after_a_reload(
    statement_log: StatementLog, tmp_path: Path, pool: str
) -> None:
    touched = tmp_path / "touched"
    touched.touch()
    with uwsgi(statement_log, tmp_path, pool, f"--touch-reload={touched}") as site:
        site.ask_until_each_answers()
        former = site.program.workers()
        later = time.time() + 60
        os.utime(touched, (later, later))
        wait_until(lambda: not former & site.program.workers(), START_SECONDS)
        site.answers.clear()
        site.note_start(2)  # of the same process
        site.ask_until_each_answers()
        assert not site.sessions().keys() & former
        site.assert_no_session_is_shared()


@pytest.mark.parametrize("pool", ["kept warm", "prewarmed, untested"])
def test_workers_answer_though_they_are_replaced_all_the_time(
    statement_log: StatementLog, tmp_path: Path, pool: str
) -> None:
    limits = ["--max-requests=5", "--min-worker-lifetime=0"]
    with uwsgi(statement_log, tmp_path, pool, *limits) as site:

        def many_have_answered() -> bool:
            site.ask_at_once()
            return len(site.sessions()) >= 2 * WORKERS

        wait_until(many_have_answered, START_SECONDS)
        site.assert_no_session_is_shared()


def test_a_process_without_a_master_has_threads(
    statement_log: StatementLog, tmp_path: Path
) -> None:
    warm, arguments = POOLS["kept warm"]
    environment = {
        "APP_DSN": statement_log.dsn,
        "APP_POOL": json.dumps(arguments),
        "APP_WARM": str(warm),
    }
    command = ["--http-socket=127.0.0.1:0", "-H", sys.prefix, "--pythonpath", os.getcwd()]
    command += ["--module=tests.support.apps.uwsgi_app", "--die-on-term", "--enable-threads"]
    with started(command, environment, tmp_path / "log", binary=UWSGI) as program:
        site = Site(program)
        site.ask_at_once()
        assert all(answer["threads"] for answer in site.answers)
