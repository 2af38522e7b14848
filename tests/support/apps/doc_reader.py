"""Does what a page of the documentation says, as its reader would.

Reads steps from standard input as JSON: `page`, `line`, `language`, `code` and `file` of each.
Writes what each of them printed, as a JSON list, to standard output.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Reader:
    """Somebody at a terminal and in an interpreter, in the current folder."""

    def __init__(self) -> None:
        self._main = types.ModuleType("__main__")
        self._loop: Any = None
        self._ways: dict[str, Callable[[dict[str, Any]], str]] = {
            "python": self._python,
            "sql": self._sql,
            "sh": self._sh,
        }
        # As they are where one types: names of the folder can be imported.
        sys.modules["__main__"] = self._main
        sys.path[0] = os.getcwd()

    def do(self, step: dict[str, Any]) -> str:
        """Do one step; return what it printed."""
        if step["file"] is None:
            return self._ways[step["language"]](step)
        if step["language"] == "python":
            compile(step["code"], step["page"], "exec")
        Path(step["file"]).write_text(step["code"])
        return ""

    def _python(self, step: dict[str, Any]) -> str:
        # Empty lines before it, so that a traceback names the page's line.
        source = "\n" * step["line"] + step["code"]
        code = compile(source, step["page"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = eval(code, self._main.__dict__)
            if inspect.iscoroutine(found):
                self._await(found)
        return printed.getvalue()

    def _await(self, coroutine: Any) -> None:
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(coroutine)

    def _sql(self, step: dict[str, Any]) -> str:
        import psycopg2

        with contextlib.closing(psycopg2.connect("")) as conn:
            conn.autocommit = True
            with conn.cursor() as cursor:
                cursor.execute(step["code"])
        return ""

    def _sh(self, step: dict[str, Any]) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", step["code"]],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{step['page']}, line {step['line'] + 1}:\n{done.stdout}")
        return done.stdout

    def close(self) -> None:
        """Close the event loop, if one was needed."""
        if self._loop is not None:
            self._loop.close()


def main() -> None:
    """Do all steps, and tell."""
    reader = Reader()
    printed = [reader.do(step) for step in json.load(sys.stdin)]
    reader.close()
    json.dump(printed, sys.stdout)


main()
