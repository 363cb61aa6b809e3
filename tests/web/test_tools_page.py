"""The tab Tools as somebody uses it: every tool once, from its fields to its result; mistakes, stopping, and coming back."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

import tool_uses
from conftest import Limner
from limner.config.fields import section_types
from limner.config.tools import Tools
from limner.config.tools.base import ToolSection
from person import SECONDS
from tool_uses import USES, Use

pytestmark = pytest.mark.slow

TITLES = {name: kind.title for name, _, kind in section_types(Tools) if issubclass(kind, ToolSection)}


@dataclass
class Bench:
    """The tab, open in a browser, and the folder that its page may use."""

    page: Page
    folder: Path
    url: str
    errors: list[str]

    def choose(self, tool: str) -> Locator:
        """A tool's card, emptied of what was typed before."""
        self.page.locator(".tool-list").get_by_role("button", name=TITLES[tool], exact=True).click()
        card = self.page.locator(".tool-main .card")
        expect(card.get_by_role("heading", level=2)).to_have_text(TITLES[tool])
        for reset in card.locator(".reset:visible").all()[::-1]:
            reset.click()
        return card

    def fill(self, card: Locator, use: Use) -> None:
        if use.advanced:
            card.locator("summary", has_text="Advanced").click()
        for label, text in tool_uses.all_fields(use):
            typed, entry = tool_uses.filled(text, self.folder, self.url), card.get_by_label(label, exact=True)
            if isinstance(typed, bool):
                entry.set_checked(typed)
            elif entry.evaluate("e => e.tagName") == "SELECT":
                entry.select_option(typed)
            else:
                entry.fill(typed)


@pytest.fixture(scope="module")
def bench(browser: Browser) -> Iterator[Bench]:
    """One page for all of them: each tool's process is its own anyway."""
    place = Path(tempfile.mkdtemp(prefix="limner-tools-"))
    folder = place / "files"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, tool_uses.captioning_server() as url:
        patch.setenv("LIMNER_HOME", str(place / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        tool_uses.prepare(folder)
        limner = Limner("--port", "0", "--headless", "--allowed-path", str(folder), is_forked=True)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(limner.url)
        page.locator("#tab-tools-button").click()
        yield Bench(page, folder, url, errors)
        page.context.close()
        limner.end()
    shutil.rmtree(place)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ended(card: Locator, word: str = "finished") -> Locator:
    """The outcome, once the tool has ended so."""
    outcome = card.locator(".tool-outcome")
    expect(outcome.locator("p b").first).to_have_text(re.compile("finished|failed|stopped", re.I), timeout=SECONDS)
    expect(outcome.locator("p b").first).to_have_text(re.compile(word, re.I), timeout=1000)
    return outcome


def mistakes(card: Locator) -> list[str]:
    """What is wrong, as the page says it."""
    return [found.inner_text() for found in card.locator(".mistake:visible, .findings .error:visible").all()]


@pytest.mark.parametrize("tool", Tools.model_fields)
def test_a_tool_is_looked_at_started_and_seen_to_end(bench: Bench, tool: str) -> None:
    use, card = USES[tool], bench.choose(tool)
    bench.fill(card, use)
    before = tree(bench.folder)
    card.get_by_role("button", name="See what it would do").click()
    expect(card.get_by_role("button", name="Start", exact=True)).to_be_enabled(timeout=SECONDS)
    assert not mistakes(card)
    expect(card.get_by_role("heading", name="It would")).to_be_visible()
    assert tree(bench.folder) == before
    card.get_by_role("button", name="Start", exact=True).click()
    outcome = ended(card)
    assert not mistakes(card)
    expect(outcome).to_contain_text(re.compile(use.says))
    use.check(bench.folder)
    for picture in outcome.locator("img").all():
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("e => e.naturalWidth") > 1
    assert not bench.errors
