"""What a run will take is told from the last one of its shape, and from nothing else."""

from __future__ import annotations

import json
from typing import Any

from limner import expect, runs
from limner.config import files
from limner.runs import Run


def _run(events: list[dict[str, Any]], **values: str) -> Run:
    run = runs.create(files.build({}, {k.replace("__", "."): v for k, v in values.items()}))
    (run.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return run


def _steps(first: int, last: int, seconds: float, begin: float = 0.0) -> list[dict[str, Any]]:
    return [{"event": "step", "step": i, "time": begin + seconds * i, "loss": 1.0} for i in range(first, last + 1)]


def test_nothing_is_known_before_a_first_run() -> None:
    assert expect.from_last_run(files.build({}, {})) is None
    _run(_steps(1, 9, 1.0))
    _run([])
    assert expect.from_last_run(files.build({}, {})) is None


def test_the_newest_run_of_the_shape_decides() -> None:
    _run(_steps(1, 20, 4.0), output__name="a")
    _run(
        [*_steps(1, 20, 2.0), {"event": "memory", "step": 20, "time": 0.0, "memory_mib": 900, "device_mib": 700}],
        output__name="b",
    )
    _run(_steps(1, 20, 9.0), output__name="c", train__batch_size="4")
    (broken := _run(_steps(1, 20, 5.0), output__name="d").path / "config.toml").write_text("not toml")
    assert broken.exists()
    assert expect.from_last_run(files.build({}, {"train.steps": "9"})) == expect.Expectation(2.0, 700)
    assert expect.from_last_run(files.build({}, {"train.batch_size": "4"})) == expect.Expectation(9.0, None)
    assert expect.from_last_run(files.build({}, {"adapter.kind": "none"})) is None


def test_a_pause_before_a_resume_is_not_counted() -> None:
    _run([*_steps(1, 20, 1.0), {"event": "resume", "step": 20, "time": 99999.0}, *_steps(21, 40, 3.0, 100_000.0)])
    assert expect.from_last_run(files.build({}, {})) == expect.Expectation(3.0, None)
