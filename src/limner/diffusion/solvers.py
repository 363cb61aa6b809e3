"""From noise to latents: solvers of the reverse process, and the timesteps they visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limner.diffusion.process import Discrete, Flow

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy (B, C, H, W), t (B,)) -> prediction"""


@dataclass(frozen=True)
class Grid:
    """Where a solver stops: `timesteps` from noisy to clean."""

    timesteps: tuple[int, ...]
    final_alpha: Tensor
    stride: int


def leading_grid(process: Discrete, steps: int, scheduler: dict) -> Grid:
    """diffusers' "leading" spacing: every (T // steps)-th timestep, shifted by the scheduler's steps_offset."""
    stride = process.num_timesteps // steps
    offset = scheduler.get("steps_offset", 0)
    timesteps = tuple(min(i * stride + offset, process.num_timesteps - 1) for i in reversed(range(steps)))
    one = scheduler.get("set_alpha_to_one", True)
    return Grid(timesteps, torch.tensor(1.0) if one else process.alphas_cumprod[0], stride)


def ddim(predict: Predict, noise: Tensor, process: Discrete, grid: Grid) -> Tensor:
    """Deterministic DDIM (arXiv:2010.02502, eq. 12 with sigma 0)."""
    x = noise
    for step in grid.timesteps:
        t = torch.full((len(x),), step, device=x.device)
        before = step - grid.stride
        alpha = process.alphas_cumprod[step].to(x)
        alpha_before = (process.alphas_cumprod[before] if before >= 0 else grid.final_alpha).to(x)
        pred = predict(x, t)
        x0 = process.denoised(pred, x, t)
        eps = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        x = alpha_before.sqrt() * x0 + (1 - alpha_before).sqrt() * eps
    return x


def euler(predict: Predict, noise: Tensor, process: Discrete, grid: Grid) -> Tensor:
    """Euler steps in sigma = s_t / a_t (arXiv:2206.00364, algorithm 2 without churn)."""
    sigmas = [((1 - process.alphas_cumprod[t]) / process.alphas_cumprod[t]).sqrt().to(noise) for t in grid.timesteps]
    x = noise * (sigmas[0] ** 2 + 1).sqrt()
    for i, (step, sigma) in enumerate(zip(grid.timesteps, sigmas, strict=True)):
        t = torch.full((len(x),), step, device=x.device)
        scaled = x / (sigma**2 + 1).sqrt()
        slope = (x - process.denoised(predict(scaled, t), scaled, t)) / sigma
        following = sigmas[i + 1] if i + 1 < len(sigmas) else torch.zeros_like(sigma)
        x = x + slope * (following - sigma)
    return x


def flow_sigmas(process: Flow, steps: int, height: int, width: int) -> Tensor:
    """Where a solver of the flow stops, (steps + 1,) from 1 to 0: even steps, then shifted, as diffusers' pipelines have it.

    The last step before 0 is 1 / steps where the shift grows with the picture, and else the shifted 1 / 1000.
    """
    grows = process.log_shift is not None
    lowest = 1 / steps if grows else float(process.shifted(torch.tensor(0.001, dtype=torch.float64), height, width))
    even = torch.linspace(1, lowest, steps, dtype=torch.float64)
    return torch.cat([process.shifted(even, height, width), torch.zeros(1, dtype=torch.float64)]).float()


def flow_euler(predict: Predict, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps along the velocity (arXiv:2209.03003, section 2.1)."""
    x = noise
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = x + (following - sigma) * predict(x, torch.full((len(x),), 1000 * sigma, device=x.device))
    return x


SOLVERS = {"ddim": ddim, "euler": euler}


def solve(
    predict: Predict, noise: Tensor, process: Discrete | Flow, scheduler: dict, steps: int, solver: str | None = None
) -> Tensor:
    """Latents from noise (B, C, H, W) by one of `SOLVERS`; DDIM when not given. A flow is solved by Euler steps."""
    if isinstance(process, Flow):
        return flow_euler(predict, noise, flow_sigmas(process, steps, *noise.shape[-2:]))
    return SOLVERS[solver or "ddim"](predict, noise, process, leading_grid(process, steps, scheduler))
