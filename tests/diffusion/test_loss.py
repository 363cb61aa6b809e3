"""Losses, their thresholds and masks against their formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from limner.diffusion.loss import huber_threshold, per_sample_loss, pointwise
from limner.diffusion.process import Discrete, Flow

ALPHAS = torch.tensor([0.999, 0.9, 0.5, 0.1, 0.0])
C = 0.1


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 3, 5, generator=rng), torch.randn(4, 4, 3, 5, generator=rng)


def pointwise_reference(d: np.ndarray, kind: str, c: np.ndarray | float) -> np.ndarray:
    if kind == "l2":
        return d**2
    if kind == "l1":
        return np.abs(d)
    return (2 * c if kind == "huber" else 2) * (np.sqrt(d**2 + c**2) - c)


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize("threshold", [0.1, 1.0, [0.01, 0.1, 0.5, 1.0]])
def test_losses(kind, threshold):
    pred, target = tensors()
    c = torch.tensor(threshold) if isinstance(threshold, list) else threshold
    shaped = np.array(threshold, dtype=np.float64).reshape(-1, 1, 1, 1)
    expected = pointwise_reference(pred.double().numpy() - target.double().numpy(), kind, shaped).mean((1, 2, 3))
    assert per_sample_loss(pred, target, kind, c).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_huber_is_squared_near_zero_and_absolute_far_away():
    small, large = torch.tensor([[1e-4]]), torch.tensor([[1e4]])
    assert float(pointwise(small, "huber", C)) == pytest.approx(1e-8, rel=1e-4)  # sqrt(d^2 + c^2) - c would have lost it
    assert float(pointwise(small, "smooth_l1", C)) == pytest.approx(1e-8 / C, rel=1e-4)
    assert float(pointwise(large, "huber", C)) == pytest.approx(2 * C * 1e4, rel=1e-4)
    assert float(pointwise(large, "smooth_l1", C)) == pytest.approx(2e4, rel=1e-4)


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
def test_gradients_are_numbers_where_nothing_is_wrong(kind):
    pred = torch.zeros(2, 3, requires_grad=True)
    per_sample_loss(pred, torch.zeros(2, 3), kind, C).sum().backward()
    assert pred.grad is not None and pred.grad.abs().max() == 0


def test_loss_is_in_float32():
    pred, target = tensors()
    half = per_sample_loss(pred.half(), target)
    assert half.dtype == torch.float32 and torch.allclose(half, per_sample_loss(pred, target), rtol=1e-2)
    large = per_sample_loss(torch.full((1, 4, 8, 8), 300.0).half(), torch.zeros(1, 4, 8, 8))
    assert math.isclose(large.item(), 90_000)  # beyond what float16 holds


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_thresholds_of_whole_timesteps():
    process, t = Discrete(ALPHAS), torch.arange(5)
    assert huber_threshold(process, t, C, "constant") == C
    exponential = [math.exp(-(-math.log(C) / 5) * i) for i in range(5)]
    found = huber_threshold(process, t, C, "exponential")
    assert isinstance(found, torch.Tensor) and found.tolist() == pytest.approx(exponential, rel=1e-5) and found[0] == 1
    snr = [(1 - C) / (1 + math.sqrt((1 - a) / a)) ** 2 + C if a else C for a in ALPHAS.double().tolist()]
    found = huber_threshold(process, t, C, "snr")
    assert isinstance(found, torch.Tensor) and found.tolist() == pytest.approx(snr, rel=1e-4) and found[-1] == pytest.approx(C)


def test_thresholds_of_a_flow():
    t = torch.tensor([1e-3, 250.0, 500.0, 1000.0])
    sigma = t.double().numpy() / 1000
    found = huber_threshold(Flow(), t, C, "exponential")
    assert isinstance(found, torch.Tensor) and found.tolist() == pytest.approx((C**sigma).tolist(), rel=1e-5)
    with np.errstate(divide="ignore"):
        expected = (1 - C) / (1 + sigma / (1 - sigma)) ** 2 + C
    found = huber_threshold(Flow(), t, C, "snr")
    assert isinstance(found, torch.Tensor) and found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_threshold_is_a_number_without_any_noise():
    found = huber_threshold(Discrete(torch.tensor([1.0, 0.0])), torch.tensor([0, 1]), C, "snr")
    assert isinstance(found, torch.Tensor) and found.tolist() == pytest.approx([1.0, C])


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_masked_loss_is_the_mean_over_what_is_shown(kind):
    pred, target = tensors()
    mask = torch.rand(4, 1, 3, 5, generator=torch.Generator().manual_seed(2))
    m = np.broadcast_to(mask.double().numpy(), (4, 4, 3, 5))
    errors = pointwise_reference(pred.double().numpy() - target.double().numpy(), kind, C)
    expected = [np.average(errors[i], weights=m[i]) for i in range(4)]
    assert per_sample_loss(pred, target, kind, C, mask).tolist() == pytest.approx(expected, rel=1e-5)


def test_masks_and_the_size_of_what_they_show():
    pred, target = tensors()
    whole = per_sample_loss(pred, target)
    assert torch.allclose(per_sample_loss(pred, target, mask=torch.ones(4, 1, 3, 5)), whole)
    assert torch.allclose(per_sample_loss(pred, target, mask=torch.full((4, 1, 3, 5), 0.25)), whole)
    corner = torch.zeros(4, 1, 3, 5)
    corner[:, :, 1, 2] = 1
    expected = (pred - target)[:, :, 1, 2].square().mean(1)
    assert torch.allclose(per_sample_loss(pred, target, mask=corner), expected)
    assert per_sample_loss(pred, target, mask=torch.zeros(4, 1, 3, 5)).tolist() == [0.0] * 4


def test_nothing_is_learnt_of_what_a_mask_hides():
    pred, target = tensors()
    pred.requires_grad_()
    mask = torch.zeros(4, 1, 3, 5)
    mask[:, :, :, :2] = 1
    per_sample_loss(pred, target, mask=mask).sum().backward()
    assert pred.grad is not None and pred.grad[..., 2:].abs().max() == 0 and pred.grad[..., :2].abs().min() > 0
