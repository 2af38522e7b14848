"""gunicorn and Celery fork their workers from a process whose pool is warm already."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps.celery_folders import deliver, settings
from tests.support.apps.sessions import Seen, Witness
from tests.support.pools import wait_for_backends
from tests.support.programs import START_SECONDS, Program, started
from tests.support.servers import StatementLog
from tests.support.waiting import in_thread, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

MASTERS_SESSIONS = 5
WORKERS = 2


class MastersSessions:
    """The sessions that the master had before it forked, watched from outside."""

    def __init__(self, server: Server, app: str) -> None:
        self._server = server
        self._app = app
        self._witness = Witness(server.dsn)
        self.pids: list[int] = []
        self._before: Seen = {}

    def remember(self) -> None:
        """Take those that are open now for the master's, and what they do for all they did."""
        self.pids = sorted(wait_for_backends(self._server, self._app, MASTERS_SESSIONS))
        self._before = self._witness.look(self.pids)

    def look_again(self) -> None:
        """Forget what the master itself has done with them."""
        assert self.opened_at() == {pid: state[0] for pid, state in self._before.items()}
        self._before = self._witness.look(self.pids)

    def opened_at(self) -> dict[int, Any]:
        """Return when each of them began."""
        return {pid: state[0] for pid, state in self._witness.look(self.pids).items()}

    def assert_untouched(self) -> None:
        """Fail if one has ended, or was sent anything."""
        assert self._witness.changes(self._before) == []

    def others(self) -> set[int]:
        """Return the sessions of the workers."""
        return set(self._server.backends(self._app)) - set(self.pids)

    def close(self) -> None:
        """End the watch."""
        self._witness.close()


@pytest.fixture
def app(statement_log: StatementLog) -> str:
    """Return the application name of this test's sessions."""
    return statement_log.application_name


@pytest.fixture
def masters(server: Server, app: str) -> Iterator[MastersSessions]:
    """Watch the master's sessions."""
    sessions = MastersSessions(server, app)
    yield sessions
    sessions.close()


@pytest.fixture(params=["3", "0"], ids=["workers", "no-workers"])
def environment(request: pytest.FixtureRequest, statement_log: StatementLog) -> dict[str, str]:
    """Return what the applications read; with the background thread and without it."""
    return {"APP_DSN": statement_log.dsn, "APP_NUM_WORKERS": request.param}


# -- gunicorn -------------------------------------------------------------------


class Web:
    """gunicorn, and requests to it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.port = int(program.wait_for(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])

    def get(self) -> dict[str, int]:
        """Send one request."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            conn.request("GET", "/")
            response = conn.getresponse()
            assert response.status == 200, self.program.output
            answer: dict[str, int] = json.loads(response.read())
            return answer
        finally:
            conn.close()

    def get_from_each(self, workers: set[int]) -> set[int]:
        """Send requests until each of the workers has answered; return their sessions."""
        sessions = {}

        def all_have_answered() -> bool:
            requests = [in_thread(self.get) for _ in range(4)]
            for request in requests:
                answer = request.result(START_SECONDS)
                sessions[answer["worker"]] = answer["backend"]
            return sessions.keys() >= workers

        wait_until(all_have_answered, START_SECONDS)
        return {sessions[worker] for worker in workers}

    def replaced(self, former: set[int]) -> set[int]:
        """Wait until none of the former workers is left, and as many new ones are there."""
        wait_until(lambda: not former & self.program.workers(), START_SECONDS)
        wait_until(lambda: len(self.program.workers()) == WORKERS, START_SECONDS)
        return self.program.workers()


@contextmanager
def gunicorn(environment: dict[str, str], folder: Path, *options: str) -> Iterator[Web]:
    """Run the web application under gunicorn, loaded before the workers are forked."""
    pytest.importorskip("gunicorn")
    command = ["-m", "gunicorn", "-c", "python:tests.support.apps.web", *options]
    with started(
        [*command, "tests.support.apps.web:application"], environment, folder / "log"
    ) as program:
        web = Web(program)
        wait_until(lambda: len(program.workers()) == WORKERS, START_SECONDS)
        yield web


@pytest.mark.parametrize("threads", ["1", "4"], ids=["sync", "gthread"])
def test_gunicorns_workers_leave_the_sessions_of_the_master_alone(
    server: Server,
    app: str,
    masters: MastersSessions,
    environment: dict[str, str],
    tmp_path: Path,
    threads: str,
) -> None:
    with gunicorn(environment, tmp_path, "--threads", threads) as web:
        masters.remember()
        workers = web.program.workers()
        used = web.get_from_each(workers)
        assert len(used) == WORKERS
        assert not used & set(masters.pids)
        masters.assert_untouched()

        # One worker ends as it is told to, another is killed.
        for worker, number in zip(workers, (signal.SIGTERM, signal.SIGKILL), strict=True):
            os.kill(worker, number)
        fresh = web.replaced(workers)
        wait_until(lambda: not masters.others() & used)
        masters.assert_untouched()

        # All are replaced; the master says before which of its sessions answer.
        used = web.get_from_each(fresh)
        web.program.process.send_signal(signal.SIGHUP)
        told = web.program.wait_for(r"the sessions of the master: (\[.*\])")
        assert json.loads(told[1]) == masters.pids
        fresh = web.replaced(fresh)
        wait_until(lambda: not masters.others() & used)
        masters.look_again()
        assert not web.get_from_each(fresh) & set(masters.pids)
        masters.assert_untouched()

        web.program.ask_to_end()
        assert web.program.exit_status() == 0
        wait_for_backends(server, app, 0)
    assert "Traceback" not in web.program.output


# -- Celery ---------------------------------------------------------------------

TASKS = 20


@contextmanager
def celery(environment: dict[str, str], folder: Path) -> Iterator[Program]:
    """Run a worker of Celery with a pool of processes, which it replaces after a few tasks."""
    command = ["-m", "celery", "-A", "tests.support.apps.tasks", "worker", "--pool=prefork"]
    options = [f"--concurrency={WORKERS}", f"--max-tasks-per-child={TASKS // 5}", "--loglevel=INFO"]
    quick = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**environment, "APP_FOLDER": str(folder)}
    with started([*command, *options, *quick], environment, folder / "log") as program:
        program.wait_for("ready")
        yield program


# It takes seconds to end, so this is not done twice.
@pytest.mark.parametrize("environment", ["3"], ids=["workers"], indirect=True)
def test_celerys_processes_leave_the_sessions_of_the_master_alone(
    server: Server, app: str, masters: MastersSessions, environment: dict[str, str], tmp_path: Path
) -> None:
    client = pytest.importorskip("celery").Celery(set_as_current=False, **settings(tmp_path))
    with celery(environment, tmp_path) as program:
        masters.remember()
        results = [client.send_task("answer") for _ in range(TASKS)]
        deliver(tmp_path)
        answers = [result.get(timeout=START_SECONDS, interval=0.02) for result in results]
        assert len({answer["worker"] for answer in answers}) > WORKERS  # they were replaced
        assert not {answer["backend"] for answer in answers} & set(masters.pids)
        masters.assert_untouched()

        limited = client.send_task("wait_in_vain")
        deliver(tmp_path)
        told = limited.get(timeout=START_SECONDS, interval=0.02)
        assert told == {"interrupted": True, "sessions": MASTERS_SESSIONS, "in_use": 0}
        masters.assert_untouched()

        program.ask_to_end()
        program.wait_for("Warm shutdown")
        client.send_task("answer")  # else it looks for messages for seconds before it ends
        deliver(tmp_path)
        assert program.exit_status() == 0
        wait_for_backends(server, app, 0)
    assert json.loads((tmp_path / "master").read_text()) == masters.pids
