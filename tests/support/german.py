"""Real servers that speak German, in UTF-8 or in Latin-1.

The wheel's PostgreSQL speaks English only, so the programs are those of Debian's packages, which
bring the translations. The locale is made in the server's folder, from the sources in Debian's
package `locales`, which its PostgreSQL depends on: nothing is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from psycopg2_pool2.contrib.embedded import Server
from psycopg2_pool2.contrib.embedded.clusters import RULES, make_cluster
from psycopg2_pool2.contrib.embedded.data import DataDirectory, Setting
from psycopg2_pool2.contrib.embedded.processes import Processes, _lifeline
from psycopg2_pool2.contrib.embedded.programs import run, spawn
from tests.support.tls import _SETTINGS, _program, programs

Charset = Literal["UTF-8", "ISO-8859-1"]

_ENCODINGS: Mapping[Charset, str] = {"UTF-8": "UTF8", "ISO-8859-1": "LATIN1"}
_LOCALE_SOURCE = Path("/usr/share/i18n/locales/de_DE")


class GermanServer(Server):
    """A server whose messages are German and in UTF-8, those before the login too."""

    charset: Charset = "UTF-8"

    def __init__(self, folder: Path, host: str, port: int, primary: Server | None = None) -> None:
        super().__init__(folder, host, port, primary)
        environment = _environment(folder / "locales", self.charset)
        self._data = _Data(folder / "data", environment, _ENCODINGS[self.charset])
        self._processes = _Processes(environment)
        _make_locale(folder / "locales", self.charset)

    def start_and_never_end(self) -> None:
        """Start the server, which then says to everybody that it is starting; `close` ends it.

        It recovers from an archive whose next file does not come.
        """
        run("touch", str(self._data.path / "recovery.signal"))
        self._data.configure({"restore_command": "sleep 60", "hot_standby": False})
        self._processes.start(self._data.path, self._log.path, self._folder)


class Latin1Server(GermanServer):
    """A server whose messages are German and in Latin-1."""

    charset: Charset = "ISO-8859-1"


class _Data(DataDirectory):
    """A data directory that Debian's `initdb` has made, for German messages."""

    def __init__(self, path: Path, environment: Sequence[str], encoding: str) -> None:
        super().__init__(path)
        self._environment = environment
        self._encoding = encoding

    def fill(self, settings: Mapping[str, Setting], hba: Sequence[str]) -> None:
        initdb = ("/usr/bin/env", *self._environment, _program("initdb"))
        make_cluster(*initdb, data=self.path, locale=[f"--encoding={self._encoding}"])
        (self.path / "pg_hba.conf").write_text("\n".join([*hba, *RULES, ""]))
        self.configure({**_SETTINGS, "ssl": False, **settings})


class _Processes(Processes):
    """The processes of Debian's `postgres`, in a German environment."""

    def __init__(self, environment: Sequence[str]) -> None:
        super().__init__()
        self._environment = environment

    def start(self, data: Path, log: Path, folder: Path) -> None:
        command = ("/usr/bin/env", *self._environment, _program("postgres"), "-D", str(data))
        with log.open("ab") as file:
            self._first = spawn(*command, stdout=file, stderr=file)
        self._lifeline = _lifeline(self._first.pid, folder)


@contextmanager
def new_german_server(
    kind: type[GermanServer] = GermanServer, hba: Sequence[str] = (), **settings: Setting
) -> Iterator[GermanServer]:
    """Make a server that speaks German; skip the test where its programs are missing."""
    if programs() is None:
        pytest.skip("no PostgreSQL of Debian's: install the package postgresql")
    if shutil.which("localedef") is None or not _LOCALE_SOURCE.exists():
        pytest.skip("no locale can be made: install Debian's package locales")
    if not _speaks_german():
        pytest.skip("this PostgreSQL has no German messages: they were left out of the package")
    with kind.create(settings=settings, hba=hba) as server:
        assert isinstance(server, GermanServer)
        yield server


def _speaks_german() -> bool:
    return any(Path("/usr/share/locale/de/LC_MESSAGES").glob("postgres-*.mo"))


def _make_locale(folder: Path, charset: Charset) -> None:
    run("mkdir", str(folder))
    run("localedef", "-i", "de_DE", "-f", charset, f"{folder}/de_DE.{charset}")
    run("chmod", "-R", "a+rX", str(folder))  # initdb runs as another user


def _environment(locales: Path, charset: Charset) -> tuple[str, ...]:
    return (f"LOCPATH={locales}", f"LC_ALL=de_DE.{charset}", "LANGUAGE=")
