"""The line of the terminal: what is said of speed, never wider than 79 columns, and a hint said once."""

from __future__ import annotations

from typing import Any

import pytest

from limner import runs
from limner.config import Config
from limner.engine.hints import SENTENCES
from limner.progress import Watcher, in_a_line
from limner.runs import Run, State


def watched(run: Run, step: int, steps: int, **speed: Any) -> str:
    watch = Watcher(run)
    for number in range(step - 20, step + 1):
        run.event("step", step=number, loss=0.0931, lr={})
    run.event("memory", step=step, memory_mib=123_456)
    for _ in range(3):
        run.event("speed", step=step, **speed)
    events = [event for event, _ in run.events()]
    for number, event in enumerate(events):
        watch._take(event | {"time": 1000.0 + 0.25 * number})
    return watch.line(State(status="running", phase="training", step=step, steps=steps))


@pytest.fixture
def run() -> Run:
    return runs.create(Config())


def test_what_is_said_of_speed(run: Run) -> None:
    line = watched(run, 812, 2000, images_per_second=9.24, seconds_per_step=0.43, utilisation=0.312)
    assert line == "step 812/2000  loss 0.0931  4.00 steps/s  4 min 57 s left  31% of peak  123456 MiB"[: len(line)]
    assert line.endswith("31% of peak") and len(line) <= 79


def test_little_use_is_said_with_a_digit_more(run: Run) -> None:
    assert "0.4% of peak" in watched(run, 30, 99, images_per_second=9.24, seconds_per_step=0.43, utilisation=0.0042)


def test_the_first_facts_stay_where_there_is_no_room() -> None:
    facts = ["step 100000/100000", "loss 0.1234", "123.45 steps/s", "99 h 59 min left", "a" * 40, "123 MiB"]
    assert in_a_line(facts) == "step 100000/100000  loss 0.1234  123.45 steps/s  99 h 59 min left  123 MiB"


def test_a_hint_is_said_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    watched(run, 30, 99, images_per_second=9.24, seconds_per_step=0.43, hint="launch-bound")
    assert capsys.readouterr().out == f"hint: {SENTENCES['launch-bound']}\n"
