"""The curves of a run agree with its history, whatever happened to it, and stay cheap for a long one."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from typing import Any

import pytest

from limner import runs
from limner.config import Config
from limner.runs import Run
from limner.web.curves import SMOOTHING, Curves, CurvesOfRuns


@pytest.fixture
def run() -> Run:
    return runs.create(Config())


def step(run: Run, number: int, loss: float, **values: Any) -> None:
    run.event("step", step=number, loss=loss, lr={"denoiser": 1e-4, "text": 5e-5}, grad_norm=loss * 2, **values)


def drawn(run: Run, curves: Curves, points: int = 4000) -> dict[str, Any]:
    curves.update()
    return json.loads(curves.answer(points))


def smoothed(losses: list[float]) -> list[float]:
    """The reference: each mean written out as a weighted sum over all steps before it."""
    out = []
    for i in range(len(losses)):
        weights = [SMOOTHING ** (i - j) for j in range(i + 1)]
        out.append(sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights))
    return out


def agrees(run: Run, answer: dict[str, Any]) -> None:
    """The answer is what the run's history says, every step a point of its own."""
    history = run.history()
    steps = [e for e in history if e["event"] == "step"]
    assert answer["steps"] == [e["step"] for e in steps]
    assert answer["low"] == answer["high"] == pytest.approx([e["loss"] for e in steps], rel=1e-4)
    assert answer["smooth"] == pytest.approx(smoothed([e["loss"] for e in steps]), rel=1e-4)
    assert answer["memory"]["steps"] == [e["step"] for e in history if e["event"] == "memory"]
    for kind in ("speed", "validation"):
        assert answer[kind]["steps"] == [e["step"] for e in history if e["event"] == kind]


def test_no_events_yet(run: Run) -> None:
    answer = drawn(run, Curves(run))
    assert answer["steps"] == [] and answer["rates"] == {} and answer["memory"] == {"steps": []}


def test_what_a_run_says(run: Run) -> None:
    run.event("start", step=0, steps=3)
    for n, loss in enumerate((0.5, 0.25, 0.125), 1):
        step(run, n, loss)
    run.event("memory", step=3, memory_mib=900, device_mib=4000)
    run.event("speed", step=3, images_per_second=2.5, device=0.75, peak_source="measured", hint="launch-bound", other=1)
    run.event("validation", step=3, loss=0.3)
    run.event("checkpoint", step=3, path="/somewhere/cat.safetensors")
    run.event("sample", step=3, path="step-00000003_01.png", prompt="a cat", seed=1)
    curves = Curves(run)
    answer = drawn(run, curves)
    agrees(run, answer)
    assert answer["rates"] == {"denoiser": [1e-4] * 3, "text": [5e-5] * 3}
    assert answer["norm"] == [1.0, 0.5, 0.25]
    assert answer["memory"] == {"steps": [3], "memory_mib": [900.0], "device_mib": [4000.0]}
    assert answer["validation"] == {"steps": [3], "loss": [0.3]}
    assert answer["speed"] == {"steps": [3], "images_per_second": [2.5], "device": [0.75]}
    assert curves.said_of_speed == {"hint": "launch-bound", "peak_source": "measured"}
    assert curves.checkpoints == {"cat.safetensors": 3} and curves.prompts == {"01": "a cat"}


@pytest.mark.parametrize("seed", range(20))
def test_a_run_stopped_killed_and_resumed_at_random(run: Run, seed: int) -> None:
    draw = random.Random(seed)
    curves, now = Curves(run), 0
    run.event("start", step=0)
    for _ in range(12):
        for _ in range(draw.randrange(12)):
            now += 1
            step(run, now, draw.random())
            if draw.random() < 0.3:
                run.event(draw.choice(["memory", "speed", "validation"]), step=now, memory_mib=1, loss=draw.random())
        if draw.random() < 0.5:
            agrees(run, drawn(run, curves))  # read in pieces, at any moment
        now = draw.choice([0, now, draw.randrange(now + 1)])
        run.event("resume", step=now)
    agrees(run, drawn(run, curves))
    agrees(run, drawn(run, Curves(run)))


def test_damaged_events_are_passed_over(run: Run) -> None:
    step(run, 1, 0.5)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "step": "2", "loss": 1}\n{"event": "step", "step": 3, "loss": NaN}\n[1]\n\xff\n')
        file.write(
            b'{"event": "step", "step": 4, "loss": 1' + b"0" * 400 + b', "lr": 3}\n{"event": "step", "step": true, "loss": 1}\n'
        )
        file.write(b'{"event": "step", "step": -1, "loss": 1}\n{"event": "resume"}\n')
    step(run, 5, 0.25)
    assert drawn(run, Curves(run))["steps"] == [5]  # a resume without a step is one at step 0, as for `Run.history`


def test_a_line_that_is_being_written_is_read_when_it_is_whole(run: Run) -> None:
    curves = Curves(run)
    step(run, 1, 0.5)
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "step": 2, ')
        file.flush()
        assert drawn(run, curves)["steps"] == [1]
        file.write(b'"loss": 0.5}\n')
    assert drawn(run, curves)["steps"] == [1, 2]


def test_a_replaced_file_is_read_anew(run: Run) -> None:
    curves = Curves(run)
    for n in range(1, 9):
        step(run, n, 0.5)
    before = drawn(run, curves)
    (run.path / "events.jsonl").unlink()
    step(run, 1, 0.75)
    answer = drawn(run, curves)
    assert answer["low"] == [0.75] and answer["version"] != before["version"]


def test_spikes_stay_visible_and_points_stay_where_they_are(run: Run) -> None:
    for n in range(1, 1001):
        step(run, n, 9.0 if n == 437 else -9.0 if n == 438 else 1.0)
    curves = Curves(run)
    answer = drawn(run, curves, 100)
    assert 50 <= len(answer["steps"]) <= 100 and answer["steps"][-1] == 1000
    assert max(answer["high"]) == 9.0 and min(answer["low"]) == -9.0
    assert all(len(answer[name]) == len(answer["steps"]) for name in ("low", "high", "smooth", "norm"))
    step(run, 1001, 1.0)
    assert drawn(run, curves, 100)["high"][:50] == answer["high"][:50]


def test_the_pace_counts_from_bunch_to_bunch_and_forgets_an_earlier_session(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(runs, "now", lambda: clock[0])
    curves = Curves(run)
    for second in range(20):
        clock[0] = 1000.0 + second
        for i in range(5):
            step(run, second * 5 + i + 1, 0.5)
    curves.update()
    assert curves.pace() == pytest.approx(5.0)
    clock[0] = 90000.0
    run.event("resume", step=100)
    step(run, 101, 0.5)
    curves.update()
    assert curves.pace() is None
    clock[0] = 90002.0
    step(run, 102, 0.5)
    curves.update()
    assert curves.pace() == pytest.approx(0.5)


def test_only_so_many_runs_are_kept() -> None:
    kept, made = CurvesOfRuns(), [runs.create(Config()) for _ in range(40)]
    for one in made:
        step(one, 1, 0.5)
        assert len(kept.of(one).steps) == 1
    assert len(kept._kept) == 32


@pytest.mark.long
def test_a_hundred_thousand_steps(run: Run) -> None:
    """The processor's time for a first look, an idle poll and a poll with news, beside what only to parse the history takes."""
    with (run.path / "events.jsonl").open("w") as file:
        for n in range(1, 100_001):
            event = {
                "event": "step",
                "time": n * 0.5,
                "step": n,
                "loss": 0.1 + 1 / n,
                "lr": {"denoiser": 1e-4},
                "grad_norm": 0.5,
            }
            file.write(json.dumps(event) + "\n")
    began = time.process_time()
    for line in (run.path / "events.jsonl").read_text().splitlines():
        json.loads(line)
    parsed = time.process_time() - began
    curves = CurvesOfRuns()
    began = time.process_time()
    curves.of(run).answer(800)
    opened = time.process_time() - began
    began = time.process_time()
    for _ in range(100):
        curves.of(run).answer(800)
    idle = (time.process_time() - began) / 100
    began = time.process_time()
    for n in range(20):
        step(run, 100_001 + n, 0.5)
        curves.of(run).answer(800)
    news = (time.process_time() - began) / 20
    print(f"parsed in {parsed:.2f} s, opened in {opened:.2f} s, idle {idle * 1000:.2f} ms, news {news * 1000:.2f} ms")
    assert opened < 5 * parsed and idle < 0.002 and news < 0.05
    tracemalloc.start()
    try:
        again = Curves(run)
        again.update()
        assert tracemalloc.get_traced_memory()[0] < 12 << 20
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            again.update()
            again.answer(800)
        assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
    finally:
        tracemalloc.stop()
