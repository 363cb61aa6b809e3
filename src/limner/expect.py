"""How long a run will take and what memory it needs: told from the last run of its shape here, or asked of a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from limner import estimate, runner, runs
from limner.config import Config
from limner.errors import UserError
from limner.runs import Run

_LAST_BYTES = 1 << 18
_LAST_RUNS = 50
_LEAST_STEPS = 10


def reckon(config: Config, question: estimate.Question) -> None:
    """Have it found out what a run will take that was never made; `estimate` keeps the answer.

    The seconds of a step only where nothing is trained meanwhile: the one would slow the other down. Raises UserError if it
    cannot be told.
    """
    estimate.ask(runs.home(), config, question, times=question.device not in runner.live_runs())


@dataclass(frozen=True)
class Expectation:
    """What a run of this shape took. Painting and saving between the steps are part of the time of a step."""

    seconds_per_step: float
    memory_mib: int | None


def from_last_run(config: Config) -> Expectation | None:
    """The expectation from the newest run of the same shape that got far enough to tell."""
    wanted = _shape(config)
    for run in reversed(runs.all_runs()[-_LAST_RUNS:]):
        file = run.path / "config.toml"
        if _shape_of(run, file.stat().st_mtime_ns) == wanted and (found := _measured(run)):
            return found
    return None


def _shape(config: Config) -> tuple[object, ...]:
    """What decides the cost of a step."""
    train, data = config.train, config.data
    size = (train.batch_size, train.accumulation, train.precision, train.ema, config.objective.preserve)
    return (config.model, config.adapter, config.trains_text, _kept(config), config.launch, data.resolution, data.buckets, size)


def _kept(config: Config) -> tuple[object, ...]:
    memory = config.memory
    return (memory.checkpointing, memory.checkpoint_every, memory.quantize, memory.swap_blocks)


@lru_cache(maxsize=_LAST_RUNS * 2)
def _shape_of(run: Run, written: int) -> tuple[object, ...] | None:
    """The shape of a run whose config was written at `written`; None if it cannot be read any more."""
    del written
    try:
        return _shape(run.config())
    except UserError:
        return None


def _measured(run: Run) -> Expectation | None:
    """From the last steps of one run; None if there are too few."""
    steps: list[tuple[int, float]] = []
    memory: int | None = None
    for event, _ in run.events(max(0, _size(run.path / "events.jsonl") - _LAST_BYTES)):
        if event.get("event") in ("start", "resume"):
            steps = []
        elif event.get("event") == "step" and {"step", "time"} <= event.keys():
            steps.append((event["step"], event["time"]))
        elif event.get("event") == "memory":
            memory = max(memory or 0, event.get("device_mib") or event.get("memory_mib", 0))
    if len(steps) < _LEAST_STEPS:
        return None
    (first, began), (last, ended) = steps[0], steps[-1]
    return Expectation((ended - began) / (last - first), memory) if last > first and ended > began else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
