"""Pages in a real headless Chromium: Debian's ``chromium`` package, driven by Playwright. Nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; skips the test where none is installed."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def quiet_page(browser: Browser, **options: object) -> Iterator[Page]:
    """A page in a profile of its own; in the end, anything it complained about or asked of the network fails the test.

    Args:
        browser: from :func:`chromium`.
        options: of Playwright's ``new_context``, e.g. ``color_scheme="dark"``, ``viewport={"width": 400, ...}``.
    """
    complaints: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text}")

    def on_request(request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("file", "data", "blob") and address.hostname not in LOOPBACK:
            complaints.append(f"asked the network for {request.url}")

    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    page.on("request", on_request)
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    try:
        yield page
    finally:
        context.close()
    assert complaints == []
