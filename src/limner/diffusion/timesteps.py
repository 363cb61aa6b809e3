"""At which timesteps a model is trained.

A number u in (0, 1) is drawn for each sample from a density of arXiv:2403.03206, section 3.1; 1 is nothing but noise. A
flow's is shifted (eq. 23). Then it is spread over the range to train: t = least + (most - least) u, rounded down where
timesteps are whole. So the density keeps its shape over a part of the timesteps (as sd-scripts has it for Stable Diffusion 3),
instead of being cut off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from limner.config.objective import Objective
from limner.diffusion.draws import generator, sent
from limner.diffusion.process import Discrete, Flow

Distribution = Literal["uniform", "logit_normal", "mode", "cosmap"]


@dataclass(frozen=True)
class Timesteps:
    """A distribution of the timesteps of a process."""

    process: Discrete | Flow
    """A flow with the shift to train with, which need not be the one to paint with."""
    distribution: Distribution
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    least: int = 0
    """In thousandths of the way from picture to noise, as `most`."""
    most: int = 1000

    def draw(self, x0: Tensor, seed: int, step: int, positions: Sequence[int]) -> Tensor:
        """Timesteps (B,) for latents x0 (B, C, H, W), on their device: whole numbers in [least, most), for a flow floats."""
        sources = [generator(seed, "timestep", step, p) for p in positions]
        if isinstance(self.process, Flow):
            sigma = self.process.shifted(torch.stack([self._u(s) for s in sources]), *x0.shape[-2:])
            return sent(self.least + (self.most - self.least) * sigma, x0.device)
        count = self.process.num_timesteps
        least, most = self.least * count // 1000, max(self.most * count // 1000, self.least * count // 1000 + 1)
        if self.distribution == "uniform":
            drawn = [int(torch.randint(least, most, (), generator=s)) for s in sources]
        else:
            drawn = [min(int(least + (most - least) * float(self._u(s))), most - 1) for s in sources]
        return sent(torch.tensor(drawn), x0.device)

    def _u(self, source: torch.Generator) -> Tensor:
        """One number of the density."""
        if self.distribution == "logit_normal":
            return torch.sigmoid(self.logit_mean + self.logit_std * torch.randn((), generator=source))
        u = 1 - torch.rand((), generator=source, dtype=torch.float64)  # in (0, 1]: a flow has no timestep 0
        if self.distribution == "mode":
            u = mode(1 - u, self.mode_scale)
        elif self.distribution == "cosmap":
            u = cosmap(u)
        return u.float()


def mode(u: Tensor, scale: float) -> Tensor:
    """Quantiles of the density with heavy tails (arXiv:2403.03206, eq. 20): decreasing in u, 1 at 0, 0 at 1."""
    return 1 - u - scale * ((math.pi / 2 * u).cos().square() - 1 + u)


def cosmap(u: Tensor) -> Tensor:
    """Quantiles of the density that the cosine schedule has in a flow (arXiv:2403.03206, eq. 21)."""
    return 1 - 1 / ((math.pi / 2 * u).tan() + 1)


def shift_of(timesteps: Timesteps) -> float | Literal["resolution"] | None:
    """How a flow's timesteps are shifted, in the words of `objective.shift`; None if it is no flow."""
    process = timesteps.process
    if not isinstance(process, Flow):
        return None
    return process.fixed_shift if process.log_shift is None else "resolution"


def timesteps_of(section: Objective, process: Discrete | Flow) -> Timesteps:
    """The distribution that a configuration asks for."""
    if isinstance(process, Flow) and section.shift is not None:
        resolution = section.shift == "resolution"
        process = process.with_resolution_shift() if resolution else process.with_shift(float(section.shift))
    least, most = section.least_timestep, section.most_timestep
    if section.timesteps is None:  # the shape belongs to a distribution that is asked for by name
        return Timesteps(process, "logit_normal" if isinstance(process, Flow) else "uniform", least=least, most=most)
    return Timesteps(process, section.timesteps, section.logit_mean, section.logit_std, section.mode_scale, least, most)
