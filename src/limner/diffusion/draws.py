"""The random draws of a training step: each is a function of (seed, step, position in the global batch) alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limner.randomness import mix


def generator(seed: int, purpose: str, *places: int) -> torch.Generator:
    """A CPU generator for one draw. CPU always: the same numbers come out whatever the device is."""
    return torch.Generator().manual_seed(mix(seed, purpose, *places))


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU on a device, without waiting for the device: a copy to a GPU from memory that is not page-locked
    begins only when all that was ordered before it is done (CUDA Runtime API, API synchronization behavior)."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, dtype or tensor.dtype, non_blocking=True)


def noise_like(x0: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """Standard normal noise of x0's shape (B, C, H, W), one generator a sample."""
    parts = [torch.randn(x0.shape[1:], generator=generator(seed, "noise", step, p)) for p in positions]
    return sent(torch.stack(parts), x0.device, x0.dtype)


def strengths(most: float, is_random: bool, purpose: str, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """`most` for each sample, or a number drawn evenly from 0 to `most` for each; (B,) on the CPU."""
    if not is_random:
        return torch.full((len(positions),), most)
    return most * torch.stack([torch.rand((), generator=generator(seed, purpose, step, p)) for p in positions])


def posterior_sample(mean: Tensor, deviation: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """One draw from the VAE's posterior for each sample (arXiv:1312.6114, eq. 10), anew at every use."""
    parts = [torch.randn(mean.shape[1:], generator=generator(seed, "posterior", step, p)) for p in positions]
    return mean + deviation * sent(torch.stack(parts), mean.device, mean.dtype)
