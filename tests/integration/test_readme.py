"""The README: its links lead somewhere. Its examples are run by test_docs.py."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()


def test_the_links_lead_somewhere() -> None:
    targets = re.findall(r"^\[[^]]+\]: (\S+)$|\]\(([^)]+)\)", _README, re.MULTILINE)
    paths = ["".join(target) for target in targets if "://" not in "".join(target)]
    assert len(paths) > 10
    assert [path for path in paths if not (_ROOT / path).is_file()] == []


def test_the_links_in_brackets_are_defined() -> None:
    used = set(re.findall(r"\]\[([^]]+)\]", _README))
    assert used == set(re.findall(r"^\[([^]]+)\]: ", _README, re.MULTILINE))
