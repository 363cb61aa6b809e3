"""Fast paths agree with the plain ones: the same pictures give the same curve of losses, and files of the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from limner import jobs
from limner.adapters import fused
from limner.config import files
from limner.engine import train
from limner.engine.journal import Journal
from limner.engine.prepare import prepare
from limner.engine.runtime import Runtime
from limner.engine.training import Training
from limner.models import prepacked

STEPS = 50


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and pictures."""
    root = tmp_path_factory.mktemp("fast")
    return tiny.build(root / "sd1"), tiny.pictures(root / "pictures")


def made(places: tuple[Path, Path], prepack: bool, precision: str = "fp32", **adapter: Any) -> Training:
    given: dict[str, Any] = {
        "model": {"base": str(places[0])},
        "data": {"path": str(places[1]), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8},
        "adapter": adapter if "kind" in adapter else {"rank": 3, **adapter},
        "train": {"steps": STEPS, "batch_size": 2, "seed": 7},
        "optimizer": {"lr": 1e-3},
        "launch": {"device": "cpu"},
        "speed": {"prepack": prepack},
    }
    config = files.build(given, {})
    run = jobs.prepare(config)
    return prepare(run, config, Runtime(torch.device("cpu"), precision), Journal(run, is_main=True), lambda: False)


def losses(job: Training) -> list[float]:
    return [float(train.move_weights(job, step)[0]) for step in range(STEPS)]


def kinds(job: Training) -> set[type]:
    """What the wider convolutions of the denoiser are."""
    return {type(m) for m in job.family.denoiser.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)}


@pytest.fixture(params=[False, True], ids=["as they are", "as if all were large"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """How large the wider convolutions are taken to be; what they become."""
    if request.param:
        monkeypatch.setattr(prepacked, "_LARGE_BYTES", 0)
    kind = prepacked.LargeConv2d if request.param else prepacked.PackedConv2d
    return kind if prepacked._is_supported() else nn.Conv2d


@pytest.mark.parametrize(
    "adapter",
    [
        pytest.param({}, id="lora"),
        pytest.param({"conv_rank": 2}, id="locon", marks=pytest.mark.long),
        pytest.param({"dora": True, "conv_rank": 2}, id="dora", marks=pytest.mark.long),
    ],
)
def test_fifty_steps_are_those_of_the_plain_path(places, adapter, sizes, monkeypatch):
    fast = made(places, True, **adapter)
    assert kinds(fast) == {sizes}
    found, state = losses(fast), fast.adapter.state_dict()
    monkeypatch.setattr(fused, "fits", lambda base: False)
    plain = made(places, False, **adapter)
    assert kinds(plain) == {nn.Conv2d}
    assert found == pytest.approx(losses(plain), rel=1e-4)
    wanted = plain.adapter.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert float((state[name] - tensor).norm()) < 1e-3 * float(tensor.norm()) + 1e-6, name


@pytest.mark.long
def test_in_bf16_the_curve_is_the_plain_one_within_its_rounding(places, monkeypatch):
    found = losses(made(places, True, "bf16"))
    monkeypatch.setattr(fused, "fits", lambda base: False)
    assert found == pytest.approx(losses(made(places, False, "bf16")), rel=2e-2)


def test_a_model_that_is_trained_itself_is_left_as_it_is(places):
    job = made(places, True, kind="none")
    assert kinds(job) == {nn.Conv2d}


def test_a_change_is_merged_into_what_is_laid_out(places, sizes):
    """What the model computes afterwards is what it computed with the adapter beside it."""
    job = made(places, True, conv_rank=2)
    assert kinds(job) == {sizes}
    adapter: Any = job.adapter
    tiny.moved(adapter)
    family: Any = job.family
    torch.manual_seed(0)
    noisy, cond = torch.randn(1, 4, 16, 16), {"text": torch.randn(1, 77, 16)}
    with torch.no_grad():
        beside = family.predict(noisy, torch.tensor([5]), cond)
        job.adapter.merge()
        inside = family.predict(noisy, torch.tensor([5]), cond)
    assert torch.allclose(beside, inside, rtol=1e-3, atol=1e-4)
    assert not any("forward" in m.__dict__ for m in family.denoiser.modules())
