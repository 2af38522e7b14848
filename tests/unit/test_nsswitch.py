"""Which names the system looks for elsewhere before it asks DNS."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from psycopg2_pool2.nsswitch import DEFAULT_SOURCES, NameServices, parse


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("hosts: files dns\n", ("files", "dns")),
        ("passwd: files\nhosts:\tfiles dns # as usual\n", ("files", "dns")),
        (
            "hosts: mymachines resolve [!UNAVAIL=return success=continue] files\n",
            ("mymachines", "resolve", "files"),
        ),
        ("hosts:dns[NOTFOUND=return]files\n", ("dns", "files")),
        ("#hosts: nis\n", DEFAULT_SOURCES),
        ("", DEFAULT_SOURCES),
        ("hosts:\n", ()),
    ],
)
def test_sources_are_read_in_order(text: str, sources: tuple[str, ...]) -> None:
    assert parse(text) == sources


@pytest.mark.parametrize(
    ("hosts", "name", "expected"),
    [
        ("files dns", "db", False),
        ("dns files", "db", False),
        ("files resolve [!UNAVAIL=return] dns", "db", False),
        ("files", "db.test", True),
        ("files ldap dns", "db.test", True),
        ("files dns ldap", "db.test", False),
        ("files mdns4_minimal [NOTFOUND=return] dns", "db.local", True),
        ("files mdns4_minimal [NOTFOUND=return] dns", "a.svc.cluster.local", False),
        ("files mdns4_minimal [NOTFOUND=return] dns", "db.test", False),
        ("mymachines files dns", "box", True),
        ("mymachines files dns", "box.test", False),
        ("files myhostname dns", "Here", True),
        ("files dns myhostname", "here", True),
        ("files dns myhostname", "_gateway", True),
        ("files myhostname dns", "there", False),
    ],
)
def test_source_comes_first_for_the_names_that_it_may_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: str, name: str, expected: bool
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "here")
    path = tmp_path / "nsswitch.conf"
    path.write_text(f"hosts: {hosts}\n")
    assert NameServices(str(path)).come_first(name) is expected


def test_without_the_file_dns_is_asked(tmp_path: Path) -> None:
    assert not NameServices(str(tmp_path / "no")).come_first("db.test")
