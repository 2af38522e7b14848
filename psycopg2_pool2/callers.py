"""Where a block begins, by the frames on the stack: in which function, and how that is driven.

A generator that is suspended inside a block leaves its caller to go on.  Whether what the caller
executes then is meant for the block depends on what the generator is:

* One that is driven by :mod:`contextlib`, or by a framework, *is* a block: whoever called ``next``
  has returned, and what comes is the body.
* One that is iterated over is a source of rows: the frame that called ``next`` (or has the ``for``
  loop) is on the stack of the statement, and the generator's own frame is not.

A frame is known by its address and its code, never by a reference, which would keep all its
variables alive.  An address is used again, so a frame at the noted address must also be seen to
have the generator: in a loop, or in a variable.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import AsyncGeneratorType, CodeType, FrameType, GeneratorType
from typing import Any

_GENERATOR = 0x20 | 0x200  # inspect.CO_GENERATOR, inspect.CO_ASYNC_GENERATOR
_OPTIMIZED = 0x1  # inspect.CO_OPTIMIZED: the variables are not a dictionary
_OWN = __name__.partition(".")[0] + "."
_DRIVERS_OF_BLOCKS = (
    "_pytest",
    "pluggy",
    "pytest_asyncio",
)  # on the stack of the body, some of them

_LOOPS = {"FOR_ITER": 2, "GET_ANEXT": 5}
_WITHS = {"SETUP_WITH": 2, "BEFORE_WITH": 2, "LOAD_SPECIAL": 4}
_ASYNC_WITHS = {"BEFORE_ASYNC_WITH": 8, "LOAD_SPECIAL": 10}
"""Instructions, and how many units of code before the present one they may stand."""

Stack = Mapping[int, FrameType]


class Place:
    """A line of the program."""

    __slots__ = ("_code", "_instruction")

    def __init__(self, frame: FrameType | None) -> None:
        self._code = None if frame is None else frame.f_code
        self._instruction = -1 if frame is None else frame.f_lasti

    def key(self) -> tuple[int, int]:
        """Return what tells this place from others."""
        return id(self._code), self._instruction

    def __str__(self) -> str:
        if self._code is None:
            return "an unknown place"
        line = _line(self._code, self._instruction)
        return f'File "{self._code.co_filename}", line {line}, in {self._code.co_name}'


class Origin(Place):
    """Where a block began, and the generator that it belongs to, if any."""

    __slots__ = ("_drivers", "_iterated", "code", "generator")

    def __init__(self) -> None:
        frame = outside()
        super().__init__(frame)
        self.generator: int | None = None
        self.code: CodeType | None = None
        self._iterated: tuple[int, CodeType] | None = None
        self._drivers: list[tuple[int, CodeType, bool]] = []
        if frame is None or not frame.f_code.co_flags & _GENERATOR:
            return
        if _is_at(frame, _WITHS) or _is_at(frame, _ASYNC_WITHS):
            self.generator, self.code = id(frame), frame.f_code
        self._find_drivers(frame)

    @property
    def is_iterated(self) -> bool:
        """Whether the generator is a source of rows, as far as that can be seen."""
        return bool(self._drivers)

    def _find_drivers(self, generator: FrameType | None) -> None:
        while generator is not None and _is_of(generator.f_back, "contextlib"):
            generator = outside(generator.f_back)  # a context manager in whose block it is
            if generator is None or not generator.f_code.co_flags & _GENERATOR:
                return
        assert generator is not None
        self._iterated = id(generator), generator.f_code
        driver = generator.f_back
        while driver is not None and not _is_of(driver, *_DRIVERS_OF_BLOCKS):
            self._drivers.append((id(driver), driver.f_code, _is_at(driver, _LOOPS)))
            if not driver.f_code.co_flags & _GENERATOR or _is_of(driver.f_back, "contextlib"):
                return
            driver = driver.f_back

    def is_suspended_by(self, frames: Stack) -> bool:
        """Tell whether the generator is suspended, and those on the stack iterate over it."""
        if self._iterated is None:
            return False
        generator, code = self._iterated
        frame = frames.get(generator)
        if frame is not None and frame.f_code is code:
            return False
        for driver, code, by_loop in self._drivers:
            frame = frames.get(driver)
            if frame is not None and frame.f_code is code and (by_loop or _has(frame, generator)):
                return True
        return False


def outside(frame: FrameType | None = None) -> FrameType | None:
    """Return the innermost frame that is neither this package's nor :mod:`contextlib`'s."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if not name.startswith(_OWN) and name != "contextlib":
            return frame
        frame = frame.f_back
    return None


def stack() -> dict[int, FrameType]:
    """Return the frames of this thread by their address, the innermost first."""
    frames = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames[id(frame)] = frame
        frame = frame.f_back
    return frames


def _is_of(frame: FrameType | None, *packages: str) -> bool:
    if frame is None:
        return False
    return str(frame.f_globals.get("__name__")).partition(".")[0] in packages


def _is_at(frame: FrameType, instructions: Mapping[str, int]) -> bool:
    """Tell whether a frame is at one of these instructions, or just behind it."""
    from opcode import opmap

    code, at = frame.f_code.co_code, frame.f_lasti
    if at < 0:
        return False
    for name, units in instructions.items():
        number = opmap.get(name, 256)  # each Python has some; from 256 the compiler alone
        if number < 256 and number in code[max(0, at - 2 * units + 2) : at + 1 : 2]:
            return True
    return False


def _has(frame: FrameType, generator: int) -> bool:
    """Tell whether one of a frame's variables is the generator whose frame has this address."""
    variables: Any = frame.f_locals
    try:
        return any(_frame_of(value) == generator for value in list(variables.values()))
    finally:
        # A copy, which would keep what the function deletes.  Not beneath a debugger: that
        # writes the copy back, and the function's variables would be gone.
        is_copy = frame.f_code.co_flags & _OPTIMIZED and sys.version_info < (3, 13)
        if is_copy and sys.gettrace() is None:
            variables.clear()


def _frame_of(value: object) -> int | None:
    if isinstance(value, GeneratorType):
        return id(value.gi_frame)
    return id(value.ag_frame) if isinstance(value, AsyncGeneratorType) else None


def _line(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno
