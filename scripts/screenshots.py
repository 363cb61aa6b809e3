"""Take the pictures of the page that stand in docs/, or with --all one of every view, width and theme, for looking.

    python scripts/screenshots.py                 # trains a little, about two minutes on a CPU
    python scripts/screenshots.py --home FOLDER   # a folder filled by an earlier `--home FOLDER`, or to be filled and kept
    python scripts/screenshots.py --all FOLDER
    python scripts/screenshots.py --tools         # only those of the tools, each used once: two minutes

It needs Chromium (scripts/install_chromium.sh) and the extra "test".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

import demo_home

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
WIDTHS = {1280: 800, 390: 844}
THEMES = ("light", "dark")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


# --- what there is to see ---------------------------------------------------------------------------------------------


def new_run(page: Page, folder: Path) -> None:
    """Pictures dropped, a plan made."""
    page.set_input_files(".pictures input[type=file]", sorted(map(str, (folder / "pictures" / "zibbo").iterdir())))
    page.get_by_role("radio", name="Object").check()
    page.get_by_label("Trigger: the word").fill("zibbo")
    expect(page.locator(".thumbnails figure")).not_to_have_count(0)
    expect(page.locator(".plan-line")).to_contain_text("pictures")
    loaded(page, ".thumbnails")


def new_run_empty(page: Page, folder: Path) -> None:
    """As somebody sees it who has just come."""
    del folder
    expect(page.locator(".plan-line")).to_contain_text("Give it some pictures")


def new_run_wrong(page: Page, folder: Path) -> None:
    """Mistakes at their fields."""
    page.get_by_label("Or a folder on the server").fill(str(folder / "no such folder"))
    expect(page.locator(".findings li").first).to_be_visible()


def settings(page: Page, folder: Path) -> None:
    """Every option, unfolded."""
    new_run(page, folder)
    page.locator(".all-settings > summary").click()
    for fold in page.locator(".advanced > summary").all():
        if fold.is_visible():
            fold.click()
    page.locator(".all-settings").evaluate("e => e.scrollIntoView()")


def settings_searched(page: Page, folder: Path) -> None:
    """The options that a word finds."""
    del folder
    page.locator(".all-settings > summary").click()
    page.get_by_label("Search the settings").fill("learning rate")
    expect(page.locator(".field:visible")).not_to_have_count(0)
    page.locator(".all-settings").evaluate("e => e.scrollIntoView()")


def presets(page: Page, folder: Path) -> None:
    """The dialog of presets."""
    del folder
    page.get_by_role("button", name="Presets").click()
    expect(page.locator(".presets li").first).to_be_visible()


def folders(page: Page, folder: Path) -> None:
    """The dialog that chooses a folder."""
    del folder
    page.locator(".pictures").get_by_role("button", name="Browse").click()
    expect(page.locator(".folder-list button").first).to_be_visible()


def runs(page: Page, folder: Path, name: str = "zibbo") -> None:
    """A run that is finished: its loss and its samples."""
    del folder
    page.locator("#tab-runs-button").click()
    page.locator(".run-list .item", has_text=name).first.click()
    expect(page.locator(".run-view h2").first).to_have_text(name)
    expect(page.locator(".run-view .differences").last).to_be_visible()
    if name == "zibbo":
        expect(page.locator(".run-view .uplot").first).to_be_visible()
        loaded(page, ".samples")
        page.locator(".run-view .chart").first.locator("xpath=ancestor::section").evaluate("e => e.scrollIntoView()")


def runs_failed(page: Page, folder: Path) -> None:
    """A run that failed, with its reason."""
    runs(page, folder, "from-a-stick")
    expect(page.locator(".trouble")).to_be_visible()


def runs_waiting(page: Page, folder: Path) -> None:
    """A run that waits in the queue."""
    runs(page, folder, "a-rather-long-name-for-a-run-that-waits")


def compare(page: Page, folder: Path) -> None:
    """Two runs: what differs, and their samples side by side."""
    runs(page, folder)
    choice = page.get_by_label("Compare with")
    choice.select_option(choice.locator("option", has_text="first-try").get_attribute("value"))
    expect(page.locator(".pair").first).to_be_visible()
    loaded(page, ".pairs")
    choice.locator("xpath=ancestor::section").evaluate("e => e.scrollIntoView()")


def dataset_empty(page: Page, folder: Path) -> None:
    """Before a folder is chosen."""
    del folder
    page.locator("#tab-dataset-button").click()
    expect(page.locator(".dataset-empty")).to_be_visible()


def dataset(page: Page, folder: Path) -> None:
    """A folder of pictures, some of them chosen."""
    page.locator("#tab-dataset-button").click()
    page.locator(".dataset-empty").get_by_role("button", name="Choose a folder").click()
    dialog = page.get_by_role("dialog", name="Choose a folder")
    expect(dialog.locator(".folder-list button").first).to_be_focused()
    dialog.get_by_label("Path").fill(str(folder / "pictures" / "untidy"))
    dialog.get_by_role("button", name="Go").click()
    expect(dialog.get_by_role("status")).to_contain_text("pictures")
    dialog.get_by_role("button", name="Use this folder").click()
    loaded(page, ".dataset-grid")
    for box in page.locator(".dataset-pick input").all()[:3]:
        box.check()


def dataset_detail(page: Page, folder: Path) -> None:
    """One picture, its crop and its caption."""
    dataset(page, folder)
    page.get_by_role("button", name="Open zibbo_05_wide.png").click()
    loaded(page, ".crop-frame")


def dataset_preview(page: Page, folder: Path) -> None:
    """What an edit of many captions would write."""
    dataset(page, folder)
    page.locator(".dataset-fields input[name=tags]").fill("on a table")
    page.get_by_role("button", name="Preview on").click()
    expect(page.locator(".dataset-preview")).to_be_visible()


def dataset_alike(page: Page, folder: Path) -> None:
    """Pictures that are nearly the same."""
    dataset(page, folder)
    page.get_by_role("button", name="nearly the same").click()
    loaded(page, ".alike-groups")


def tools(page: Page, folder: Path) -> None:
    """What there is, and the fields of one."""
    del folder
    page.locator("#tab-tools-button").click()
    page.locator("[data-tool=merge_loras]").click()
    page.locator(".tool-main .advanced > summary").click()


def tools_wrong(page: Page, folder: Path) -> None:
    """Mistakes at their fields."""
    tools(page, folder)
    card = page.locator(".tool-main .card")
    card.get_by_label("output", exact=True).fill("/elsewhere/merged.safetensors")
    card.get_by_role("button", name="See what it would do").click()
    expect(card.locator(".mistake:visible").first).to_be_visible()


def tools_done(page: Page, folder: Path) -> None:
    """What came of one: a long report."""
    page.locator("#tab-tools-button").click()
    page.locator("[data-tool=inspect]").click()
    card = page.locator(".tool-main .card")
    lora = next((folder / "home" / "runs").glob("*/zibbo.safetensors"), None) or next(folder.rglob("*.safetensors"))
    card.get_by_label("file", exact=True).fill(str(lora))
    card.get_by_role("button", name="Start", exact=True).click()
    expect(card.locator(".tool-outcome pre")).to_be_visible(timeout=180_000)


def imported(page: Page, folder: Path) -> None:
    """What became of a configuration of kohya_ss."""
    file = folder / "from kohya.json"
    file.write_text(KOHYA, encoding="utf-8")
    page.locator(".tools input[type=file]").set_input_files(file)
    expect(page.get_by_role("dialog", name="What became of it")).to_be_visible()


KOHYA = json.dumps({
    "LoRA_type": "Standard", "network_dim": 16, "network_alpha": 8, "learning_rate": 0.0001, "unet_lr": 0.0001,
    "text_encoder_lr": 5e-05, "max_train_epochs": "10", "train_batch_size": 2, "max_resolution": "512,512",
    "lr_scheduler": "cosine", "lr_warmup": 10, "optimizer": "AdamW8bit", "output_name": "cat", "xformers": "xformers",
    "mem_eff_attn": False, "stop_text_encoder_training_pct": 0, "vae_batch_size": 0, "a_key_of_next_year": "what it says",
    "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5", "additional_parameters": "--masked_loss --not_known 5",
})  # fmt: skip
"""With keys of each kind: taken over, converted, without effect, not supported, not known."""


def runs_empty(page: Page, folder: Path) -> None:
    """Before the first run; `folder` holds none."""
    del folder
    page.locator("#tab-runs-button").click()
    expect(page.get_by_text("No runs yet").first).to_be_visible()


View = Callable[[Page, Path], None]
VIEWS: tuple[View, ...] = (
    new_run, new_run_empty, new_run_wrong, settings, settings_searched, presets, folders, runs, runs_failed, runs_waiting,
    compare, dataset_empty, dataset, dataset_detail, dataset_preview, dataset_alike, tools, tools_wrong, tools_done, imported,
)  # fmt: skip
SHOWN: tuple[View, ...] = (new_run, settings_searched, runs, compare, dataset, dataset_detail)
"""The views whose pictures stand in docs/."""


def loaded(page: Page, place: str) -> None:
    """Wait until there are pictures in `place`, and those in sight are drawn."""
    expect(page.locator(f"{place} img").first).to_be_visible()
    page.wait_for_function(
        """place => [...document.querySelectorAll(place + " img")].every((i) => i.complete && (i.naturalWidth || !i.src) ||
             i.getBoundingClientRect().top > innerHeight || !i.offsetParent)""",
        arg=place,
    )


# --- looking at it ----------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a real `limner web` on `folder`/home, allowed to read all of `folder`."""
    environment = {**os.environ, "LIMNER_HOME": str(folder / "home"), "TZ": "UTC"}
    words = [sys.executable, "-m", "limner.cli", "web", "--port", "0", "--headless", "--allowed-path", str(folder)]
    lock = filelock.FileLock(folder / "home" / "locks" / "runner.lock")
    lock.acquire()  # as the runner does: what waits goes on waiting
    process = subprocess.Popen(words, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(line.split()[3] for line in process.stdout if line.startswith("Limner is at"))
    finally:
        process.terminate()
        process.wait()
        lock.release()


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        sys.exit("No Chromium here. Run scripts/install_chromium.sh.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Browser, address: str, width: int, theme: str) -> Page:
    """The page as somebody sees it for the first time, with animations off."""
    size = {"width": width, "height": WIDTHS[width]}
    context = browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce", locale="en-GB", timezone_id="UTC")
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator("#panel-new-run button").first.wait_for()
    page.add_style_tag(content=".limner-corner { display: none }")  # what this machine has to say at the start
    return page


def look_at_all(browser: Browser, address: str, folder: Path, out: Path, names: list[str]) -> None:
    """One picture of the whole page for every view, width and theme."""
    out.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        for width in WIDTHS:
            for view in VIEWS:
                if names and view.__name__ not in names:
                    continue
                page = opened(browser, address, width, theme)
                view(page, folder)
                page.screenshot(path=out / f"{view.__name__}-{width}-{theme}.png", full_page=True)
                page.context.close()


def take_pictures(browser: Browser, address: str, folder: Path) -> None:
    """The pictures in docs/: what fits a screen of 1280 x 800, in light."""
    for view in SHOWN:
        page = opened(browser, address, 1280, "light")
        view(page, folder)
        name = view.__name__.removesuffix("_searched").replace("_", "-")
        page.screenshot(path=PICTURES / f"{name}.png")
        page.context.close()


def take_pictures_of_tools(browser: Browser, names: list[str]) -> None:
    """The card of each tool as it looks when it has done what the tests have it do."""
    sys.path[:0] = [str(PICTURES.parents[1] / "tests"), str(PICTURES.parents[1] / "tests" / "web")]
    import tool_uses

    with tempfile.TemporaryDirectory(prefix="limner-") as name, tool_uses.captioning_server() as url, tool_uses.hub():
        folder = Path(name)
        for inside in ("home/locks", "files"):
            (folder / inside).mkdir(parents=True)
        os.environ["LIMNER_HOME"] = str(folder / "home")
        tool_uses.prepare(folder / "files")
        with served(folder) as address:
            page = opened(browser, address, 1280, "light")
            page.locator("#tab-tools-button").click()
            for tool in names or tool_uses.USES:
                tool_uses.fill_in(page, tool, folder / "files", url)
                card = page.locator(".tool-main .card")
                card.get_by_role("button", name="Start", exact=True).click()
                expect(card.locator(".tool-outcome p b").first).to_have_text(re.compile("finished|failed"), timeout=180_000)
                for painted in card.locator(".tool-picture").all():
                    painted.evaluate("e => e.decode()")
                card.locator(".advanced").evaluate("e => (e.open = false)")
                picture = PICTURES / f"tool-{tool.replace('_', '-')}.png"
                card.screenshot(path=picture)
                with Image.open(picture) as taken:
                    size = (taken.width, min(taken.height, 1100))
                    taken.convert("RGB").crop((0, 0, *size)).quantize(32).save(picture, optimize=True)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="where its home and pictures are kept")
    parser.add_argument("--all", type=Path, dest="out", help="where to put one picture of everything")
    parser.add_argument("--tools", action="store_true", help="the pictures of the tools")
    parser.add_argument("views", nargs="*", help="with --all: only these views; with --tools: only these tools")
    asked = parser.parse_args()
    if asked.tools:
        with chromium() as browser:
            return take_pictures_of_tools(browser, asked.views)
    folder = asked.home or Path(tempfile.mkdtemp(prefix="limner-"))
    if not (folder / "home").exists():
        demo_home.fill(folder)
    try:
        with served(folder) as address, chromium() as browser:
            if asked.out:
                look_at_all(browser, address, folder, asked.out, asked.views)
            else:
                take_pictures(browser, address, folder)
    finally:
        if not asked.home:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
