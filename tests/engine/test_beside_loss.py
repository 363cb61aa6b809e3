"""What class pictures weigh, and the validation loss, against float64 references from the formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_step import job_for, merged, shown

import tiny
from limner.engine.train import accumulate_gradients
from limner.engine.validation import measure, timesteps
from limner.randomness import mix


def test_class_pictures_weigh_what_was_asked(tiny_model, tmp_path, monkeypatch):
    """The loss and gradient of a step are those of the reference with each class picture's loss multiplied by the weight."""
    folder, others = tiny.pictures(tmp_path / "p"), tiny.pictures(tmp_path / "c", ((40, 40), (60, 40), (50, 50)), seed=4)
    data = {"path": str(folder), "class_path": str(others), "resolution": 32, "bucket_min_px": 16, "bucket_step_px": 8}
    job = job_for(tiny_model, folder, data=data, objective={"prior_weight": 3.0})
    pictures = job.dataset.pictures
    step = next(s for s in range(20) if len({pictures[i].is_class for m in job.dataset.order.step(s) for i in m}) == 2)
    monkeypatch.setattr("test_step.STEP", step)  # `shown` is of that step
    (unet, up), losses = merged(job, "attn2_to_v"), []
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for position, (i, x0, eps, cond) in enumerate(shown(job)):
        t = int(torch.randint(1000, (), generator=torch.Generator().manual_seed(mix(7, "timestep", step, position))))
        noisy = math.sqrt(alphas[t]) * x0 + math.sqrt(1 - alphas[t]) * eps
        pred = unet(noisy[None], t, encoder_hidden_states=cond["text"]).sample[0]
        weight = 3.0 if Path(pictures[i].path).parent.name == "c" else 1.0
        losses.append(weight * ((pred - eps) ** 2).mean())
    expected = sum(losses) / len(losses)
    expected.backward()
    assert float(accumulate_gradients(job, step)) == pytest.approx(expected.item(), rel=1e-5)
    _, (_, layer) = next((n, v) for n, v in job.adapter.layers.items() if n.endswith("attn2_to_v"))
    assert (layer.lora_up.grad.double() - up.grad).norm() / up.grad.norm() < 1e-5


@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_loss(tiny_model, tmp_path, batch_size):
    """Mean over pictures and four timesteps of the plain squared error, with the posterior's mean; min-SNR does not count."""
    folder, apart = tiny.pictures(tmp_path / "p"), tiny.pictures(tmp_path / "v", ((40, 40), (60, 40)), seed=5)
    job = job_for(
        tiny_model,
        folder,
        validation={"path": str(apart)},
        train={"steps": 10, "batch_size": batch_size, "seed": 7},
        objective={"weighting": "min_snr", "least_timestep": 200, "most_timestep": 1000},
    )
    unet, _ = merged(job, "attn2_to_v")
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    losses = []
    for i, picture in enumerate(job.validation.dataset.pictures):
        x0 = job.validation._latents(i)["mean"].double()
        text = job.validation._text_of(picture.caption)["text"][None].double()
        for k, t in enumerate((300, 500, 700, 900)):
            rng = torch.Generator().manual_seed(mix(7, "validation", i, k))
            eps = torch.randn(x0.shape, generator=rng).double()
            noisy = math.sqrt(alphas[t]) * x0 + math.sqrt(1 - alphas[t]) * eps
            with torch.no_grad():
                losses.append(((unet(noisy[None], t, encoder_hidden_states=text).sample[0] - eps) ** 2).mean())
    assert len(losses) == 8
    assert measure(job) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert measure(job) == measure(job)


def test_timesteps_of_a_flow_lie_in_the_middles(tmp_path):
    job = job_for(
        tiny.build(tmp_path / "model", family="sd3"),
        tiny.pictures(tmp_path / "p"),
        validation={"path": str(tiny.pictures(tmp_path / "v", ((40, 40),), seed=5))},
    )
    assert timesteps(job.family.process, 0, 1000) == [125.0, 375.0, 625.0, 875.0]
    assert math.isfinite(measure(job))
