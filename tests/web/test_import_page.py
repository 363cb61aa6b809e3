"""A configuration of kohya_ss, a LoRA, and one of Limner's own fill the form: chosen, or dropped on the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from person import drop
from playwright.sync_api import Page, expect
from safetensors.numpy import save_file

pytestmark = pytest.mark.slow

KOHYA = {
    "LoRA_type": "Standard", "network_dim": 20, "network_alpha": "8", "learning_rate": 0.0003, "max_train_epochs": "7",
    "train_batch_size": 3, "output_name": "<img src=x onerror=alert(1)>", "vae_batch_size": 0,
    "anima_checkbox": True, "a_key_of_next_year": '"quoted" & <b>bold</b>',
}  # fmt: skip


def choose(page: Page, file: Path) -> None:
    page.locator(".tools input[type=file]").set_input_files(file)


def holds(page: Page, **values: str) -> None:
    """Whether the form's fields hold these."""
    for path, value in values.items():
        section, _, name = path.partition("__")
        expect(page.locator(f"[data-path='{section}.{name}'] :is(input, select, textarea)").first).to_have_value(value)


def groups(page: Page) -> dict[str, list[str]]:
    """What the report says under each heading; it is closed then."""
    dialog = page.get_by_role("dialog", name="What became of it")
    expect(dialog).to_be_visible()
    found = {}
    for fold in dialog.locator("details").all():
        title, _, count = fold.locator("summary").inner_text().partition(": ")
        found[title] = [row.text_content() or "" for row in fold.locator("li").all()]
        assert len(found[title]) == int(count)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)
    return found


@pytest.mark.long
def test_a_configuration_of_kohya_is_chosen_and_dropped(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "my <b>kohya.json"
    file.write_text(json.dumps(KOHYA), encoding="utf-8")
    choose(page, file)
    found = groups(page)
    assert sorted(key for rows in found.values() for key in (row.split(" ")[0] for row in rows)) == sorted(KOHYA)
    assert [row.split(" ")[0] for row in found["Not supported"]] == ["anima_checkbox"]
    assert [row for row in found["Not known"] if row.startswith('a_key_of_next_year = "quoted" & <b>bold</b>')]
    assert any(row.startswith("network_dim = 20 → adapter.rank") for row in found["Taken over"])
    wanted = {"adapter__rank": "20", "train__epochs": "7", "train__batch_size": "3"}
    holds(page, **wanted)
    page.on("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Clear").click()
    holds(page, adapter__rank="", train__epochs="")
    drop(page, [file])
    assert groups(page) == found
    holds(page, **wanted)


def test_of_a_lora_only_the_metadata_are_sent(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "cat.safetensors"
    said = {"ss_network_dim": "12", "ss_network_alpha": "6.0", "ss_network_module": "networks.lora", "ss_num_epochs": "5",
            "ss_learning_rate": "0.0002", "ss_base_model_version": "sd_v1", "ss_output_name": "cat"}  # fmt: skip
    save_file({"lora_unet_x.lora_down.weight": np.ones((12, 100_000), np.float32)}, file, said)
    with page.expect_request("**/api/import") as sent:
        choose(page, file)
    body = sent.value.post_data_json
    assert body["name"] == "cat.safetensors" and json.loads(body["text"]) == said
    taken = groups(page)
    assert {row.split(" ")[0] for rows in taken.values() for row in rows} == set(said)
    holds(page, adapter__rank="12")


def test_one_of_our_own_needs_no_report(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[adapter]\nkind = "lora"\nrank = 24\n\n[train]\nsteps = 321\n', encoding="utf-8")
    choose(page, file)
    expect(page.locator(".limner-note.note")).to_have_text("Loaded mine.toml.")
    holds(page, adapter__rank="24", train__steps="321")
    expect(page.get_by_role("dialog")).to_have_count(0)
