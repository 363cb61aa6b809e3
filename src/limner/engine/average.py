"""The weights that are to be used, where they are not the ones that are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from limner.engine.shards import local


class Average:
    """Exponential moving average of parameters: e <- d e + (1 - d) p, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    In float32 whatever the parameters are in, beside them or on another device. Of weights that are shared out among processes
    each keeps its own part.
    """

    def __init__(self, params: list[nn.Parameter], decay: float, device: torch.device | None = None) -> None:
        self.params, self.decay = params, decay
        self.values = [local(p.detach()).to(device or p.device, torch.float32, copy=True) for p in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        if all(v.device == p.device and v.dtype == p.dtype for v, p in zip(self.values, self.params, strict=True)):
            torch._foreach_lerp_(self.values, [local(p.detach()) for p in self.params], 1 - decay)
            return
        for value, p in zip(self.values, self.params, strict=True):  # one at a time: no second copy of the whole
            value.lerp_(local(p.detach()).to(value), 1 - decay)


@contextlib.contextmanager
def evaluation_weights(optimizer: Any, params: list[nn.Parameter], average: Average | None) -> Iterator[None]:
    """Inside, the parameters are those to be used: the moving average's, or a schedule-free optimiser's own average
    (arXiv:2405.15682, eq. 4); afterwards those to be trained again, to the bit."""
    is_schedule_free = hasattr(optimizer, "eval")
    if average is None and not is_schedule_free:
        yield
        return
    # going there and back by arithmetic would not be exact, so what is trained is kept
    with torch.no_grad():
        places = [v.device for v in average.values] if average is not None else [p.device for p in params]
        kept = [local(p.detach()).to(place, copy=True) for p, place in zip(params, places, strict=True)]
        if average is not None:
            for p, value in zip(params, average.values, strict=True):
                local(p.detach()).copy_(value)
        else:
            optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            if is_schedule_free:
                optimizer.train()
            for p, value in zip(params, kept, strict=True):
                local(p.detach()).copy_(value)
