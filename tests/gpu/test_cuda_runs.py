"""Trainers as real processes on a GPU: ended and resumed, in 16 bits, with memory saved, painting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from limner.config.prompts import Prompt
from limner.engine import paint
from limner.engine.runtime import Runtime
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import FAMILIES
from limner.runs import Run
from trainer import Moment, config, losses, new_run, states, train

ON_GPU = {"device": "cuda"}
SAMPLE = {"prompts": ["picture number 1 --s 4 --w 32 --h 24"], "every_steps": 6}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")


def trained(model: Path, pictures: Path, endings: tuple[Moment, ...] = (), **sections: dict[str, Any]) -> Run:
    """A run on the GPU, ended and resumed as often as asked."""
    run = new_run(config(model, pictures, launch=ON_GPU, **sections))
    for moment in endings:
        assert train(run, moment) in (0, -9), run.tail()
        assert run.state().step < 12
    assert train(run) == 0, run.tail()
    assert run.state().status == "done"
    return run


@pytest.mark.parametrize(
    ("family", "sections"),
    [
        ("sd1", {"train": {"precision": "bf16"}, "sample": SAMPLE}),
        ("sd1", {"train": {"precision": "fp32"}, "adapter": {"conv_rank": 2, "text_encoder": True}}),
        ("sd1", {"train": {"precision": "fp16", "ema": 0.9}}),
        ("sdxl", {"train": {"precision": "bf16"}, "memory": {"checkpointing": True}}),
        ("sd3", {"train": {"precision": "bf16"}, "sample": SAMPLE}),
        ("flux", {"train": {"precision": "bf16"}, "memory": {"checkpointing": True, "quantize": "nf4", "swap_blocks": 3}}),
    ],
    ids=str,
)
def test_resuming_goes_on_there(models: dict[str, Path], pictures: Path, family: str, sections: dict[str, Any]):
    """The same pictures, noise and rates at each step; the losses as near as a GPU repeats them."""
    endings = Moment("stop", "step", 4), Moment("kill", "step", 4)
    whole, resumed = trained(models[family], pictures, **sections), trained(models[family], pictures, endings, **sections)
    assert [e["step"] for e in resumed.history() if e["event"] == "step"] == list(range(1, 13))
    assert losses(resumed) == pytest.approx(losses(whole), rel=0.02)
    assert states(resumed)[-1].name == states(whole)[-1].name
    assert {p.name for p in resumed.samples.iterdir()} == {p.name for p in whole.samples.iterdir()}


@pytest.mark.parametrize(("family", "blocks"), [("sdxl", 4), ("flux", 3), ("sd3", 2)])
def test_a_run_with_swapped_blocks_learns_the_same(models: dict[str, Path], pictures: Path, family: str, blocks: int):
    memory = {"checkpointing": True}
    whole = trained(models[family], pictures, memory=memory, sample=SAMPLE)
    swapped = trained(models[family], pictures, memory={**memory, "swap_blocks": blocks}, sample=SAMPLE)
    assert losses(swapped) == pytest.approx(losses(whole), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_learn_as_thirty_two_do(models: dict[str, Path], pictures: Path, family: str):
    """At a rate that changes little in twelve steps: the losses differ by what rounding does."""
    runs = [
        trained(models[family], pictures, train={"precision": precision}, optimizer={"lr": 1e-4})
        for precision in ("fp32", "bf16", *(["fp16"] if family == "sd1" else []))
    ]
    expected, *others = [losses(run) for run in runs]
    for found in others:
        assert found != expected
        assert found == pytest.approx(expected, rel=0.02)
    on_cpu = new_run(config(models[family], pictures, optimizer={"lr": 1e-4}))
    assert train(on_cpu) == 0, on_cpu.tail()
    assert expected == pytest.approx(losses(on_cpu), rel=2e-3)
    peaks = [e["device_mib"] for e in runs[0].history() if e["event"] == "memory"]
    assert peaks and min(peaks) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_painted_pictures_are_the_cpus(models: dict[str, Path], family: str):
    prompts = [Prompt("a photo of a cat", "blurry", 32, 24, 6, None, 11, None)]
    prompts.append(replace(prompts[0], seed=12))
    found = []
    for kind, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16")):
        made, runtime = families.make(recognise(str(models[family]))), Runtime(torch.device(kind), precision)
        for part in ("text", "denoiser", "vae"):
            made.load(part, torch.float32 if part == "vae" else runtime.dtype, runtime.device)
        encoded = paint.encode_prompts(made, runtime, prompts)
        found.append([p.cpu() for p in paint.paint(made, runtime, prompts, encoded, 2)])
    expected, same, near = found
    for a, b, c in zip(expected, same, near, strict=True):
        assert a.std() > 0.01 and (a - b).abs().max() < 5e-3
        assert (a - c).abs().mean() < 0.1 * a.std()
    assert not torch.equal(*same)
