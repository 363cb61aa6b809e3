"""The Dataset tab in a real browser: a folder of real pictures is looked at, edited, undone; the files on the disk tell."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from limner.settings import Settings
from limner.web.app import make_app
from limner.web.context import Context
from limner.web.words import Words

pytestmark = pytest.mark.slow
SHIPPED = Path(pytest.importorskip("skimage").__file__).parent / "data"
CAPTIONS = {
    "astronaut": "a woman, portrait",
    "chelsea": "a cat, fur",
    "coffee": "a cup, table",
    "rocket": "",
    "camera": "a man, portrait",
}
expect.set_options(timeout=60_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "roots" / "Mia’s 猫 pictures"
    root.mkdir(parents=True)
    for name, caption in CAPTIONS.items():
        source = next(SHIPPED.glob(f"{name}.*"))
        shutil.copy(source, root / source.name)
        if caption:
            (root / f"{name}.txt").write_text(f"{caption}\nsecond line\n", encoding="utf-8")
    Image.open(root / "coffee.png").resize((300, 200)).save(root / "coffee small.jpg")
    (root / "broken.png").write_bytes(b"")
    return root


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """A server of our own in a thread, whose only root holds the folder."""
    app = make_app(Context(Settings(), (folder.parent.resolve(),), Words()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def tab(browser: Browser, address: str, folder: Path) -> Iterator[Page]:
    """The tab with the folder open, chosen through the dialog."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("tab", name="Dataset").click()
    page.locator(".dataset-empty").get_by_role("button", name="Choose a folder").click()
    dialog = page.get_by_role("dialog", name="Choose a folder")
    dialog.get_by_role("button", name=folder.parent.name).click()
    dialog.get_by_role("button", name=folder.name).click()
    expect(dialog.get_by_label("Path")).to_have_value(str(folder.resolve()))
    dialog.get_by_role("button", name="Use this folder").click()
    expect(page.locator(".dataset-grid > li")).to_have_count(6)
    yield page
    context.close()
    assert not errors


def caption(folder: Path, name: str) -> str:
    return (folder / f"{name}.txt").read_text(encoding="utf-8")


def test_one_caption_is_edited_in_the_large_view_and_undone(tab: Page, folder: Path) -> None:
    tab.get_by_role("button", name="Open astronaut.png").click()
    dialog = tab.get_by_role("dialog", name="astronaut.png")
    expect(dialog).to_be_visible()
    tab.keyboard.press("ArrowRight")
    dialog = tab.get_by_role("dialog", name="camera.png")
    text = dialog.get_by_label("Caption")
    expect(text).to_have_value("a man, portrait")
    text.fill("a man <b>with</b> 猫 & “camera”\nportrait")
    tab.keyboard.press("Escape")
    expect(text).to_have_value("a man, portrait")
    text.fill("a man <b>with</b> 猫 & “camera”\nportrait")
    tab.keyboard.press("Control+Enter")
    expect(dialog.get_by_text("Saved.")).to_be_visible()
    assert caption(folder, "camera") == "a man <b>with</b> 猫 & “camera” portrait\nsecond line\n"
    tab.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(tab.locator('.dataset-grid > li[data-name="camera.png"]').get_by_text("<b>with</b> 猫")).to_be_visible()
    expect(tab.get_by_role("button", name="Open camera.png")).to_be_focused()
    tab.keyboard.press("Control+z")
    expect(tab.get_by_role("button", name="Redo: Set the caption (1)")).to_be_enabled()
    assert caption(folder, "camera") == "a man, portrait\nsecond line\n"


def test_a_tag_is_added_to_many_after_a_look_and_taken_back(tab: Page, folder: Path) -> None:
    tab.get_by_role("group", name="Tags").get_by_role("button", name="portrait 2").click()
    expect(tab.locator(".dataset-grid > li")).to_have_count(2)
    tab.get_by_role("button", name="Choose all 2").click()
    tab.get_by_label("Tags", exact=True).and_(tab.locator("input")).fill("zwx")
    tab.get_by_label("Where").select_option("front")
    tab.get_by_role("button", name="Preview on 2").click()
    dialog = tab.get_by_role("dialog", name="What would change")
    expect(dialog.locator("ins")).to_have_text(["zwx, a woman, portrait", "zwx, a man, portrait"])
    assert caption(folder, "camera") == "a man, portrait\nsecond line\n", "a look writes nothing"
    dialog.get_by_role("button", name="Write to files: 2").click()
    expect(tab.get_by_role("button", name="Undo: Add tags (2)")).to_be_enabled()
    assert caption(folder, "camera") == "zwx, a man, portrait\nsecond line\n"
    assert caption(folder, "astronaut") == "zwx, a woman, portrait\nsecond line\n"
    assert caption(folder, "chelsea") == "a cat, fur\nsecond line\n"
    (folder / "astronaut.txt").write_text("mine")
    tab.get_by_role("button", name=re.compile("^Undo")).click()
    expect(tab.get_by_text("astronaut.txt: it was changed by somebody else since")).to_be_visible()
    assert caption(folder, "camera") == "a man, portrait\nsecond line\n" and caption(folder, "astronaut") == "mine"
    tab.get_by_role("button", name="Redo: Add tags (2)").click()
    expect(tab.get_by_role("button", name="Undo: Add tags (2)")).to_be_enabled()
    assert caption(folder, "camera") == "zwx, a man, portrait\nsecond line\n"


def test_pictures_that_are_alike_are_put_away_and_come_back(tab: Page, folder: Path) -> None:
    tab.get_by_role("button", name="nearly the same").click()
    expect(tab.locator(".alike-group li")).to_have_count(2)
    tab.get_by_role("button", name="Keep the largest, put away 1").click()
    expect(tab.get_by_text("No two pictures are nearly the same.")).to_be_visible()
    assert not (folder / "coffee small.jpg").exists() and (folder / ".limner-removed" / "coffee small.jpg").exists()
    tab.get_by_role("button", name="Undo: Put away (1)").click()
    expect(tab.locator(".alike-group li")).to_have_count(2)
    assert (folder / "coffee small.jpg").exists()


def test_problems_text_and_a_reload(tab: Page, folder: Path) -> None:
    tab.locator("#panel-dataset").get_by_label("Resolution (px)").fill("512")
    tab.locator("#panel-dataset").get_by_label("Resolution (px)").press("Enter")
    problems = tab.get_by_role("group", name="Problems")
    expect(problems.get_by_role("button", name="too small 2")).to_be_visible()
    problems.get_by_role("button", name="too small 2").click()
    expect(tab.locator(".dataset-grid > li")).to_have_count(2)
    problems.get_by_role("button", name="too small 2").click()
    problems.get_by_role("button", name="broken 1").click()
    expect(tab.get_by_text("is empty (0 bytes).")).to_be_visible()
    problems.get_by_role("button", name="broken 1").click()
    tab.get_by_label("Find in names and captions").fill("ROCK")
    expect(tab.locator(".dataset-grid > li")).to_have_count(1)
    tab.reload()
    tab.get_by_role("tab", name="Dataset").click()
    expect(tab.locator(".dataset-grid > li")).to_have_count(6)
    expect(tab.locator("#panel-dataset").get_by_label("Resolution (px)")).to_have_value("512")
    tab.locator("#panel-dataset").get_by_label("Resolution (px)").fill("abc")
    tab.locator("#panel-dataset").get_by_label("Resolution (px)").press("Enter")
    expect(tab.get_by_text(re.compile("data.resolution: .*abc.* is not allowed"))).to_be_visible()


def test_by_keyboard_alone_and_on_a_phone(tab: Page, folder: Path) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    box = tab.get_by_label("Choose rocket.jpg")
    box.focus()
    tab.keyboard.press("Space")
    expect(tab.get_by_role("status").filter(has_text="1 chosen of 6")).to_be_visible()
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("button", name="Open rocket.jpg")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("dialog", name="rocket.jpg")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    overflowing = tab.evaluate(
        "[...document.querySelectorAll('dialog *, #panel-dataset *')].filter(e => e.offsetParent"
        " && !e.matches('.crop-box') && e.getBoundingClientRect().right > 390.5).map(e => e.outerHTML.slice(0, 80))"
    )
    assert overflowing == []
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("button", name="Open rocket.jpg")).to_be_focused()
