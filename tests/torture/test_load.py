"""Fifty pages at 1 Hz beside a trainer: no error, answers in time, and the trainer as fast as without them.

The trainer has one core, the server and the pages the other. Blocks with pages and blocks without take turns, and neighbours
are compared: what else the machine does meets both. LIMNER_LOAD_SECONDS (600) says how long there are pages.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import tiny
from limner import jobs
from limner.runs import Run
from pollers import Page, Seen, crowd
from trainer import config, new_run

SECONDS = float(os.environ.get("LIMNER_LOAD_SECONDS", "600"))
BLOCK_SECONDS = 20.0
PAGES = 50
P99_SECONDS = 0.25
MOST_SLOWED = 1.05


@dataclass(frozen=True)
class Pace:
    """How a trainer went on in a block."""

    wall: float
    """Seconds a step."""
    cpu: float
    """Seconds of its processor a step: what waits for a core that others hold does not count."""


@pytest.fixture
def training(home: Path, tmp_path: Path, known_machine: None) -> Iterator[tuple[Run, psutil.Process]]:
    """A run that does not end, which saves and paints now and then, pinned to the first core."""
    model = tiny.build(tmp_path / "model")
    run = new_run(
        config(
            model, tiny.pictures(tmp_path / "pictures"),
            train={"steps": 10_000_000}, output={"state_every_steps": 3000},
            sample={"prompts": ["a cat --s 2"], "every_steps": 3000},
        )
    )  # fmt: skip
    process = jobs.start(run, "cpu")
    assert process is not None
    its = psutil.Process(process.pid)
    its.cpu_affinity([0])
    until = time.monotonic() + 300
    while run.state().step < 50:
        assert process.poll() is None and time.monotonic() < until, run.tail(20_000)
        time.sleep(0.2)
    yield run, its
    jobs.kill(process.pid)
    process.wait(30)


@pytest.fixture
def web(home: Path, training: object, tmp_path: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a real server on the second core."""
    log = tmp_path / "web.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "limner.cli", "web", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    psutil.Process(process.pid).cpu_affinity([1])
    until = time.monotonic() + 120
    while "Limner is at http" not in log.read_text() or not log.read_text().endswith("\n"):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    [line] = [line for line in log.read_text().splitlines() if line.startswith("Limner is at http")]
    yield line.split()[3].rstrip("/"), psutil.Process(process.pid)
    process.terminate()
    process.wait(30)
    assert "Traceback" not in log.read_text()


def pace(run: Run, its: psutil.Process, seconds: float) -> Pace:
    """The trainer's pace for about so long: from one moment at which it said its step to another."""

    def said() -> tuple[int, float, float]:
        before = run.state().step
        while (state := run.state()).step == before:
            assert state.status == "running", run.tail(20_000)
            time.sleep(0.01)
        times = its.cpu_times()
        return state.step, state.updated, times.user + times.system

    step, began, used = said()
    time.sleep(seconds)
    last, ended, used_then = said()
    return Pace((ended - began) / (last - step), (used_then - used) / (last - step))


def with_pages(pages: list[Page], seen: Seen, work: Callable[[], Pace]) -> Pace:
    """Do it while the pages look on."""
    blocks = list[Seen]()
    looking = threading.Thread(target=lambda: blocks.append(asyncio.run(crowd(pages, BLOCK_SECONDS + 4))))
    looking.start()
    time.sleep(0.5)
    found = work()
    looking.join()
    seen.seconds += blocks[0].seconds
    seen.errors += blocks[0].errors
    seen.late += blocks[0].late
    return found


@pytest.mark.skipif(
    not hasattr(psutil.Process, "cpu_affinity") or (os.cpu_count() or 1) < 2, reason="needs two cores to pin to"
)
def test_fifty_pages_slow_no_trainer(training: tuple[Run, psutil.Process], web: tuple[str, psutil.Process]) -> None:
    (run, its), (url, server) = training, web
    psutil.Process().cpu_affinity([1])
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    asking = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
    asking.request("GET", "/")
    cookie = (asking.getresponse().getheader("set-cookie") or "").partition(";")[0]
    asking.close()
    pages = [Page(url, cookie, run.id) for _ in range(PAGES)]
    seen, alone, watched, memory = Seen(), list[Pace](), list[Pace](), list[int]()

    def block() -> Pace:
        return pace(run, its, BLOCK_SECONDS)

    with_pages(pages, Seen(), block)  # what is asked first is made then
    num_pairs = max(2, round(SECONDS / BLOCK_SECONDS))
    for number in range(num_pairs):
        if number % 2:
            alone.append(block())
        watched.append(with_pages(pages, seen, block))
        if not number % 2:
            alone.append(block())
        memory.append(server.memory_info().rss)
    wall = [w.wall / a.wall for w, a in zip(watched, alone, strict=True)]
    cpu = [w.cpu / a.cpu for w, a in zip(watched, alone, strict=True)]
    slowed, slowed_cpu = statistics.median(wall), statistics.median(cpu)
    spread = statistics.quantiles(wall, n=4) if len(wall) > 1 else wall
    print(
        f"\n{PAGES} pages for {num_pairs * BLOCK_SECONDS:.0f} s: {seen}\n"
        f"a step took {slowed:.3f} times as long as without them (quartiles {', '.join(f'{w:.3f}' for w in spread)}), "
        f"and {slowed_cpu:.3f} times the processor's time; {1000 * statistics.median(a.wall for a in alone):.1f} ms alone, "
        f"{run.state().step} steps\n"
        f"server: {memory[0] >> 20} MiB, then {memory[-1] >> 20} MiB; load of the machine {os.getloadavg()[0]:.1f}"
    )
    assert not seen.errors, seen.errors[:5]
    assert run.state().status == "running"
    assert slowed <= MOST_SLOWED or slowed_cpu <= MOST_SLOWED  # the first says more of the machine where others use it too
    if os.getloadavg()[0] < 2.5:  # the trainer and the server themselves make up two
        assert seen.quantile(0.99) <= P99_SECONDS
