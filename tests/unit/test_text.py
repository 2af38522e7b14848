"""Text from others cannot act on a terminal, forge a line or hide."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

from psycopg2_pool2.text import in_one_line, printable, printable_lines

UNSAFE = {
    "\x00": "\\x00",
    "\x07": "\\x07",
    "\t": "\\t",
    "\n": "\\n",
    "\r": "\\r",
    "\x1b": "\\x1b",
    "\x7f": "\\x7f",
    "\x85": "\\x85",
    "\x9b": "\\x9b",
    "\xad": "\\xad",
    "\u200b": "\\u200b",
    "\u200f": "\\u200f",
    "\u2028": "\\u2028",
    "\u202e": "\\u202e",
    "\u2066": "\\u2066",
    "\u2069": "\\u2069",
    "\ufeff": "\\ufeff",
    "\udc80": "\\udc80",
    "\U000e0041": "\\U000e0041",
}
ORDINARY = (
    "FATAL:  role does not exist",
    "C:\\data [bold red]x[/] %s {}",
    "« accès refusé »\u00a0: Größe, ł, żółć",
    "пароль 密码 パスワード פרטי सर्वर",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian needs a non-joiner
    "👩\u200d💻 e\u0301",
)


@pytest.mark.parametrize(("character", "escape"), UNSAFE.items(), ids=ascii)
def test_what_acts_on_its_reader_is_escaped(character: str, escape: str) -> None:
    assert printable(f"a{character}b") == f"a{escape}b"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert in_one_line(text) == text


@pytest.mark.parametrize("shorten", [printable, in_one_line])
def test_no_character_is_left_that_acts_on_its_reader(shorten: Callable[[str], str]) -> None:
    shown = shorten("x".join(map(chr, (*range(0x10000), *range(0xE0000, 0xE1000)))))
    left = set(shown) - set("\u200c\u200d")
    assert not [c for c in left if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not [c for c in left if unicodedata.bidirectional(c) in _DIRECTIONS]
    assert printable(shown) == shown
    assert len(shown.splitlines()) == 1


_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def test_lines_become_one() -> None:
    assert in_one_line(" a: \r\n\n  b\u2028c\x1b\n") == "a: | b | c\\x1b"
    assert in_one_line("\n") == ""


def test_lines_that_stay_cannot_be_taken_for_others() -> None:
    assert printable_lines("a\nCRITICAL b\x1b\n\n") == "a\n    CRITICAL b\\x1b"
    assert printable_lines("a\u2028b\r\n\tc") == "a\\u2028b\n\tc"
