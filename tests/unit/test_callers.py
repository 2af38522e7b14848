"""Looking at the program's frames leaves them as they are."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from psycopg2_pool2 import callers


def test_variables_survive_a_look_from_a_debuggers_prompt() -> None:
    looked = []

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is program.__code__ and event == "line":
            looked.append(callers._has(frame, 0))
        return trace

    def program() -> str:
        word = "kept"
        return word  # noqa: RET504  # a line of its own

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert program() == "kept"
    finally:
        sys.settrace(before)
    assert looked
