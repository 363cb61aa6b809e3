"""Take the pictures of the page that the documents show: `python scripts/screenshots.py` writes into docs/pictures.

    --all FOLDER   every page at 1280 x 800 and 390 x 844, light and dark, to be looked at
    --home HOME    a Limner home with runs in it; without, one is made by training the pocket model for two minutes

A real `limner web` and a real Chromium. The names of folders in the pictures are those of a made-up user.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from limner.pocket import PICTURES, lesson

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OUT = Path(__file__).parents[1] / "docs" / "pictures"
SIZES = {1280: (1280, 800), 390: (390, 844)}


def make_home(home: Path, pictures: Path) -> None:
    """Two finished runs that differ in one option, and one that failed."""
    environment = {**os.environ, "LIMNER_HOME": str(home)}
    shared = ["--data.path", str(pictures), "--train.batch_size", "16", "--train.steps", "120", "--adapter.conv_rank", "16"]
    prompts = '["a large zibbo in the middle on a beige background", "a zibbo at the left on a navy background"]'
    shared += ["--sample.prompts", prompts, "--sample.every_steps", "30", "--sample.guidance", "1.0"]
    for name, rate in (("zibbo-fast", "2e-3"), ("zibbo", "8e-4")):
        words = [sys.executable, "-m", "limner.cli", "train", *shared, "--output.name", name, "--optimizer.lr", rate]
        subprocess.run(words, check=True, env=environment)
    words = [sys.executable, "-m", "limner.cli", "train", "--data.path", str(pictures), "--train.steps", "50"]
    words += ["--optimizer.lr", "10", "--train.clip_norm", "off", "--output.name", "too-fast"]
    subprocess.run(words, check=False, env=environment)  # it diverges


@contextmanager
def server(home: Path, pictures: Path) -> Iterator[str]:
    """The address of a `limner web` on `home`."""
    words = [sys.executable, "-m", "limner.cli", "web", "--headless", "--port", "0", "--allowed-path", str(pictures)]
    environment = {**os.environ, "LIMNER_HOME": str(home)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not say where it is"
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


def new_run(page: Page) -> None:
    page.click("#tab-new-run-button")
    page.set_input_files("#panel-new-run input[type=file]", [str(p) for p in sorted(PICTURES.iterdir())])
    page.wait_for_function("document.querySelectorAll('#panel-new-run figure img').length > 11")
    page.wait_for_function("/steps/.test(document.querySelector('#panel-new-run').innerText)")


def settings(page: Page) -> None:
    page.locator("summary", has_text="All settings").click()
    page.locator("summary", has_text="All settings").evaluate("e => e.scrollIntoView()")


def runs(page: Page) -> None:
    page.click("#tab-runs-button")
    page.locator(".history .item", has_text="zibbo").first.click()
    page.wait_for_selector(".run-view .uplot")
    page.wait_for_selector(".samples img")


def compare(page: Page) -> None:
    page.get_by_label("Compare with").select_option(index=1)
    page.get_by_label("Compare with").scroll_into_view_if_needed()


def dataset(page: Page, folder: Path) -> None:
    page.click("#tab-dataset-button")
    page.locator("#panel-dataset").get_by_role("button", name="Choose a folder").first.click()
    dialog = page.locator("dialog[open]")
    dialog.locator(".folder-path").fill(str(folder))
    dialog.get_by_role("button", name="Go", exact=True).click()
    page.wait_for_timeout(500)
    dialog.get_by_role("button", name="Use this folder").click()
    page.wait_for_selector(".dataset-grid img")


def take(page: Page, folder: Path, ending: str, pictures: Path, *, whole: bool) -> None:
    """Every page of one size and theme. `whole`: as long as it is, else what a screen shows."""
    for name, go in (("new-run", new_run), ("settings", settings), ("runs", runs), ("compare", compare)):
        go(page)
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"{name}{ending}.png", full_page=whole)
    dataset(page, pictures)
    page.wait_for_timeout(1500)
    page.screenshot(path=folder / f"dataset{ending}.png", full_page=whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", type=Path)
    parser.add_argument("--home", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ann-") as made, sync_playwright() as playwright:
        home = args.home or Path(made) / "limner"
        pictures = lesson.lay_out(Path(made) / "pictures")
        if args.home is None:
            make_home(home, pictures)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        with server(home, Path(made)) as address:
            for width, theme in [(w, t) for w in SIZES for t in ("light", "dark")] if args.all else [(1280, "light")]:
                size = dict(zip(("width", "height"), SIZES[width], strict=True))
                page = browser.new_context(viewport=size, color_scheme=theme).new_page()  # type: ignore[arg-type]
                page.goto(address)
                page.wait_for_selector("#panel-new-run button")
                page.wait_for_timeout(7000)  # passing messages have passed
                folder, ending = (args.all, f"-{width}-{theme}") if args.all else (OUT, "")
                folder.mkdir(parents=True, exist_ok=True)
                take(page, folder, ending, pictures, whole=bool(args.all))
        browser.close()


if __name__ == "__main__":
    main()
