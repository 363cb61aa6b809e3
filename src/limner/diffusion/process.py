"""The forward process and what the denoiser predicts of it. Pure tensor functions.

Notation of DDPM (arXiv:2006.11239) and progressive distillation (arXiv:2202.00512): x_t = a_t x0 + s_t noise, with
a_t = sqrt(alphas_cumprod[t]) and s_t = sqrt(1 - alphas_cumprod[t]).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction"]


class Process(Protocol):
    """How pictures turn to noise, and what a model predicts on the way. Tensors are (B, C, H, W); t is (B,)."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def denoised(self, pred: Tensor, noisy: Tensor, t: Tensor) -> Tensor: ...
    def snr(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Discrete:
    """The discrete process of Stable Diffusion 1 and 2: `alphas_cumprod` is (T,) in float32."""

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod.to(t.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a_t x0 + s_t noise (arXiv:2006.11239, eq. 4)."""
        a, s = self._scales(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model shall predict: the noise, or v = a_t noise - s_t x0 (arXiv:2202.00512, appendix D)."""
        if self.prediction == "epsilon":
            return noise
        a, s = self._scales(t, x0)
        return a * noise - s * x0

    def denoised(self, pred: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The model's estimate of x0."""
        a, s = self._scales(t, noisy)
        if self.prediction == "epsilon":
            return (noisy - s * pred) / a
        return a * noisy - s * pred

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio a_t^2 / s_t^2, shape (B,)."""
        alpha = self.alphas_cumprod.to(t.device)[t]
        return alpha / (1 - alpha)


def discrete_from(scheduler: dict[str, Any], prediction: Prediction | None = None) -> Discrete:
    """The process that a diffusers scheduler configuration describes; `prediction` takes precedence over its own."""
    start, end, count = scheduler["beta_start"], scheduler["beta_end"], scheduler.get("num_train_timesteps", 1000)
    kind = scheduler.get("beta_schedule", "scaled_linear")
    if kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float32) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float32)
    else:
        raise ValueError(f"unknown beta schedule {kind!r}")
    return Discrete(torch.cumprod(1 - betas, 0), prediction or scheduler.get("prediction_type", "epsilon"))
