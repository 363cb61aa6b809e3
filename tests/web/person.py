"""What a person does at the page and sees on it, for the tests that use it as one."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Download, Page, expect

from limner.pocket import PICTURES as FOLDER

SECONDS = 300_000
"""How long anything may take on a busy machine, in milliseconds."""

PICTURES = sorted(FOLDER.glob("*"))[:24]
"""Twelve pictures of the pocket lesson, and their captions."""

_DROP = """async (files) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  }
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer });
  document.querySelector(".drop").dispatchEvent(event);
}"""


def drop(page: Page, files: list[Path]) -> None:
    """Drop files on the page New run."""
    page.wait_for_selector(".drop")
    page.evaluate(_DROP, [[f.name, base64.b64encode(f.read_bytes()).decode()] for f in files])


def train(page: Page) -> None:
    page.get_by_role("button", name="Train", exact=True).click()


def says(page: Page, words: str) -> None:
    """Wait until the chosen run's sentence says something."""
    expect(page.locator(".run-view .sentence")).to_contain_text(re.compile(words), timeout=SECONDS)


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS / 1000) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


class Person:
    """Somebody at the page, whose every action is counted: opening it, a drop, a click."""

    def __init__(self, page: Page) -> None:
        self.page, self.actions = page, list[str]()

    def open(self, address: str) -> None:
        self.actions.append("open")
        self.page.goto(address)

    def drop(self, files: list[Path]) -> None:
        self.actions.append("drop")
        drop(self.page, files)

    def train(self) -> None:
        self.actions.append("Train")
        train(self.page)

    def download(self, name: str) -> Download:
        self.actions.append(f"download {name}")
        with self.page.expect_download() as download:
            self.page.get_by_role("link", name=name).click()
        return download.value
