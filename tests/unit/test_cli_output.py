"""What is shown, with rich and without it, on terminals and elsewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import sys
from pathlib import Path

import pytest

import psycopg2_pool2.cli
from psycopg2_pool2.cli import output
from psycopg2_pool2.cli.blocks import GAP, Block, Table, Text
from psycopg2_pool2.cli.plain import plain_text
from psycopg2_pool2.cli.words import count, duration, label, milliseconds

BLOCKS: list[Block] = [
    Text("A title", "title"),
    Table(
        [["one", Text("bad", "bad"), "1"], ["twenty-two", "b", "22,000"]],
        headings=("name", "state", "number"),
        right=(2,),
    ),
    GAP,
    Text("All is [red]well[/red] :smile:", "good"),
]


class Terminal(io.TextIOWrapper):
    """A stream that says that it is a terminal, and remembers what it is sent."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def sent(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


class Pipe(Terminal):
    """The same, but no terminal."""

    def isatty(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def _usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the import of rich fail."""
    monkeypatch.delitem(sys.modules, "psycopg2_pool2.cli.colourful", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)


def shown(monkeypatch: pytest.MonkeyPatch, stream: Terminal) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    output.standard_output().show(BLOCKS)
    return stream.sent()


def words(text: str) -> list[str]:
    """Return the words of a text without colours and rules."""
    return re.sub(r"\x1b\[[0-9;]*m|─+", "", text).split()


class TestPlain:
    def test_aligns_columns_and_leaves_no_blanks_at_the_end(self) -> None:
        assert plain_text(BLOCKS) == (
            "A title\n"
            "  name        state  number\n"
            "  one         bad         1\n"
            "  twenty-two  b      22,000\n"
            "\n"
            "All is [red]well[/red] :smile:\n"
        )

    def test_shows_a_table_without_headings(self) -> None:
        assert plain_text([Table([["a", "b"], ["cc", "d"]])]) == "  a   b\n  cc  d\n"

    def test_sends_nothing_that_moves_a_cursor(self) -> None:
        assert plain_text([Text("a\x1b[2Jb\nc\x9bd")]) == "a\\x1b[2Jb\\nc\\x9bd\n"


class TestRich:
    def test_says_the_same_in_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("rich")
        sent = shown(monkeypatch, Terminal())
        assert "\x1b[1;31mbad" in sent
        assert words(sent) == words(plain_text(BLOCKS))

    def test_leaves_the_colours_out_where_they_are_not_wanted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("rich")
        monkeypatch.setenv("NO_COLOR", "1")
        sent = shown(monkeypatch, Terminal())
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", sent)
        assert words(sent) == words(plain_text(BLOCKS))

    def test_sends_nothing_of_a_name_that_moves_a_cursor(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("rich")
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        output.standard_output().show([Text("a\x1b[2Jb")])
        assert "a\\x1b[2Jb" in stream.sent()

    def test_is_imported_in_one_place(self) -> None:
        folder = Path(psycopg2_pool2.cli.__file__).parent
        importers = {path.name for path in folder.rglob("*.py") if "rich" in _imported(path)}
        assert importers == {"colourful.py"}


def _imported(path: Path) -> set[str]:
    """Return the packages that a module imports by their names."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(str(node.module))
    return {module.partition(".")[0] for module in modules}


class TestDecision:
    def test_is_for_plain_text_where_there_is_no_terminal(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert shown(monkeypatch, Pipe()) == plain_text(BLOCKS)

    def test_is_for_plain_text_on_a_dumb_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert shown(monkeypatch, Terminal()) == plain_text(BLOCKS)

    @pytest.mark.usefixtures("without_rich")
    def test_is_for_plain_text_where_rich_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert shown(monkeypatch, Terminal()) == plain_text(BLOCKS)

    def test_never_fails_for_a_letter_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = Pipe("ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        output.standard_output().show([Text("für ł")])
        assert stream.sent() == "f\\xfcr \\u0142\n"


class TestLive:
    def test_shows_one_after_the_other_in_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Pipe()
        monkeypatch.setattr(sys, "stdout", stream)
        with output.standard_output().live() as show:
            show([Text("one")])
            assert stream.sent() == "one\n\n"
            show([Text("two")])
        assert stream.sent() == "one\n\ntwo\n\n"

    @pytest.mark.usefixtures("without_rich")
    def test_clears_the_screen_without_rich(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        with output.standard_output().live() as show:
            show([Text("one")])
        assert stream.sent() == "\x1b[H\x1b[2Jone\n"

    def test_gives_the_cursor_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("rich")
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        with contextlib.suppress(ZeroDivisionError), output.standard_output().live() as show:
            show([Text("one")])
            raise ZeroDivisionError
        assert stream.sent().index("\x1b[?25l") < stream.sent().rindex("\x1b[?25h")


def test_json_is_one_document_or_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_json({"a": Text("b")})
    assert capsys.readouterr().out.count("\n") > 1
    output.write_json({"a": Text("b")}, indent=None)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": {"text": "b", "style": "plain"}}


class TestWords:
    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0 s"),
            (0.25, "250 ms"),
            (2.5, "2.5 s"),
            (59.9, "59.9 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (3725, "1 h 2 min"),
            (7200, "2 h"),
            (86400, "1 d"),
            (90000, "1 d 1 h"),
        ],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text

    @pytest.mark.parametrize(
        ("seconds", "text"), [(0.0002, "0.20 ms"), (0.0123, "12.3 ms"), (1.5, "1,500 ms")]
    )
    def test_milliseconds(self, seconds: float, text: str) -> None:
        assert milliseconds(seconds) == text

    def test_counts(self) -> None:
        assert count(1, "process", "processes") == "1 process"
        assert count(1000, "process", "processes") == "1,000 processes"
        assert count(0, "problem") == "0 problems"

    def test_places(self) -> None:
        assert label("db", "10.0.0.1", 5432) == "db (10.0.0.1) port 5432"
        assert label("10.0.0.1", "10.0.0.1", 5432) == "10.0.0.1 port 5432"
        assert label(None, "10.0.0.1", 5432) == "10.0.0.1 port 5432"
        assert label("/run", None, 5432) == "/run port 5432"
