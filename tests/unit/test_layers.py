"""The modules' order, and the things that only one of them may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import psycopg2_pool2
from psycopg2_pool2.store import Store

FOLDER = Path(psycopg2_pool2.__file__).parent
# From below: each imports from those above its own line only.
LAYERS = [
    {"callers", "hidden", "interruptions", "threads", "timing", "weak_list"},
    {"descriptors", "log", "processes"},
    {
        "addresses",
        "failure_kinds",
        "futures",
        "bell",
        "cached_file",
        "checks",
        "cursors",
        "errors",
        "libpq",
        "loans",
        "observers",
        "proxies",
        "sockets",
        "steps",
        "targets",
        "text",
        "under_uwsgi",
        "watch",
        "workers",
    },
    {"failures"},
    {"commits"},
    {
        "connection",
        "floods",
        "forks",
        "handles",
        "handshake",
        "hosts_file",
        "login_backoff",
        "nsswitch",
        "resolv_conf",
        "silence",
    },
    {"arguments", "cancelling", "dns_exchange", "session_reset", "waits"},
    {"dns_questions", "system_names"},
    {"dns_query"},
    {"dns_given"},
    {"breaker", "connector", "keyed", "resolver", "stats", "store"},
    {"endpoints", "guards", "outage"},
    {"inquiry", "monitor", "options", "snapshots"},
    {"care"},
    {"dialer"},
    {"supply"},
    {"balance", "report"},
    {"upkeep"},
    {"desk"},
    {"blocks"},
    {"pool"},
    {"adaptive", "offload", "statements", "threaded", "transactions"},
    {"attempts", "configuration", "scopes", "tasks"},
    {"aio", "database", "manager"},
    {"aio_stream"},
    {"aio_database"},
    {"__init__"},
    {"cli", "contrib", "testing"},
    {"__main__"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
CORE = [name for name in MODULES if LEVELS.get(name, 0) <= LEVELS["pool"]]


def tree(module: str) -> ast.Module:
    return ast.parse((FOLDER / f"{module}.py").read_text())


def imports(module: str) -> Iterator[str]:
    """Yield the package's modules that this one imports, but for type checkers."""
    for node in ast.walk(_without_type_checking(tree(module))):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module:
                yield node.module.split(".")[0]
            else:
                yield from (alias.name for alias in node.names)


def _without_type_checking(module: ast.Module) -> ast.Module:
    def wanted(node: ast.stmt) -> bool:
        return not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")

    return ast.Module([node for node in module.body if wanted(node)], [])


def calls(module: str) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree(module)) if isinstance(node, ast.Call))


def test_every_module_has_its_place() -> None:
    folders = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert set(MODULES) | folders <= set(LEVELS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    for imported in imports(module):
        assert LEVELS[imported] < LEVELS[module], f"{module} imports {imported}"


def test_every_module_of_the_core_is_used() -> None:
    used = {imported for module in MODULES for imported in imports(module)}
    assert set(CORE) <= used


@pytest.mark.parametrize("module", [name for name in MODULES if name != "store"])
def test_only_the_store_touches_what_it_guards(module: str) -> None:
    private = {name for name in dir(Store) if name.startswith("_") and not name.endswith("__")}
    assert "_lock" in private
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and node.attr in private:
            owner = ast.unparse(node.value).rpartition(".")[2]
            assert owner not in ("store", "_store", "inherited"), ast.unparse(node)


TALK = {
    "cancel",
    "close",
    "commit",
    "cursor",
    "execute",
    "lobject",
    "poll",
    "reset",
    "rollback",
    "set_client_encoding",
    "set_isolation_level",
    "set_session",
}
"""What may send something or free something; state that libpq has at hand may be read elsewhere."""


@pytest.mark.parametrize(
    "module", [n for n in CORE if n not in ("connection", "connector", "waits")]
)
def test_only_the_connector_talks_to_the_driver(module: str) -> None:
    for call in calls(module):
        called = ast.unparse(call.func)
        assert called != "psycopg2.connect"
        owner, _, name = called.rpartition(".")
        # An async pool's or a block's own `close` is another matter.
        assert name not in TALK or owner not in ("conn", "connection", "replacement"), called


@pytest.mark.parametrize("module", [n for n in CORE if n not in ("monitor", "workers")])
def test_only_the_monitor_and_its_workers_start_threads(module: str) -> None:
    for call in calls(module):
        called = ast.unparse(call.func).rpartition(".")[2]
        assert called not in ("OwnThread", "Thread", "Timer", "ThreadPoolExecutor")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "log"])
def test_only_one_module_calls_the_loggers_of_the_program(module: str) -> None:
    """Filters and handlers are the program's code, and may raise."""
    for call in calls(module):
        assert ast.unparse(call.func) not in ("logging.getLogger", "logging.log")


@pytest.mark.parametrize("module", [name for name in CORE if name not in ("timing", "dns_given")])
def test_only_one_module_reads_the_clocks_that_tests_replace(module: str) -> None:
    """What dnspython has read from one is compared with the same."""
    clocks = ("clock_gettime", "monotonic", "perf_counter", "time")
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time":
            assert node.attr not in clocks, ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not {alias.name for alias in node.names}.intersection(clocks)


WIDE = {"BaseException", "Exception", "OSError", "TimeoutError"}
"""What may also be an exception that a signal handler of the program raised."""
ASKS = ("raise", "let_through(", "is_interruption(", "raised_by_handler(", "steps.throw(")
ELSEWHERE = {"_after_fork_in_child", "_is_shut_down", "_open_and_keep", "cut_off"}
"""Functions for the library's own threads, and for what must not be left half done in a child."""


@pytest.mark.parametrize(
    "module", [n for n in CORE if n not in ("log", "monitor", "silence", "watch", "workers")]
)
def test_only_what_runs_in_own_threads_swallows_what_a_signal_handler_may_raise(
    module: str,
) -> None:
    nodes = list(ast.walk(tree(module)))
    parts = [node for node in nodes if getattr(node, "name", "") in ELSEWHERE]
    spared = {id(inner) for part in parts for inner in ast.walk(part)}
    for node in nodes:
        if id(node) in spared:
            continue
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            body = "\n".join(map(ast.unparse, node.body))
            assert not caught & WIDE or any(word in body for word in ASKS), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "contextlib.suppress":
            assert not {ast.unparse(arg) for arg in node.args} & WIDE, ast.unparse(node)


@pytest.mark.parametrize("module", CORE)
def test_no_module_of_the_core_sleeps(module: str) -> None:
    sleeps = [call for call in calls(module) if ast.unparse(call.func) == "time.sleep"]
    assert len(sleeps) == (1 if module == "monitor" else 0), "the monitor may, after a failure"


@pytest.mark.parametrize(
    "module",
    [n for n in MODULES if n not in ("aio", "aio_database", "futures", "offload", "tasks")],
)
def test_only_what_serves_event_loops_imports_asyncio(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            assert "asyncio" not in [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.module != "asyncio"


def test_importing_the_package_loads_nothing_heavy_and_starts_nothing() -> None:
    program = (
        "import sys, threading, psycopg2_pool2;"
        "print(sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'dns', 'asyncio', 'sqlalchemy', 'django', 'psutil'}), threading.active_count())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.split() == ["[]", "1"]
