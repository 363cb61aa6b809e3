"""The page as a person uses it, from an empty home: real servers, real trainers, a real Chromium, nothing prepared by hand."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from person import PICTURES, SECONDS, Person, drop, says, train, wait_for
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import load_file

from limner import jobs, queue, runner, runs
from limner.formats.header import read_header
from limner.runs import LIVE, Run, State

pytestmark = pytest.mark.slow
expect.set_options(timeout=60_000)

SHORT = {
    "train.steps": "30",
    "sample.every_steps": "10",
    "sample.steps": "2",
    "launch.device": "cpu",
    "launch.num_threads": "1",
}
"""What an impatient person keeps as their own defaults. (On one thread, so that two runs may be equal to the bit.)"""


@pytest.fixture
def start_page(home: Path, limner_web: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """start_page({"train.steps": "30"}) is a server whose empty forms hold these values. All trainers end with the test.

    Forked, and its trainers too, but where the start itself counts."""

    def start(defaults: dict[str, str], port: int = 0, is_forked: bool = True) -> Any:
        home.mkdir(exist_ok=True)
        (home / "settings.toml").write_text(tomlkit.dumps({"defaults": defaults}))
        return limner_web("--port", str(port), is_forked=is_forked)

    yield start
    for run in runs.all_runs():
        jobs.stop(run, now=True)


@pytest.fixture
def known_machine(home: Path, machine_file: Path) -> None:
    """Spares the test the half minute in which a new home asks torch what this machine is."""
    home.mkdir()
    shutil.copy(machine_file, home / "machine.json")


def visitor(browser: Browser) -> Page:
    """A browser of its own: no cookie, nothing remembered."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(SECONDS)
    return page


def begun(page: Page, address: str, pictures: list[Path] = PICTURES) -> Run:
    """Drop pictures and press Train at once; the run that comes of it, which the page then shows."""
    known = {run.id for run in runs.all_runs()}
    page.goto(address)
    drop(page, pictures)
    train(page)
    expect(page.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
    [run] = [run for run in runs.all_runs() if run.id not in known]
    return run


def tensors(folder: Path) -> dict[str, bytes]:
    """The bits of all tensors in a folder's files."""
    found = sorted(folder.rglob("*.safetensors"))
    return {f"{f.relative_to(folder)} {name}": t.numpy().tobytes() for f in found for name, t in load_file(f).items()}


def trained(run: Run, steps: int) -> bool:
    state = run.state()
    assert state.status in ("queued", "waiting", *LIVE), (state, run.tail())
    return state.step >= steps


def test_at_most_four_actions_from_an_empty_home_to_a_lora(
    browser: Browser, start_page: Callable[..., Any], home: Path, tmp_path: Path
) -> None:
    server = start_page(SHORT, is_forked=False)
    assert [p.name for p in home.iterdir()] == ["settings.toml"]
    person = Person(visitor(browser))
    page = person.page
    person.open(server.url)
    person.drop(PICTURES)
    person.train()

    expect(page.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
    [run] = runs.all_runs()
    page.wait_for_function("[...document.querySelectorAll('.before-after img')].some((i) => i.naturalWidth === 64)")
    expect(page.locator(".run-view .chart").first).to_have_attribute("aria-label", re.compile(r"smoothed 0\.\d+"))
    assert run.state().step < 30, "the first samples were seen only at the end"
    says(page, "Finished")
    expect(page.locator(".samples .row")).to_have_count(4)  # the head, and steps 10, 20, 30
    got = person.download("limner.safetensors")
    got.save_as(tmp_path / "got.safetensors")
    assert person.actions == ["open", "drop", "Train", "download limner.safetensors"]

    header = read_header(tmp_path / "got.safetensors")
    assert header.metadata["ss_steps"] == "30" and header.metadata["ss_network_module"] == "networks.lora"
    assert len(header.tensors) > 30 and all(name.startswith("lora_unet_") for name in header.tensors)
    config = run.config()
    assert len(config.sample.prompts) == 2 and set(config.sample.prompts) <= {p.read_text().strip() for p in PICTURES[1::2]}
    assert (config.sample.every_steps, config.train.steps) == (10, 30)
    page.context.close()


@pytest.mark.long
def test_what_is_painted_stands_in_the_form_and_can_be_cleared(
    browser: Browser, start_page: Callable[..., Any], known_machine: None
) -> None:
    page = visitor(browser)
    page.goto(start_page({}).url)
    drop(page, PICTURES)
    expect(page.locator(".plan-line")).to_contain_text("12 pictures", timeout=SECONDS)
    page.locator(".all-settings > summary").click()
    prompts = page.locator(".field[data-path='sample.prompts'] textarea")
    expect(prompts).to_have_value(re.compile(r"^.*zibbo.*\n.*zibbo.*$"))
    prompts.fill("")
    page.reload()
    expect(page.locator(".plan-line")).to_contain_text("12 pictures", timeout=SECONDS)
    expect(prompts).to_have_value("")
    train(page)
    expect(page.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
    [run] = runs.all_runs()
    assert run.config().sample.prompts == ()
    page.context.close()


@pytest.mark.long
def test_reload_and_a_killed_server_cost_nothing(browser: Browser, start_page: Callable[..., Any], known_machine: None) -> None:
    long = SHORT | {"train.steps": "100000", "sample.every_steps": "50000"}
    server = start_page(long)
    page = visitor(browser)
    run = begun(page, server.url)
    wait_for(lambda: trained(run, 2))
    page.reload()
    says(page, "Training")
    server.process.kill()
    server.process.wait()
    expect(page.locator(".gone")).to_contain_text("The server does not answer", timeout=SECONDS)
    step = run.state().step
    wait_for(lambda: trained(run, step + 2))

    again = start_page(long, port=int(server.url.rpartition(":")[2]))
    assert again.url == server.url
    page.reload()
    says(page, "Training")
    assert [r.id for r in runs.all_runs()] == [run.id]
    page.get_by_role("button", name="Stop (saves first)").click()
    says(page, "Stopped at step")
    state = run.state()
    assert (state.status, (run.states / f"step-{state.step:08d}").is_dir()) == ("stopped", True)

    page.get_by_role("button", name="Resume").click()
    wait_for(lambda: run.state().step > state.step)
    assert [e["step"] for e, _ in run.events() if e["event"] == "resume"] == [state.step]
    page.context.close()


@pytest.mark.long
def test_a_killed_trainer_is_told_of_and_resume_ends_at_the_same_bits(
    browser: Browser, start_page: Callable[..., Any], known_machine: None
) -> None:
    server = start_page(SHORT | {"train.steps": "60", "output.state_every_steps": "10", "output.dtype": "fp32"})
    page = visitor(browser)
    run = begun(page, server.url)
    wait_for(lambda: trained(run, 15))
    said = State.read(run.path / "state.json")
    os.kill(said.pid, signal.SIGKILL)
    killed = time.monotonic()
    says(page, "Failed at step")
    expect(page.locator(".trouble")).to_contain_text(re.compile("The trainer (was killed|is gone)"), timeout=SECONDS)
    seconds = time.monotonic() - killed
    print(f"said after {seconds:.1f} s")
    assert seconds < 5
    expect(page.locator(".trouble")).to_contain_text("Resume goes on from step", timeout=SECONDS)
    page.get_by_role("button", name="Resume").click()
    says(page, "Finished")

    whole = jobs.prepare(run.config())
    queue.enqueue(whole)
    runner.ensure_runner()
    wait_for(lambda: whole.state().status == "done")
    assert [e["event"] for e, _ in run.events() if e["event"] in ("start", "resume")] == ["start", "resume"]
    losses = [[(e["step"], e["loss"]) for e in r.history() if e["event"] == "step"] for r in (run, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == 60
    for mine, theirs in ((run.checkpoints, whole.checkpoints), (run.states, whole.states)):
        assert tensors(mine) == tensors(theirs) != {}
    page.context.close()


@pytest.mark.long
def test_ten_runs_in_order_with_nobody_there(browser: Browser, start_page: Callable[..., Any], known_machine: None) -> None:
    server = start_page(SHORT | {"train.steps": "12", "sample.every_steps": "12"})
    page = visitor(browser)
    asked = [begun(page, server.url).id]
    for _ in range(9):
        page.locator("#tab-new-run-button").click()
        known = {run.id for run in runs.all_runs()}
        train(page)
        expect(page.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
        asked += [run.id for run in runs.all_runs() if run.id not in known]
    page.context.close()
    server.process.terminate()
    server.process.wait(60)
    assert len(asked) == 10
    waited = runs.named(asked[-1])
    assert waited.state().status == "waiting", "they were done before anybody had left"

    wait_for(lambda: waited.state().status not in ("waiting", *LIVE), seconds=900)
    assert [runs.named(name).state().status for name in asked] == ["done"] * 10
    times = [[e["time"] for e, _ in runs.named(name).events()] for name in asked]
    for one, next_one in itertools.pairwise(times):
        assert one[-1] <= next_one[0], "two trained at once, or in another order"
    assert all((runs.named(name).checkpoints / "limner.safetensors").is_file() for name in asked)


@pytest.mark.long
def test_two_browsers_share_runs_and_no_form(browser: Browser, start_page: Callable[..., Any], known_machine: None) -> None:
    server = start_page(SHORT | {"train.steps": "100000"})
    ann, ben = visitor(browser), visitor(browser)
    for page, pictures, name, kind in ((ann, PICTURES[:8], "anns", "Style"), (ben, PICTURES[8:12], "bens", "Object")):
        page.goto(server.url)
        drop(page, pictures)
        expect(page.locator(".thumbnails figure")).to_have_count(len(pictures) // 2)
        page.get_by_label("Name of the file that is made").fill(name)
        page.get_by_role("radio", name=kind).check()

    def form(page: Page) -> tuple[str, bool, int, str]:
        expect(page.locator(".thumbnails figure").first).to_be_visible()
        return (
            page.get_by_label("Name of the file that is made").input_value(),
            page.get_by_role("radio", name="Style").is_checked(),
            page.locator(".thumbnails figure").count(),
            page.get_by_label("Or a folder on the server").input_value(),
        )

    before = form(ann), form(ben)
    assert [b[:3] for b in before] == [("anns", True, 4), ("bens", False, 2)] and before[0][3] != before[1][3]
    ann.reload()
    ben.reload()
    assert (form(ann), form(ben)) == before

    train(ann)
    expect(ann.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
    assert form(ben) == before[1]  # what Ann did changed nothing here
    train(ben)
    expect(ben.locator("#tab-runs-button")).to_have_attribute("aria-selected", "true", timeout=SECONDS)
    by_name = {run.config().output.name: run for run in runs.all_runs()}
    assert by_name.keys() == {"anns", "bens"}
    wait_for(lambda: trained(by_name["anns"], 2))
    for page in (ann, ben):
        expect(page.locator(".queue .name")).to_have_text(["bens"], timeout=SECONDS)
        expect(page.locator(".history strong")).to_have_text(["bens", "anns"], timeout=SECONDS)
    for page, mine in ((ann, before[0]), (ben, before[1])):
        page.locator("#tab-new-run-button").click()
        assert form(page) == mine
        page.context.close()
