"""From noise to latents: solvers of the reverse process, and the timesteps they visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limner.diffusion.process import Discrete, Flow

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy (B, C, H, W), t (B,)) -> prediction"""

Draw = Callable[[], Tensor]
"""Standard normals (B, C, H, W), new ones at each call: the first are what a solver starts from."""


@dataclass(frozen=True)
class Grid:
    """Where a solver stops: `timesteps` from noisy to clean."""

    timesteps: tuple[int, ...]
    final_alpha: Tensor
    following: tuple[int, ...]
    """Where DDIM steps to from each; below 0 is `final_alpha`."""


def leading_grid(process: Discrete, steps: int, scheduler: dict) -> Grid:
    """diffusers' "leading" spacing: every (T // steps)-th timestep, shifted by the scheduler's steps_offset."""
    stride = process.num_timesteps // steps
    offset = scheduler.get("steps_offset", 0)
    timesteps = tuple(min(i * stride + offset, process.num_timesteps - 1) for i in reversed(range(steps)))
    return Grid(timesteps, _final_alpha(process, scheduler), tuple(t - stride for t in timesteps))


def trailing_grid(process: Discrete, steps: int, scheduler: dict) -> Grid:
    """diffusers' "trailing" spacing: from the last timestep on, which a process that ends in pure noise must start from
    (arXiv:2305.08891, section 3.3)."""
    count = process.num_timesteps
    timesteps = tuple(dict.fromkeys(round(count - i * count / steps) - 1 for i in range(steps)))
    return Grid(timesteps, _final_alpha(process, scheduler), (*timesteps[1:], -1))


def _final_alpha(process: Discrete, scheduler: dict) -> Tensor:
    return torch.tensor(1.0) if scheduler.get("set_alpha_to_one", True) else process.alphas_cumprod[0]


def multistep_grid(process: Discrete, steps: int, scheduler: dict) -> Grid:
    """The same for multistep solvers: of `steps` + 1 leading stops all but the cleanest, each once.

    Between the two cleanest stops lies so much of log sigma that a line through earlier ones tells nothing of it.
    """
    grid = leading_grid(process, min(steps + 1, process.num_timesteps), scheduler)
    return replace(grid, timesteps=tuple(dict.fromkeys(grid.timesteps[:-1])))


def ddim(predict: Predict, draw: Draw, process: Discrete, grid: Grid) -> Tensor:
    """Deterministic DDIM (arXiv:2010.02502, eq. 12 with sigma 0)."""
    x = draw()
    for step, before in zip(grid.timesteps, grid.following, strict=True):
        t = torch.full((len(x),), step, device=x.device)
        alpha = process.alphas_cumprod[step].to(x)
        alpha_before = (process.alphas_cumprod[before] if before >= 0 else grid.final_alpha).to(x)
        pred = predict(x, t)
        x0 = process.denoised(pred, x, t)
        eps = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
        x = alpha_before.sqrt() * x0 + (1 - alpha_before).sqrt() * eps
    return x


# The other solvers follow x = x0 + sigma noise, sigma = s_t / a_t, down to sigma 0 (arXiv:2206.00364).


def _sigmas(process: Discrete, grid: Grid, like: Tensor) -> Tensor:
    """Sigma at the grid's timesteps, and 0 behind them. That of pure noise is infinite; 4096 stands for it, as in diffusers."""
    alphas = process.alphas_cumprod[list(grid.timesteps)].clamp(min=2**-24)
    return torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1)]).to(like)


def _denoised(predict: Predict, x: Tensor, process: Discrete, step: int, sigma: Tensor) -> Tensor:
    """The model's estimate of x0 from x = x0 + sigma noise, which it knows as x / sqrt(sigma^2 + 1)."""
    t = torch.full((len(x),), step, device=x.device)
    scaled = x / (sigma**2 + 1).sqrt()
    return process.denoised(predict(scaled, t), scaled, t)


def euler(predict: Predict, draw: Draw, process: Discrete, grid: Grid) -> Tensor:
    """Euler steps in sigma (arXiv:2206.00364, algorithm 2 without churn)."""
    noise = draw()
    sigmas = _sigmas(process, grid, noise)
    x = noise * (sigmas[0] ** 2 + 1).sqrt()
    for step, sigma, following in zip(grid.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - _denoised(predict, x, process, step, sigma)) / sigma
        x = x + slope * (following - sigma)
    return x


def euler_a(predict: Predict, draw: Draw, process: Discrete, grid: Grid) -> Tensor:
    """Ancestral sampling (arXiv:2011.13456, eq. 47): an Euler step down to following^2 / sigma, then new noise up to following.

    Known as "Euler a" since k-diffusion wrote it as that.
    """
    noise = draw()
    sigmas = _sigmas(process, grid, noise)
    x = noise * (sigmas[0] ** 2 + 1).sqrt()
    for step, sigma, following in zip(grid.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - _denoised(predict, x, process, step, sigma)) / sigma
        x = x + slope * (following**2 / sigma - sigma) + following * (1 - (following / sigma) ** 2).sqrt() * draw()
    return x


def dpmpp_2m(predict: Predict, draw: Draw, process: Discrete, grid: Grid) -> Tensor:
    """DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), of first order in its first and last step.

    With sigma = s_t / a_t and x / a_t for the paper's x, its e^-h is following / sigma.
    """
    noise = draw()
    sigmas = _sigmas(process, grid, noise)
    logs = sigmas.log()
    x, earlier = noise * (sigmas[0] ** 2 + 1).sqrt(), None
    for i, step in enumerate(grid.timesteps):
        x0 = towards = _denoised(predict, x, process, step, sigmas[i])
        if earlier is not None and i + 1 < len(grid.timesteps):
            h_before, h = logs[i - 1] - logs[i], logs[i] - logs[i + 1]
            towards = x0 + h / (2 * h_before) * (x0 - earlier)
        ratio = sigmas[i + 1] / sigmas[i]
        x, earlier = ratio * x + (1 - ratio) * towards, x0
    return x


def flow_sigmas(process: Flow, steps: int, height: int, width: int) -> Tensor:
    """Where a solver of the flow stops, (steps + 1,) from 1 to 0: even steps, then shifted, as diffusers' pipelines have it.

    Where the last of them is given, it is shifted before the steps are laid out, and again with them.
    """
    least = process.least_sigma
    lowest = 1 / steps if least is None else float(process.shifted(torch.tensor(least, dtype=torch.float64), height, width))
    even = torch.linspace(1, lowest, steps, dtype=torch.float64)
    return torch.cat([process.shifted(even, height, width), torch.zeros(1, dtype=torch.float64)]).float()


def flow_euler(predict: Predict, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Euler steps along the velocity (arXiv:2209.03003, section 2.1)."""
    x = noise
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = x + (following - sigma) * predict(x, torch.full((len(x),), 1000 * sigma, device=x.device))
    return x


SOLVERS = {
    "ddim": (ddim, leading_grid),
    "euler": (euler, leading_grid),
    "euler_a": (euler_a, leading_grid),
    "dpmpp_2m": (dpmpp_2m, multistep_grid),
}


def solve(
    predict: Predict, draw: Draw, process: Discrete | Flow, scheduler: dict, steps: int, solver: str | None = None
) -> Tensor:
    """Latents (B, C, H, W) from noise by one of `SOLVERS`; DDIM when not given. A flow is solved by Euler steps."""
    if isinstance(process, Flow):
        noise = draw()
        return flow_euler(predict, noise, flow_sigmas(process, steps, *noise.shape[-2:]))
    function, grid = SOLVERS[solver or "ddim"]
    spaced = trailing_grid if process.has_zero_snr else grid
    return function(predict, draw, process, spaced(process, steps, scheduler))
