"""How wrong a prediction is."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from limner.diffusion.process import Process

Kind = Literal["l2", "l1", "huber", "smooth_l1"]
Schedule = Literal["constant", "exponential", "snr"]


def per_sample_loss(
    pred: Tensor, target: Tensor, kind: Kind = "l2", threshold: Tensor | float = 0.1, mask: Tensor | None = None
) -> Tensor:
    """The mean error of each sample in float32, shape (B,); `threshold` is a number or (B,), for the last two kinds.

    Of masked samples (mask (B, 1, H, W), from 0 to 1) it is the mean over what the mask shows, so that a small object
    counts no less than a large one; 0 where it shows nothing.
    """
    error = pointwise(pred.float() - target.float(), kind, threshold)
    if mask is None:
        return error.flatten(1).mean(1)
    shown = mask.to(error).expand_as(error)
    return (error * shown).flatten(1).sum(1) / shown.flatten(1).sum(1).clamp(min=1e-6)


def pointwise(difference: Tensor, kind: Kind, threshold: Tensor | float) -> Tensor:
    """The error d of each number: d^2, |d|, or pseudo-Huber losses (arXiv:2403.16728) with threshold c, as sd-scripts scales
    them: "huber" is 2c (sqrt(d^2 + c^2) - c), near d^2 where d is small; "smooth_l1" is 2 (sqrt(d^2 + c^2) - c), near 2 |d|
    where d is large."""
    if kind == "l2":
        return difference.square()
    if kind == "l1":
        return difference.abs()
    c = threshold.view(-1, *[1] * (difference.ndim - 1)) if isinstance(threshold, Tensor) else threshold
    square = difference.square()
    # d^2 / (sqrt(d^2 + c^2) + c) is sqrt(d^2 + c^2) - c without the digits that cancel out
    return (2 * c if kind == "huber" else 2) * square / ((square + c**2).sqrt() + c)


def huber_threshold(process: Process, t: Tensor, threshold: float, schedule: Schedule) -> Tensor | float:
    """The threshold at each timestep, (B,) unless it is constant (arXiv:2403.16728, scheduled as in sd-scripts).

    "exponential" falls from 1 where there is no noise to c where there is nothing else: c^(t / T). "snr" is
    (1 - c) / (1 + sigma)^2 + c with sigma the ratio of noise to signal, sqrt(1 / snr); for a flow that is sigma / (1 - sigma).
    """
    if schedule == "constant":
        return threshold
    if schedule == "exponential":
        return (math.log(threshold) * t.float() / process.num_timesteps).exp()
    return (1 - threshold) / (1 + process.snr(t).rsqrt()).square() + threshold
