"""A real `limner web` on a home of its own, and a real Chromium to look at it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from starlette.testclient import TestClient

import forked
from limner.web.context import Context

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class Limner:
    """A running `limner web`. `url` ends without a slash; its output (both streams) goes to a file."""

    def __init__(self, *words: str, is_forked: bool = False, **environment: str) -> None:
        self.log = Path(tempfile.mkdtemp(prefix="limner-web-")) / "output.txt"
        with self.log.open("wb") as log, forked.forks() if is_forked else contextlib.nullcontext():
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "limner.cli", "web", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment},
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        """Waits until the server says where it answers."""
        while True:
            ended = self.process.poll()
            for line in self.output.splitlines(keepends=True):
                if line.startswith("Limner is at http") and line.endswith("\n"):
                    return line.split()[3].rstrip("/")
            assert ended is None, f"limner web ended with {ended}: {self.output}"
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue

    def end(self) -> None:
        """Stop it as a user would; kill it if that takes longer than anybody waits."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.log.parent, ignore_errors=True)


@pytest.fixture
def limner_web(home: Path) -> Iterator[Callable[..., Limner]]:
    """limner_web("--port", "0", LIMNER_PASSWORD="x") starts a server on `home`; it ends with the test."""
    started: list[Limner] = []

    def start(*words: str, is_forked: bool = False, **environment: str) -> Limner:
        started.append(Limner(*words, is_forked=is_forked, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def client(home: Path) -> Callable[[Context], TestClient]:
    """client(context) asks the application in this process, gate and all, as its own page does."""
    from limner.web.app import make_app

    def make(context: Context) -> TestClient:
        asking = TestClient(make_app(context), base_url="http://127.0.0.1", headers={"Origin": "http://127.0.0.1"})
        assert asking.get("/").status_code == 200  # gives the session's cookie
        return asking

    return make


@pytest.fixture
def server(limner_web: Callable[..., Limner]) -> str:
    """The address (http://127.0.0.1:port) of a `limner web` on `home`."""
    return limner_web("--port", "0", is_forked=True).url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium; `scripts/install_chromium.sh` installs it where it is missing."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("No Chromium here. Run scripts/install_chromium.sh.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """The page, opened and drawn. Whatever goes wrong in it (exceptions, console errors) fails the test at its end."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(f"{message.text} ({message.location})") if message.type == "error" else None
    )
    page.set_default_timeout(60_000)
    page.goto(server)
    page.wait_for_selector("#tabs")
    yield page
    page.context.close()
    assert not errors
