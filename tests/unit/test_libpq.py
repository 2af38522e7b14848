"""Where libpq's functions cannot be called through ctypes."""

from __future__ import annotations

import sys

import psycopg2
import pytest

from psycopg2_pool2 import libpq


@pytest.fixture(params=["no ctypes", "no file", "no symbols"])
def _uncallable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    elif request.param == "no file":
        monkeypatch.setattr(psycopg2._psycopg, "__file__", "/nowhere")
    else:
        import _struct

        file = getattr(_struct, "__file__", None)
        if file is None:
            pytest.skip("every module of the standard library is linked statically")
        monkeypatch.setattr(psycopg2._psycopg, "__file__", file)


@pytest.mark.usefixtures("_uncallable")
def test_is_told_once_by_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    libpq._library.cache_clear()
    try:
        assert libpq._library() is None
        assert libpq._library() is None
    finally:
        libpq._library.cache_clear()
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("cannot call libpq")
