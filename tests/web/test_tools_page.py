"""The tab Tools as somebody uses it: every tool once, from its fields to its result; mistakes, stopping, and coming back."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tool_uses
from playwright.sync_api import Browser, Locator, Page, expect
from tool_uses import USES

from conftest import Limner
from limner.config.fields import section_types
from limner.config.tools import Tools
from limner.config.tools.base import ToolSection

pytestmark = pytest.mark.slow

SECONDS = 60_000
"""How long a tool may take on a busy machine, in milliseconds."""

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


@pytest.fixture(scope="module")
def bench(browser: Browser) -> Iterator[Bench]:
    """One page for all of them: each tool's process is its own anyway."""
    place = Path(tempfile.mkdtemp(prefix="limner-tools-"))
    folder = place / "files"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch, tool_uses.captioning_server() as url, tool_uses.hub():
        patch.setenv("LIMNER_HOME", str(place / "home"))
        tool_uses.prepare(folder)
        limner = Limner("--port", "0", "--headless", "--allowed-path", str(folder), is_forked=True)
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(limner.url)
        page.locator("#tab-tools-button").click()
        page.locator(".tool-list button").first.wait_for()
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
    tool_uses.fill_in(bench.page, tool, bench.folder, bench.url)
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
    assert not bench.errors, bench.errors


def test_every_tool_stands_under_a_heading(bench: Bench) -> None:
    shown = [
        box.all_inner_texts() for box in (bench.page.locator(".tool-list section").nth(i).locator("h3, li") for i in range(4))
    ]
    assert [texts[0] for texts in shown] == ["Files", "LoRAs", "Captions", "Folders of pictures"]
    assert sorted(title for texts in shown for title in texts[1:]) == sorted(TITLES.values())


def test_a_mistake_stands_at_its_field(bench: Bench) -> None:
    """What is missing is said when looking and when starting; what lies elsewhere is not even asked about."""
    card, outside = bench.choose("resize"), bench.folder.parent / "outside.safetensors"
    shutil.copy(bench.folder / "zibbo.safetensors", outside)
    lora, output, rank = (card.get_by_label(label, exact=True) for label in ("lora", "output", "rank"))
    output.fill(str(bench.folder / "never.safetensors"))
    rank.fill("2")
    field = card.locator("[data-path='resize.lora'] .mistake")
    for path, said in (
        (None, "is not given"),
        (str(bench.folder / "none.safetensors"), "none.safetensors"),
        (str(outside), "outside"),
    ):
        lora.fill(path or "")
        card.get_by_role("button", name="See what it would do").click()
        expect(field).to_contain_text(said, timeout=SECONDS)
        expect(lora).to_have_attribute("aria-invalid", "true")
        if path:
            lora.fill("")
            expect(field).to_be_hidden()
    lora.fill(str(bench.folder / "none.safetensors"))
    card.get_by_role("button", name="Start", exact=True).click()
    expect(field).to_contain_text("none.safetensors", timeout=SECONDS)
    assert not (bench.folder / "never.safetensors").exists()
    assert len(bench.page.locator(".limner-note.error").all()) == 0


def test_one_that_runs_is_stopped_and_found_again_after_a_reload(bench: Bench) -> None:
    pictures = bench.folder / "many"
    shutil.copytree(bench.folder / "asked", pictures, ignore=shutil.ignore_patterns("*.txt"))
    with tool_uses.captioning_server(seconds=60) as slow:
        card = bench.choose("caption_by_server")
        for label, text in (("path", str(pictures)), ("url", slow), ("model", "qwen3-vl")):
            card.get_by_label(label, exact=True).fill(text)
        card.get_by_role("button", name="Start", exact=True).click()
        stop = card.get_by_role("button", name="Stop", exact=True)
        expect(stop).to_be_visible(timeout=SECONDS)
        expect(card.locator(".tool-outcome p b").first).to_have_text("running", ignore_case=True, timeout=SECONDS)
        bench.page.reload()
        used = bench.page.locator(".history li button").first
        if not used.is_visible():
            bench.page.locator("#tab-tools-button").click()
        expect(used).to_contain_text(TITLES["caption_by_server"])
        used.click()
        card = bench.page.locator(".tool-main .card")
        card.get_by_role("button", name="Stop", exact=True).click()
        ended(card, "stopped")
    expect(used).to_contain_text("stopped")
    assert not list(pictures.glob("*.txt"))


def test_the_dataset_tab_leads_to_the_captioners(bench: Bench) -> None:
    """And its Undo says whose captions it takes back."""
    page, folder = bench.page, bench.folder / "many"
    (folder / "zibbo_00.txt").unlink(missing_ok=True)
    page.locator("#tab-dataset-button").click()
    page.locator(".dataset-empty").get_by_role("button", name="Choose a folder").click()
    dialog = page.get_by_role("dialog", name="Choose a folder")
    expect(dialog.locator(".folder-list button").first).to_be_focused()
    dialog.get_by_label("Path").fill(str(folder))
    dialog.get_by_role("button", name="Go").click()
    expect(dialog.get_by_role("status")).to_contain_text("pictures")
    dialog.get_by_role("button", name="Use this folder").click()
    page.get_by_role("button", name="Caption …").click()
    card = page.locator(".tool-main .card")
    expect(card.get_by_role("heading", level=2)).to_have_text(TITLES["tag"])
    expect(card.get_by_label("path", exact=True)).to_have_value(str(folder))
    card.get_by_label("model", exact=True).fill(str(bench.folder / "tagger"))
    card.get_by_label("general threshold", exact=True).fill("0")
    card.get_by_role("button", name="Start", exact=True).click()
    ended(card)
    page.locator(".tool-list").get_by_role("button", name=TITLES["caption_by_server"], exact=True).click()
    expect(page.locator(".tool-main .card").get_by_label("path", exact=True)).to_have_value(str(folder))
    page.reload()
    page.locator("#tab-dataset-button").click()
    undo = page.get_by_role("button", name="Undo")
    expect(undo).to_have_text("Undo: Tags by a tagger (3)")
    undo.click()
    expect(page.get_by_role("button", name="Redo")).to_contain_text("Tags by a tagger")
    assert not list(folder.glob("*.txt")) and not bench.errors
