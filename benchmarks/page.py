"""What the page costs: how soon it answers, what it weighs, how a long run opens, and what watching takes.

    python benchmarks/page.py                      all of it, with 10 minutes of watching
    python benchmarks/page.py --watch-minutes 2    a shorter look

A real `limner web` on a temporary home, a real Chromium for what people see, and 20 clients that ask what 20 open pages ask.
The home holds one run that claims to be training (this process writes its events) with 100,000 steps and 2,000 samples.
Results go to benchmarks/results/page.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
from playwright.sync_api import sync_playwright

from limner import runs
from limner.config import files
from limner.pocket import PICTURES
from limner.runs import Run, State

STEPS, SAMPLES, PAGES = 100_000, 2_000, 20
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def start() -> tuple[subprocess.Popen[str], str, float]:
    """(server, its address, seconds until it answered)."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "limner.cli", "web", "--headless", "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    found = re.search(r"http://\S+", server.stdout.readline())
    assert found, "the server did not say where it is"
    address = found[0].rstrip("/")
    while httpx.get(address, headers={"Sec-Fetch-Mode": "navigate"}).status_code != 200:
        time.sleep(0.02)
    return server, address, time.perf_counter() - began


def long_run() -> Run:
    """A run that this process claims to train, with a long past."""
    run = runs.create(files.build({"data": {"path": str(PICTURES)}, "output": {"name": "long"}}, {}))
    picture = next(PICTURES.glob("*.png")).read_bytes()
    with (run.path / "events.jsonl").open("w", encoding="utf-8") as out:
        for n in range(1, STEPS + 1):
            out.write(json.dumps({"event": "step", "time": n, "step": n, "loss": 0.1 + 1 / n, "lr": {"denoiser": 1e-4}}) + "\n")
    for n in range(SAMPLES // 2):
        for prompt in range(2):
            (run.samples / f"step-{n * 100:08d}_{prompt:02d}.png").write_bytes(picture)
    me = psutil.Process()
    run.write_state(
        State("running", "training", (STEPS, 2 * STEPS), STEPS, 2 * STEPS, me.pid, me.create_time()),
    )
    return run


def keep_training(run: Run, stop: threading.Event) -> None:
    """Ten steps a second, told once a second, as a trainer does."""
    step, state = STEPS, State.read(run.path / "state.json")
    while not stop.wait(1.0):
        for _ in range(10):
            step += 1
            run.event("step", step=step, loss=0.1, lr={"denoiser": 1e-4})
        run.write_state(State(state.status, state.phase, (step, 2 * STEPS), step, 2 * STEPS, state.pid, state.process_started))


def seen_in_a_browser(address: str, run: Run, server: psutil.Process) -> dict[str, float]:
    """What the page weighs, how soon a long run is drawn (median of 3), and the share of a core that one page takes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.wait_for_selector("#panel-new-run button")
        weight = len(page.evaluate("fetch(location.href).then(a => a.text())").encode())
        components = page.evaluate("window.gradio_config.components.length")
        opened = []
        for _ in range(3):
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(f"{address}/#run={run.id}")
            page.wait_for_function("document.querySelector('.run-view .uplot') && document.querySelector('.samples img')")
            opened.append(time.perf_counter() - began)
        time.sleep(5)
        before, began = server.cpu_times(), time.perf_counter()
        time.sleep(60)
        after, spent = server.cpu_times(), time.perf_counter() - began
        browser.close()
    share = (after.user + after.system - before.user - before.system) / spent
    return {
        "html_and_config_bytes": weight,
        "components": components,
        "long_run_seconds_median": round(statistics.median(opened), 2),
        "one_page_share_of_a_core": round(share, 4),
    }


def watched(address: str, run: Run, server: psutil.Process, minutes: float) -> dict[str, float]:
    """20 clients ask every second what an open page asks; how the server's memory goes, after the first fifth of the time."""
    stop, polls, faults = threading.Event(), [0] * PAGES, [0] * PAGES

    def page(number: int) -> None:
        with httpx.Client(base_url=address, timeout=30) as client:
            client.get("/", headers={"Sec-Fetch-Mode": "navigate"})
            versions = {"": "", f"/{run.id}": "", f"/{run.id}/curves": ""}
            while not stop.wait(1.0):
                for path, version in versions.items():
                    answer = client.get(f"/api/runs{path}", params={"since": version})
                    if answer.status_code != 200:
                        faults[number] += 1
                        continue
                    versions[path] = answer.json().get("version", version)
                    polls[number] += 1

    threads = [threading.Thread(target=page, args=(i,), daemon=True) for i in range(PAGES)]
    for thread in threads:
        thread.start()
    time.sleep(minutes * 60 / 5)
    first, early = server.memory_info().rss, sum(polls)
    time.sleep(minutes * 60 * 4 / 5)
    last, late = server.memory_info().rss, sum(polls)
    stop.set()
    for thread in threads:
        thread.join(30)
    return {
        "minutes": minutes,
        "polls": late,
        "refused": sum(faults),
        "mib_at_first": first >> 20,
        "mib_at_last": last >> 20,
        "mib_per_1000_polls": round((last - first) / (1 << 20) / max(1, late - early) * 1000, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watch-minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "page.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["LIMNER_HOME"] = home
        report: dict = {"date": time.strftime("%Y-%m-%d"), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        seconds = []
        for _ in range(5):
            server, address, took = start()
            seconds.append(took)
            server.terminate()
            server.wait(30)
        report["answers_after_seconds"] = {"median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}
        run, stop = long_run(), threading.Event()
        writer = threading.Thread(target=keep_training, args=(run, stop), daemon=True)
        server, address, _ = start()
        try:
            writer.start()
            process = psutil.Process(server.pid)
            report["browser"] = seen_in_a_browser(address, run, process)
            report["mib_after_the_page"] = process.memory_info().rss >> 20
            report["watching"] = watched(address, run, process, args.watch_minutes)
        finally:
            stop.set()
            server.terminate()
            server.wait(30)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
