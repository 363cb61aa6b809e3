"""Trainers that meet what is no number: at a step of our choice, or in a picture that was encoded before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import forked
import trainer
from limner import jobs
from limner.config import Config
from limner.runs import Run


@dataclass(frozen=True)
class Fault:
    """What happens whenever a step is computed, in whatever process."""

    what: str
    """loss (it is NaN), gradient (one is infinite), weights (they were made huge just before), update (they are NaN just behind
    it), explosion (the losses from this step on are 1e9 times as large), rate (1e10 from this step on)."""
    step: int
    """From 1."""


def train(run: Run, fault: Fault | None, *moments: trainer.Moment, seconds: float = 120) -> int | None:
    """Train a run until its process ends; returns its exit code."""
    forked.start_server()
    words = str(run.path), os.environ["LIMNER_HOME"], fault, moments
    process = forked.CONTEXT.Process(target=_train, args=words)
    process.start()
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} s: {run.tail()}"
    return process.exitcode


def _train(folder: str, home: str, fault: Fault | None, moments: tuple[trainer.Moment, ...]) -> None:
    os.environ["LIMNER_HOME"] = home
    run = Run(Path(folder))
    forked.to_log(str(run.log))
    from limner.engine import __main__ as engine
    from limner.engine import checkpoint

    write = checkpoint.save_file

    def checked(tensors: dict[str, torch.Tensor], path: Any, *others: Any) -> None:
        """What is written and deleted again counts, too."""
        is_sound = all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
        with (run.path / "written.txt").open("a", encoding="utf-8") as file:
            file.write(f"{'sound' if is_sound else 'no numbers'} {path}\n")
        write(tensors, path, *others)

    checkpoint.save_file = checked
    if fault is not None:
        _arm(fault)
    for moment in moments:
        trainer._arm(moment, run)
    os._exit(engine.main(folder))


def _arm(fault: Fault) -> None:
    from limner.engine import train as loop

    compute, move, set_rates = loop.accumulate_gradients, loop.move_weights, loop.set_learning_rates

    def computed(job: Any, step: int) -> torch.Tensor:
        is_there = step == fault.step - 1
        if is_there and fault.what == "weights":
            for p in job.params:
                p.data.mul_(1e30)
        loss = compute(job, step)
        if is_there and fault.what == "gradient":
            next(p for p in job.params if p.grad is not None).grad.view(-1)[0] = torch.inf
        if is_there and fault.what == "loss":
            return loss * torch.nan
        return loss * 1e9 if fault.what == "explosion" and step >= fault.step - 1 else loss

    def moved(job: Any, step: int) -> Any:
        out = move(job, step)
        if step == fault.step - 1 and fault.what == "update":
            job.params[0].data.view(-1)[0] = torch.nan
        return out

    def rated(optimizer: Any, factor: float) -> dict[str, float]:
        rates = set_rates(optimizer, factor)
        if fault.what == "rate":
            for group in optimizer.param_groups:
                group["lr"] = 1e10
        return rates

    loop.accumulate_gradients, loop.move_weights, loop.set_learning_rates = computed, moved, rated


def spoil_latents(chosen: Config, number: int) -> str:
    """Put a NaN into a picture's latents where a run of this configuration will find them; returns the picture's name."""
    from limner.engine.journal import Journal
    from limner.engine.prepare import prepare
    from limner.engine.runtime import Runtime

    run = jobs.prepare(chosen)
    job = prepare(run, chosen, Runtime(torch.device("cpu"), "fp32"), Journal(run, is_main=True), lambda: False)
    cache, key = job.samples.cache, job.samples._latent_keys[number]
    entry = cache.get(key)
    assert entry is not None
    mean = entry["mean"].clone()
    mean.view(-1)[0] = torch.nan
    cache.put({key: {**entry, "mean": mean}})
    job.feed.close()
    job.saver.close()
    return Path(job.dataset.pictures[number].path).name


def skips(run: Run) -> list[dict[str, Any]]:
    """What was left out, each once however often it was decided."""
    found = [e for e, _ in run.events() if e["event"] == "skip"]
    return [e for i, e in enumerate(found) if e["skip"] not in [other["skip"] for other in found[:i]]]


def written(run: Run) -> list[str]:
    """What kind of numbers each file held when it was written: sound, or no numbers."""
    return [line.partition(" /")[0] for line in (run.path / "written.txt").read_text(encoding="utf-8").splitlines()]


def faulty_files(run: Run) -> Iterator[Path]:
    """The files left behind that hold what is no number."""
    for file in run.path.rglob("*.safetensors"):
        if not all(bool(t.isfinite().all()) for t in load_file(file).values() if t.is_floating_point()):
            yield file


def require_sound(run: Run) -> None:
    """Everything that was written, on the way too, holds numbers alone; and everything was noticed in time."""
    assert written(run) and set(written(run)) == {"sound"}
    assert not list(faulty_files(run))
    assert all(e["step"] <= e["noticed"] <= e["step"] + 10 for e in skips(run))
