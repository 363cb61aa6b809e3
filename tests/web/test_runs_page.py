"""The Runs page in a real browser, over real trainers: watching, stopping, deaths of the trainer and of the server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from person import SECONDS, says, wait_for
from playwright.sync_api import Browser, Page, Route, expect

from limner import jobs, queue, runner, runs
from limner.config import files
from limner.formats.header import read_header
from limner.pocket import PICTURES
from limner.runs import LIVE, Run, State

pytestmark = pytest.mark.slow


@pytest.fixture
def new_run(home: Path, machine_file: Path, forks: None) -> Iterator[Callable[..., Run]]:
    """new_run("cat", steps=60) is a run on the pocket model, made but not started; what still trains is ended with the test."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(machine_file, home / "machine.json")

    def make(name: str, steps: int, **over: Any) -> Run:
        raw: dict[str, Any] = {
            "data": {"path": str(PICTURES), "trigger": "zibbo"},
            "train": {"steps": steps, "batch_size": 1},
            "sample": {"prompts": ["a zibbo", "a red zibbo"], "steps": 2, "every_steps": 20},
            "output": {"name": name, "state_every_steps": 10},
            "launch": {"device": "cpu", "num_threads": 1},
        }
        return jobs.prepare(files.build(raw, over))

    yield make
    for run in runs.all_runs():
        jobs.stop(run, now=True)


def start(run: Run) -> Run:
    queue.enqueue(run)
    runner.ensure_runner()
    return run


def opened(page: Page, run: Run) -> Page:
    """The page with this run chosen, as from a bookmark."""
    page.goto(f"{page.url.split('#')[0]}#run={run.id}")
    page.reload()
    expect(page.locator(".run-view h2").first).to_have_text(run.config().output.name, timeout=SECONDS)
    return page


@pytest.mark.long
def test_watch_a_run_and_download_its_lora(page: Page, new_run: Callable[..., Run], tmp_path: Path) -> None:
    run = start(new_run("watched", 60))
    opened(page, run)
    expect(page.locator(".run-view .uplot").first).to_be_visible(timeout=SECONDS)
    expect(page.locator(".samples img").first).to_be_visible(timeout=SECONDS)
    says(page, "Finished")
    assert page.locator(".run-view progress").evaluate("p => [p.value, p.max]") == [60, 60]
    expect(page.locator(".samples .row")).to_have_count(4)  # the head, and steps 20, 40, 60
    expect(page.locator(".chart").first).to_have_attribute("aria-label", re.compile(r"smoothed 0\.\d+"))
    wait_for(lambda: page.locator(".before-after img").first.evaluate("i => i.naturalWidth") == 64)
    with page.expect_download() as download:
        page.get_by_role("link", name="watched.safetensors").click()
    download.value.save_as(tmp_path / "got.safetensors")
    assert (tmp_path / "got.safetensors").read_bytes() == (run.checkpoints / "watched.safetensors").read_bytes()
    assert read_header(tmp_path / "got.safetensors").metadata["ss_steps"] == "60"


@pytest.mark.long
def test_change_a_run_that_goes_on(browser: Browser, server: str, new_run: Callable[..., Run]) -> None:
    """Only what was edited is sent; what is refused is said in the dialog, which stays."""
    page = browser.new_context().new_page()  # of its own: browsers log every refusal as an error
    page.goto(server)
    run = start(new_run("changed", 10_000))
    opened(page, run)
    wait_for(lambda: run.state().step > 2)
    page.get_by_role("button", name="Change…").click()
    dialog = page.get_by_role("dialog", name="Change this run")
    expect(dialog.get_by_label("Prompts, one a line")).to_have_value("a zibbo\na red zibbo")
    expect(dialog.get_by_label("Learning rate")).to_have_value("0.001")
    expect(dialog.get_by_label("Paint every so many steps")).to_have_value("20")
    dialog.get_by_label("Steps", exact=True).fill("1")
    dialog.get_by_label("Prompts, one a line").fill("a blue zibbo\n")
    dialog.get_by_role("button", name="Change from the next step on").click()
    expect(dialog.get_by_role("alert")).to_contain_text("train.steps: 1 is less than the")
    steps = run.state().step + 40
    dialog.get_by_label("Steps", exact=True).fill(str(steps))
    dialog.get_by_role("button", name="Change from the next step on").click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".changes li")).to_contain_text(
        f'train.steps = {steps}, sample.prompts = ["a blue zibbo"]', timeout=SECONDS
    )
    says(page, "Finished")
    assert run.state().step == steps
    (change,) = [e for e, _ in run.events() if e["event"] == "change"]
    assert change["options"] == {"train.steps": steps, "sample.prompts": ["a blue zibbo"]}
    page.context.close()


@pytest.mark.long
def test_stop_kill_and_resume(page: Page, new_run: Callable[..., Run]) -> None:
    run = start(new_run("stubborn", 100))
    opened(page, run)
    wait_for(lambda: run.state().step > 2)
    page.get_by_role("button", name="Stop (saves first)").click()
    says(page, "Stopped at step")
    step = run.state().step
    assert 0 < step < 100 and (run.states / f"step-{step:08d}").is_dir()

    page.get_by_role("button", name="Resume").click()
    wait_for(lambda: run.state().step > step)
    says(page, "Training|Painting|Saving")
    os.kill(State.read(run.path / "state.json").pid, signal.SIGKILL)
    killed = time.monotonic()
    says(page, "Failed at step")
    expect(page.locator(".trouble")).to_contain_text(re.compile("The trainer (was killed|is gone)"), timeout=SECONDS)
    seconds = time.monotonic() - killed
    print(f"said after {seconds:.1f} s")
    assert seconds < 10  # 5 s, and as long again for a busy machine
    expect(page.locator(".trouble")).to_contain_text("Resume goes on from step")

    page.reload()
    says(page, "Failed at step")
    page.get_by_role("button", name="Resume").click()
    says(page, "Finished")
    assert [e["step"] for e in run.history() if e["event"] == "step"] == list(range(1, 101))


@pytest.mark.long
def test_the_server_is_killed_and_comes_back(
    browser: Browser, limner_web: Callable[..., Any], new_run: Callable[..., Run]
) -> None:
    run = start(new_run("survivor", 5000))
    server = limner_web("--port", "0", is_forked=True)
    page = browser.new_context().new_page()
    page.set_default_timeout(SECONDS)
    page.goto(f"{server.url}/#run={run.id}")
    wait_for(lambda: run.state().step > 2)
    says(page, "Training|Painting|Saving")
    server.process.kill()
    expect(page.locator(".gone")).to_contain_text("The server does not answer", timeout=SECONDS)
    step = run.state().step
    wait_for(lambda: run.state().step > step)

    again = limner_web("--port", server.url.rpartition(":")[2], is_forked=True)
    assert again.url == server.url
    expect(page.locator(".gone")).to_be_hidden(timeout=SECONDS)
    assert run.state().status in LIVE
    page.get_by_role("button", name="Stop (saves first)").click()
    says(page, "Stopped at step")
    assert (run.states / f"step-{run.state().step:08d}").is_dir()
    page.context.close()


@pytest.fixture
def no_runner() -> Iterator[None]:
    """None can start: what waits goes on waiting."""
    with runs.lock("runner", 0):
        yield


@pytest.mark.long
@pytest.mark.usefixtures("no_runner")
def test_two_browsers_see_the_same_queue(page: Page, browser: Browser, new_run: Callable[..., Run]) -> None:
    made = [new_run(name, 5) for name in ("one", "two", "three")]
    for run in made:
        queue.enqueue(run)
    other = browser.new_context().new_page()
    other.goto(page.url)
    other.locator("#tab-runs-button").click()
    opened(page, made[2])
    says(page, "place 3")
    names = page.locator(".queue .name")
    expect(names).to_have_text(["one", "two", "three"])
    page.locator(".queue li").nth(2).get_by_role("button", name="Earlier").focus()
    page.keyboard.press("Enter")
    expect(names).to_have_text(["one", "three", "two"])
    expect(other.locator(".queue .name")).to_have_text(["one", "three", "two"], timeout=SECONDS)
    assert queue.waiting() == [made[0].id, made[2].id, made[1].id]
    says(page, "place 2")
    page.get_by_role("button", name="Take out of the queue").click()
    expect(other.locator(".queue .name")).to_have_text(["one", "two"], timeout=SECONDS)
    other.context.close()


@pytest.mark.usefixtures("no_runner")
def test_an_order_that_is_refused_goes_back(browser: Browser, server: str, new_run: Callable[..., Run]) -> None:
    for name in ("one", "two"):
        queue.enqueue(new_run(name, 5))
    page = browser.new_page()  # of its own: Chromium counts the refusal itself as an error of the page
    asked: list[Route] = []
    page.route("**/api/queue", lambda route: asked.append(route))  # noqa: PLW0108 (playwright wants a function of Python)
    page.goto(server)
    page.locator("#tab-runs-button").click()
    with page.expect_request("**/api/queue"):
        page.locator(".queue li").first.get_by_role("button", name="Later").click()
    assert asked[0].request.post_data_json == {"order": list(reversed(queue.waiting()))}
    expect(page.locator(".limner-note", has_text="order")).to_have_count(0)
    finding = {"field": "order", "message": "does not please.", "remedy": "Try another.", "severity": "error"}
    asked[0].fulfill(status=422, json={"findings": [finding]})
    expect(page.locator(".limner-note.error", has_text="order: does not please.")).to_be_visible(timeout=SECONDS)
    assert page.locator(".queue .name").all_inner_texts() == ["one", "two"]
    expect(page.locator(".limner-note", has_text="was changed")).to_have_count(0)
    page.close()


@pytest.mark.long
def test_compare_duplicate_and_delete(page: Page, new_run: Callable[..., Run], home: Path) -> None:
    one, two = new_run("one", 5), new_run("two", 9)
    for run, loss in ((one, 0.5), (two, 0.25)):
        run.write_state(State("done", step=5, steps=5))
        for step in range(1, 6):
            run.event("step", step=step, loss=loss, lr={"denoiser": 1e-4})
    opened(page, one)
    page.get_by_label("Compare with").select_option(two.id)
    expect(page.get_by_role("row", name="train.steps 5 9")).to_be_visible()
    expect(page.locator(".chart").first).to_have_attribute("aria-label", re.compile("two 0.25"))
    page.evaluate("window.addEventListener('limner:new-run', e => window.told = e.detail)")
    page.get_by_role("button", name="Duplicate as new run").click()
    page.wait_for_function("window.told")
    assert page.evaluate("window.told.values['train.steps']") == "5"
    page.locator("#tab-runs-button").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    assert one.path.exists()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Move to the trash").click()
    expect(page.locator(".history .item")).to_have_count(1)
    assert not one.path.exists() and (home / "trash" / one.id).is_dir()


def live(page: Page, kind: str) -> int:
    """How many objects of a class are alive in the page, in the document or not, after a garbage collection."""
    devtools = page.context.new_cdp_session(page)
    prototype = devtools.send("Runtime.evaluate", {"expression": f"{kind}.prototype"})["result"]["objectId"]
    found = devtools.send("Runtime.queryObjects", {"prototypeObjectId": prototype})["objects"]["objectId"]
    count = {"objectId": found, "functionDeclaration": "function () { return this.length }", "returnByValue": True}
    number: int = devtools.send("Runtime.callFunctionOn", count)["result"]["value"]
    devtools.detach()
    return number


@pytest.mark.long
def test_a_run_that_is_left_takes_its_charts_along(page: Page, home: Path) -> None:
    for name in ("one", "two", "three"):
        run = runs.create(files.build({}, {"output.name": name}))
        run.write_state(State("done", step=5, steps=5))
        for step in range(1, 6):
            run.event("step", step=step, loss=0.5, lr={"denoiser": 1e-4})
    page.locator("#tab-runs-button").click()

    def choose(name: str) -> dict[str, int]:
        page.locator(".history .item", has_text=name).click()
        expect(page.locator(".run-view h2").first).to_have_text(name)
        expect(page.locator(".uplot canvas")).to_have_count(2)  # loss and learning rate
        return {kind: live(page, kind) for kind in ("HTMLCanvasElement", "ResizeObserver")}

    choose("three")
    wait_for(lambda: choose("two") == choose("one"))  # Gradio's own may still come, so that no number is known before
    wait_for(lambda: live(page, "HTMLCanvasElement") == 2)


@pytest.mark.long
def test_a_long_run_opens_fast_and_polls_cheaply(page: Page, home: Path) -> None:
    run = runs.create(files.build({}, {"output.name": "long"}))
    run.write_state(State("done", step=100_000, steps=100_000))
    sample = next(p for p in PICTURES.iterdir() if p.suffix == ".png").read_bytes()
    with (run.path / "events.jsonl").open("w") as file:
        for n in range(1, 100_001):
            file.write(f'{{"event": "step", "time": {n}, "step": {n}, "loss": {0.1 + 1 / n}, "lr": {{"denoiser": 0.0001}}}}\n')
    for n in range(100, 100_001, 100):
        for prompt in range(2):
            (run.samples / f"step-{n:08d}_{prompt:02d}.png").write_bytes(sample)
    page.locator("#tab-runs-button").click()
    expect(page.locator(".history .item")).to_have_count(1, timeout=SECONDS)
    began = time.monotonic()
    page.goto(f"{page.url.split('#')[0]}#run={run.id}")
    page.reload()
    expect(page.locator(".samples .row")).to_have_count(1001, timeout=SECONDS)
    expect(page.locator(".run-view .uplot").first).to_be_visible(timeout=SECONDS)
    print(f"drawn after {time.monotonic() - began:.2f} s")
    assert page.evaluate("document.querySelectorAll('.samples img').length") == 2000
    page.evaluate("window.scrollTo(0, 500)")  # the list of runs stays in sight
    assert page.evaluate("[scrollY, document.querySelector('.run-list').getBoundingClientRect().top]") == [500, 8]


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(page: Page, width: int, new_run: Callable[..., Run]) -> None:
    run = new_run("a-name-that-is-as-long-as-a-name-may-be-on-this-page", 5)
    run.write_state(State("failed", step=3, steps=5, error="error: data.path: " + "x" * 300 + " is not there. Choose another."))
    run.event("step", step=1, loss=0.5, lr={"denoiser": 1e-4})
    page.set_viewport_size({"width": width, "height": 800})
    opened(page, run)
    expect(page.locator(".run-view .uplot").first).to_be_visible(timeout=SECONDS)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.run-view .card')].flatMap(card => [...card.querySelectorAll('*')].filter(e =>
        e.getBoundingClientRect().right > card.getBoundingClientRect().right + 1 && !e.closest('pre, .wide, .samples, .chart'))
        .map(e => e.outerHTML.slice(0, 80)))"""
    )
    assert cut == []
