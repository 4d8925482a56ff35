"""A real browser for pages: headless Chromium, driven by selenium. Where either is missing, tests
that ask for one skip."""

import base64
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """Why there is no browser, in a sentence; '' where there is one."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "pages are looked at with selenium: pip install -e '.[test]'"
    if not any(map(shutil.which, NAMES)) or not shutil.which("chromedriver"):
        return "pages are looked at in Chromium: apt-get install chromium chromium-driver"
    return ""


class Browser:
    """One Chromium. `driver` is selenium's."""

    def __init__(self, driver: Any):
        self.driver = driver

    def open(self, address: str, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(address)

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition: Any, seconds: float = 60) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.1).until(lambda _: condition())

    def errors(self) -> list[str]:
        """What the console was told since the last call: errors, and what the policy refused."""
        told = self.driver.get_log("browser")
        return [line["message"] for line in told if line["level"] in ("SEVERE", "WARNING")]

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return self.run(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )

    def pdf(self) -> bytes:
        made = self.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
        return base64.b64decode(made["data"])

    def shot(self, path: Path, whole: bool = True) -> Path:
        options = {"format": "png", "captureBeyondViewport": whole}
        made = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        path.write_bytes(base64.b64decode(made["data"]))
        return path


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own. Skips the test where there is none."""
    if reason := missing():
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
