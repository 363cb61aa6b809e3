"""A day in minutes: a tiny model trained for 50,000 steps, sampled and saved, while 20 pages watch. Only the files grow.

LIMNER_LONG_STEPS sets the steps, LIMNER_LONG_MINUTES how long at most; then the run is stopped, and the slopes are of what
was trained. LIMNER_LONG_PAGES sets how many watch: on a busy machine they take the trainer's time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

import hanging
import tiny
from limner import fitting, jobs, progress, runs
from limner.runs import Run
from trainer import config, new_run

STEPS = int(os.environ.get("LIMNER_LONG_STEPS", "50000"))
MINUTES = float(os.environ.get("LIMNER_LONG_MINUTES", "90"))
PAGES = int(os.environ.get("LIMNER_LONG_PAGES", "20"))
MOST_MIB = 1.0
"""Of memory that may be gained in 10,000 steps."""
LOG_BYTES = 42 << 20
WARM_SHARE = 0.3
"""Of the steps, so many come before the slope is measured: caches fill, and the allocator takes what it will keep."""


@dataclass
class Watched:
    """Memory of a process by step."""

    process: psutil.Process
    steps: list[int] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def look(self, step: int) -> None:
        self.steps.append(step)
        self.mib.append(self.process.memory_info().rss / (1 << 20))

    def slope(self) -> float:
        """MiB per 10,000 steps: the median of the slopes between points half of the time apart (Theil 1950, Sen 1968)."""
        steps, mib = np.array(self.steps), np.array(self.mib)
        warm = steps >= WARM_SHARE * steps[-1]
        steps, mib = steps[warm], mib[warm]
        half = len(steps) // 2
        slopes = [(b - a) / (t - s) for s, t, a, b in zip(steps, steps[half:], mib, mib[half:], strict=False) if t > s]
        return float(np.median(slopes)) * 10_000


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """A `limner web` and its address."""
    log = runs.home() / "server.txt"
    with log.open("wb") as out:
        words = [sys.executable, "-m", "limner.cli", "web", "--headless", "--port", "0"]
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    def address() -> str:
        assert server.poll() is None, log.read_text()
        found = re.search(r"http://\S+", log.read_text())
        return found[0].rstrip("/") if found else ""

    hanging.wait(address, 120, log.read_text)
    return server, address()


def watch(address: str, run: Run, stop: threading.Event, faults: list[str], polls: list[int]) -> None:
    """What an open page asks, once a second."""
    with httpx.Client(base_url=address, timeout=60) as client:
        client.get("/", headers={"Sec-Fetch-Mode": "navigate"})
        versions = {"": "", f"/{run.id}": "", f"/{run.id}/curves": ""}
        while not stop.wait(1.0):
            for path, version in versions.items():
                try:
                    answer = client.get(f"/api/runs{path}", params={"since": version})
                    versions[path] = answer.json().get("version", version)
                    polls.append(answer.status_code)
                except (httpx.HTTPError, ValueError) as error:
                    faults.append(f"{path}: {type(error).__name__}: {error}")


def peak_mib(work: Callable[[], object]) -> float:
    """The most memory that Python held at once for it."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (1 << 20)


@pytest.mark.timeout(int(MINUTES * 60 + 900))
def test_a_day_in_minutes(
    home: Path, tmp_path: Path, tiny_model: Path, known_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(
        config(
            tiny_model, tiny.pictures(tmp_path / "pictures"),
            train={"steps": STEPS}, optimizer={"lr": 1e-4},
            sample={"prompts": ["a cat --s 2 --w 16 --h 16"], "every_steps": 500},
            output={"state_every_steps": 250, "save_every_steps": 1000, "keep_last": 3},
        )
    )  # fmt: skip
    server, address = start_server()
    stop, faults, polls = threading.Event(), list[str](), list[int]()
    threads = [threading.Thread(target=watch, args=(address, run, stop, faults, polls), daemon=True) for _ in range(PAGES)]
    try:
        hanging.begin(run)
        for thread in threads:
            thread.start()
        trainer = Watched(psutil.Process(run.state().pid))
        watched = {
            "trainer": trainer,
            "runner": Watched(psutil.Process(run.state().parent)),
            "server": Watched(psutil.Process(server.pid)),
        }
        until = time.monotonic() + MINUTES * 60
        while (state := run.state()).status in runs.LIVE and time.monotonic() < until:
            for one in watched.values():
                one.look(state.step)
            time.sleep(1.0)
        steps = run.state().step
        stop.set()
        if run.state().status in runs.LIVE:
            assert jobs.stop(run).status == "stopped"
        for thread in threads:
            thread.join(90)
    finally:
        stop.set()
        jobs.stop(run, now=True)
        server.terminate()
        server.wait(60)
    slopes = {name: one.slope() for name, one in watched.items()}
    logs = {
        p.name: p.stat().st_size for p in (*run.path.glob("log*.txt"), *home.glob("*.log"), home / "server.txt") if p.exists()
    }
    events = (run.path / "events.jsonl").stat().st_size / (1 << 20)
    with capsys.disabled():
        print(f"\n{steps} steps, {len(polls)} answers to {PAGES} pages, {len(faults)} faults, events {events:.1f} MiB, {logs}")
        for name, one in watched.items():
            print(f"{name}: {one.mib[0]:.0f} MiB at first, {one.mib[-1]:.0f} at last, {slopes[name]:+.2f} MiB per 10,000 steps")
    assert run.state().status in ("done", "stopped") and not faults and set(polls) == {200}, faults[:3]
    assert sum(logs.values()) < LOG_BYTES
    assert max(slopes.values()) < MOST_MIB, slopes
    assert len(list(run.states.iterdir())) <= 3 and len(list(run.checkpoints.iterdir())) <= 5


def test_the_events_of_days_are_read_in_constant_memory(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten times the events, and no more memory to look at a run, show it, or go on with it."""
    from limner.config import Config

    peaks = []
    for count in (10_000, 100_000):
        run = runs.create(Config())
        with (run.path / "events.jsonl").open("w", encoding="utf-8") as file:
            for n in range(count):
                file.write(f'{{"event": "step", "time": {n}.5, "step": {n}, "loss": 0.125, "lr": {{"denoiser": 0.0001}}}}\n')
        looks = {
            "events": lambda run=run: sum(1 for _ in run.events()),
            "show": lambda run=run: progress.show(run),
            "go on": lambda run=run: fitting.recorded(run),
        }
        peaks.append({name: peak_mib(work) for name, work in looks.items()})
    with capsys.disabled():
        print(f"\nMiB for 10,000 and 100,000 events: {peaks}")
    for name, peak in peaks[1].items():
        assert peak < peaks[0][name] + 0.5, name
