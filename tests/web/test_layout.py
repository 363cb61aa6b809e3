"""Every view, wide in light and narrow in dark: nothing cut or overlapping, contrast AA, all of it reachable by keyboard.

The views and the home that they look at are those of scripts/screenshots.py. (Colours know no width, places no theme.)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import demo_home
import screenshots

CHECKS = Path(__file__).with_name("layout.js").read_text(encoding="utf-8")

LOOKS = tuple(zip(screenshots.WIDTHS, screenshots.THEMES, strict=True))

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def filled() -> Iterator[tuple[str, Path]]:
    """(address, folder) of a server on a home with runs; its path is short, as people's are."""
    with tempfile.TemporaryDirectory(prefix="limner-") as name:
        folder = Path(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LIMNER_HOME", "")  # the filling sets it: put it back behind
            demo_home.fill(folder, steps=20)
            with screenshots.served(folder) as address:
                yield address, folder


def faults(page: Page) -> list[str]:
    """What is wrong with what the page shows now; presses Tab until everything was reached, or all of it twice."""
    found = page.evaluate(CHECKS)
    for _ in range(2 * page.evaluate("keyboard.stops") + 20):
        page.keyboard.press("Tab")
        if not page.evaluate("keyboard.left().length"):
            break
    return found + page.evaluate("keyboard.faults()")


@pytest.mark.parametrize(("width", "theme"), LOOKS)
@pytest.mark.parametrize("view", screenshots.VIEWS, ids=lambda view: view.__name__)
def test_layout(browser: Browser, filled: tuple[str, Path], view: screenshots.View, width: int, theme: str) -> None:
    address, folder = filled
    page = screenshots.opened(browser, address, width, theme)
    view(page, folder)
    found = faults(page)
    page.context.close()
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_layout_before_the_first_run(browser: Browser, server: str, width: int, theme: str, home: Path) -> None:
    page = screenshots.opened(browser, server, width, theme)
    screenshots.runs_empty(page, home)
    found = faults(page)
    page.get_by_role("button", name="Make a new run").click()
    page.locator(".drop").wait_for()
    page.context.close()
    assert not found, "\n".join(found)


def test_the_checks_find_what_is_wrong(browser: Browser) -> None:
    """A page with one fault of each kind; without this, a check that finds nothing would pass."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_content("""<style>button:focus { outline: none } p { margin: 0 }</style>
        <p style="color: #888; background: #fff">too faint to read</p>
        <p style="width: 4em; overflow: hidden; white-space: nowrap">too long for its place</p>
        <div style="width: 500px">wide</div>
        <button style="position: absolute; top: 200px">one</button><button style="position: absolute; top: 205px">two</button>
        <input style="position: absolute; top: 300px">
        <button style="position: absolute; top: 500px" onfocus="this.blur()">shy</button>""")
    found = "\n".join(faults(page))
    page.close()
    wanted = (
        "contrast of 3.5",
        "cut at its side",
        "508 px wide",
        "overlap",
        "has no name",
        "focus can't",
        "Tab does not reach",
    )
    for words in wanted:
        assert words in found, (words, found)
