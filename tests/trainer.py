"""Run trainers as real processes, end them at chosen moments, and compare what they leave behind.

Processes are forked from a server that has imported everything, so that one costs a second and not ten. Not those on a GPU:
the libraries ask for it while they are imported, and a fork cannot use what was asked for before.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import forked
from limner import changes, jobs
from limner.config import Config, files
from limner.runs import Run


@dataclass(frozen=True)
class Moment:
    """Where a trainer meets its end: before the `count`-th call of a function, counted within one process."""

    what: str
    """stop (a request), change (another one), term, kill (signals), poison (all weights become huge), hang (for ever)."""
    where: str
    """step (one was finished), look (it asks whether it is to stop, in work longer than a step), folder (a large one was looked
    at), hashes (a hundred files are read), cache (a shard is added), picture (one was painted), file (a safetensors file is
    written), rename (anything is)."""
    count: int
    change: dict[str, Any] | str = ""
    """The options that are asked for, or what is put into a file in their place."""


def config(model: Path, pictures: Path, /, **sections: dict[str, Any]) -> Config:
    """A configuration for the tiny model: short, exact, on the CPU."""
    given: dict[str, Any] = {
        "model": {"base": str(model)},
        "data": {"path": str(pictures), "resolution": 32, "bucket_min_px": 16, "bucket_max_px": 64, "bucket_step_px": 8},
        "adapter": {"rank": 4},
        "train": {"steps": 12, "batch_size": 2, "seed": 3},
        "optimizer": {"lr": 1e-2, "schedule": "cosine", "warmup_steps": 2},
        "output": {"name": "cat", "dtype": "fp32", "state_every_steps": 3},
        "launch": {"device": "cpu", "num_threads": 1},
    }
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    if given["adapter"].get("kind") in ("none", "embedding"):
        given["adapter"].pop("rank", None)
    if given["adapter"].get("kind") == "none":
        given["output"].setdefault("layout", "diffusers")
    return files.build(given, {})


def new_run(chosen: Config) -> Run:
    return jobs.prepare(chosen)


def launch(run: Run, *moments: Moment | None) -> BaseProcess:
    """Start the trainer of a run; it ends itself at such a moment."""
    # a fork cannot use CUDA; the file is looked at as text, since some tests damage it
    on_gpu = 'device = "cuda"' in (run.path / "config.toml").read_text(encoding="utf-8")
    forked.start_server()
    context = multiprocessing.get_context("spawn") if on_gpu else forked.CONTEXT
    told = {name: os.environ[name] for name in ("LIMNER_HANG_SECONDS",) if name in os.environ}
    process = context.Process(target=_train, args=(str(run.path), os.environ["LIMNER_HOME"], moments, told))
    process.start()
    return process


def train_together(
    run: Run, count: int, moments: dict[int, Moment] | None = None, seconds: float = 120, others: dict[int, Run] | None = None
) -> list[int]:
    """Train a run with so many processes that know one another, started one by one and not by a launcher; returns their exit
    codes. `moments` by rank; `others` are the run folders of processes on other machines, each alone there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, others = [], others or {}
    for rank in range(count):
        near = [r for r in range(count) if r not in others] if rank not in others else [rank]
        environment = {
            "RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(near.index(rank)), "LOCAL_WORLD_SIZE": str(len(near)),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        its = others.get(rank, run)
        home = str(its.path.parents[1])
        moment = ((moments or {}).get(rank),)
        started.append(forked.CONTEXT.Process(target=_train, args=(str(its.path), home, moment, environment)))
        started[-1].start()
    for process in started:
        process.join(seconds)
        if process.exitcode is None:
            for other in started:
                other.kill()
            raise AssertionError(f"still running after {seconds} s: {run.tail()}")
    return [process.exitcode for process in started]


def train(run: Run, *moments: Moment | None, seconds: float = 120) -> int:
    """Train a run until its process ends; returns the exit code, minus the signal for one that was killed."""
    process = launch(run, *moments)
    process.join(seconds)
    assert process.exitcode is not None, f"still running after {seconds} s: {run.tail()}"
    return process.exitcode


def _train(folder: str, home: str, moments: tuple[Moment | None, ...], environment: dict[str, str] | None = None) -> None:
    os.environ["LIMNER_HOME"] = home
    os.environ.update(environment or {})
    forked.to_log(str(Path(folder) / "log.txt"))
    from limner.engine import __main__ as engine

    for moment in filter(None, moments):
        _arm(moment, Run(Path(folder)))
    code = engine.main(folder)
    sys.stdout.flush()
    os._exit(code)


def _arm(moment: Moment, run: Run) -> None:
    from limner.data.cache import Cache
    from limner.data.remembered import Remembered
    from limner.engine import checkpoint, paint
    from limner.engine.journal import Journal
    from limner.engine.training import Training

    owner, name = {
        "step": (Journal, "step"),
        "look": (Training, "is_asked_to_stop"),
        "folder": (Remembered, "save"),
        "hashes": (Cache, "_some_hashes"),
        "cache": (Cache, "put"),
        "picture": (paint, "to_image"),
        "file": (checkpoint, "save_file"),
        "rename": (checkpoint.disk.os, "replace"),
    }[moment.where]
    original, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.count:
            if moment.what == "stop":
                run.request("stop")
            elif moment.what == "change":
                _change(run, moment.change)
            elif moment.what == "poison":
                _poison()
            elif moment.what == "hang":
                time.sleep(3600)
            else:
                os.kill(os.getpid(), {"term": signal.SIGTERM, "kill": signal.SIGKILL}[moment.what])
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def _change(run: Run, change: dict[str, Any] | str) -> None:
    if isinstance(change, dict):
        changes.request(run, change)
    else:
        (run.path / "control" / "change-1.toml").write_text(change, encoding="utf-8")


def _poison() -> None:
    """Multiply what is trained by so much that the next loss is no number any more."""
    import gc

    from limner.engine.training import Training

    (job,) = (o for o in gc.get_objects() if isinstance(o, Training))
    for p in job.params:
        p.data.mul_(1e30)


# --- what is left behind ----------------------------------------------------------------------------------------------


def tensors_hash(path: Path) -> str:
    """SHA-256 over the tensors of a safetensors file, or of all such files in a folder; metadata hold times."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*.safetensors")):
        for key, tensor in sorted(load_file(file).items()):
            digest.update(f"{file.name} {key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def states(run: Run) -> list[Path]:
    return sorted(p for p in run.states.iterdir() if p.name.startswith("step-"))


def result(run: Run) -> dict[str, Any]:
    """Everything that two exactly equal runs share: finished weights, last training state, losses by step."""
    finished = run.checkpoints / "cat"
    steps = [e for e in run.history() if e["event"] == "step"]
    return {
        "weights": tensors_hash(finished if finished.is_dir() else finished.with_suffix(".safetensors")),
        "state": tensors_hash(states(run)[-1]),
        "state name": states(run)[-1].name,
        "optimizer": (states(run)[-1] / "optimizer.json").read_text(),
        "checkpoints": sorted(p.name for p in run.checkpoints.iterdir()),
        "samples": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.samples.iterdir()},
        "steps": [(e["step"], e["loss"], e["lr"], e.get("grad_norm")) for e in steps],
    }


def losses(run: Run) -> list[float]:
    return [e["loss"] for e in run.history() if e["event"] == "step"]


def kinds(run: Run) -> list[str]:
    """The events' names in order, readings of memory and speed, and repetitions, left out."""
    names = [e["event"] for e, _ in run.events() if e["event"] not in ("memory", "speed")]
    return [n for i, n in enumerate(names) if i == 0 or names[i - 1] != n]
