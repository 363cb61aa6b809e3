"""How much each timestep counts. All weights are finite, where the signal-to-noise ratio is 0 or infinite too.

What a model predicts decides what its plain loss weighs. With snr = a^2 / s^2 and a^2 + s^2 = 1 an error e of x0 is one of
(a / s) e in the noise and of e / s in v; so |noise error|^2 = snr |e|^2 and |v error|^2 = (snr + 1) |e|^2, and a weight of
the loss in x0 is divided by snr, or by snr + 1 (arXiv:2303.09556, section 3.4).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from limner.diffusion.process import Process

Kind = Literal["uniform", "min_snr", "soft_min_snr", "debiased", "v_as_epsilon", "sigma_sqrt", "cosmap"]


def timestep_weight(
    process: Process, t: Tensor, kind: Kind, gamma: float = 5.0, v_share: float | Literal["off"] = "off"
) -> Tensor | float:
    """The weight of each sample's loss, (B,), or 1 for all."""
    weight = _weight(process, t, kind, gamma)
    if v_share == "off":
        return weight
    snr = process.snr(t).clamp(1e-3, 1e3)
    return weight * (1 + v_share * (snr + 1) / snr)  # |v error|^2 is (snr + 1) / snr times |noise error|^2


def _weight(process: Process, t: Tensor, kind: Kind, gamma: float) -> Tensor | float:
    if kind == "uniform":
        return 1.0
    if kind in ("sigma_sqrt", "cosmap"):
        sigma = (t / process.num_timesteps).float()
        return inverse_square(sigma) if kind == "sigma_sqrt" else cosmap(sigma)
    snr, predicts_v = process.snr(t), process.prediction == "v_prediction"
    if kind == "min_snr":
        return min_snr(snr, gamma, predicts_v)
    if kind == "soft_min_snr":
        return soft_min_snr(snr, gamma, predicts_v)
    return debiased(snr, predicts_v) if kind == "debiased" else v_as_epsilon(snr)


def min_snr(snr: Tensor, gamma: float, predicts_v: bool) -> Tensor:
    """min(snr, gamma) in x0 (arXiv:2303.09556, eq. 8)."""
    if predicts_v:
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)  # min(snr, gamma) / snr, and 1 where snr is 0


def soft_min_snr(snr: Tensor, gamma: float, predicts_v: bool) -> Tensor:
    """snr gamma / (snr + gamma) in x0, which is arXiv:2401.11605's 1 / (sigma^2 + 1 / gamma), snr being 1 / sigma^2."""
    if predicts_v:
        return gamma / ((1 + gamma / snr) * (snr + 1))  # this way round it is 0 at 0 and at infinity
    return gamma / (snr + gamma)


def debiased(snr: Tensor, predicts_v: bool) -> Tensor:
    """1 / sqrt(snr) for the noise (arXiv:2310.08442), 1 / (snr + 1) for v as sd-scripts has it; snr within
    1/1000 and 1000."""
    return 1 / (snr.clamp(max=1e3) + 1) if predicts_v else snr.clamp(1e-3, 1e3).rsqrt()


def v_as_epsilon(snr: Tensor) -> Tensor:
    """snr / (snr + 1), which makes the loss in v one in the noise; snr at most 1000."""
    snr = snr.clamp(max=1e3)
    return snr / (snr + 1)


def inverse_square(sigma: Tensor) -> Tensor:
    """1 / sigma^2, sigma at least 1/1000; called sigma_sqrt since diffusers' training scripts."""
    return sigma.clamp(min=1e-3) ** -2


def cosmap(sigma: Tensor) -> Tensor:
    """2 / (pi (1 - 2 sigma + 2 sigma^2)), the density of `timesteps.cosmap` as a weight (arXiv:2403.03206, eq. 22)."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
