"""Weights of timesteps against their formulas in float64, and at the ends, where formulas break."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from limner.diffusion.process import Discrete, Flow, Prediction, discrete_from
from limner.diffusion.weighting import Kind, timestep_weight

ALPHAS = discrete_from({"beta_start": 0.00085, "beta_end": 0.012}).alphas_cumprod
T = torch.tensor([0, 1, 100, 500, 999])
SNR = [a / (1 - a) for a in ALPHAS.double()[T].tolist()]
GAMMA = 5.0


def weights(kind: Kind, prediction: Prediction = "epsilon", **options: Any) -> list[float]:
    found = timestep_weight(Discrete(ALPHAS, prediction), T, kind, **options)
    assert isinstance(found, torch.Tensor) and found.shape == T.shape
    return found.tolist()


def test_uniform_weighs_nothing():
    assert timestep_weight(Discrete(ALPHAS), T, "uniform") == 1.0


def test_min_snr():
    assert weights("min_snr", gamma=GAMMA) == pytest.approx([min(s, GAMMA) / s for s in SNR], rel=1e-4)
    v = weights("min_snr", "v_prediction", gamma=GAMMA)
    assert v == pytest.approx([min(s, GAMMA) / (s + 1) for s in SNR], rel=1e-4)


def test_soft_min_snr():
    """arXiv:2401.11605 gives the weight of the loss in x0, 1 / (sigma^2 + 1 / gamma), with snr = 1 / sigma^2."""
    in_x0 = [1 / (1 / s + 1 / GAMMA) for s in SNR]
    found = weights("soft_min_snr", gamma=GAMMA)
    assert found == pytest.approx([w / s for w, s in zip(in_x0, SNR, strict=True)], rel=1e-4)
    found = weights("soft_min_snr", "v_prediction", gamma=GAMMA)
    assert found == pytest.approx([w / (s + 1) for w, s in zip(in_x0, SNR, strict=True)], rel=1e-4)


def test_debiased():
    assert weights("debiased") == pytest.approx([1 / math.sqrt(min(s, 1000)) for s in SNR], rel=1e-4)
    assert weights("debiased", "v_prediction") == pytest.approx([1 / (min(s, 1000) + 1) for s in SNR], rel=1e-4)
    assert SNR[0] > 1000 > SNR[1] or SNR[1] > 1000 > SNR[2]  # the limit is met


def test_v_as_epsilon():
    found = weights("v_as_epsilon", "v_prediction")
    assert found == pytest.approx([min(s, 1000) / (min(s, 1000) + 1) for s in SNR], rel=1e-4)


def test_v_share():
    """L + k L / (s / (s + 1)), s at most 1000; on top of other weights."""
    factor = [1 + 0.3 / (min(s, 1000) / (min(s, 1000) + 1)) for s in SNR]
    assert weights("uniform", v_share=0.3) == pytest.approx(factor, rel=1e-4)
    expected = [f * min(s, GAMMA) / s for f, s in zip(factor, SNR, strict=True)]
    assert weights("min_snr", gamma=GAMMA, v_share=0.3) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("t", [1, 100, 500, 999])
def test_what_the_weights_mean(t):
    """One wrong guess of x0, told as noise and as v: the weights make the one loss of the other."""
    rng = torch.Generator().manual_seed(0)
    x0, noise, guess = (torch.randn(1, 4, 5, 3, generator=rng, dtype=torch.float64) for _ in range(3))
    eps, v = (Discrete(ALPHAS.double(), p) for p in ("epsilon", "v_prediction"))
    at = torch.tensor([t])
    a, s = ALPHAS.double()[t].sqrt(), (1 - ALPHAS.double()[t]).sqrt()
    noisy = a * x0 + s * noise
    as_noise = (noisy - a * guess) / s
    as_v = a * as_noise - s * guess
    loss_x0 = (guess - x0).square().mean()
    loss_eps, loss_v = ((p - q.target(x0, noise, at)).square().mean() for p, q in ((as_noise, eps), (as_v, v)))

    def weight(process: Discrete, kind: Kind, **options: Any) -> float:
        return float(timestep_weight(process, at, kind, **options))

    if eps.snr(at) < 1000:
        assert loss_v * weight(v, "v_as_epsilon") == pytest.approx(float(loss_eps), rel=1e-6)
        assert loss_eps * (weight(eps, "uniform", v_share=1.0) - 1) == pytest.approx(float(loss_v), rel=1e-6)
    for kind, in_x0 in (("min_snr", lambda r: min(r, GAMMA)), ("soft_min_snr", lambda r: r * GAMMA / (r + GAMMA))):
        expected = in_x0(float(eps.snr(at))) * float(loss_x0)
        assert loss_eps * weight(eps, kind, gamma=GAMMA) == pytest.approx(expected, rel=1e-6)
        assert loss_v * weight(v, kind, gamma=GAMMA) == pytest.approx(expected, rel=1e-6)


def test_weights_of_flows():
    t = torch.tensor([1.0, 20.0, 300.0, 999.0, 1000.0])
    sigma = t.double() / 1000
    found = timestep_weight(Flow(), t, "sigma_sqrt")
    assert torch.allclose(torch.as_tensor(found).double(), sigma**-2, rtol=1e-5)
    found = timestep_weight(Flow(), t, "cosmap")
    expected = 2 / (math.pi * ((1 - sigma) ** 2 + sigma**2))
    assert torch.allclose(torch.as_tensor(found).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("v_share", ["off", 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_weights_are_numbers_at_both_ends(kind, prediction, v_share):
    """Nothing but picture (snr infinite) and nothing but noise (snr 0)."""
    process = Discrete(torch.tensor([1.0, 0.5, 0.0]), prediction)
    assert process.snr(torch.arange(3)).tolist() == [math.inf, 1.0, 0.0]
    found = torch.as_tensor(timestep_weight(process, torch.arange(3), kind, v_share=v_share))
    assert found.isfinite().all() and (found >= 0).all()
    flow = torch.as_tensor(timestep_weight(Flow(), torch.tensor([0.0, 500.0, 1000.0]), kind, v_share=v_share))
    assert flow.isfinite().all() and (flow >= 0).all()


def test_weights_of_pure_noise():
    """The limits of the formulas."""
    process, last = (lambda p: Discrete(torch.tensor([0.9, 0.0]), p)), torch.tensor([1])
    for kind in ("min_snr", "soft_min_snr"):
        assert torch.as_tensor(timestep_weight(process("epsilon"), last, kind)).tolist() == [1.0]
        assert torch.as_tensor(timestep_weight(process("v_prediction"), last, kind)).tolist() == [0.0]
    assert torch.as_tensor(timestep_weight(process("v_prediction"), last, "debiased")).tolist() == [1.0]
