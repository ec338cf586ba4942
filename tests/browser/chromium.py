"""Opens files in a headless Chromium and collects its errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = shutil.which(os.environ.get("CHROMIUM", "chromium"))


def why_not() -> str:
    """Why no test can run here, or an empty string."""
    if find_spec("playwright") is None:
        return "no playwright: install the test extra"
    return "" if PROGRAM else "no chromium: run tests/browser/install_chromium.sh, or name one in CHROMIUM"


def error() -> type[Exception]:
    """What is raised where the page is not as it was."""
    from playwright.sync_api import Error

    return Error


@dataclass(frozen=True)
class Visit:
    """A page that is open, what it asked for, and what it complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=PROGRAM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, path: Path, *, width: int, height: int, scheme: str, script: bool = True
) -> Iterator[Visit]:
    """Open a file in a fresh window of that many CSS pixels, light or dark."""
    with browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=script,
        offline=True,
    ) as context:
        found = Visit(context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(path.as_uri())
        yield found
