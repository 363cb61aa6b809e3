"""The attention kernel that is asked for is the one that runs, forward and again in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_graphs import job_for
from torch.profiler import ProfilerActivity, profile

import tiny
from limner.engine.attention import attending_by
from limner.engine.train import accumulate_gradients
from limner.engine.training import Training

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
MATH = "aten::_scaled_dot_product_attention_math"


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> Path:
    return tiny.build(tmp_path_factory.mktemp("models") / "flux", family="flux")


def step(job: Training) -> tuple[float, list[torch.Tensor | None], dict[str, int]]:
    job.meter.is_on = False  # what it counts it computes by way of Python, which is seen twice here
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        loss = float(accumulate_gradients(job, 2))
    counts = {e.key: e.count for e in seen.key_averages()}
    return loss, [p.grad for p in job.params], counts


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_the_one_that_runs(model: Path, tmp_path: Path, checkpointing: bool):
    folder, memory = tiny.pictures(tmp_path / "p"), {"checkpointing": checkpointing}
    results = {
        kernel: step(tiny_moved(job_for(model, folder, memory=memory, speed={"attention": kernel})))
        for kernel in ("auto", "flash", "math")
    }
    assert results["auto"][2].get(FLASH) and results["auto"][2].get(FLASH) == results["flash"][2].get(FLASH)
    assert FLASH not in results["math"][2] and results["math"][2][MATH] == results["flash"][2][FLASH]
    assert results["flash"][0] == results["auto"][0]
    assert results["math"][0] == pytest.approx(results["auto"][0], rel=1e-5)
    for a, b in zip(results["math"][1], results["auto"][1], strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def tiny_moved(job: Training) -> Training:
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in job.params:
            p.add_(torch.randn(p.shape, generator=rng) * 0.05)
    return job


def test_what_cannot_be_is_computed_plainly():
    """Not an error in the middle of a run: a head of this width has no flash attention on some devices, and none on a CPU has
    cuDNN's."""
    q = torch.randn(1, 2, 4, 8)
    with attending_by("cudnn"):
        found = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    expected = torch.softmax(q @ q.transpose(-1, -2) / 8**0.5, -1) @ q
    torch.testing.assert_close(found, expected)
