"""The launch section on the page: what a target needs is asked for only where that target is chosen."""

from __future__ import annotations

import os

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow

BOTH = {"shared_path", "job_gpus", "job_cpus", "job_memory_gib"}
SHOWN = {
    "local": set[str](),
    "ray": {"ray_address", "upload", *BOTH},
    "slurm": {"slurm_cluster", "slurm_partition", "slurm_minutes", "slurm_options", *BOTH},
}


def test_each_target_asks_for_what_it_needs(page: Page) -> None:
    page.wait_for_selector(".field", state="attached")
    page.evaluate("document.querySelectorAll('.all-settings, .advanced').forEach((d) => (d.open = true))")
    target = page.locator(".field[data-path='launch.target'] .entry > select")
    for chosen, shown in SHOWN.items():
        target.select_option(chosen)
        for name in set[str]().union(*SHOWN.values()):
            field = page.locator(f".field[data-path='launch.{name}']")
            expect(field).to_be_visible() if name in shown else expect(field).to_be_hidden()
        if folder := os.environ.get("SHOTS"):
            target.scroll_into_view_if_needed()
            page.screenshot(path=f"{folder}/{chosen}.png")
