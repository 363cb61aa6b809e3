"""Weights moved one at a time, each by an optimiser of its own: in the backward pass, or kept in bf16."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limner.randomness import mix


class OneByOne:
    """Looks like an optimiser, and gives the same numbers as one over all the groups to the bit.

    In bf16 a weight is float32 while it is moved and then rounded up or down at random, so that on average nothing is lost
    (arXiv:2010.06192, section 4); its state is float32. The draws are a function of (seed, step, number of the weight).
    """

    def __init__(
        self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], seed: int
    ) -> None:
        """`groups` as for `make`, which makes the optimiser of one weight."""
        self.seed = seed
        self.now = 0
        """The step, for the loop to set."""
        self.params: list[nn.Parameter] = []
        self._norms: list[Tensor] = []
        self.moved: list[nn.Parameter] = []
        """What the optimisers know: the weights, or stand-ins for those in bf16, which hold nothing between steps."""
        self.parts: list[torch.optim.Optimizer] = []
        for group in groups:
            for p in group["params"]:
                moved = nn.Parameter(p.new_empty(0, dtype=torch.float32)) if p.dtype == torch.bfloat16 else p
                self.params.append(p)
                self.moved.append(moved)
                self.parts.append(make([group | {"params": [moved]}]))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def move_in_backward(self) -> None:
        """From now on move each weight when its gradient is whole, and forget the gradient."""
        for i, p in enumerate(self.params):
            p.register_post_accumulate_grad_hook(functools.partial(self._in_backward, i))

    def _in_backward(self, number: int, p: Tensor) -> None:
        if p.grad is not None:
            self._norms.append(torch.linalg.vector_norm(p.grad, dtype=torch.float32))
        self._move(number)

    def take_norm(self) -> Tensor | None:
        """The norm of all gradients that were forgotten in the backward pass since it was last asked for; None of none."""
        norms, self._norms = self._norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else None

    def step(self) -> None:
        """Move every weight that still has a gradient."""
        for number in range(len(self.params)):
            self._move(number)

    def zero_grad(self, set_to_none: bool = True) -> None:
        assert set_to_none
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def _move(self, number: int) -> None:
        p, moved, part = self.params[number], self.moved[number], self.parts[number]
        if p.grad is None:
            return
        if moved is p:
            part.step()
        else:
            moved.data, moved.grad = p.float(), p.grad.float()
            part.step()
            p.copy_(rounded_at_random(moved.data, mix(self.seed, "rounding", self.now, number)))
            moved.data, moved.grad = moved.new_empty(0), None
        p.grad = None


def rounded_at_random(x: Tensor, seed: int) -> Tensor:
    """float32 to bfloat16, to one of the two neighbours with a chance that makes the expectation x (arXiv:2010.06192, eq. 1).

    bfloat16 is the upper half of a float32: to add random bits to the lower half and cut it off does just that. The bits
    are drawn where x is; a draw on the CPU would take longer than the step.
    """
    rng = torch.Generator(x.device).manual_seed(seed)
    bits = torch.randint(1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=rng)
    up = (x.view(torch.int32) + bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(x), up, x).to(torch.bfloat16)
