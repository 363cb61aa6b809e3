"""How wrong a prediction is, and how much each sample counts."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limner.diffusion.process import Process


def per_sample_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample in float32, shape (B,)."""
    return (pred.float() - target.float()).square().flatten(1).mean(1)


def snr_weight(process: Process, t: Tensor, prediction: str, gamma: float | Literal["off"]) -> Tensor | float:
    """Min-SNR weight (arXiv:2303.09556, eq. 8; for v divided by snr + 1 as its section 3.4 does), shape (B,).

    min(snr, gamma) / snr is written as min(1, gamma / snr), which stays 1 where snr is 0.
    """
    if gamma == "off":
        return 1.0
    snr = process.snr(t)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)
