"""Blocks that are compiled compute what they did, adapters and all, each kind and size once.

The backends here are those that make no kernels, which takes minutes: what Dynamo and autograd make of a block is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_graphs import job_for

import tiny
import trainer
from limner.config import files
from limner.engine.compiled import num_shapes, uncompiled
from limner.engine.train import move_weights
from limner.engine.training import Training

LORA = {"rank": 2, "conv_rank": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), ((40, 40), (40, 40), (60, 40)))


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()


def model_of(family: str, tmp_path_factory: Any) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / family, family=family)


def walk(job: Training, steps: int) -> list[float]:
    return [float(move_weights(job, step)[0]) for step in range(steps)]


def graphs_made() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@pytest.mark.long
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_blocks_are_compiled_whole_and_shared(family: str, folder: Path, tmp_path_factory: Any):
    """No break, adapters included; not once for each block; and nothing is compiled again as steps go on."""
    speed = {"compile": "blocks", "compile_backend": "eager", "compile_fullgraph": True}
    model = model_of(family, tmp_path_factory)
    sizes = {"train": {"steps": 9, "batch_size": 1, "seed": 7}}
    adapter = {"rank": 2} if family == "flux" else LORA
    plain = job_for(model, folder, **sizes, adapter=adapter)
    other = job_for(model, folder, **sizes, adapter=adapter, speed=speed)
    assert walk(other, 6) == pytest.approx(walk(plain, 6), rel=1e-5)
    made = graphs_made()
    blocks = other.family.blocks_of(other.family.denoiser)
    assert num_shapes(other.dataset) == 2
    assert 0 < made <= 2 * len(blocks) * num_shapes(other.dataset)
    more = [float(move_weights(other, step)[0]) for step in range(6, 9)]
    assert more == pytest.approx([float(move_weights(plain, step)[0]) for step in range(6, 9)], rel=1e-5)
    assert graphs_made() == made
    if family == "flux":  # two kinds of blocks; the first of each has no gradient before it, or other strides
        assert made == 2 * 2 * 2


def test_previews_are_not_compiled(folder: Path, tmp_path_factory: Any):
    speed = {"compile": "blocks", "compile_backend": "eager"}
    job = job_for(model_of("flux", tmp_path_factory), folder, speed=speed)
    block, *_ = job.family.blocks_of(job.family.denoiser)
    assert block._compiled_call_impl is not None
    with uncompiled(job.config.speed), torch.no_grad():
        given = {"text": torch.randn(1, 5, 40), "pooled": torch.randn(1, 16), "guidance": torch.ones(1)}
        job.family.predict(torch.randn(1, 16, 8, 8), torch.tensor([500.0]), given)
    assert graphs_made() == 0


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_run_is_the_run(checkpointing: bool, folder: Path, tmp_path_factory: Any):
    """Through autograd's own compiler, forward and backward, with a limit of torch's far below what is needed."""
    model, more = model_of("flux", tmp_path_factory), {"memory": {"checkpointing": checkpointing}}
    sizes = {"train": {"steps": 50, "batch_size": 2, "seed": 7}}
    plain = job_for(model, folder, **sizes, **more)
    other = job_for(model, folder, **sizes, **more, speed={"compile": "blocks", "compile_backend": "aot_eager"})
    assert walk(other, 50) == pytest.approx(walk(plain, 50), rel=1e-3)


@pytest.mark.long
def test_a_compiled_run_resumes_exactly(tmp_path: Path):
    model, pictures = tiny.build(tmp_path / "m", family="flux"), tiny.pictures(tmp_path / "p", ((40, 40), (60, 40)))
    chosen = trainer.config(model, pictures, train={"steps": 6}, speed={"compile": "blocks", "compile_backend": "aot_eager"})
    whole, resumed = trainer.new_run(chosen), trainer.new_run(chosen)
    assert trainer.train(whole, seconds=300) == 0, whole.tail()
    assert trainer.train(resumed, trainer.Moment("kill", "step", 5), seconds=300) == -9
    assert trainer.train(resumed, seconds=300) == 0, resumed.tail()
    assert trainer.result(resumed) == trainer.result(whole)


def test_what_is_given_reaches_torch(folder: Path, tmp_path_factory: Any, monkeypatch: Any):
    given = list[dict[str, Any]]()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: given.append(options))
    model = model_of("sd1", tmp_path_factory)
    job = job_for(model, folder, speed={"compile": "blocks", "compile_mode": "max-autotune", "compile_dynamic": True})
    asked = {"backend": "inductor", "mode": "max-autotune", "dynamic": True, "fullgraph": False}
    assert given == [asked] * len(job.family.blocks_of(job.family.denoiser))
    given.clear()
    job_for(model, folder, speed={"compile": "blocks", "compile_backend": "aot_eager", "compile_fullgraph": True})
    assert given[0] == {"backend": "aot_eager", "dynamic": False, "fullgraph": True}


def test_modes_are_inductors():
    from limner.config.fields import applies, walk

    option = next(o for o in walk() if o.path == "speed.compile_mode")
    assert applies(option, files.build({"speed": {"compile": "blocks"}}, {}))
    assert not applies(option, files.build({"speed": {"compile": "blocks", "compile_backend": "eager"}}, {}))
