"""The page opens in a real browser."""

from __future__ import annotations

from playwright.sync_api import Page


def test_the_page_loads(page: Page) -> None:
    assert page.title() == "Limner"
