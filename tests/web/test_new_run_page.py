"""The page "New run" in a real Chromium: from pictures to a run in three actions, and a form that loses nothing."""

from __future__ import annotations

import json
import os
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
from person import PICTURES, drop
from playwright.sync_api import Browser, Page, Route, expect

from limner import runs
from limner.config import files
from limner.config.fields import Option, applies, walk

pytestmark = pytest.mark.slow
expect.set_options(timeout=60_000)


def field(page: Page, path: str) -> Any:
    """The visible field of an option in "All settings"."""
    return page.locator(f".field[data-path='{path}']:not([hidden])")


def entry(page: Page, path: str) -> Any:
    return field(page, path).locator(".entry > :is(input, select, textarea)")


def unfold(page: Page) -> None:
    page.wait_for_selector(".field", state="attached")
    page.evaluate("document.querySelectorAll('.all-settings, .advanced').forEach((d) => (d.open = true))")


def saved(page: Page) -> dict[str, str]:
    """What `Save TOML` gives, read back."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save TOML").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    return files.overrides_of(files.build(files.parse(text, "saved"), {}, text, "saved"))


def test_three_actions_from_nothing_to_a_run(page: Page, home: Path) -> None:
    assert len(PICTURES) == 24  # twelve, with their captions
    drop(page, PICTURES)  # 1
    expect(page.locator(".thumbnails figure")).to_have_count(12)
    expect(page.locator(".plan-line")).to_contain_text("12 pictures (64×64: 12)")
    caption = page.get_by_label("Caption of zibbo_00.png")
    expect(caption).to_have_value(PICTURES[1].read_text().strip())
    page.wait_for_function("[...document.querySelectorAll('.thumbnails img')].slice(0, 4).every((i) => i.naturalWidth)")
    page.get_by_role("button", name="Train", exact=True).click()  # 2
    expect(page.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true")
    [run] = runs.all_runs()
    values = files.overrides_of(run.config())
    assert values.pop("data.path").startswith(str(home / "pictures"))
    assert json.loads(values.pop("sample.prompts")) and values == {"sample.every_steps": "240"}
    run.request("stop-now")


@pytest.mark.long
def test_a_form_survives_a_reload_and_is_nobody_elses(page: Page, browser: Browser, server: str) -> None:
    unfold(page)
    entry(page, "train.seed").fill("9223372036854775807")
    expect(field(page, "train.seed")).to_have_class("field number changed")
    page.reload()
    unfold(page)
    expect(entry(page, "train.seed")).to_have_value("9223372036854775807")
    other = page.context.new_page()  # a new tab starts from what was typed last, and then goes its own way
    other.goto(server)
    unfold(other)
    expect(entry(other, "train.seed")).to_have_value("9223372036854775807")
    entry(other, "train.seed").fill("1")
    page.reload()
    unfold(page)
    expect(entry(page, "train.seed")).to_have_value("9223372036854775807")
    field(page, "train.seed").get_by_role("button", name="Back to the default").click()
    expect(entry(page, "train.seed")).to_have_value("")
    stranger = browser.new_context()
    there = stranger.new_page()
    there.goto(page.url)
    there.wait_for_selector(".all-settings", state="attached")
    expect(there.locator(".field.changed")).to_have_count(0)
    stranger.close()


def test_a_mistake_stands_at_its_field_and_starts_nothing(browser: Browser, server: str) -> None:
    page = browser.new_page()  # of its own: Chromium counts the refusal itself as an error of the page
    page.goto(server)
    drop(page, PICTURES)
    expect(page.locator(".plan-line")).to_contain_text("12 pictures")
    unfold(page)
    entry(page, "train.steps").fill("1e5")
    expect(field(page, "train.steps").locator(".mistake.error")).to_contain_text("whole number")
    expect(entry(page, "train.steps")).to_have_attribute("aria-invalid", "true")
    described = entry(page, "train.steps").get_attribute("aria-describedby")
    assert page.locator(f"#{described.split()[0]}").inner_text().startswith("100000.0 is not allowed")
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_enabled()
    assert runs.all_runs() == []
    page.locator(".all-settings > summary").click()
    page.locator(".findings").get_by_role("button", name="train.steps").click()
    expect(entry(page, "train.steps")).to_be_focused()
    page.close()


def test_a_file_that_is_too_large_is_told_so(browser: Browser, server: str, tmp_path: Path) -> None:
    page = browser.new_page()  # of its own: Chromium counts the refusal itself as an error of the page
    page.goto(server)
    (tmp_path / "long.txt").touch()
    os.truncate(tmp_path / "long.txt", 64 << 20)
    page.get_by_label("Choose pictures from this computer").set_input_files(tmp_path / "long.txt")
    expect(page.locator(".mistake.error li")).to_have_text("long.txt is larger than 1 MiB. Make it shorter.")
    page.close()


def test_fields_that_do_not_apply_are_hidden_and_dropped_and_come_back(page: Page) -> None:
    unfold(page)
    entry(page, "adapter.conv_rank").fill("4")
    entry(page, "adapter.conv_alpha").fill("2.5")
    entry(page, "output.author").fill("me")
    assert saved(page) == {"adapter.conv_rank": "4", "adapter.conv_alpha": "2.5", "output.author": "me"}
    entry(page, "adapter.conv_rank").fill("")
    expect(field(page, "adapter.conv_alpha")).to_have_count(0)
    assert saved(page) == {"output.author": "me"}
    entry(page, "adapter.kind").select_option("none")
    entry(page, "output.layout").select_option("diffusers")
    expect(field(page, "output.author")).to_have_count(0)
    assert saved(page) == {"adapter.kind": "none", "output.layout": "diffusers"}
    entry(page, "adapter.kind").select_option("lora")
    entry(page, "adapter.conv_rank").fill("8")
    expect(entry(page, "adapter.conv_alpha")).to_have_value("2.5")
    assert saved(page) == {"adapter.conv_rank": "8", "adapter.conv_alpha": "2.5", "output.author": "me"}


@pytest.mark.parametrize(
    ("word", "path"),
    [("network_dim", "adapter.rank"), ("velocity", "objective.prediction"), ("bucket min", "data.bucket_min_px")],
)
def test_search_finds_by_kohyas_name_by_words_and_by_ours(page: Page, word: str, path: str) -> None:
    page.wait_for_selector(".field", state="attached")
    page.locator(".all-settings > summary").click()
    page.get_by_label("Search the settings").fill(word)
    expect(field(page, path)).to_be_visible()
    assert page.locator(".field:not([hidden])").count() < 6


TEXTS = ["0", "false", "[x]", " a  b ", "quo\"te 'x' \\", "ünï 🐈 猫", "<b>&amp;</b>", "1e-4", "# x"]


def _typed(option: Option, rng: random.Random, folder: Path) -> str:
    """A text that somebody may type into a field; never the default."""
    if option.path == "model.merge":
        return json.dumps(
            [str(folder / "ü.safetensors"), f"{folder / 'a b.safetensors'} @ 0.5"], ensure_ascii=False, separators=(",", ":")
        )
    if option.is_list:
        return json.dumps(rng.sample(option.choices or TEXTS, 2), ensure_ascii=False, separators=(",", ":"))
    if option.choices and not option.types:
        return rng.choice([c for c in option.choices if c != option.default] or list(option.choices))
    kind = option.types[0]
    if kind is bool:
        return "false" if option.default else "true"
    if kind is Path:
        return str(folder / rng.choice(["a b", "ü", "x'y"]))
    if kind is str:
        return rng.choice(TEXTS[:2] + TEXTS[3:]) if option.path != "model.base" else "owner/name"
    low, high = option.minimum or 0, option.maximum if option.maximum is not None else 10**6
    if kind is int:
        return str(rng.choice([n for n in (low, high, low + 1) if n != option.default]))
    return repr(
        rng.choice([v for v in (0.0, float(high), 1e-300, (low + high) / 3) if v != option.default and _allowed(option, v)])
    )


def _allowed(option: Option, value: float) -> bool:
    low, high, (above, below) = option.minimum, option.maximum, option.exclusive
    return (low is None or value > low or (value == low and not above)) and (
        high is None or value < high or (value == high and not below)
    )


def fill(page: Page, path: str, text: str) -> None:
    """Put a value into its field as a person would."""
    box = entry(page, path)
    match field(page, path).get_attribute("class").split()[1]:
        case "switch":
            box.set_checked(text == "true")
        case "choice":
            box.select_option(text)
        case "list":
            items = json.loads(text)
            box.fill(text if items[0].startswith("[") else "\n".join(items))
        case _:
            box.fill(text)


@pytest.mark.long
@pytest.mark.parametrize(("tag", "seed"), [("lora", 0), ("none", 1)])
def test_every_value_of_every_variant_arrives_unchanged(page: Page, home: Path, tag: str, seed: int) -> None:
    rng = random.Random(seed)
    options = [o for o in walk() if not o.tags or tag in o.tags]
    values = {o.path: _typed(o, rng, home) for o in options if o.name != "kind"}
    values |= {"data.buckets": "true", "data.upscale": "true", "adapter.text_encoder": "true", "adapter.kind": tag}
    values |= {"output.name": rng.choice(["0", "ünï 猫"])}
    config = files.build({}, values)
    values = {
        o.path: values[o.path]
        for o in options
        if applies(o, config) and values.get(o.path, o.default) != files.as_typed(o, o.default)
    }
    unfold(page)
    pending = dict(sorted(values.items(), key=lambda item: not item[0].endswith(".kind")))
    while pending:  # a field that another one calls up comes after it
        path = next(path for path in pending if field(page, path).count())
        fill(page, path, pending.pop(path))
    assert saved(page) == values
    page.reload()
    unfold(page)
    assert saved(page) == values


def test_a_click_is_not_lost_to_a_message_that_comes_meanwhile(page: Page) -> None:
    unfold(page)
    mistake, below = field(page, "data.repeats").locator(".mistake"), entry(page, "data.wildcards")
    below.scroll_into_view_if_needed()
    page.evaluate("document.documentElement.style.overflowAnchor = 'none'")
    asked = list[Route]()

    def hold(route: Route) -> None:
        asked.append(route)

    page.route("**/api/check", hold)
    entry(page, "data.repeats").evaluate("(e) => { e.value = 'many'; e.dispatchEvent(new Event('input')); }")
    while not asked:
        page.wait_for_timeout(50)
    answer = asked[0].fetch()
    box = below.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    asked[0].fulfill(response=answer)
    page.wait_for_timeout(200)
    assert mistake.is_hidden()
    page.unroute("**/api/check", hold)
    page.mouse.up()
    expect(mistake).to_be_visible()
    assert below.is_checked()


def test_an_emptied_text_is_the_empty_text(page: Page) -> None:
    unfold(page)
    entry(page, "output.author").fill("x")
    entry(page, "output.author").fill("")
    expect(entry(page, "output.author")).to_have_attribute("placeholder", "(empty)")
    entry(page, "optimizer.weight_decay").fill("0")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save TOML").click()
    raw = tomllib.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert (raw["output"]["author"], raw["optimizer"]["weight_decay"]) == ("", 0.0)


def test_a_kind_sets_what_its_preset_says_and_the_next_takes_it_back(page: Page) -> None:
    unfold(page)
    entry(page, "train.seed").fill("3")
    page.get_by_role("radio", name="Style").check()
    expect(entry(page, "adapter.conv_rank")).to_have_value("8")
    entry(page, "train.batch_size").fill("6")
    page.get_by_role("radio", name="Object").check()
    expect(entry(page, "adapter.rank")).to_have_value("8")
    object_values = {"adapter.rank": "8", "optimizer.warmup_steps": "50", "objective.weighting": "min_snr"}
    assert saved(page) == {"train.seed": "3", "train.batch_size": "6"} | object_values
    page.get_by_role("radio", name="Other").check()
    expect(entry(page, "adapter.rank")).to_have_value("")
    assert saved(page) == {"train.seed": "3", "train.batch_size": "6"}


@pytest.mark.long
def test_toml_and_presets_fill_the_form(page: Page, tmp_path: Path) -> None:
    unfold(page)
    (tmp_path / "a.toml").write_text('[train]\nsteps = 7\n[data]\ntrigger = "zwx"\n[sample]\nprompts = ["a", "b"]\n')
    page.get_by_label("Load or import").set_input_files(tmp_path / "a.toml")
    expect(entry(page, "sample.prompts")).to_have_value("a\nb")
    page.get_by_role("button", name="Presets").click()
    page.get_by_label("Keep what is set now").fill("mine")
    page.get_by_role("button", name="Keep").click()
    row = page.locator(".presets li", has_text="mine")
    expect(row).to_have_count(1)
    page.locator(".presets li", has_text="sd1-lora-style").get_by_role("button", name="Use").click()
    expect(entry(page, "train.steps")).to_have_value("")
    assert saved(page)["train.batch_size"] == "4" and saved(page)["data.trigger"] == "zwx"
    page.get_by_role("button", name="Presets").click()
    row.get_by_role("button", name="Use").click()
    expect(entry(page, "train.steps")).to_have_value("7")
    assert saved(page) == {"train.steps": "7", "data.trigger": "zwx", "sample.prompts": '["a","b"]'}
    page.get_by_role("button", name="Presets").click()
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


@pytest.mark.long
def test_a_memory_preset_is_laid_over_and_kohyas_become_ones_own(page: Page, tmp_path: Path) -> None:
    unfold(page)
    entry(page, "train.steps").fill("9")
    page.get_by_role("button", name="Presets").click()
    dialog = page.get_by_role("dialog", name="Presets")
    expect(dialog.locator("li", has_text="memory-sd1-full-8gb")).to_be_visible()
    dialog.get_by_label("Family of the base model").select_option("sdxl")
    expect(dialog.locator("li", has_text="sd1")).to_have_count(0)
    expect(dialog.get_by_role("heading", name="sdxl · for your card's memory")).to_be_visible()
    dialog.locator("li", has_text="memory-sdxl-lora-12gb").get_by_role("button", name="Add").click()
    expect(entry(page, "train.accumulation")).to_have_value("2")
    assert saved(page)["train.steps"] == "9" and saved(page)["memory.checkpointing"] == "true"

    (tmp_path / "my kohya.json").write_text('{"LoRA_type": "Standard", "network_dim": 33, "train_batch_size": 5}')
    page.get_by_role("button", name="Presets").click()
    dialog.get_by_label("Import as a preset").set_input_files(tmp_path / "my kohya.json")
    report = page.get_by_role("dialog", name="What became of it")
    expect(report.get_by_text("network_dim")).to_have_count(1)
    report.get_by_role("button", name="Close").click()
    mine = dialog.locator("li", has_text="my kohya")
    mine.get_by_role("button", name="Use").click()
    expect(entry(page, "adapter.rank")).to_have_value("33")
    assert saved(page)["train.batch_size"] == "5" and "train.steps" not in saved(page)


def test_an_empty_form_starts_from_the_users_own_defaults(page: Page) -> None:
    unfold(page)
    entry(page, "train.seed").fill("5")
    expect(field(page, "train.seed")).to_have_class("field number changed")
    page.get_by_role("button", name="Presets").click()
    page.get_by_role("button", name="Make what is set now my defaults").click()
    expect(page.get_by_text("An empty form starts from these now.")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.reload()
    unfold(page)
    expect(entry(page, "train.seed")).to_have_value("5")
    entry(page, "train.seed").fill("6")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear").click()
    expect(entry(page, "train.seed")).to_have_value("5")


def test_the_command_is_copied_without_https(page: Page) -> None:
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as it is over plain http
    button = page.get_by_role("button", name="Show command")
    button.click()
    dialog = page.get_by_role("dialog", name="The command")
    copy = dialog.get_by_role("button", name="Copy").first
    copy.click()
    expect(page.locator(".limner-note", has_text="Copied.")).to_be_visible()
    expect(copy).to_be_focused()
    words = dialog.locator("pre").first.inner_text().split()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(button).to_be_focused()
    unfold(page)
    entry(page, "output.name").press("ControlOrMeta+V")
    assert words and entry(page, "output.name").input_value().split() == words


def test_the_short_help_is_whole_sentences(page: Page) -> None:
    unfold(page)
    shown = page.locator(".field .help > span").all_text_contents()
    assert [text for text in shown if not text.endswith(".")] == []
    expect(field(page, "optimizer.lr").locator(".help > span")).to_contain_text("When not given: 1e-4 for a LoRA")


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_is_cut_at_either_size(page: Page, scheme: str, width: int, height: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": height})
    drop(page, PICTURES[:4])
    expect(page.locator(".thumbnails figure")).to_have_count(2)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = """[...document.querySelectorAll('#panel-new-run *, #panel-form *')]
      .filter((e) => e.checkVisibility() && !e.matches('option, .unseen, .thumbnails *'))
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []
