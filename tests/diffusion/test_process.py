"""The processes against float64 formulas written out here."""

from __future__ import annotations

import pytest
import torch

from limner.diffusion.process import Discrete, discrete_from

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
