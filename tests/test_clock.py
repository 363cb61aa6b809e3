"""A clock that is set by a year, either way, while a run goes on: no negative time, and the newest is the highest step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from limner import runs
from limner.config import Config
from limner.progress import Watcher
from limner.runs import Run, State
from limner.web import run_facts
from limner.web.curves import Curves

YEAR = 365 * 86400.0


@pytest.fixture
def run() -> Run:
    return runs.create(Config())


def lines(jump: float) -> list[str]:
    """Eighty steps of half a second; the clock is set after half of them, which an older trainer's events show."""
    times = [1e9 + 0.5 * i + jump * (i >= 40) for i in range(80)]
    return [json.dumps({"event": "step", "step": i + 1, "time": t, "loss": 0.5, "lr": {}}) + "\n" for i, t in enumerate(times)]


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_no_negative_time_left_on_the_page(run: Run, jump: float) -> None:
    curves, paces = Curves(run), []
    for line in lines(jump):
        with (run.path / "events.jsonl").open("a") as file:
            file.write(line)
        curves.update()
        paces.append(curves.pace())
    assert all(pace is None or pace > 0 for pace in paces)
    assert paces[39] == pytest.approx(2) and paces[-1] == pytest.approx(2), "and told again soon"
    assert sum(pace is None for pace in paces[40:]) <= 3


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_no_negative_time_left_in_the_terminal(run: Run, jump: float) -> None:
    watch, said = Watcher(run), []
    for number, line in enumerate(lines(jump), 1):
        watch._take(json.loads(line))
        said.append(watch.line(State(status="running", phase="training", step=number, steps=100)))
    assert all("-" not in line for line in said)
    if jump < 0:
        assert "2.00 steps/s  10 s left" in said[-1]


def test_the_newest_checkpoint_is_that_of_the_highest_step(run: Run) -> None:
    for number, step in enumerate((10, 20, 30)):
        path = run.checkpoints / f"cat-{step:08d}.safetensors"
        path.write_bytes(b"x")
        os.utime(path, (1e9 - YEAR * number,) * 2)
    written = {f"cat-{step:08d}.safetensors": step for step in (10, 20, 30)}
    found = run_facts._checkpoints_part(run, run.config(), written)
    assert [entry["step"] for entry in found] == [30, 20, 10]


def test_what_was_asked_by_a_clock_in_the_future_is_forgotten_at_the_next_start(run: Run, home: Path) -> None:
    from limner import queue

    run.request("stop")
    os.utime(run.path / "control" / "stop", (4e9, 4e9))
    queue.enqueue(run)
    assert run.take_requests() == []
