"""A real browser without a window, and a web server for it to look at."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.wait import WebDriverWait

_LOOK = (Path(__file__).parent / "look.js").read_text()
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # tests may run as root
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    # Whatever a page wants from elsewhere is not there.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)

WIDE, NARROW = 1400, 360
"""Widths of windows: of a screen, and of a telephone."""


class Site:
    """A folder served on the loopback interface; `missing` are the paths that were not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []
        handler = partial(_Handler, directory=str(folder), missing=self.missing)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="site")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, missing: list[str], **kwargs: Any) -> None:
        self._missing = missing
        super().__init__(*args, **kwargs)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        if int(code) >= 400:
            self._missing.append(self.path)

    def log_error(self, *args: Any) -> None:
        """Say nothing: the browser leaves when it likes."""


class Browser:
    """Chromium, driven by its own driver."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def show(self, width: int, scheme: str) -> None:
        """Have the page shown in a window so wide, to somebody who prefers "light" or "dark"."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        """Load a page; return when it has loaded."""
        self.driver.get(url)

    @property
    def page(self) -> str:
        """The name of the page, without folder and suffix."""
        return Path(self.driver.current_url).stem

    def look(self) -> list[str]:
        """Return what is wrong with the page as it is shown now."""
        faults: list[str] = self.ask(_LOOK)
        return faults

    def ask(self, script: str, *args: Any) -> Any:
        """Run JavaScript in the page; return what it returns."""
        return self.driver.execute_script(script, *args)

    def complaints(self) -> list[str]:
        """Return what the browser wrote to its console as an error since the last call."""
        entries: Any = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def click(self, selector: str) -> None:
        """Click at what a CSS selector finds, as soon as it can be clicked at."""
        place = (By.CSS_SELECTOR, selector)
        WebDriverWait(self.driver, 10).until(element_to_be_clickable(place)).click()


@contextmanager
def new_browser() -> Iterator[Browser]:
    """Start a browser; skip the test where there is none."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("chromium and its driver are not installed")
    options = ChromeOptions()
    options.binary_location = binary
    for option in _OPTIONS:
        options.add_argument(option)
    chrome = Chrome(options=options, service=ChromeService(driver))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
