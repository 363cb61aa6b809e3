"""The optimiser, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from limner.config import Optimizer


def make_optimizer(section: Optimizer, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that a config section describes, over parameter groups that bring their own learning rates."""
    for group in groups:
        group["base_lr"] = group["lr"]
    return torch.optim.AdamW(
        groups,
        betas=(section.beta1, section.beta2),
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def schedule_factor(section: Optimizer, step: int, total: int) -> float:
    """The share of the learning rate at step `step` (from 0) of `total`.

    Warm-up rises linearly and reaches 1 at step `warmup_steps`; cosine is SGDR's (arXiv:1608.03983, eq. 5) without restart.
    """
    warmup = section.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    if section.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set each group's learning rate for the coming step; returns them by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors: `<index of the parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{k}": torch.as_tensor(v).detach().cpu() for i, values in state.items() for k, v in values.items()}


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take over what `state_tensors` gave; groups and their learning rates stay as configured."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor.clone()  # not a view of the file, which will be deleted
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Average:
    """Exponential moving average of parameters: e <- d e + (1 - d) p, with d = min(decay, (1 + n) / (10 + n)) after n steps."""

    def __init__(self, params: list[nn.Parameter], decay: float) -> None:
        self.params, self.decay = params, decay
        self.values = [p.detach().clone() for p in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.params], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the parameters; called twice, nothing has changed."""
        for value, p in zip(self.values, self.params, strict=True):
            kept = p.detach().clone()
            p.copy_(value)
            value.copy_(kept)
