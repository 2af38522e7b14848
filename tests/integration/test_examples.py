"""The programs of docs/examples, run as their docstrings say, while sessions and the server end."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from psycopg2_pool2.contrib.embedded import Server
from tests.support.apps.celery_folders import deliver, settings
from tests.support.pools import end_sessions, wait_for_backends
from tests.support.programs import START_SECONDS, Program, started
from tests.support.servers import new_server
from tests.support.waiting import in_thread, wait_until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ROOT = Path(__file__).parents[2]
CLIENTS = 6
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


def test_the_plain_script(environment: dict[str, str], tmp_path: Path) -> None:
    with started(["plain_script.py"], environment, tmp_path / "log", EXAMPLES) as program:
        assert program.exit_status() == 0, program.output
    assert program.output == "328350 328350\n"


def test_the_schedulers_reaper(
    server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["reaper_cron.py", "--every", "0.1", "--idle-timeout", "0.5"]
    with started(command, environment, tmp_path / "log", EXAMPLES) as program:
        program.wait_for("closed 0 idle connections, 10 are left")
        wait_for_backends(server, app, 1)
        assert sum(map(int, program.find_all(r"closed (\d+)"))) == 9


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
            status = self._send("POST" if self._path and number % 2 else "GET")
            self.statuses[status] += 1
            self._served[number] += status in (200, 201)

    def _send(self, method: str) -> int:
        conn = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_SECONDS)
        try:
            body = json.dumps({"body": "Hello"}) if method == "POST" else None
            conn.request(method, f"/{self._path}", body, {"Content-Type": "application/json"})
            answer = conn.getresponse()
            json.loads(answer.read())
            return answer.status
        finally:
            conn.close()


@contextmanager
def clients(port: int, path: str) -> Iterator[Clients]:
    """Have clients at work during the block."""
    made = Clients(port, path)
    try:
        yield made
    finally:
        made.finish()


WEB: dict[str, tuple[list[str], str, int]] = {
    # How it is started, a path, and how many connections it may have.
    "flask": (["flask", "--app", "flask_app", "run", "--port", "0"], "messages", 8),
    "flask-gunicorn": (
        ["gunicorn", "--workers", "2", "--threads", "8", "flask_app:create_app()"],
        "messages",
        16,
    ),
    "fastapi": (["uvicorn", "fastapi_app:app", "--port", "0"], "messages", 8),
    "gunicorn-preload": (["gunicorn", "-c", "preload.conf.py"], "", 10),
    "gunicorn-gthread": (["gunicorn", "-c", "gthread.conf.py"], "", 10),
    "gunicorn-gevent": (["gunicorn", "-c", "gevent.conf.py"], "", 10),
}


@contextmanager
def web(name: str, environment: dict[str, str], output: Path) -> Iterator[tuple[Program, int]]:
    """Run one of the web servers; give it and its port."""
    [module, *arguments], path, _ = WEB[name]
    pytest.importorskip(name.partition("-")[0])
    pytest.importorskip(module)
    folder = EXAMPLES if path else EXAMPLES / "gunicorn_app"
    if module == "gunicorn":
        arguments += ["--bind", "127.0.0.1:0", "--no-control-socket"]
    with started(["-m", module, *arguments], environment, output, folder) as program:
        yield (
            program,
            int(program.wait_for(r"(?:Listening at:|[Rr]unning on) http://[\d.]+:(\d+)")[1]),
        )


@pytest.mark.parametrize("name", WEB)
def test_requests_go_on_whatever_becomes_of_sessions_and_server(
    name: str, server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    _, path, most = WEB[name]

    def assert_within_limits() -> None:
        assert 0 < len(server.backends(app)) <= most

    with web(name, environment, tmp_path / "log") as (program, port):
        with clients(port, path) as active:
            active.wait_for_progress()
            assert_within_limits()
            end_sessions(server, app)
            active.wait_for_progress()
            assert_within_limits()
            server.restart()
            active.wait_for_progress()
            assert_within_limits()
        assert set(active.statuses) <= {200, 201, 503}, program.output
        program.ask_to_end()
        program.exit_status()
        wait_for_backends(server, app, 0)
    assert "Traceback" not in program.output


# -- Celery -----------------------------------------------------------------------


def test_tasks_go_on_whatever_becomes_of_sessions_and_server(
    server: Server, app: str, environment: dict[str, str], tmp_path: Path
) -> None:
    client = pytest.importorskip("celery").Celery(set_as_current=False, **settings(tmp_path))
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
