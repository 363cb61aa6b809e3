"""How much memory and time a run will take, asked before it starts and without importing torch.

A child process rehearses the run (`limner.engine.estimate`); what it answers is kept in the home for all configurations that
cost the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limner import disk, launch
from limner.config import Config, files
from limner.data.dataset import Dataset
from limner.errors import Finding, UserError
from limner.formats.base import Base, weight_files
from limner.formats.known import FAMILIES

_VERSION = 6  # raise it when the same question is answered otherwise
_SECONDS = 300.0
_ASKED_AGAIN_SECONDS = 60.0
_DECIDE = {"model", "adapter", "embedding", "objective", "memory", "sample", "launch", "speed"}


@dataclass(frozen=True)
class Question:
    """What memory and time depend on besides the configuration."""

    device: str
    precision: str
    bucket: tuple[int, int]
    """The largest, width and height in px."""
    resolution: int
    """That prompts are painted at."""
    num_pictures: int
    num_captions: int
    caches_text: bool
    files: tuple[str, ...]
    """The model's: names, sizes and times."""


@dataclass(frozen=True)
class Phase:
    """What is in memory at the worst moment of a phase, MiB."""

    name: str  # captions | latents | training | saving | sampling
    parts: dict[str, int]
    """By what it is: weights, trained, activations, optimizer, caches, copies, slack."""

    @property
    def total_mib(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    phases: tuple[Phase, ...]
    process_mib: int
    """Of the computer's memory for the libraries alone. On a CPU it comes on top of the phases."""
    seconds_per_step: float | None

    @property
    def worst(self) -> Phase:
        return max(self.phases, key=lambda p: p.total_mib)

    def peak_mib(self, device: str) -> int:
        """The most that is in the device's memory at once."""
        return self.worst.total_mib + (self.process_mib if device == "cpu" else 0)


def key_of(config: Config, question: Question) -> str:
    """The same for all that cost the same."""
    train, optimizer = config.train, config.optimizer
    decides: list[Any] = [
        _VERSION, _torch_version(), asdict(question),
        config.model_dump(mode="json", include=_DECIDE),
        [train.batch_size, train.accumulation, train.ema, train.ema_device, train.clip_norm == "off"],
        [optimizer.kind, optimizer.class_path, optimizer.arguments, optimizer.in_backward],
        [config.output.dtype, config.output.layout],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]


def known(home: Path, config: Config, question: Question) -> Estimate | None:
    """The answer, if it was asked for before. Raises UserError if it was not long ago that there was none."""
    kept = disk.read_json(_place(home, config, question), is_ours=True)
    if not isinstance(kept, dict):
        return None
    try:
        if "failed" in kept:
            if 0 <= time.time() - kept["time"] < _ASKED_AGAIN_SECONDS:
                raise UserError([Finding(**kept["failed"])])
            return None
        return of_json(kept)
    except (KeyError, TypeError, AttributeError):
        return None


def ask(home: Path, config: Config, question: Question, *, times: bool = True) -> Estimate:
    """The answer, from a child process if it is not known yet; `times`: with the seconds of a step, which takes some.

    Raises UserError if there is none, which is kept for a minute.
    """
    if (found := known(home, config, question)) is not None and (found.seconds_per_step is not None or not times):
        return found
    place = _place(home, config, question)
    try:
        answer = _asked(config, question, times)
        found = of_json(answer)
    except UserError as error:
        _keep(place, {"failed": asdict(error.findings[0]), "time": time.time()})
        raise
    _keep(place, answer)
    return found


def of_json(raw: dict[str, Any]) -> Estimate:
    """Raises KeyError, TypeError or AttributeError for what is none."""
    phases = tuple(Phase(p["name"], p["parts"]) for p in raw["phases"])
    numbers = [raw["process_mib"], *(mib for p in phases for mib in p.parts.values())]
    seconds = raw["seconds_per_step"]
    if not phases or any(type(n) is not int for n in numbers) or not isinstance(seconds, int | float | None):
        raise TypeError("no estimate")
    return Estimate(phases, raw["process_mib"], seconds)


def _asked(config: Config, question: Question, times: bool) -> dict[str, Any]:
    told = {"options": files.overrides_of(config), "question": asdict(question), "times": times}
    environment = {**os.environ, **launch.environment(config, question.device)}
    words = [sys.executable, "-m", "limner.engine.estimate"]
    remedy = "The run can be started all the same."
    try:
        done = subprocess.run(
            words, input=json.dumps(told), capture_output=True, text=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        raise UserError([_unanswered("it took too long to find out", remedy)]) from None
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        words_last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        raise UserError([_unanswered(words_last, remedy)]) from None


def _unanswered(why: str, remedy: str) -> Finding:
    return Finding("memory", f"how much memory and time the run takes cannot be told: {why[:300]}.", remedy, "note")


def _keep(place: Path, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written is preflight's to report
        place.parent.mkdir(parents=True, exist_ok=True)
        disk.write_json(place, answer)


def _place(home: Path, config: Config, question: Question) -> Path:
    return home / "estimates" / f"{key_of(config, question)}.json"


def _torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def question(dataset: Dataset, base: Base, device: str, precision: str, caches_text: bool) -> Question:
    """The question for a data set that is planned, and a model that is here."""
    assert base.path is not None
    model_files = dict[Path, None]()
    for part in FAMILIES[base.family].parts:
        if part in base.others:
            model_files[base.others[part]] = None
        elif part not in base.absent:
            model_files |= dict.fromkeys([base.path] if base.layout == "file" else weight_files(base.path, part))
    sizes = sorted(dataset.bucket_counts())
    return Question(
        device, precision, max(sizes, key=lambda size: size[0] * size[1]), dataset.buckets.resolution, dataset.num_pictures,
        len({p.caption for p in dataset.pictures}), caches_text,
        tuple(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in model_files if p.exists()),
    )  # fmt: skip
