"""Noise that is more than normal numbers side by side. Each draw is a function of (seed, step, position) alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from limner.config.objective import Objective
from limner.diffusion.draws import generator, noise_like, sent, strengths


def training_noise(x0: Tensor, section: Objective, seed: int, step: int, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(noise that the model shall find, noise that it is shown), each of x0's shape (B, C, H, W).

    Pyramid noise first, whose variance is then 1 again, and the offset on top of it, which so keeps its strength.
    """
    noise = noise_like(x0, seed, step, positions)
    if section.pyramid_levels:
        noise = pyramid(noise, section.pyramid_levels, section.pyramid_discount, seed, step, positions)
    if section.noise_offset or section.noise_offset_adaptive:
        strength = strengths(section.noise_offset, section.noise_offset_random, "offset strength", seed, step, positions)
        strength = offset_strength(x0, sent(strength, x0.device, x0.dtype), section.noise_offset_adaptive)
        noise = offset(noise, strength, seed, step, positions)
    if not section.input_perturbation:
        return noise, noise
    most, is_random = section.input_perturbation, section.input_perturbation_random
    gamma = strengths(most, is_random, "perturbation strength", seed, step, positions)
    return noise, perturbed(noise, sent(gamma, noise.device, noise.dtype), seed, step, positions)


def offset_strength(x0: Tensor, strength: Tensor, adaptive: float) -> Tensor:
    """How strong the offset of each channel is: (B,) -> (B, C, 1, 1). `adaptive` times the size of the channel's mean is added;
    never below 0 (sd-scripts' adaptive_noise_scale)."""
    means = x0.mean((2, 3), keepdim=True).abs()
    return (strength.view(-1, 1, 1, 1) + adaptive * means).clamp(min=0)


def offset(noise: Tensor, strength: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """The noise with one normal number for each sample and channel, times `strength`, added everywhere (noise offset,
    crosslabs.org/blog/diffusion-with-offset-noise)."""
    drawn = [torch.randn((noise.shape[1], 1, 1), generator=generator(seed, "offset", step, p)) for p in positions]
    return noise + strength * sent(torch.stack(drawn), noise.device, noise.dtype)


def pyramid(noise: Tensor, levels: int, discount: float, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """The noise with coarser layers of it added, and divided by its deviation (multi-resolution noise).

    Layer i = 1, 2, ... is discount^i times normal numbers of 1 / r^i of the size, r anew in [2, 4] for each, enlarged
    bilinearly; none follows one that is a single number wide or high. sd-scripts starts at i = 0, which adds a second
    full-size noise and so makes all others weaker by sqrt(2) than the discount says, and it divides by the deviation of the
    whole batch, so that what a sample gets depends on the others. Neither is done here.
    """
    height, width = noise.shape[-2:]
    layers = []
    for position in positions:
        source, total = generator(seed, "pyramid", step, position), torch.zeros(noise.shape[1:])
        for i in range(1, levels + 1):
            ratio = (2 + 2 * float(torch.rand((), generator=source))) ** i
            size = max(1, int(height / ratio)), max(1, int(width / ratio))
            coarse = torch.randn((1, noise.shape[1], *size), generator=source)
            total += discount**i * functional.interpolate(coarse, (height, width), mode="bilinear")[0]
            if 1 in size:
                break
        layers.append(total)
    noise = noise + sent(torch.stack(layers), noise.device, noise.dtype)
    return noise / noise.flatten(1).std(1).view(-1, 1, 1, 1)


def perturbed(noise: Tensor, gamma: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
    """noise + gamma xi with gamma (B,) and xi standard normal (arXiv:2301.11706): what the model is shown, while it is asked
    for the noise alone."""
    parts = [torch.randn(noise.shape[1:], generator=generator(seed, "perturbation", step, p)) for p in positions]
    return noise + gamma.view(-1, 1, 1, 1) * sent(torch.stack(parts), noise.device, noise.dtype)
