"""The processes against float64 formulas written out here."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler

from limner.diffusion.process import Discrete, Flow, discrete_from, process_from

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
T = torch.tensor([0, 1, 250, 999])


def alphas() -> list[float]:
    """Cumulative alphas by DDPM's definition (arXiv:2006.11239), betas evenly spaced in their square roots."""
    out, product = [], 1.0
    for i in range(1000):
        beta = (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2
        product *= 1 - beta
        out.append(product)
    return out


def tensors(dtype: torch.dtype = torch.float32):
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(4, 4, 3, 5, generator=rng, dtype=torch.float64).to(dtype) for _ in range(3))


def scales() -> tuple[torch.Tensor, torch.Tensor]:
    alpha = torch.tensor([alphas()[t] for t in T], dtype=torch.float64).view(4, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def test_the_schedule_is_stable_diffusions():
    process = discrete_from(SCHEDULER)
    assert process.num_timesteps == 1000
    assert torch.allclose(process.alphas_cumprod.double(), torch.tensor(alphas(), dtype=torch.float64), rtol=2e-5)
    linear = discrete_from({**SCHEDULER, "beta_schedule": "linear"}).alphas_cumprod
    assert linear[0].item() == pytest.approx(1 - 0.00085, rel=1e-6)
    assert linear[1].item() == pytest.approx((1 - 0.00085) * (1 - 0.00085 - (0.012 - 0.00085) / 999), rel=1e-6)
    with pytest.raises(ValueError, match="squaredcos"):
        discrete_from({**SCHEDULER, "beta_schedule": "squaredcos_cap_v2"})


def test_the_configs_prediction_gives_way_to_ours():
    assert discrete_from({**SCHEDULER, "prediction_type": "v_prediction"}).prediction == "v_prediction"
    assert discrete_from({**SCHEDULER, "prediction_type": "v_prediction"}, "epsilon").prediction == "epsilon"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_target_and_estimate(prediction):
    process = discrete_from(SCHEDULER, prediction)
    x0, noise, pred = tensors()
    x0_, noise_, pred_ = (v.double() for v in (x0, noise, pred))
    a, s = scales()
    noisy = a * x0_ + s * noise_
    assert torch.allclose(process.add_noise(x0, noise, T).double(), noisy, atol=2e-5)
    target = noise_ if prediction == "epsilon" else a * noise_ - s * x0_
    assert torch.allclose(process.target(x0, noise, T).double(), target, atol=2e-5)
    estimate = (noisy - s * pred_) / a if prediction == "epsilon" else a * noisy - s * pred_
    assert torch.allclose(process.denoised(pred, noisy.float(), T).double(), estimate, atol=5e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_target_leads_back_to_x0(prediction):
    process = Discrete(torch.tensor(alphas(), dtype=torch.float64), prediction)
    x0, noise, _ = tensors(torch.float64)
    found = process.denoised(process.target(x0, noise, T), process.add_noise(x0, noise, T), T)
    assert torch.allclose(found, x0, atol=1e-10)


def test_snr():
    expected = [alphas()[t] / (1 - alphas()[t]) for t in T]
    assert discrete_from(SCHEDULER).snr(T).tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_zero_terminal_snr(beta_schedule):
    """arXiv:2305.08891, algorithm 1, in its own words: betas to alphas to their bars, shifted, scaled, and squared."""
    given = {**SCHEDULER, "beta_schedule": beta_schedule}
    before = discrete_from(given).alphas_cumprod.double()
    process = process_from(given, "v_prediction", zero_snr=True)
    assert isinstance(process, Discrete) and process.has_zero_snr and not discrete_from(given).has_zero_snr
    root = [math.sqrt(a) for a in before.tolist()]
    first, last = root[0], root[-1]
    expected = [((a - last) * first / (first - last)) ** 2 for a in root]
    assert process.alphas_cumprod.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert process.alphas_cumprod[-1] == 0 and process.alphas_cumprod[0] == pytest.approx(before[0].item(), rel=1e-6)
    assert (process.alphas_cumprod.diff() < 0).all() and process.prediction == "v_prediction"


def test_zero_terminal_snr_is_diffusers():
    theirs = DDIMScheduler(**SCHEDULER, rescale_betas_zero_snr=True).alphas_cumprod
    ours = discrete_from(SCHEDULER).with_zero_snr().alphas_cumprod
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_the_last_timestep_is_pure_noise():
    process = discrete_from(SCHEDULER, "v_prediction").with_zero_snr()
    x0, noise, pred = tensors()
    last = torch.full((4,), 999)
    noisy = process.add_noise(x0, noise, last)
    assert torch.equal(noisy, noise)
    assert torch.equal(process.target(x0, noise, last), -x0)
    assert torch.equal(process.denoised(pred, noisy, last), -pred)
    assert process.snr(last).tolist() == [0.0] * 4


def test_a_flow_is_a_straight_line():
    """x = (1 - sigma) x0 + sigma noise with t = 1000 sigma; the target is noise - x0 everywhere."""
    process, (x0, noise, pred) = Flow(3.0), tensors()
    t = torch.tensor([0.5, 120.0, 700.0, 1000.0])
    sigma = (t.double() / 1000).view(4, 1, 1, 1)
    x0_, noise_, pred_ = (v.double() for v in (x0, noise, pred))
    noisy = (1 - sigma) * x0_ + sigma * noise_
    assert torch.allclose(process.add_noise(x0, noise, t).double(), noisy, atol=1e-6)
    assert torch.allclose(process.target(x0, noise, t).double(), noise_ - x0_, atol=1e-6)
    assert torch.allclose(process.denoised(pred, noisy.float(), t).double(), noisy - sigma * pred_, atol=1e-5)
    assert torch.allclose(process.snr(t).double(), ((1 - sigma) / sigma).square().flatten(), rtol=1e-4)
