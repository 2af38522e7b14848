"""The documentation as a reader sees it: built, and looked at in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urldefrag, urljoin

import pytest

from tests.support.waiting import wait_until

pytest.importorskip("furo")
pytest.importorskip("selenium")

from tests.support.browser import NARROW, WIDE, Browser, Site, new_browser

_DOCS = Path(__file__).parents[2] / "docs"
_NAMES = sorted(path.stem for path in _DOCS.glob("*.rst"))
_VIEWS = [(width, scheme) for width in (WIDE, NARROW) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with new_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-qW", "--keep-going", "-b", "html", _DOCS, folder],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    site = Site(folder)
    yield site
    site.close()


def test_every_page_looks_right(browser: Browser, site: Site) -> None:
    faults = []
    pages = []
    # What other tests left open may complain for as long as it is there.
    browser.open(f"{site.url}index.html")
    browser.complaints()
    following: str | None = f"{site.url}index.html"
    while following is not None:
        browser.open(following)
        pages.append(browser.page)
        for view in _VIEWS:
            browser.show(*view)
            faults += [f"{browser.page}, {view}: {fault}" for fault in browser.look()]
        following = browser.ask("return document.querySelector('a.next-page')?.href ?? null")
    assert faults == []
    assert site.missing == []
    assert browser.complaints() == []
    assert sorted(pages) == _NAMES


def test_every_link_leads_somewhere(site: Site) -> None:
    pages = {path.name: path.read_text() for path in site.folder.glob("*.html")}
    places = {
        f"{name}#{place}"
        for name, text in pages.items()
        for place in re.findall(r' id="(.+?)"', text)
    }
    for name, text in pages.items():
        for link in re.findall(r'<a [^>]*href="(?!https?:)(.+?)"', text):
            target, fragment = urldefrag(urljoin(name, link))
            assert target in pages or (site.folder / target).is_file(), f"{name}: {link}"
            assert not fragment or f"{target}#{fragment}" in places, f"{name}: {link}"


def test_the_menu_of_a_narrow_page_leads_on(browser: Browser, site: Site) -> None:
    link = "document.querySelector('.sidebar-tree a[href=\"getting-started.html\"]')"
    browser.show(NARROW, "light")
    browser.open(f"{site.url}index.html")
    browser.click(".nav-overlay-icon")
    # It slides in from the left.
    wait_until(lambda: browser.ask(f"return {link}.getBoundingClientRect().left >= 0"))
    browser.click(".sidebar-tree a[href='getting-started.html']")
    wait_until(lambda: browser.page == "getting-started")


def test_light_and_dark_can_be_chosen(browser: Browser, site: Site) -> None:
    def shade() -> float:
        red = browser.ask("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        return int(red) / 255

    browser.show(WIDE, "light")
    browser.open(f"{site.url}connection-life.html")
    shades = {shade()}
    for _ in range(3):  # light, dark, as the system has it
        browser.click(".content .theme-toggle")
        shades.add(shade())
        assert browser.look() == []
    assert min(shades) < 0.2 < 0.8 < max(shades)


def test_the_search_needs_no_server(browser: Browser, site: Site) -> None:
    browser.show(WIDE, "light")
    browser.open(f"{(site.folder / 'search.html').as_uri()}?q=maxconn")
    wait_until(lambda: browser.ask("return document.querySelectorAll('.search li').length") > 3)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p style='width: 3000px'>wide</p>", "it is "),
        ("<img src='nowhere.png'>", "no picture: "),
        ("<p>one</p><p style='margin-top: -25px'>another</p>", '"another" lies over "one"'),
        ("<p style='color: #aaa'>pale</p>", '"pale" has a contrast of 2.'),
        ("<svg width='40'><text y='20'>a long text</text></svg>", '"a long text" is cut off'),
    ],
    ids=["wide", "missing", "overlapping", "pale", "cut off"],
)
def test_what_is_wrong_is_seen(browser: Browser, body: str, fault: str) -> None:
    browser.show(WIDE, "light")
    browser.open("data:text/html," + quote(f"<!doctype html><article>{body}</article>"))
    [found] = browser.look()
    assert found.startswith(fault)
