"""The programs of docs/examples, run as their docstrings say, while sessions and the server end."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps.celery_folders import deliver, settings
from tests.support.pools import end_sessions, wait_for_backends
from tests.support.programs import START_SECONDS, Program, skip_without, started
from tests.support.servers import new_server
from tests.support.swallowing import swallowing
from tests.support.waiting import in_thread, wait_until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ROOT = Path(__file__).parents[2]
CLIENTS = 6
CROWD = 60
"""More than connections, and than the threads of any of the servers."""
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Make a server that these tests may restart."""
    with new_server() as made:
        made.execute((EXAMPLES / "schema.sql").read_text())
        yield made


@pytest.fixture
def app() -> str:
    """Return the application name of this test's sessions."""
    return f"example-{next(_numbers)}"


@pytest.fixture
def environment(server: Server, app: str) -> dict[str, str]:
    """Return what the examples read."""
    where = f"postgresql://postgres@{server.host}:{server.port}/postgres"
    return {
        "DATABASE_URL": f"{where}?application_name={app}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


# -- scripts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "needed", "output"),
    [
        ("plain_script.py", "psycopg2", "328350 328350\n"),
        ("gevent_script.py", "gevent", "2646700\n0\n"),
    ],
)
def test_scripts_that_end_by_themselves(
    script: str, needed: str, output: str, environment: dict[str, str], tmp_path: Path
) -> None:
    skip_without(needed)
    with started([script], environment, tmp_path / "log", EXAMPLES) as program:
        assert program.exit_status() == 0, program.output
    assert program.output == output


def test_the_schedulers_reaper(
    server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["reaper_cron.py", "--every", "0.1", "--idle-timeout", "0.5"]
    with started(command, environment, tmp_path / "log", EXAMPLES) as program:
        idle = int(program.wait_for(r"closed 0 idle connections, (\d+) are left")[1])
        assert idle > 1
        program.wait_for(r"closed [1-9]")
        wait_for_backends(server, app, 1)


# -- web servers ------------------------------------------------------------------


class Clients:
    """Threads that send a web server one request after the other, and count its answers."""

    def __init__(self, port: int, path: str) -> None:
        self.statuses: Counter[int] = Counter()
        self._port = port
        self._path = path
        self._served = [0] * CLIENTS
        self._done = threading.Event()
        self._threads = [in_thread(self._run, number) for number in range(CLIENTS)]

    def wait_for_progress(self) -> None:
        """Wait until each client has been served several times more."""
        before = list(self._served)

        def all_served() -> bool:
            return all(now > was + 3 for now, was in zip(self._served, before, strict=True))

        wait_until(all_served, START_SECONDS, f"answers to all clients: {self.statuses}")

    def finish(self) -> None:
        """End, and raise what went wrong."""
        self._done.set()
        for thread in self._threads:
            thread.result(START_SECONDS)

    def _run(self, number: int) -> None:
        while not self._done.is_set():
            status = send("POST" if self._path and number % 2 else "GET", self._port, self._path)
            self.statuses[status] += 1
            self._served[number] += status in (200, 201)


def send(method: str, port: int, path: str) -> int:
    """Send one request; return the status of the answer."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
    try:
        body = json.dumps({"body": "Hello"}) if method == "POST" else None
        status, answer = ask_web(conn, method, path, body)
        assert status != 500 or "may have been done or not" in answer["error"]
        return status
    finally:
        conn.close()


def ask_web(
    conn: http.client.HTTPConnection, method: str, path: str, body: str | None
) -> tuple[int, Any]:
    """Send a request; return the status of the answer and what it says."""
    conn.request(method, f"/{path}", body, {"Content-Type": "application/json"})
    answer = conn.getresponse()
    return answer.status, json.loads(answer.read())


def send_at_once(number: int, port: int, path: str) -> set[int]:
    """Send so many requests at the same time; return the statuses of the answers."""
    method = "POST" if path else "GET"
    requests = [in_thread(send, method, port, path) for _ in range(number)]
    return {request.result(START_SECONDS) for request in requests}


@contextmanager
def clients(port: int, path: str) -> Iterator[Clients]:
    """Have clients at work during the block."""
    made = Clients(port, path)
    try:
        yield made
    finally:
        made.finish()


@dataclass
class Web:
    """A web server: how it is started, what that needs, and how many connections it may have."""

    command: list[str]
    needed: list[str]
    most: int
    folder: Path = EXAMPLES
    path: str = "messages"


def gunicorn_app(configuration: str, *needed: str) -> Web:
    return Web(
        ["gunicorn", "-c", configuration], ["gunicorn", *needed], 10, EXAMPLES / "gunicorn_app", ""
    )


WEB = {
    "flask": Web(["flask", "--app", "flask_app", "run", "--port", "0"], ["flask"], 8),
    "flask under gunicorn": Web(
        ["gunicorn", "--workers", "2", "--threads", "8", "flask_app:create_app()"],
        ["flask", "gunicorn"],
        16,
    ),
    "fastapi": Web(["uvicorn", "fastapi_app:app", "--port", "0"], ["fastapi", "uvicorn"], 8),
    "gunicorn --preload": gunicorn_app("preload.conf.py"),
    "gunicorn gthread": gunicorn_app("gthread.conf.py"),
    "gunicorn gevent": gunicorn_app("gevent.conf.py", "gevent"),
}
_ADDRESS = r"(?:Listening at:|[Rr]unning on) http://[\d.]+:(\d+)"


@contextmanager
def running(web: Web, environment: dict[str, str], output: Path) -> Iterator[tuple[Program, int]]:
    """Run one of the web servers; give it and its port."""
    skip_without(*web.needed)
    command = ["-m", *web.command]
    if "gunicorn" in command:
        command += ["--bind", "127.0.0.1:0", "--no-control-socket"]
    with started(command, environment, output, web.folder) as program:
        yield program, int(program.wait_for(_ADDRESS)[1])


@pytest.mark.parametrize("web", WEB.values(), ids=WEB)
def test_requests_go_on_whatever_becomes_of_sessions_and_server(
    web: Web, server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    def assert_within_limits() -> None:
        assert 0 < len(server.backends(app)) <= web.most

    with running(web, environment, tmp_path / "log") as (program, port):
        with clients(port, web.path) as active:
            active.wait_for_progress()
            assert_within_limits()
            end_sessions(server, app)
            active.wait_for_progress()
            assert_within_limits()
            server.restart()
            active.wait_for_progress()
            assert_within_limits()
        assert set(active.statuses) <= {200, 201, 500, 503}, program.output
        assert send_at_once(CROWD, port, web.path) <= {200, 201}, program.output
        assert_within_limits()
        program.ask_to_end()
        program.exit_status()
        wait_for_backends(server, app, 0)
    assert "Traceback" not in program.output


@pytest.mark.parametrize("name", ["flask", "fastapi"])
def test_post_whose_commit_is_uncertain_is_stored_once_by_a_client_that_obeys(
    name: str, server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    def post(**message: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, START_SECONDS)) as conn:
            return ask_web(conn, "POST", "messages", json.dumps(message))

    message = {"id": str(uuid.uuid4()), "body": "pay 100"}
    with swallowing(server) as proxy:
        place = f"postgresql://postgres@{proxy.host}:{proxy.port}/postgres?sslmode=disable"
        environment["DATABASE_URL"] = place
        with running(WEB[name], environment, tmp_path / "log") as (_, port):
            assert post(body="first")[0] == 201
            proxy.armed = True
            status, answer = post(**message)
            assert (status, "try again" in str(answer)) == (500, False)
            assert "with the same id" in answer["error"]
            assert post(**message) == (201, {"id": message["id"]})
    stored = server.execute("SELECT body FROM message WHERE id = %s", [message["id"]])
    assert stored == [("pay 100",)]


# -- Celery -----------------------------------------------------------------------


def test_tasks_go_on_whatever_becomes_of_sessions_and_server(
    server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    celery = pytest.importorskip("celery")
    client = celery.Celery(set_as_current=False, **settings(tmp_path))
    sent: list[str] = []

    def send(number: int) -> None:
        for _ in range(number):
            sent.append(str(uuid.uuid4()))
            client.send_task("celery_app.add_message", [sent[-1], "Hello"])

    def stored() -> int:
        deliver(tmp_path)
        [[number]] = server.execute(
            "SELECT count(*) FROM message WHERE id = ANY(%s::uuid[])", [sent]
        )
        assert len(server.backends(app)) <= 2
        return int(number)

    def wait_for_all() -> None:
        wait_until(lambda: stored() == len(sent), START_SECONDS)

    command = ["-m", "celery", "-A", "celery_app", "worker", "--concurrency=2", "--loglevel=INFO"]
    quick = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment |= {
        "CELERY_CONFIG_MODULE": "tests.support.apps.celery_config",
        "APP_FOLDER": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    with started([*command, *quick], environment, tmp_path / "log", EXAMPLES) as program:
        program.wait_for("ready")
        send(4)
        wait_for_all()
        send(8)
        deliver(tmp_path)
        end_sessions(server, app)
        wait_for_all()
        send(8)
        deliver(tmp_path)
        server.restart()
        wait_for_all()
