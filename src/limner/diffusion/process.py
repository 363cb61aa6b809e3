"""The forward process and what the denoiser predicts of it. Pure tensor functions.

Notation of DDPM (arXiv:2006.11239) and progressive distillation (arXiv:2202.00512): x_t = a_t x0 + s_t noise, with
a_t = sqrt(alphas_cumprod[t]) and s_t = sqrt(1 - alphas_cumprod[t]). Rectified flow (arXiv:2209.03003, arXiv:2403.03206):
x_t = (1 - sigma) x0 + sigma noise, sigma = t / 1000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "flow"]

FLUX_LOG_SHIFT = (0.5, 1.15, 256, 4096)
"""`Flow.log_shift` of Flux.1 dev."""


class Process(Protocol):
    """How pictures turn to noise, and what a model predicts on the way. Tensors are (B, C, H, W); t is (B,)."""

    @property
    def prediction(self) -> Prediction: ...
    @property
    def num_timesteps(self) -> int: ...
    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...
    def denoised(self, pred: Tensor, noisy: Tensor, t: Tensor) -> Tensor: ...
    def snr(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Discrete:
    """The discrete process of Stable Diffusion 1 and 2: `alphas_cumprod` is (T,) in float32."""

    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"
    _there: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def has_zero_snr(self) -> bool:
        """Whether nothing of the picture is left at the last timestep."""
        return float(self.alphas_cumprod[-1]) == 0

    def with_zero_snr(self) -> Discrete:
        """The same process, its last timestep pure noise (arXiv:2305.08891, algorithm 1): sqrt(alphas_cumprod) shifted to end
        at 0, and scaled to start where it did."""
        a = self.alphas_cumprod.double().sqrt()
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
        return replace(self, alphas_cumprod=a.square().to(self.alphas_cumprod.dtype))

    def _alpha(self, t: Tensor) -> Tensor:
        """alphas_cumprod[t]. A device is given its copy once: the copy waits for all that was ordered there before."""
        if t.device not in self._there:
            self._there[t.device] = self.alphas_cumprod.to(t.device)
        return self._there[t.device][t]

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self._alpha(t).to(like.dtype).view(-1, *[1] * (like.ndim - 1))
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
        alpha = self._alpha(t)
        return alpha / (1 - alpha)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: straight lines from pictures to noise; t is a float in (0, 1000].

    Larger pictures need more noise to be hidden, so sigmas are shifted (arXiv:2403.03206, eq. 23):
    k sigma / (1 + (k - 1) sigma).
    """

    fixed_shift: float = 1.0
    log_shift: tuple[float, float, int, int] | None = None
    """For a shift that grows with the picture (Flux): log k at the fewest and the most patches of 2x2 latents, on a line
    between, and how many those are."""
    least_sigma: float | None = 0.001
    """Where painting stops last before 0, not shifted yet; None: at 1 / steps."""
    prediction: Literal["flow"] = "flow"

    @property
    def num_timesteps(self) -> int:
        return 1000

    def shifted(self, sigma: Tensor, height: int, width: int) -> Tensor:
        """Sigmas for latents of this size."""
        k = self.fixed_shift
        if self.log_shift is not None:
            low, high, fewest, most = self.log_shift
            k = math.exp(low + (high - low) * (height // 2 * (width // 2) - fewest) / (most - fewest))
        return k * sigma / (1 + (k - 1) * sigma)

    def with_shift(self, k: float) -> Flow:
        """The same flow with this shift for pictures of every size."""
        return replace(self, fixed_shift=k, log_shift=None)

    def with_resolution_shift(self) -> Flow:
        """The same flow with a shift that grows with the picture: its own where it has one, else Flux.1 dev's."""
        return self if self.log_shift is not None else replace(self, fixed_shift=1.0, log_shift=FLUX_LOG_SHIFT)

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        return (t / 1000).to(like.dtype).view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = self._sigma(t, x0)
        return (1 - sigma) * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002 (the same all along the line)
        """The velocity noise - x0."""
        return noise - x0

    def denoised(self, pred: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The model's estimate of x0."""
        return noisy - self._sigma(t, noisy) * pred

    def snr(self, t: Tensor) -> Tensor:
        """((1 - sigma) / sigma)^2, shape (B,)."""
        return (1000 / t - 1).square()


def process_from(scheduler: dict[str, Any], prediction: Prediction | None = None, zero_snr: bool = False) -> Discrete | Flow:
    """The process that a diffusers scheduler configuration describes; one that is no flow down to pure noise if asked."""
    if prediction == "flow":
        if not scheduler.get("use_dynamic_shifting"):
            return Flow(scheduler["shift"])
        low, high, fewest, most = FLUX_LOG_SHIFT
        shifts = scheduler.get("base_shift", low), scheduler.get("max_shift", high)
        return Flow(1.0, (*shifts, scheduler.get("base_image_seq_len", fewest), scheduler.get("max_image_seq_len", most)))
    process = discrete_from(scheduler, prediction)
    return process.with_zero_snr() if zero_snr else process


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
