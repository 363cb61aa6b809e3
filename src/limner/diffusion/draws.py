"""The random draws of a training step: each is a function of (seed, step, position in the global batch) alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limner.randomness import mix


def generator(seed: int, purpose: str, *places: int) -> torch.Generator:
    """A CPU generator for one draw. CPU always: the same numbers come out whatever the device is."""
    return torch.Generator().manual_seed(mix(seed, purpose, *places))


def noise_like(x0: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Standard normal noise of x0's shape (B, C, H, W), one generator a sample."""
    parts = [torch.randn(x0.shape[1:], generator=generator(seed, "noise", step, p)) for p in positions]
    return torch.stack(parts).to(x0.device, x0.dtype, non_blocking=True)


def uniform_timesteps(num_timesteps: int, seed: int, step: int, positions: Sequence[int], device: torch.device) -> Tensor:
    """Timesteps (B,) drawn evenly from 0..num_timesteps-1."""
    drawn = [int(torch.randint(num_timesteps, (), generator=generator(seed, "timestep", step, p))) for p in positions]
    return torch.tensor(drawn).to(device, non_blocking=True)


def normals(seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Standard normal numbers (B,) on the CPU, from which continuous timesteps are made."""
    return torch.stack([torch.randn((), generator=generator(seed, "timestep", step, p)) for p in positions])


def posterior_sample(mean: Tensor, deviation: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """One draw from the VAE's posterior for each sample (arXiv:1312.6114, eq. 10), anew at every use."""
    parts = [torch.randn(mean.shape[1:], generator=generator(seed, "posterior", step, p)) for p in positions]
    return mean + deviation * torch.stack(parts).to(mean.device, mean.dtype, non_blocking=True)
