"""A real browser for the tests that look at pages: the published book and JupyterLab.

    def test_something(browser):  # the fixture of conftest.py
        with open_page(browser) as (page, outside, errors):
            page.goto("file:///...")
        assert outside == []
        assert errors == []

Pages reach this machine only, so that a test means the same with and without network.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

LOOPBACK = ("127.0.0.1", "localhost")
# A second lock: routes see neither redirections nor what the browser itself asks for.
RESOLVER_RULES = "--host-resolver-rules=MAP * ~NOTFOUND, " + ", ".join(
    f"EXCLUDE {host}" for host in LOOPBACK
)


class Opened(NamedTuple):
    page: Page
    outside: list[str]  # addresses outside this machine: asked for, and refused
    errors: list[str]  # console errors and uncaught exceptions


def chromium_path() -> str | None:
    """The system's Chromium or Chrome; None stands for the one that Playwright has."""
    found = (
        shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")
    )
    return next(filter(None, found), None)


@contextlib.contextmanager
def launched_browser() -> Iterator[Browser]:
    """A headless Chromium; without one the test is skipped, and in CI it fails."""
    with sync_playwright() as playwright:
        path = chromium_path()
        if not Path(path or playwright.chromium.executable_path).exists():
            without_browser("there is no Chromium")
        arguments = [RESOLVER_RULES]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # its sandbox refuses root
        try:
            launched = playwright.chromium.launch(executable_path=path, args=arguments)
        except Error as error:  # Ubuntu's chromium-browser is a script that wants snap
            without_browser(f"{path or 'Chromium'} does not start: {error}")
        yield launched
        launched.close()


def without_browser(reason: str) -> NoReturn:
    message = (
        f"pages are not looked at, {reason}. Install the system's (apt install "
        "chromium) or Playwright's (.venv/bin/playwright install --with-deps chromium)"
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def on_this_machine(address: str) -> bool:
    parts = urlsplit(address)
    return (
        parts.scheme in ("file", "data", "blob", "about") or parts.hostname in LOOPBACK
    )


@contextlib.contextmanager
def open_page(browser: Browser, **context_options) -> Iterator[Opened]:
    """An empty page that reaches this machine only; lists record what it tried."""
    # What a service worker asks for passes routes by.
    context = browser.new_context(service_workers="block", **context_options)
    opened = Opened(context.new_page(), outside=[], errors=[])

    def refuse_socket(socket):
        opened.outside.append(socket.url)
        socket.close()

    def note_request(request):
        if not on_this_machine(request.url):
            opened.outside.append(request.url)

    context.on("request", note_request)
    context.route(
        lambda address: not on_this_machine(address), lambda route: route.abort()
    )
    context.route_web_socket(
        lambda address: not on_this_machine(address), refuse_socket
    )
    context.on(
        "console",
        lambda line: opened.errors.append(line.text) if line.type == "error" else None,
    )
    context.on("weberror", lambda error: opened.errors.append(str(error.error)))
    try:
        yield opened
    finally:
        context.close()
