"""What a signal handler of the program raises while the pool works for it reaches the program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from psycopg2_pool2.interruptions import let_through, raised_by_handler, suppress

TIMES = 150


@pytest.mark.parametrize("error", ["TimeLimitExceeded", "TimeoutError"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 0}, {"test_on_borrow": "callable"}, {"reset": "session"}],
    ids=["defaults", "without workers", "own test", "reset"],
)
def test_every_exception_of_a_signal_handler_reaches_the_program(
    dsn: str, error: str, options: dict[str, Any]
) -> None:
    program = "tests.support.apps.time_limits"
    done = subprocess.run(
        [sys.executable, "-m", program, dsn, error, str(TIMES), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["others"] == []
    assert result["arrived"] == result["raised"] == TIMES
    assert result["stats"][0] == 0


class TestSuppress:
    @pytest.fixture(autouse=True)
    def handler(self) -> Any:
        def handle(number: int, frame: object) -> None:
            raise TimeoutError("time limit")

        before = signal.signal(signal.SIGUSR1, handle)
        yield
        signal.signal(signal.SIGUSR1, before)

    def test_holds_back_an_error_of_the_code_itself(self) -> None:
        with suppress(OSError):
            raise TimeoutError("of a socket")

    def test_lets_an_error_of_a_signal_handler_through(self) -> None:
        with pytest.raises(TimeoutError, match="time limit"), suppress(OSError):
            signal.raise_signal(signal.SIGUSR1)

    def test_lets_other_classes_through(self) -> None:
        with pytest.raises(ValueError, match="x"), suppress(OSError):
            raise ValueError("x")

    def test_error_that_was_never_raised_is_nobodys(self) -> None:
        assert not raised_by_handler(TimeoutError())
        let_through(TimeoutError())
