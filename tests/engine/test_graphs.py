"""What a CUDA graph is recorded from: buffers of its own, gradients that stay where they are. On a CPU a function that is run
again stands for the graph, so that it sees what a graph would see, and nothing else; `tests/gpu` records real ones."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from limner import jobs
from limner.config import files
from limner.engine import graphs
from limner.engine.feed import Feed, places
from limner.engine.journal import Journal
from limner.engine.objective import learn
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.train import move_weights
from limner.engine.training import Training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "sdxl", family="sdxl")


def job_for(model: Path, folder: Path, **sections: dict[str, Any]) -> Training:
    given = {
        "model": {"base": str(model)},
        "data": {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": {"rank": 3},
        "train": {"steps": 20, "batch_size": 2, "accumulation": 2, "seed": 7},
        "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        "launch": {"device": "cpu"},
        **sections,
    }
    config = files.build(given, {})
    run = jobs.prepare(config)
    return prepare(run, config, Runtime(CPU, "fp32"), Journal(run, is_main=True), lambda: False)


class Recorder:
    """Runs what was recorded again where a graph would be started again."""

    def __init__(self) -> None:
        self.count = self.replays = 0

    def __call__(self, function: Any) -> tuple[Any, Tensor]:
        self.count += 1
        loss = torch.full((), torch.nan)

        def replay() -> None:
            self.replays += 1
            loss.copy_(function())

        return replay, loss


def walk(job: Training, steps: int) -> list[float]:
    return [float(move_weights(job, step)[0]) for step in range(steps)]


@pytest.mark.long
@pytest.mark.parametrize("masked", [False, True])
def test_a_run_by_graphs_is_the_run(model: Path, folder: Path, masked: bool):
    """Three buckets, batches of one and two, two micro-batches a step: the same losses and weights."""
    more = {"objective": {"weighting": "min_snr"}} | ({"data": _masks(folder)} if masked else {})
    plain, other = (job_for(model, folder, **more) for _ in range(2))
    record = Recorder()
    other.graphs = graphs.Graphs(lambda q, n: learn(other, q, n), other.params, record, contextlib.nullcontext)
    gradients = [p.grad for p in other.params]
    expected, found = walk(plain, 12), walk(other, 12)
    assert found == pytest.approx(expected, rel=1e-6)
    for a, b in zip(other.params, plain.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    micro_batches = [m for step in range(12) for m in other.dataset.order.step(step)]
    shapes = {(other.dataset.fits[m[0]].bucket, len(m)) for m in micro_batches}
    assert len(shapes) >= 3 and record.count == len(shapes)
    assert record.replays == len(micro_batches) - graphs.WARM * len(shapes)
    # nothing a graph writes to has moved
    assert all(p.grad is g for p, g in zip(other.params, gradients, strict=True))


def _masks(folder: Path) -> dict[str, Any]:
    from PIL import Image

    where = folder.parent / "masks"
    where.mkdir(exist_ok=True)
    for i, picture in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(picture) as image:
            mask = Image.new("L", image.size, 255)
            mask.paste(40 * i, (0, 0, image.width // 2, image.height))
            mask.save(where / picture.name)
    own = {"path": str(folder), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8}
    return own | {"masks": "folder", "mask_path": str(where)}


def test_inputs_are_copied_into_the_same_places(model: Path, folder: Path):
    job, seen = job_for(model, folder, train={"steps": 20, "batch_size": 1, "seed": 7}), list[dict[str, int]]()

    def noted(question: Any, count: Any) -> Tensor:
        tensors = graphs._inputs(question)
        seen.append({name: t.data_ptr() for name, t in tensors.items()})
        assert isinstance(count, Tensor) and float(count) == 1
        return learn(job, question, count)

    made = graphs.Graphs(noted, job.params, Recorder(), contextlib.nullcontext)
    (place, *_) = places(job, 0)
    feed = Feed(job, 0)
    for _ in range(graphs.WARM + 3):
        made.learn(feed.take(place), 1)
    recorded = seen[graphs.WARM :]
    assert {"noisy", "t", "target", "cond text", "cond pooled", "cond geometry"} <= set(recorded[0])
    assert recorded[0] == recorded[1] == recorded[2]
